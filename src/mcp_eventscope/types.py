"""What a store says of an operation, as facts, and the interface of a store that says it.

The SDK's `EventStore` returns an id, or a stream id or None: through it nobody sees a gap, a corrupt row or a size.
A `FactStore` returns records; the decorator times and names them, the session view acts on them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

__all__ = [
    "GET_STREAM_KEY",
    "Appended",
    "EventCallback",
    "EventId",
    "EventMessage",
    "EventStore",
    "FactStore",
    "FollowEnd",
    "Followed",
    "JSONRPCError",
    "JSONRPCMessage",
    "JSONRPCNotification",
    "JSONRPCRequest",
    "JSONRPCResponse",
    "MessageKind",
    "Miss",
    "Replayed",
    "StreamId",
    "is_final",
    "kind_of",
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


def is_final(stream_id: StreamId, message: JSONRPCMessage | None) -> bool:
    """Whether a message ends its stream: the response of the request that the stream belongs to.

    The standalone stream never ends; an error without an id, which belongs to no request, is sent on it.
    """
    return stream_id != GET_STREAM_KEY and isinstance(message, JSONRPCResponse | JSONRPCError)


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


@dataclass(frozen=True, slots=True)
class Appended:
    """One event was stored."""

    event_id: EventId
    """Its id; "" when it was refused, since its request has been given up and answered."""
    payload_bytes: int
    """Size of the stored payload in bytes of UTF-8; 0 for a priming event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
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


@runtime_checkable
class FactStore(Protocol):
    """An event store that returns facts. `RedisEventStore` and `InstrumentedEventStore` are; others are adapted."""

    @property
    def ttl(self) -> int | None:
        """Seconds that an event is kept; None: for ever, or unknown."""
        ...

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None) -> Appended:
        """Store one event."""
        ...

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> Replayed:
        """Deliver what is stored after an event."""
        ...

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> Followed:
        """Deliver what is stored from now on, until the response or the limit."""
        ...

    @property
    def shared(self) -> bool:
        """Whether what another process stores reaches a follower at once: streams may be read from the store only."""
        ...

    async def give_up(self, stream_id: StreamId) -> bool:
        """Answer a request that this process ran, and runs no longer, with an error."""
        ...

    async def claim(self, stream_ids: Iterable[StreamId]) -> None:
        """Say again that this process runs the requests of these streams."""
        ...

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    @property
    def address(self) -> str:
        """Where the store is, for people: never with a credential."""
        ...

    def for_session(self, session_id: str) -> "FactStore":
        """The part of the store that is one session's."""
        ...
