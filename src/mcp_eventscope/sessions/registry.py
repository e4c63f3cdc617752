"""The sessions of this worker as other workers know them; a session that is being served never waits for it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from math import inf

import anyio

from mcp_eventscope.errors import StoreError
from mcp_eventscope.store.coordination import Coordinator, NewRecord, Notice, SessionRecord

UNREAD = "unread"
"""The state of a record that Redis could not be asked for. A client that receives 404 would give its session up."""

_RENEWED_PART, _RENEWED_SECONDS = 0.1, 1.0
"""How long a record counts as renewed: a part of its time to live, and at most so many seconds. A session that was
ended on another worker ends here within this time, even if the notice is lost."""


class SessionRegistry:
    """The records of sessions in Redis, and the messages between the workers that serve them.

    Args:
        coordinator: This worker, among the others.
        ttl: Seconds that a record is kept after the last request of its session.
    """

    shared = True
    """Whether another worker may serve a session of this one."""

    def __init__(self, coordinator: Coordinator, ttl: int) -> None:
        self._coordinator = coordinator
        self.ttl = ttl
        self.handshakes: dict[str, str] = {}
        """By session, the parameters with which another worker can serve it."""
        self._ended: set[str] = set()
        self._renewed: dict[str, float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def hold_lease(
        self, lease: float, on_message: Callable[[Notice], None], republish: Callable[[], Awaitable[None]]
    ) -> AbstractAsyncContextManager[None]:
        """Hold this worker's lease until the block ends; see `Coordinator.hold_lease`."""
        return self._coordinator.hold_lease(lease, on_message, republish)

    async def add(self, session_id: str, *, owner: str, handshake: str) -> None:
        """Record a session, and keep its handshake in memory in case Redis loses it.

        It waits for a slow Redis, since other workers answer 404 until the record is written. While Redis is
        unreachable it does not wait; the record is written once Redis has recovered.
        """
        self.handshakes[session_id] = handshake
        writing = asyncio.create_task(self._write(session_id, owner, handshake), name="eventscope-record")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await self._coordinator.wait_for_record(writing)

    async def _write(self, session_id: str, owner: str, handshake: str) -> None:
        record = NewRecord(session_id, owner, handshake)
        try:
            await self._coordinator.record(record, ttl=self.ttl)
        except StoreError:
            self._coordinator.republish()

    async def republish(self, owners: Mapping[str, str]) -> None:
        """Write the records again, since Redis may have lost them, and end the sessions that could not be ended before.

        Args:
            owners: By session, its owner; the ones to be written first in front.

        Raises:
            StoreError: Redis did not take all of them.
        """
        for session_id in tuple(self._ended):
            await self.end(session_id)
        records = [
            NewRecord(session_id, owner, self.handshakes[session_id])
            for session_id, owner in owners.items()
            if session_id in self.handshakes
        ]
        await self._coordinator.record_all(records, ttl=self.ttl)

    def remember(self, session_id: str, handshake: str) -> None:
        """Keep the handshake of a session that another worker recorded, in case Redis loses it."""
        self.handshakes[session_id] = handshake

    def handshake(self, session_id: str) -> str | None:
        """The handshake of a session; None when it is not known here."""
        return self.handshakes.get(session_id)

    def due(self, session_id: str) -> bool:
        """Whether to renew the record now. The caller then does."""
        now = anyio.current_time()
        if now - self._renewed.get(session_id, -inf) < min(self.ttl * _RENEWED_PART, _RENEWED_SECONDS):
            return False
        self._renewed[session_id] = now
        return True

    async def renew(self, session_id: str, *, owner: str) -> SessionRecord:
        """Renew the record of a session for its owner, and read it; `UNREAD` when Redis gives no answer."""
        with self._coordinator.best_effort():
            record = await self._coordinator.touch(session_id, owner=owner, ttl=self.ttl)
            if record.state != "absent" or session_id in self.handshakes or not self._coordinator.uncertain:
                return record
        return SessionRecord(UNREAD)

    @property
    def late(self) -> bool:
        """Whether an absent record may be about to be written, after an outage that this worker did not see."""
        return self._coordinator.young

    async def end(self, session_id: str) -> None:
        """End a session on all workers; while Redis is unreachable, once it has recovered (`republish`)."""
        self._ended.add(session_id)
        with self._coordinator.best_effort():
            await self._coordinator.end(session_id, ttl=self.ttl)
            self._ended.discard(session_id)

    @property
    def now(self) -> int:
        """Microseconds since 1970, by a clock that workers share."""
        return self._coordinator.now

    async def publish(self, **notice: object) -> None:
        """Send a message to the other workers; it is lost while Redis is unreachable."""
        with self._coordinator.best_effort():
            await self._coordinator.publish(**notice)

    def remove(self, session_id: str) -> None:
        """Keep nothing of a session that is no longer served here."""
        self.handshakes.pop(session_id, None)
        self._renewed.pop(session_id, None)


class LocalRegistry:
    """The registry of a store without a coordinator: no other worker can serve a session of this one."""

    shared = False
    late = False
    now = 0
    ttl = 0

    def hold_lease(self, *_: object) -> AbstractAsyncContextManager[None]:
        """Hold no lease."""
        return nullcontext()

    async def add(self, session_id: str, *, owner: str, handshake: str) -> None:
        """Record nothing."""

    async def republish(self, owners: Mapping[str, str]) -> None:
        """Write nothing."""

    def remember(self, session_id: str, handshake: str) -> None:
        """Keep nothing."""

    def handshake(self, session_id: str) -> None:
        """Know none."""

    def due(self, session_id: str) -> bool:
        """Never renew."""
        del session_id
        return False

    async def renew(self, session_id: str, *, owner: str) -> SessionRecord:
        """Read nothing."""
        del session_id, owner
        return SessionRecord(UNREAD)

    async def end(self, session_id: str) -> None:
        """End the session nowhere else."""

    async def publish(self, **notice: object) -> None:
        """Send nothing."""

    def remove(self, session_id: str) -> None:
        """Keep nothing."""
