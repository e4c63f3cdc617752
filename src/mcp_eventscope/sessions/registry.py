"""The records of this worker's sessions, which other workers read."""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from math import inf
from types import MappingProxyType

import anyio
import pydantic_core

from mcp_eventscope.errors import StoreError
from mcp_eventscope.store.coordination import (
    RECORD_SECONDS,
    Coordinator,
    MessageKind,
    NewRecord,
    SessionRecord,
    WorkerMessage,
    session_digest,
)
from mcp_eventscope.store.events import DropReason

UNREAD = "unread"
"""The state of a record that could not be read. The answer must not be 404, which makes a client drop its session."""

_RENEWED_PART, _RENEWED_SECONDS = 0.1, 1.0
"""How long a record counts as renewed: a fraction of its TTL, and at most this many seconds. A session that another
worker has ended ends here within this time, even if the message is lost."""
_RETRY_SECONDS = 0.05
"""Seconds until a record is written again that a slow Redis has not acknowledged."""
_RENEWED_AT_ONCE = 256
"""Maximum number of records that are renewed within one time limit."""


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
        event_ttl: Seconds that events are kept; None: no expiry, or unknown. The end of a session is remembered for at
            least as long, in case another worker was suspended with events of it.
    """

    shared = True
    """Whether another worker may serve a session of this one."""

    def __init__(self, coordinator: Coordinator, ttl: int, event_ttl: int | None = None) -> None:
        self._coordinator = coordinator
        self.ttl = ttl
        self._end_ttl = max(ttl, event_ttl or 0)
        self.records: dict[str, NewRecord] = {}
        """The records of the sessions that are served here, in case Redis loses them."""
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
            owner, server, handshake = pydantic_core.from_json(message.content)
        except (ValueError, TypeError):
            return
        if not all(isinstance(text, str) for text in (owner, server, handshake)):
            return
        self._forget(message.session)
        # Clients of one kind have the same handshake, so equal ones are kept once.
        self._learned[message.session] = SessionRecord("live", sys.intern(handshake), owner, sys.intern(server))
        self._learned_bytes += len(handshake) + _LEARNED_OVERHEAD
        while self._learned_bytes > _LEARNED_BYTES:
            self._forget(next(iter(self._learned)))

    def _forget(self, digest: str) -> None:
        if (record := self._learned.pop(digest, None)) is not None:
            self._learned_bytes -= len(record.handshake) + _LEARNED_OVERHEAD

    def learned(self, session_id: str, *, owner: str, server: str) -> SessionRecord | None:
        """The record that another worker announced; None if there was none, or for another principal or server.

        Args:
            session_id: The session.
            owner: The digest of the caller's principal.
            server: The caller's server, as in `NewRecord`.
        """
        record = self._learned.get(session_digest(session_id))
        return record if record is not None and (record.owner, record.server) == (owner, server) else None

    def session_of(self, digest: str) -> str | None:
        """The session of a message, if it is served here."""
        return self._served.get(digest)

    async def add(self, record: NewRecord) -> None:
        """Record a session, and keep its record in memory in case Redis loses it.

        Waits for a slow Redis, because other workers answer 404 until the record is written. While Redis is unreachable
        it does not wait; the record is written once Redis has recovered.
        """
        self.remember(record)
        self._renewed[record.session_id] = anyio.current_time()  # Else its first request would renew it now.
        writing = asyncio.create_task(self._write(record), name="eventscope-record")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await self._coordinator.wait_for_record(writing)

    async def _write(self, record: NewRecord) -> None:
        """Write a record; keep trying while Redis is slow and the client waits for its session."""
        until = anyio.current_time() + RECORD_SECONDS
        while True:
            try:
                await self._coordinator.record(record, ttl=self.ttl)
            except StoreError:
                if not self._coordinator.slow or anyio.current_time() >= until:
                    self._coordinator.republish()
                    return
                await anyio.sleep(_RETRY_SECONDS)
            else:
                return

    async def republish(self, session_ids: Sequence[str]) -> list[str]:
        """Write the records again, and retry ends of sessions that have failed.

        Args:
            session_ids: The sessions that are served here, in the order of writing.

        Returns:
            The sessions that were ended on another worker meanwhile.

        Raises:
            StoreError: A write failed.
        """
        for session_id in tuple(self._ended):
            await self._end(session_id)
        records = [self.records[session_id] for session_id in session_ids if session_id in self.records]
        states = await self._coordinator.record_all(records, ttl=self.ttl)
        return _ended(records, states)

    def remember(self, record: NewRecord) -> None:
        """Keep the record of a session that is served here, in case Redis loses it."""
        self.records[record.session_id] = record
        self._served[session_digest(record.session_id)] = record.session_id

    def due(self, session_id: str) -> bool:
        """Whether to renew the record now. The caller then renews it."""
        now = anyio.current_time()
        if now - self._renewed.get(session_id, -inf) < min(self.ttl * _RENEWED_PART, _RENEWED_SECONDS):
            return False
        self._renewed[session_id] = now
        return True

    async def read(self, session_id: str, *, owner: str, server: str) -> SessionRecord:
        """Renew and read the record of a session that is not served here; `UNREAD` if Redis does not answer.

        Args:
            session_id: The session.
            owner: The digest of the caller's principal; "" without one.
            server: The caller's server, as in `NewRecord`.
        """
        if session_id in self._ended:  # Redis may not know yet.
            return SessionRecord("ended")
        with self._coordinator.best_effort():
            record = await self._coordinator.read(session_id, owner=owner, server=server, ttl=self.ttl)
            if record.state != "lost" and (record.state != "absent" or not self._coordinator.uncertain):
                return record
        return SessionRecord(UNREAD)

    async def renew(self, session_ids: Sequence[str]) -> list[str]:
        """Renew the records of sessions that are served here, and write those that Redis has lost.

        Stops when Redis does not answer; `republish` writes the records when it has recovered.

        Returns:
            The sessions that were ended on another worker.
        """
        ended: list[str] = []
        records = [self.records[session_id] for session_id in session_ids if session_id in self.records]
        for start in range(0, len(records), _RENEWED_AT_ONCE):
            some = records[start : start + _RENEWED_AT_ONCE]
            states: list[str] = []
            with self._coordinator.best_effort():
                states = await self._coordinator.touch(some, ttl=self.ttl)
            if not states:
                break
            ended += _ended(some, states)
            lost = [record for record, state in zip(some, states, strict=True) if state == "absent"]
            if lost:
                with self._coordinator.best_effort():
                    ended += _ended(lost, await self._coordinator.record_all(lost, ttl=self.ttl))
        return ended

    async def claim(self, server: str, ttl: int) -> str:
        """Name the server that uses the store, unless another one does.

        Args:
            server: The name of the server.
            ttl: Seconds until the name expires.

        Returns:
            The server that uses the store; `server` if Redis does not answer.
        """
        with suppress(StoreError):  # No caller waits for it, so a slow answer is no failure.
            return await self._coordinator.claim(server, ttl=ttl)
        return server

    @property
    def late(self) -> bool:
        """Whether an absent record may be written soon, after an outage before this worker started."""
        return self._coordinator.started_recently

    async def end(self, session_id: str) -> None:
        """End a session on all workers, and delete its keys. Until that has succeeded, `republish` repeats it."""
        self._ended.add(session_id)
        try:
            await self._end(session_id)
        finally:  # Also if this request is cancelled.
            if session_id in self._ended:
                self._coordinator.republish()

    async def _end(self, session_id: str) -> None:
        with self._coordinator.best_effort():
            await self._coordinator.end(session_id, ttl=self._end_ttl)
            self._ended.discard(session_id)

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Send a message in the background to the other workers that serve a session; see `Coordinator.send`."""
        self._coordinator.send(session_id, kind, content, to=to)

    def drop(self, reason: DropReason) -> None:
        """Count a message that is dropped instead of sent; see `Coordinator.drop`."""
        self._coordinator.drop(reason)

    def remove(self, session_id: str) -> None:
        """Remove the state of a session that is no longer served here."""
        self.records.pop(session_id, None)
        self._served.pop(session_digest(session_id), None)
        self._renewed.pop(session_id, None)


def _ended(records: Sequence[NewRecord], states: Sequence[str]) -> list[str]:
    return [record.session_id for record, state in zip(records, states, strict=True) if state == "ended"]


class LocalRegistry:
    """The null registry of a store without a coordinator: sessions stay on their worker."""

    shared = False
    late = False
    ttl = 0
    records: Mapping[str, NewRecord] = MappingProxyType({})

    def hold_lease(self, *_: object) -> AbstractAsyncContextManager[None]:
        """Do nothing."""
        return nullcontext()

    async def add(self, record: NewRecord) -> None:
        """Do nothing."""

    async def republish(self, session_ids: Sequence[str]) -> list[str]:
        """Return no sessions."""
        del session_ids
        return []

    def remember(self, record: NewRecord) -> None:
        """Do nothing."""

    def due(self, session_id: str) -> bool:
        """False: there are no records."""
        del session_id
        return False

    async def read(self, session_id: str, *, owner: str, server: str) -> SessionRecord:
        """Return `UNREAD`."""
        del session_id, owner, server
        return SessionRecord(UNREAD)

    async def renew(self, session_ids: Sequence[str]) -> list[str]:
        """Return no sessions."""
        del session_ids
        return []

    async def claim(self, server: str, ttl: int) -> str:
        """Return the server: its sessions stay on their worker."""
        del ttl
        return server

    async def end(self, session_id: str) -> None:
        """Do nothing."""

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Do nothing: there are no other workers."""

    def drop(self, reason: DropReason) -> None:
        """Do nothing: there are no other workers."""

    def learned(self, session_id: str, *, owner: str, server: str) -> None:
        """None: sessions stay on their worker."""

    def session_of(self, digest: str) -> None:
        """None: there are no messages."""

    def remove(self, session_id: str) -> None:
        """Do nothing."""
