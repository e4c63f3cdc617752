"""The protocol of an event store whose operations return results, which the decorator measures."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mcp_eventscope.store.coordination import Coordinator
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.messages import EventCallback, EventId, JSONRPCMessage, RequestId, StreamId
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowResult, ReplayResult


@runtime_checkable
class ObservableEventStore(Protocol):
    """An event store that returns results. `EventStoreAdapter` adapts third-party stores to it.

    It does its I/O in tasks of its own, so spans that its calls start have no children.
    """

    @property
    def ttl(self) -> int | None:
        """Seconds that an event is kept; None: no expiry, or unknown."""
        ...

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event with the W3C traceparent of its producer; "": unknown."""
        ...

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver the stored events after an event."""
        ...

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether a replay can succeed: from memory, or from a store not known to be unreachable."""
        ...

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver the events stored from now on, until the response or the limit."""
        ...

    def lag(self, event_id: EventId) -> float | None:
        """Seconds since another process accepted an event; None: this process did, or unknown."""
        ...

    @property
    def coordinator(self) -> Coordinator | None:
        """Leases, session records and messages between workers; None: the store does not support them."""
        ...

    @property
    def shared(self) -> bool:
        """Whether events of any process wake followers immediately, so that no live path is needed."""
        ...

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Open the stream of a request of this process; its id keeps the JSON type."""
        ...

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Answer with an error a request that this process no longer runs."""
        ...

    async def open_standalone(self) -> EventId:
        """Return the first cursor of a standalone stream; "" if the store cannot serve it."""
        ...

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Register callbacks: session ended on another worker; request answered in this process's place."""
        ...

    def followed(self, stream_id: StreamId) -> None:
        """Store a request's events without lingering: a client follows it through another process."""
        ...

    def close(self) -> None:
        """Release the session's stored state in this process, which no longer serves it."""
        ...

    async def probe(self) -> None:
        """Write to the store, and return when it has acknowledged the write."""
        ...

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Register a callback for background events. It must not raise."""
        ...

    @property
    def backlog(self) -> BacklogStatus:
        """The deferred events."""
        ...

    async def flush(self, seconds: float) -> int:
        """Store pending events for at most `seconds`, drop the rest, and return their number."""
        ...

    @property
    def address(self) -> str:
        """Readable location of the store, without credentials."""
        ...

    def for_session(self, session_id: str) -> "ObservableEventStore":
        """The view of one session."""
        ...
