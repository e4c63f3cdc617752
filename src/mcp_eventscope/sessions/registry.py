"""The records of this worker's sessions, which other workers read."""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from math import inf

import anyio
import pydantic_core

from mcp_eventscope.errors import StoreError
from mcp_eventscope.store.coordination import (
    Coordinator,
    MessageKind,
    NewRecord,
    SessionRecord,
    WorkerMessage,
    session_digest,
)

UNREAD = "unread"
"""The state of a record that could not be read. The answer must not be 404, which makes a client drop its session."""

_RENEWED_PART, _RENEWED_SECONDS = 0.1, 1.0
"""How long a record counts as renewed: a fraction of its TTL, and at most this many seconds. A session that another
worker has ended ends here within this time, even if the message is lost."""


_LEARNED_BYTES = 16 * 1024 * 1024
"""Maximum size of the records of other workers' sessions that are kept for an outage."""
_LEARNED_OVERHEAD = 300
"""Bytes that such a record takes beside its text."""


class SessionRegistry:
    """The records of sessions in Redis, and the messages between the workers that serve them.

    A session that is served here never waits for its record.

    Args:
        coordinator: The connection to the other workers.
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
        self._served: dict[str, str] = {}
        """The sessions that are served here, by digest."""
        self._learned: OrderedDict[str, SessionRecord] = OrderedDict()
        """The records of other workers' sessions, by digest, in the order of their announcement."""
        self._learned_bytes = 0
        self._writing: set[asyncio.Task[None]] = set()

    def hold_lease(
        self, lease: float, on_message: Callable[[WorkerMessage], None], republish: Callable[[], Awaitable[None]]
    ) -> AbstractAsyncContextManager[None]:
        """Hold this worker's lease until the block ends; see `Coordinator.hold_lease`."""

        def received(message: WorkerMessage) -> None:
            if message.kind is MessageKind.BEGAN:
                self._learn(message)
            elif message.kind is MessageKind.ENDED:
                self._forget(message.session)
            on_message(message)

        return self._coordinator.hold_lease(lease, received, republish)

    def _learn(self, message: WorkerMessage) -> None:
        """Keep the record of a session that began on another worker."""
        try:
            owner, handshake = pydantic_core.from_json(message.content)
        except (ValueError, TypeError):
            return
        if not isinstance(owner, str) or not isinstance(handshake, str):
            return
        self._forget(message.session)
        # Clients of one kind have the same handshake, so equal ones are kept once.
        self._learned[message.session] = SessionRecord("live", sys.intern(handshake), owner)
        self._learned_bytes += len(handshake) + _LEARNED_OVERHEAD
        while self._learned_bytes > _LEARNED_BYTES:
            self._forget(next(iter(self._learned)))

    def _forget(self, digest: str) -> None:
        if (record := self._learned.pop(digest, None)) is not None:
            self._learned_bytes -= len(record.handshake) + _LEARNED_OVERHEAD

    def learned(self, session_id: str, *, owner: str) -> SessionRecord | None:
        """The record that another worker announced; None if there was none.

        Args:
            session_id: The session.
            owner: The digest of the caller's principal.
        """
        record = self._learned.get(session_digest(session_id))
        return record if record is None or record.owner == owner else SessionRecord("other")

    def session_of(self, digest: str) -> str | None:
        """The session of a message, if it is served here."""
        return self._served.get(digest)

    async def add(self, session_id: str, *, owner: str, handshake: str) -> None:
        """Record a session, and keep its handshake in memory in case Redis loses it.

        Waits for a slow Redis, because other workers answer 404 until the record is written. While Redis is unreachable
        it does not wait; the record is written once Redis has recovered.
        """
        self.remember(session_id, handshake)
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
        """Write the records again, and retry ends of sessions that have failed.

        Args:
            owners: The owners by session, in the order of writing.

        Raises:
            StoreError: A write failed.
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
        """Keep the handshake of a session that is served here, in case Redis loses it."""
        self.handshakes[session_id] = handshake
        self._served[session_digest(session_id)] = session_id

    def handshake(self, session_id: str) -> str | None:
        """The handshake of a session; None if it is unknown here."""
        return self.handshakes.get(session_id)

    def due(self, session_id: str) -> bool:
        """Whether to renew the record now. The caller then renews it."""
        now = anyio.current_time()
        if now - self._renewed.get(session_id, -inf) < min(self.ttl * _RENEWED_PART, _RENEWED_SECONDS):
            return False
        self._renewed[session_id] = now
        return True

    async def renew(self, session_id: str, *, owner: str) -> SessionRecord:
        """Renew and read a session's record on behalf of its owner; `UNREAD` if Redis does not answer."""
        if session_id in self._ended:  # Redis may not know yet.
            return SessionRecord("ended")
        with self._coordinator.best_effort():
            record = await self._coordinator.touch(session_id, owner=owner, ttl=self.ttl)
            if record.state != "absent" or session_id in self.handshakes or not self._coordinator.uncertain:
                return record
        return SessionRecord(UNREAD)

    @property
    def late(self) -> bool:
        """Whether an absent record may be written soon, after an outage before this worker started."""
        return self._coordinator.young

    async def end(self, session_id: str) -> None:
        """End a session on all workers. While Redis is unreachable, `republish` does so later."""
        self._ended.add(session_id)
        with self._coordinator.best_effort():
            await self._coordinator.end(session_id, ttl=self.ttl)
            self._ended.discard(session_id)

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Send a message in the background to the other workers that serve a session; see `Coordinator.send`."""
        self._coordinator.send(session_id, kind, content, to=to)

    def remove(self, session_id: str) -> None:
        """Remove the state of a session that is no longer served here."""
        self.handshakes.pop(session_id, None)
        self._served.pop(session_digest(session_id), None)
        self._renewed.pop(session_id, None)


class LocalRegistry:
    """The null registry of a store without a coordinator: sessions stay on their worker."""

    shared = False
    late = False
    ttl = 0

    def hold_lease(self, *_: object) -> AbstractAsyncContextManager[None]:
        """Do nothing."""
        return nullcontext()

    async def add(self, session_id: str, *, owner: str, handshake: str) -> None:
        """Do nothing."""

    async def republish(self, owners: Mapping[str, str]) -> None:
        """Do nothing."""

    def remember(self, session_id: str, handshake: str) -> None:
        """Do nothing."""

    def handshake(self, session_id: str) -> None:
        """None: there are no handshakes."""

    def due(self, session_id: str) -> bool:
        """False: there are no records."""
        del session_id
        return False

    async def renew(self, session_id: str, *, owner: str) -> SessionRecord:
        """Return `UNREAD`."""
        del session_id, owner
        return SessionRecord(UNREAD)

    async def end(self, session_id: str) -> None:
        """Do nothing."""

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Do nothing: there are no other workers."""

    def learned(self, session_id: str, *, owner: str) -> None:
        """None: sessions stay on their worker."""

    def session_of(self, digest: str) -> None:
        """None: there are no messages."""

    def remove(self, session_id: str) -> None:
        """Do nothing."""
