"""What other workers know of the sessions here, and are told: never at the cost of a session that is being served."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.workers import SessionRecord, Workers

REDIS_PATIENCE = 0.25
"""Seconds that a request waits for Redis to say something of its session, before it is served all the same."""
UNREAD = "unread"
"""The state of a record that Redis could not be asked for. A client that is told 404 would give its session up."""


@contextmanager
def unhurt() -> Iterator[None]:
    """Let nobody wait for Redis, or be hurt by it: a session goes on here, whatever the others know."""
    with anyio.move_on_after(REDIS_PATIENCE), contextlib.suppress(StoreError):
        yield


class Records:
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

    async def make(self, session_id: str, *, owner: str, handshake: str) -> None:
        """Record a session, and remember how, for when Redis has lost it."""
        self.handshakes[session_id] = handshake
        with unhurt():
            await self._workers.record(session_id, owner=owner, handshake=handshake, ttl=self.ttl)

    async def renew(self, session_id: str, *, owner: str) -> SessionRecord:
        """Renew the record of a session, for its owner, and read it; `UNREAD` when Redis does not say."""
        with unhurt():
            return await self._workers.touch(session_id, owner=owner, ttl=self.ttl)
        return SessionRecord(UNREAD)

    async def end(self, session_id: str) -> None:
        """End a session for all workers."""
        with unhurt():
            await self._workers.end(session_id, ttl=self.ttl)

    async def tell(self, **notice: object) -> None:
        """Tell the other workers."""
        with unhurt():
            await self._workers.tell(**notice)

    def forget(self, session_id: str) -> None:
        """The session is no longer here."""
        self.handshakes.pop(session_id, None)
