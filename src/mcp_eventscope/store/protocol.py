"""The interface of a store whose operations return results: what the decorator measures."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mcp_eventscope.store.coordination import Coordinator
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.messages import EventCallback, EventId, JSONRPCMessage, RequestId, StreamId
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowResult, ReplayResult


@runtime_checkable
class ObservableEventStore(Protocol):
    """An event store that returns facts. `RedisEventStore` and `InstrumentedEventStore` are; others are adapted."""

    @property
    def ttl(self) -> int | None:
        """Seconds that an event is kept; None: for ever, or unknown."""
        ...

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event, and with it who produced it, in W3C's notation; "": nobody says."""
        ...

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver what is stored after an event."""
        ...

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether a replay is worth a try: the store is not known to be unreachable, or the next event is in memory."""
        ...

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver what is stored from now on, until the response or the limit."""
        ...

    @property
    def coordinator(self) -> Coordinator | None:
        """Leases, session records and messages between workers; None: the store has none of these."""
        ...

    @property
    def shared(self) -> bool:
        """Whether what another process stores reaches a follower at once: streams may be read from the store only."""
        ...

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Open the stream of a request that this process runs; the id has its JSON type."""
        ...

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Answer a request that this process ran, and runs no longer, with an error."""
        ...

    async def open_standalone(self) -> EventId:
        """A cursor for a client that opens the standalone stream without one; "": it cannot be read from the store."""
        ...

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Call back when the session was ended elsewhere, and when a request was answered in this process's place."""
        ...

    def followed(self, stream_id: StreamId) -> None:
        """Store the events of a request without a pause: a client follows it through another process."""
        ...

    def close(self) -> None:
        """Keep nothing of the session in this process that is stored: the session is not served here any more."""
        ...

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Have every fact that no caller is told called back with, as it arises. It must not raise."""
        ...

    @property
    def backlog(self) -> BacklogStatus:
        """What is deferred now."""
        ...

    async def flush(self, seconds: float) -> int:
        """Store what waits, for at most so long; and hold nothing after. Returns the events that were lost."""
        ...

    @property
    def address(self) -> str:
        """Where the store is, for people: never with a credential."""
        ...

    def for_session(self, session_id: str) -> "ObservableEventStore":
        """The part of the store that is one session's."""
        ...
