"""The results of operations on a store, as frozen records."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from mcp_eventscope.store.events import FailureReason
from mcp_eventscope.store.messages import EventId, StreamId


class Miss(StrEnum):
    """Why a replay found nothing to resume from."""

    MALFORMED = "malformed"
    """The text is not an event id of this store."""
    UNKNOWN = "unknown"
    """This session has no such event: it belongs to another session, was never assigned, or was lost with the data."""
    EXPIRED = "expired"
    """The event and all its successors are older than the TTL."""


class Gap(StrEnum):
    """Why an event that was due to a client could not be delivered."""

    TRIMMED = "trimmed"
    """It was older than the TTL."""
    EVICTED = "evicted"
    """Its session exceeded `max_session_bytes`, and the event was among the oldest."""
    OVERFLOW = "overflow"
    """The store was unreachable for so long that the backlog of the event's worker was full."""
    REJECTED = "rejected"
    """The store refused it: too large, or its key has another type."""
    ROLLBACK = "rollback"
    """The store lost it after acknowledging it, and the event's worker, which noticed, no longer had it in memory."""
    STORE_LOST = "store_lost"
    """The store no longer has it, before its TTL, and no worker has noticed: Redis evicted or lost its key."""


class FollowEnd(StrEnum):
    """Why following a stream ended."""

    COMPLETED = "completed"
    """The response of the request was delivered."""
    TIMEOUT = "timeout"
    """The follow timeout has passed; the client reconnects by itself."""
    WORKER_LOST = "worker_lost"
    """Redis names no such request: its worker is dead, or has not named it for as long as a lease."""


class StoreOutcome(StrEnum):
    """The final state of an accepted event."""

    STORED = "stored"
    """The event is stored."""
    REFUSED = "refused"
    """Not stored, because its request was answered in this worker's place or its session has ended."""
    LOST = "lost"
    """The event will never be stored; a resume reports a gap."""


class Acknowledgement(Protocol):
    """An event that is stored in the background."""

    @property
    def payload(self) -> bytes:
        """The message as JSON, as the transport writes it."""
        ...

    def add_done_callback(self, callback: Callable[[StoreOutcome], None]) -> None:
        """Call back with the event's final state."""
        ...

    def acknowledged(self) -> "asyncio.Future[StoreOutcome]":
        """A future of the event's final state."""
        ...


class AppendResult(NamedTuple):
    """The result of accepting one event. A tuple, because one is created per event and tuples are cheapest."""

    event_id: EventId
    """The event's id; "" if it was refused or deferred."""
    payload_bytes: int
    """Size of the stored payload in bytes of UTF-8; 0 for a priming event."""
    refused: bool = False
    """Not stored, because its request has no open stream: it was answered, or never begun here."""
    deferred: bool = False
    """Stored later, and without an id yet, because the root store's Redis is unreachable or slow."""
    pending: Acknowledgement | None = None
    """The acknowledgement of an event stored in the background; None if it was stored before the call returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """The result of one replay."""

    stream_id: StreamId | None = None
    """The stream; None if the id identifies none."""
    last_event_id: EventId = ""
    """The last event read from the stream, after which following starts."""
    delivered: int = 0
    """Messages passed to the callback; priming events are not."""
    payload_bytes: int = 0
    """Stored bytes of the delivered events."""
    missing: int = 0
    """Events that were due and no longer exist."""
    gaps: Mapping[Gap, int] = field(default_factory=dict)
    """Why they no longer exist: their number by reason."""
    corrupt: tuple[EventId, ...] = ()
    """Unreadable events, which were skipped."""
    gap: bool = False
    """Whether events after the cursor were lost before they could be delivered."""
    completed: bool = False
    """Whether the response of the request was delivered, now or earlier."""
    age: float | None = None
    """Seconds between the storage of the client's last event and the replay; None if the id contains no time."""
    miss: Miss | None = None
    """Why there was nothing to resume from; None after a replay."""
    producers: tuple[str, ...] = ()
    """The distinct `traceparent` values of the delivered events, the first 32."""
    origin: str = ""
    """The `traceparent` of the request's first event in the store; "": unknown, or the standalone stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowResult:
    """The result of following one stream."""

    last_event_id: EventId
    end: FollowEnd
    delivered: int = 0
    payload_bytes: int = 0
    missing: int = 0
    gaps: Mapping[Gap, int] = field(default_factory=dict)
    corrupt: tuple[EventId, ...] = ()
    failures: int = 0
    """Failed reads, which were retried."""
    producers: tuple[str, ...] = ()
    """The distinct `traceparent` values of the delivered events, the first 32."""
    origin: str = ""
    """The `traceparent` of the request's first event in the store; "": unknown, or the standalone stream."""
    orphaned: bool = False
    """Whether the request's worker was dead and this follower answered the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogStatus:
    """The deferred events, which are waiting for the store."""

    events: int = 0
    payload_bytes: int = 0
    """Memory that they use, including the data kept beside each payload."""
    failure: FailureReason | None = None
    """Why the store is unavailable; None while it is available."""
