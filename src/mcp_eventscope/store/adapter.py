"""Adapt any SDK `EventStore` to the store protocol.

The SDK's interface exposes little: gaps and corrupt rows are not visible, sessions are isolated by the names of their
streams, and events that another process stores are found by polling.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeAlias

import anyio

from mcp_eventscope.errors import StoreUnavailableError
from mcp_eventscope.store import codec
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.jsonrpc_errors import orphaned
from mcp_eventscope.store.messages import (
    EventCallback,
    EventId,
    EventMessage,
    EventStore,
    JSONRPCMessage,
    RequestId,
    StreamId,
    is_final,
    unwrapping,
    wrapped,
)
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowEnd, FollowResult, Miss, ReplayResult

ANSWER_TIMEOUT = 5.0
"""Maximum seconds that one operation may take."""
POLL_SECONDS = 0.5
"""Seconds between polls of a followed stream, if this process stores no event on it."""
PAUSE_SECONDS = 0.05
"""Minimum seconds between two reads of a followed stream. A read may cost the store a full scan."""

_Wakes: TypeAlias = defaultdict[str, set[asyncio.Event]]
"""Of each stream that is followed in this process, by its scoped id: what wakes its followers."""


class EventStoreAdapter:
    """An SDK `EventStore` whose operations return results.

    The view of a session (`for_session`) prefixes every stream id with the session id and its length, so no two
    sessions can name the same stream, whatever their ids contain. A replay is buffered until the store has returned
    its stream, and discarded if that stream belongs to another session: such stores look up an event
    by its id alone, and would return the events of any session.

    Args:
        store: The store.
    """

    ttl: int | None = None
    coordinator = None
    shared = False

    def __init__(self, store: EventStore, *, scope: str = "", wakes: _Wakes | None = None) -> None:
        if not isinstance(store, EventStore):
            msg = f"store must be an mcp.server.streamable_http.EventStore, got {type(store).__name__}"
            raise TypeError(msg)
        self._store = store
        self._scope = scope
        self._wakes: _Wakes = defaultdict(set) if wakes is None else wakes

    @property
    def address(self) -> str:
        """The name of the store's class, since its location is unknown."""
        return type(self._store).__name__

    def for_session(self, session_id: str) -> Self:
        """The view of one session."""
        return type(self)(self._store, scope=f"{len(session_id)}:{session_id}:", wakes=self._wakes)

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Do nothing: the interface has no requests."""

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Do nothing: no other process answers requests of this one."""

    def followed(self, stream_id: StreamId) -> None:
        """Do nothing: events are stored as they arrive."""

    def close(self) -> None:
        """Do nothing: the adapter holds no state of a session."""

    def lag(self, event_id: EventId) -> None:
        """None: the ids of third-party stores contain no time."""

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """True: the interface does not show whether the store is reachable."""
        del stream_id, after
        return True

    async def open_standalone(self) -> EventId:
        """Return no cursor: other processes cannot wake a follower."""
        return ""

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Store an error as the response, whether or not there is one already."""
        await self.append(stream_id, orphaned(request_id))

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Do nothing: the interface has no background events."""

    @property
    def backlog(self) -> BacklogStatus:
        """Empty: the interface does not expose deferred events."""
        return BacklogStatus()

    async def flush(self, seconds: float) -> int:
        """Return immediately: nothing is pending here."""
        return 0

    async def probe(self) -> None:
        """Return immediately: the interface has no health check."""

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event; the interface has no field for the producer's trace context.

        Exceptions of the store are passed on; `StoreUnavailableError` is raised when it does not answer.
        """
        with self._bounded("store on"):
            event_id = await self._store.store_event(self._scope + stream_id, wrapped(message))
        for wake in self._wakes.get(self._scope + stream_id, ()):
            wake.set()
        return AppendResult(event_id, _size(message))

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver the events after an event; if the stream is given, up to the response.

        Args:
            last_event_id: The last event that the client has.
            send: Awaited with each event, in order. Its exceptions end the replay and propagate.
            stream_id: The stream that the events must be of.

        Returns:
            The delivered events.
        """
        if not last_event_id:
            return ReplayResult(miss=Miss.MALFORMED)
        if not self._scope and stream_id is None:
            return await self._pass_through(last_event_id, send)
        found, held = await self._fetch(last_event_id)
        if found is None or stream_id not in (None, found):
            return ReplayResult(miss=Miss.UNKNOWN)
        return await self._deliver(found, held, last_event_id, send, until_response=stream_id is not None)

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver the events stored from now on. Arguments and result as in `RedisEventStore`.

        An event of this process wakes the follower; those of others are found by polling, which continues until the
        limit when the store fails or no longer has the event.
        """
        wake, name = asyncio.Event(), self._scope + stream_id
        self._wakes[name].add(wake)
        try:
            return await self._follow(stream_id, after, send, time.monotonic() + limit, wake)
        finally:
            self._wakes[name].discard(wake)
            if not self._wakes[name]:
                del self._wakes[name]

    async def _follow(
        self, stream_id: StreamId, after: EventId, send: EventCallback, until: float, wake: asyncio.Event
    ) -> FollowResult:
        last, end = after, FollowEnd.TIMEOUT
        sent = payload_bytes = failures = 0
        while True:
            wake.clear()
            read = time.monotonic()
            try:
                found, held = await self._fetch(last)
            except Exception:  # noqa: BLE001 - a third-party store may raise anything; the client is still connected
                failures += 1
            else:
                if found == stream_id and held:
                    facts = await self._deliver(stream_id, held, last, send, until_response=True)
                    sent, payload_bytes = sent + facts.delivered, payload_bytes + facts.payload_bytes
                    last = facts.last_event_id
                    if facts.completed:
                        end = FollowEnd.COMPLETED
                        break
                    if held[-1].event_id is None:
                        # Without an id there is no new cursor: another poll would deliver the same events again.
                        await asyncio.sleep(max(0.0, until - time.monotonic()))
            remaining = until - time.monotonic()
            if remaining <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(min(POLL_SECONDS, remaining)):
                    await wake.wait()
            await asyncio.sleep(min(max(0.0, read + PAUSE_SECONDS - time.monotonic()), remaining))
        return FollowResult(last_event_id=last, end=end, delivered=sent, payload_bytes=payload_bytes, failures=failures)

    @contextmanager
    def _bounded(self, operation: str) -> Iterator[None]:
        """Fail when the store does not answer in time: the waiting session would hang."""
        try:
            with anyio.fail_after(ANSWER_TIMEOUT):
                yield
        except TimeoutError as error:
            msg = f"could not {operation} {self.address}: no answer within {ANSWER_TIMEOUT} seconds"
            raise StoreUnavailableError(msg) from error

    async def _fetch(self, last_event_id: EventId) -> tuple[StreamId | None, list[EventMessage]]:
        """Return the stream, None if it is outside this scope, and the replayed events."""
        held: list[EventMessage] = []

        async def hold(event: EventMessage) -> None:
            held.append(event)

        with self._bounded("replay from"):
            named = await self._store.replay_events_after(last_event_id, unwrapping(hold))
        if named is None or not named.startswith(self._scope):
            return None, []
        return named.removeprefix(self._scope), held

    async def _deliver(
        self,
        stream_id: StreamId,
        held: list[EventMessage],
        cursor: EventId,
        send: EventCallback,
        *,
        until_response: bool,
    ) -> ReplayResult:
        delivered = _Delivered(stream_id, cursor, send)
        for event in held:
            await delivered.take(event)
            if until_response and delivered.completed:
                break
        return delivered.as_replayed()

    async def _pass_through(self, last_event_id: EventId, send: EventCallback) -> ReplayResult:
        """Replay without a buffer, as the SDK does."""
        delivered = _Delivered("", last_event_id, send)
        named = await self._store.replay_events_after(last_event_id, unwrapping(delivered.take))
        if named is None and not delivered.count:
            return ReplayResult(miss=Miss.UNKNOWN)
        delivered.stream_id = named
        return delivered.as_replayed()


class _Delivered:
    """Counts the events that pass through a callback."""

    def __init__(self, stream_id: StreamId | None, last_event_id: EventId, send: EventCallback) -> None:
        self.stream_id = stream_id
        self.count = self.payload_bytes = 0
        self.completed = False
        self._last = last_event_id
        self._send = send

    async def take(self, event: EventMessage) -> None:
        """Deliver one event."""
        await self._send(event)
        self.count += 1
        self.payload_bytes += _size(event.message)
        self._last = event.event_id or self._last
        self.completed = is_final(self.stream_id or "", event.message)

    def as_replayed(self) -> ReplayResult:
        """The result."""
        return ReplayResult(
            stream_id=self.stream_id,
            last_event_id=self._last,
            delivered=self.count,
            payload_bytes=self.payload_bytes,
            completed=self.completed,
        )


def _size(message: JSONRPCMessage | None) -> int:
    return len(codec.encode(message))
