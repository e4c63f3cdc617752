"""Bound the concurrent replays of each principal, so that clients that resume in a loop do not delay others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from mcp_eventscope.store.messages import EventCallback, EventMessage

MAX_REPLAYS = 8
"""Maximum concurrent replays of one principal on a worker. Further ones wait in line."""
MAX_WAITING = 1000
"""Maximum resumes of one principal that wait on a worker. Further ones are refused."""
SLICE_SECONDS = 0.1
"""Seconds after which a replay gives up its slot if it has sent nothing meanwhile, or if others wait for a slot."""


class ResumeLimiter:
    """The resumes of all principals on this worker.

    A replay holds one of its principal's slots only while it makes progress, and takes turns with those that wait: a
    client that reads slowly does not block the other clients of a shared credential.
    """

    def __init__(self) -> None:
        self._principals: dict[str, _Principal] = {}

    def __len__(self) -> int:
        return len(self._principals)

    def admit(self, principal: str) -> "ResumeTurn | None":
        """Admit a resume, unless too many of its principal are waiting.

        Args:
            principal: The authenticated user, or else the session.

        Returns:
            A context for the whole resume; None: the resume must be refused.
        """
        found = self._principals.get(principal)
        if found is None:
            found = self._principals[principal] = _Principal()
        elif found.waiting >= MAX_WAITING:
            return None
        return ResumeTurn(self, principal, found)

    def _leave(self, name: str, principal: "_Principal") -> None:
        principal.resumes -= 1
        if not principal.resumes:
            del self._principals[name]


class _Principal:
    """The resumes of one principal."""

    __slots__ = ("resumes", "slots", "waiting")

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(MAX_REPLAYS)
        self.resumes = 0
        self.waiting = 0


class ResumeTurn:
    """One admitted resume, which waits for a slot before it replays.

    Args:
        limiter: The limiter.
        name: The principal.
        principal: Its resumes.
    """

    def __init__(self, limiter: ResumeLimiter, name: str, principal: _Principal) -> None:
        self._limiter = limiter
        self._name = name
        self._principal = principal
        self._waits = True
        """Whether it counts as waiting: until its first slot."""
        self._holds = False
        self._progressed = False
        self._timer: asyncio.TimerHandle | None = None
        principal.resumes += 1
        principal.waiting += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.step_aside()
        self._limiter._leave(self._name, self._principal)

    def step_aside(self) -> None:
        """No longer count as waiting: the resume has had its turn, or waits for Redis."""
        if self._waits:
            self._waits = False
            self._principal.waiting -= 1

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
        await self._principal.slots.acquire()
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
