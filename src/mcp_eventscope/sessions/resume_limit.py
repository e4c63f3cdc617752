"""Bound the concurrent replays of each principal, so that clients that resume in a loop do not delay others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Self

from mcp_eventscope.store.messages import EventCallback, EventMessage

MAX_REPLAYS = 8
"""Maximum concurrent replays of one principal on a worker. Further ones wait in line."""
MAX_WAITING = 1000
"""Maximum resumes of one session that wait on a worker. Further ones are refused.

Not of one principal: all sessions behind a gateway may share a credential, and resume together when it restarts. A
resume that waits costs as much memory as one that is followed later, so the number of sessions bounds both.
"""
SLICE_SECONDS = 0.1
"""Seconds after which a replay gives up its slot if it has sent nothing meanwhile, or if others wait for a slot."""


class ResumeLimiter:
    """The resumes of all principals on this worker.

    A replay holds one of its principal's slots only while it makes progress, and takes turns with those that wait: a
    client that reads slowly does not block the other clients of a shared credential.

    Args:
        waited: Called once per resume with the seconds for which it waited for its first slot, also if it has ended
            before it got one. It does not raise.
    """

    def __init__(self, waited: Callable[[float], None]) -> None:
        self._waited = waited
        self._principals: dict[str, _Principal] = {}
        self._waiting: Counter[str] = Counter()
        """The resumes that have not had their turn, by session."""

    def __len__(self) -> int:
        return len(self._principals)

    def admit(self, principal: str, session_id: str) -> "ResumeTurn | None":
        """Admit a resume, unless too many of its session are waiting.

        Args:
            principal: The authenticated user, or else the session.
            session_id: The session.

        Returns:
            A context for the whole resume; None: the resume must be refused.
        """
        if self._waiting[session_id] >= MAX_WAITING:
            return None
        found = self._principals.get(principal)
        if found is None:
            found = self._principals[principal] = _Principal()
        return ResumeTurn(self, principal, found, session_id)

    def _wait(self, session_id: str, resumes: int) -> None:
        self._waiting[session_id] += resumes
        if not self._waiting[session_id]:
            del self._waiting[session_id]

    def _leave(self, name: str, principal: "_Principal") -> None:
        principal.resumes -= 1
        if not principal.resumes:
            del self._principals[name]


class _Principal:
    """The resumes of one principal."""

    __slots__ = ("resumes", "slots")

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(MAX_REPLAYS)
        self.resumes = 0


class ResumeTurn:
    """One admitted resume, which waits for a slot before it replays.

    Args:
        limiter: The limiter.
        name: The principal.
        principal: Its resumes.
        session_id: Its session.
    """

    def __init__(self, limiter: ResumeLimiter, name: str, principal: _Principal, session_id: str) -> None:
        self._limiter = limiter
        self._name = name
        self._principal = principal
        self._session_id = session_id
        self._waits = True
        """Whether it counts as waiting: until its first slot."""
        self._reported = False
        self._holds = False
        self._progressed = False
        self._timer: asyncio.TimerHandle | None = None
        principal.resumes += 1
        limiter._wait(session_id, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.step_aside()
        self._limiter._leave(self._name, self._principal)

    def step_aside(self) -> None:
        """No longer count as waiting: the resume has had its turn, or waits for Redis."""
        if self._waits:
            self._waits = False
            self._limiter._wait(self._session_id, -1)

    def _report(self, waited: float) -> None:
        """Report the first wait for a slot; later ones are pauses of the replay."""
        if not self._reported:
            self._reported = True
            self._limiter._waited(waited)

    @asynccontextmanager
    async def replaying(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it until the block ends."""
        await self._acquire()
        try:
            yield
        finally:
            self._release()

    def paced(self, send: EventCallback) -> EventCallback:
        """Return a callback for the events of a replay, which regains a slot that was given up meanwhile.

        Args:
            send: Sends an event to the client.
        """

        async def send_in_turn(event: EventMessage) -> None:
            await send(event)
            self._progressed = True
            if not self._holds:
                await self._acquire()

        return send_in_turn

    async def _acquire(self) -> None:
        began = monotonic()
        try:
            await self._principal.slots.acquire()
        finally:
            self._report(monotonic() - began)
        self.step_aside()
        self._holds = True
        self._check_later()

    def _check_later(self) -> None:
        self._progressed = False
        self._timer = asyncio.get_running_loop().call_later(SLICE_SECONDS, self._check)

    def _check(self) -> None:
        if self._progressed and not self._principal.slots.locked():
            self._check_later()
        else:
            self._release()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._holds:
            self._holds = False
            self._principal.slots.release()
