"""What a store says of an operation, as facts, and the interface of a store that says it.

The SDK's `EventStore` returns an id, or a stream id or None: through it nobody sees a gap, a corrupt row or a size.
A `ObservableEventStore` returns records; the decorator times and names them, the session view acts on them.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, RequestId

__all__ = [
    "FINAL",
    "GET_STREAM_KEY",
    "Acknowledgement",
    "AppendResult",
    "BacklogStatus",
    "BatchCommitted",
    "BatchRetried",
    "EventCallback",
    "EventId",
    "EventMessage",
    "EventStore",
    "EventsLost",
    "FailureReason",
    "FollowEnd",
    "FollowResult",
    "JSONRPCError",
    "JSONRPCMessage",
    "JSONRPCNotification",
    "JSONRPCRequest",
    "JSONRPCResponse",
    "LossReason",
    "MessageKind",
    "Miss",
    "ObservableEventStore",
    "ReplayResult",
    "RequestId",
    "StoreDegraded",
    "StoreEvent",
    "StoreOutcome",
    "StoreRecovered",
    "StreamId",
    "is_final",
    "kind_of",
    "kind_of_type",
]


class MessageKind(StrEnum):
    """What an event carries."""

    PRIMING = "priming"
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    ERROR = "error"


_KINDS: dict[type, MessageKind] = {
    type(None): MessageKind.PRIMING,
    JSONRPCRequest: MessageKind.REQUEST,
    JSONRPCNotification: MessageKind.NOTIFICATION,
    JSONRPCResponse: MessageKind.RESPONSE,
    JSONRPCError: MessageKind.ERROR,
}


def kind_of(message: JSONRPCMessage | None) -> MessageKind:
    """The kind of a message; None is a priming event."""
    return _KINDS[type(message)]


def kind_of_type(message: type) -> MessageKind:
    """The kind of the messages of a type."""
    return _KINDS[message]


FINAL = (JSONRPCResponse, JSONRPCError)
"""The types of message that end the stream of a request."""


def is_final(stream_id: StreamId, message: JSONRPCMessage | None) -> bool:
    """Whether a message ends its stream: the response of the request that the stream belongs to.

    The standalone stream never ends; an error without an id, which belongs to no request, is sent on it.
    """
    return stream_id != GET_STREAM_KEY and type(message) in FINAL


class Miss(StrEnum):
    """Why nothing could be replayed."""

    MALFORMED = "malformed"
    """The text is no event id of this store."""
    UNKNOWN = "unknown"
    """No such event was given out here: of another session, larger than any id, or lost with the data."""
    EXPIRED = "expired"
    """The event is older than the TTL, and so is everything that followed it."""


class FollowEnd(StrEnum):
    """Why following a stream ended."""

    COMPLETED = "completed"
    """The response of the request was delivered."""
    LIMIT = "limit"
    """The time that was allowed has passed; the client comes back by itself."""
    GONE = "gone"
    """The worker that ran the request is dead, and nothing is stored that could be answered."""


class StoreOutcome(StrEnum):
    """What became of an event that was accepted."""

    STORED = "stored"
    """It is stored."""
    REFUSED = "refused"
    """Its request was answered in this worker's place, or its session has ended: it is not stored."""
    LOST = "lost"
    """It will never be stored; a resume reports a gap."""


class Acknowledgement(Protocol):
    """An event that is stored in the background."""

    @property
    def payload(self) -> bytes:
        """The message as JSON, as the transport writes it."""
        ...

    def add_done_callback(self, callback: Callable[[StoreOutcome], None]) -> None:
        """Call back once it is known what became of the event."""
        ...

    def acknowledged(self) -> "asyncio.Future[StoreOutcome]":
        """A future of what becomes of the event."""
        ...


class AppendResult(NamedTuple):
    """One event was taken: stored, or to be stored. One is made for each event, and a tuple costs least."""

    event_id: EventId
    """Its id; "" when it was refused, or deferred."""
    payload_bytes: int
    """Size of the stored payload in bytes of UTF-8; 0 for a priming event."""
    refused: bool = False
    """It is not stored, since its request has no open stream: it was answered, or never begun here."""
    deferred: bool = False
    """It has no id yet, since the root store's Redis is unreachable or slow: it will be stored."""
    pending: Acknowledgement | None = None
    """Of an event that is stored in the background; None where it was stored before the call returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What became of one replay."""

    stream_id: StreamId | None = None
    """The stream; None when the id names none."""
    last_event_id: EventId = ""
    """The event up to which the stream has been read: where following starts."""
    delivered: int = 0
    """Messages handed to the callback; priming events never are."""
    payload_bytes: int = 0
    """Stored bytes of what was delivered."""
    missing: int = 0
    """Events that the index still names, and that are gone (expired or evicted)."""
    corrupt: tuple[EventId, ...] = ()
    """Events that could not be read, and were skipped."""
    gap: bool = False
    """Whether events between the cursor and what was delivered are gone."""
    completed: bool = False
    """Whether the response of the request has been delivered, now or before."""
    age: float | None = None
    """Seconds between the instant that the last event was stored and the replay; None when the id does not tell."""
    miss: Miss | None = None
    """Why there was nothing to resume from; None when there was."""
    producers: tuple[str, ...] = ()
    """Who produced what was delivered, as it was given to `append`: each once, the first 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowResult:
    """What became of following one stream."""

    last_event_id: EventId
    end: FollowEnd
    delivered: int = 0
    payload_bytes: int = 0
    missing: int = 0
    corrupt: tuple[EventId, ...] = ()
    failures: int = 0
    """Reads that failed, and were tried again."""
    orphaned: bool = False
    """Whether the request's worker was gone, and the request was answered by this follower."""


class FailureReason(StrEnum):
    """Why the store could not be written to."""

    TIMEOUT = "timeout"
    """It did not answer in time."""
    CONNECTION = "connection"
    """It could not be reached, or the connection broke."""
    POOL = "pool"
    """The client has no connection left (`max_connections`)."""
    LOADING = "loading"
    """Redis loads its data set."""
    BUSY = "busy"
    """Redis runs a script that does not end."""
    READONLY = "readonly"
    """This Redis is a replica, after a failover say."""
    OOM = "oom"
    """Redis has reached `maxmemory`, and may not evict."""
    NOSCRIPT = "noscript"
    """Redis has forgotten the script; it is sent again at once."""
    AUTH = "auth"
    """Redis refused the user name, the password, or the command."""
    OTHER = "other"
    """It answered with another error; the log tells."""

    @property
    def unreachable(self) -> bool:
        """Whether the store does not answer anything else, either."""
        return self in _UNREACHABLE


_UNREACHABLE = frozenset(
    {FailureReason.TIMEOUT, FailureReason.CONNECTION, FailureReason.POOL, FailureReason.LOADING, FailureReason.BUSY}
)


class LossReason(StrEnum):
    """Why Redis does not have an event that was accepted."""

    OVERFLOW = "overflow"
    """The backlog was full, and its stream was given up."""
    REJECTED = "rejected"
    """Redis refused it for good: its key is another's."""
    ROLLBACK = "rollback"
    """Redis has lost it after it had acknowledged it, and it was no longer in memory."""
    SESSION_LIMIT = "session_limit"
    """It was stored, and evicted since its session exceeded `max_session_bytes`."""
    SHUTDOWN = "shutdown"
    """The process ended before the store was back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommitted:
    """A batch was stored."""

    events: int
    payload_bytes: int
    deferred: int
    """Of the events, those that nobody has waited for."""
    seconds: float
    """Between sending and acknowledgement."""
    latencies: Sequence[float] = ()
    """Of events that were accepted before they were sent: for each, seconds between acceptance and acknowledgement."""
    messages: Sequence[type] = ()
    """Of the same events, the types of their messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRetried:
    """A batch was not acknowledged, and is sent again: it is stored once all the same."""

    reason: FailureReason
    events: int
    error: str = ""
    """What was answered, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDegraded:
    """The store is away, or too slow: from now on nobody waits for it, and events are deferred."""

    reason: FailureReason
    error: str = ""
    """What was answered, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecovered:
    """The store answers again, in time."""

    reason: FailureReason
    """Why it was away."""
    seconds: float
    """For how long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsLost:
    """Events that Redis does not have, or will not have. They were sent live."""

    reason: LossReason
    events: int
    payload_bytes: int


StoreEvent: TypeAlias = BatchCommitted | BatchRetried | StoreDegraded | StoreRecovered | EventsLost
"""What arises in the middle of operations, and no caller is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogStatus:
    """What is deferred, and waits for the store."""

    events: int = 0
    payload_bytes: int = 0
    """What they take up, with what is kept of each beside its payload."""
    failure: FailureReason | None = None
    """Why the store is away; None when it is not."""


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
