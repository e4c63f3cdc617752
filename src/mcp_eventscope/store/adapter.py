"""Other people's event stores, as stores that return facts.

Through the SDK's interface a store says little, so less is seen (no gaps, no corrupt rows), sessions are kept apart by
the names of their streams, and a stream is followed by asking again.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

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
)
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowEnd, FollowResult, Miss, ReplayResult

ANSWER_TIMEOUT = 5.0
"""Seconds that a store has for one operation."""
POLL_SECONDS = 0.5
"""How often a followed stream is asked for anew. Each time may cost the store a whole scan, so not more often."""


class EventStoreAdapter:
    """Any SDK `EventStore`, returning facts.

    A session's part (`for_session`) has the session id, and its length, in front of every stream id: no two sessions
    can name the same stream, whatever their ids hold. A replay of a session's part is held back until the store has
    said which stream the events are of, and dropped when that is not the session's: such stores look an event up by
    its id alone, and would hand out another session's.

    Args:
        store: The store.
    """

    ttl: int | None = None
    coordinator = None
    shared = False

    def __init__(self, store: EventStore, *, scope: str = "") -> None:
        if not isinstance(store, EventStore):
            msg = f"an event store must be an mcp.server.streamable_http.EventStore, not {type(store).__name__}"
            raise TypeError(msg)
        self._store = store
        self._scope = scope

    @property
    def address(self) -> str:
        """The store's class: where it keeps its events is not known."""
        return type(self._store).__name__

    def for_session(self, session_id: str) -> Self:
        """The part of the store that is one session's."""
        return type(self)(self._store, scope=f"{len(session_id)}:{session_id}:")

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Do nothing: the interface knows no requests."""

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Do nothing: no other process answers for this one."""

    def followed(self, stream_id: StreamId) -> None:
        """Do nothing: events are stored as they come."""

    def close(self) -> None:
        """Do nothing: the store has no part that is one session's."""

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Always: whether the store is reachable cannot be seen from here."""
        del stream_id, after
        return True

    async def open_standalone(self) -> EventId:
        """No cursor: a follower is not woken by other processes."""
        return ""

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Store an error as the response; whether there is one already cannot be seen from here."""
        await self.append(stream_id, orphaned(request_id))

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Do nothing: the interface tells nothing in between."""

    @property
    def backlog(self) -> BacklogStatus:
        """Nothing: what such a store defers, it does not say."""
        return BacklogStatus()

    async def flush(self, seconds: float) -> int:
        """Return at once: nothing waits here."""
        return 0

    async def ping(self) -> None:
        """Return at once: the interface has nothing to ask."""

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event; the interface has no place for who produced it.

        Raises what the store raises, and `StoreUnavailableError` when it does not answer.
        """
        with self._bounded("store on"):
            event_id = await self._store.store_event(self._scope + stream_id, message)
        return AppendResult(event_id, _size(message))

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver what the store replays after an event, up to the response when the stream is given.

        Args:
            last_event_id: The last event that the client has.
            send: Awaited with each event, in order. What it raises ends the replay, and is passed on.
            stream_id: The stream that the events must be of.

        Returns:
            What was delivered.
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
        """Deliver what is stored from now on, by asking again and again. Arguments and result as in `RedisEventStore`.

        A store that fails or has forgotten the event is asked again until the limit.
        """
        until = time.monotonic() + limit
        last, end = after, FollowEnd.TIMEOUT
        sent = payload_bytes = failures = 0
        while True:
            try:
                found, held = await self._fetch(last)
            except Exception:  # noqa: BLE001 - a store of others raises what it likes; the client is still there
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
                        # The store does not say where it stands: asked again, it would send the same again.
                        await asyncio.sleep(max(0.0, until - time.monotonic()))
            remaining = until - time.monotonic()
            if remaining <= 0:
                break
            await asyncio.sleep(min(POLL_SECONDS, remaining))
        return FollowResult(last_event_id=last, end=end, delivered=sent, payload_bytes=payload_bytes, failures=failures)

    @contextmanager
    def _bounded(self, operation: str) -> Iterator[None]:
        """Give up on a store that does not answer: the session that waits for it would hang."""
        try:
            with anyio.fail_after(ANSWER_TIMEOUT):
                yield
        except TimeoutError as error:
            msg = f"could not {operation} {self.address}: no answer within {ANSWER_TIMEOUT} seconds"
            raise StoreUnavailableError(msg) from error

    async def _fetch(self, last_event_id: EventId) -> tuple[StreamId | None, list[EventMessage]]:
        """What the store replays, with the stream it names; None when that is not of this scope."""
        held: list[EventMessage] = []

        async def hold(event: EventMessage) -> None:
            held.append(event)

        with self._bounded("replay from"):
            named = await self._store.replay_events_after(last_event_id, hold)
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
        """A replay as the SDK asks for it: each event goes out as the store hands it over."""
        delivered = _Delivered("", last_event_id, send)
        named = await self._store.replay_events_after(last_event_id, delivered.take)
        if named is None and not delivered.count:
            return ReplayResult(miss=Miss.UNKNOWN)
        delivered.stream_id = named
        return delivered.as_replayed()


class _Delivered:
    """Counts what goes through a callback."""

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
        """The facts."""
        return ReplayResult(
            stream_id=self.stream_id,
            last_event_id=self._last,
            delivered=self.count,
            payload_bytes=self.payload_bytes,
            completed=self.completed,
        )


def _size(message: JSONRPCMessage | None) -> int:
    return len(codec.encode(message))
