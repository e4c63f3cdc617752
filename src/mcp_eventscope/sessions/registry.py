"""What other workers know of the sessions here, and are told: never at the cost of a session that is being served."""

import asyncio
from collections.abc import Mapping
from math import inf

import anyio

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.workers import NewRecord, SessionRecord, Workers

UNREAD = "unread"
"""The state of a record that Redis could not be asked for. A client that is told 404 would give its session up."""


_RENEWED_PART, _RENEWED_SECONDS = 0.1, 1.0
"""How long a record counts as renewed, as a part of its time to live, and in seconds at most: a session that was ended
elsewhere is found to be so in this time, should the notice be lost."""


class SessionRegistry:
    """The records of sessions in Redis, as far as this worker has them.

    Args:
        workers: This worker, among the others.
        ttl: Seconds that a record is kept after the last request of its session.
    """

    def __init__(self, workers: Workers, ttl: int) -> None:
        self._workers = workers
        self.ttl = ttl
        self.handshakes: dict[str, str] = {}
        """By session: what another worker needs to serve it."""
        self._ended: set[str] = set()
        self._renewed: dict[str, float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def make(self, session_id: str, *, owner: str, handshake: str) -> None:
        """Record a session, and remember how, for when Redis has lost it.

        It waits for a slow Redis: until the record is there, other workers answer 404. While Redis is unreachable it
        does not wait; the record is written once Redis has recovered.
        """
        self.handshakes[session_id] = handshake
        writing = asyncio.create_task(self._write(session_id, owner, handshake), name="eventscope-record")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await self._workers.wait_for_record(writing)

    async def _write(self, session_id: str, owner: str, handshake: str) -> None:
        record = NewRecord(session_id, owner, handshake)
        try:
            await self._workers.record(record, ttl=self.ttl)
        except StoreError:
            self._workers.republish()

    async def make_all(self, owners: Mapping[str, str]) -> None:
        """Record sessions again, since Redis may have lost them.

        Args:
            owners: By session, its owner.

        Raises:
            StoreError: Redis did not take all of them.
        """
        records = [
            NewRecord(session_id, owner, self.handshakes[session_id])
            for session_id, owner in owners.items()
            if session_id in self.handshakes
        ]
        await self._workers.record_all(records, ttl=self.ttl)

    def due(self, session_id: str) -> bool:
        """Whether the record is to be renewed, now; the caller does it."""
        now = anyio.current_time()
        if now - self._renewed.get(session_id, -inf) < min(self.ttl * _RENEWED_PART, _RENEWED_SECONDS):
            return False
        self._renewed[session_id] = now
        return True

    async def renew(self, session_id: str, *, owner: str) -> SessionRecord:
        """Renew the record of a session, for its owner, and read it; `UNREAD` when Redis does not say."""
        with self._workers.best_effort():
            record = await self._workers.touch(session_id, owner=owner, ttl=self.ttl)
            if record.state != "absent" or session_id in self.handshakes or not self._workers.uncertain:
                return record
        return SessionRecord(UNREAD)

    @property
    def late(self) -> bool:
        """Whether a record that is absent may be about to be written, after an outage that this worker did not see."""
        return self._workers.young

    async def end(self, session_id: str) -> None:
        """End a session for all workers; when Redis is away, once it is back (`republish`)."""
        self._ended.add(session_id)
        with self._workers.best_effort():
            await self._workers.end(session_id, ttl=self.ttl)
            self._ended.discard(session_id)

    async def republish(self) -> None:
        """End the sessions that could not be ended before."""
        for session_id in tuple(self._ended):
            await self.end(session_id)

    @property
    def now(self) -> int:
        """Microseconds since 1970, by a clock that workers share."""
        return self._workers.clock.now()

    async def publish(self, **notice: object) -> None:
        """Tell the other workers."""
        with self._workers.best_effort():
            await self._workers.publish(**notice)

    def forget(self, session_id: str) -> None:
        """The session is no longer here."""
        self.handshakes.pop(session_id, None)
        self._renewed.pop(session_id, None)
