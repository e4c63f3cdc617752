"""The results of operations on a store, as frozen records."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from mcp_eventscope.store.events import FailureReason
from mcp_eventscope.store.messages import EventId, StreamId


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
    TIMEOUT = "timeout"
    """The follow timeout has passed; the client reconnects by itself."""
    WORKER_LOST = "worker_lost"
    """The worker of the request is dead, and Redis has nothing of the request to answer."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogStatus:
    """What is deferred, and waits for the store."""

    events: int = 0
    payload_bytes: int = 0
    """What they take up, with what is kept of each beside its payload."""
    failure: FailureReason | None = None
    """Why the store is away; None when it is not."""
