"""The background events of a store: commits, retries, outages and losses, which no caller sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class FailureReason(StrEnum):
    """Why a call to the store failed."""

    TIMEOUT = "timeout"
    """Redis did not answer in time."""
    CONNECTION = "connection"
    """Redis could not be reached, or the connection broke."""
    POOL = "pool"
    """All connections of the client are in use (`max_connections`)."""
    LOADING = "loading"
    """Redis is loading its data set."""
    BUSY = "busy"
    """Redis is blocked by a script that does not end."""
    READONLY = "readonly"
    """This Redis is a replica, for example after a failover."""
    OOM = "oom"
    """Redis has reached `maxmemory` and its policy forbids eviction."""
    NOSCRIPT = "noscript"
    """Redis no longer has the script; it is sent again immediately."""
    AUTH = "auth"
    """Redis refused the user name, the password, or the command."""
    OTHER = "other"
    """Redis answered with another error; see the log."""

    @property
    def unreachable(self) -> bool:
        """Whether every other call to the store would fail, too."""
        return self in _UNREACHABLE


_UNREACHABLE = frozenset(
    {FailureReason.TIMEOUT, FailureReason.CONNECTION, FailureReason.POOL, FailureReason.LOADING, FailureReason.BUSY}
)


class LossReason(StrEnum):
    """Why an accepted event is not in Redis."""

    OVERFLOW = "overflow"
    """The backlog was full, and the event's stream was dropped."""
    REJECTED = "rejected"
    """Redis refused the event permanently: it is too large, or another program uses its key."""
    ROLLBACK = "rollback"
    """Redis lost the event after acknowledging it, and it was no longer in memory."""
    SESSION_LIMIT = "session_limit"
    """The event was evicted because its session exceeded `max_session_bytes`."""
    SHUTDOWN = "shutdown"
    """The process ended before the store recovered."""


class DropReason(StrEnum):
    """Why a message between workers had no effect."""

    EXPIRED = "expired"
    """It could not be sent in time: the store was unreachable, or the receiving worker did not read."""
    OVERFLOW = "overflow"
    """Too many messages were pending. Of the session with the most, the oldest are dropped."""
    REFUSED = "refused"
    """The store refused it."""
    MALFORMED = "malformed"
    """An entry of this worker's inbox is no message: another program writes under the prefix."""
    LOST = "lost"
    """The store lost messages in this worker's inbox. Their number is unknown: each loss counts as one."""
    TOO_LARGE = "too_large"
    """A client's notification above 16 KiB concerns another worker. Those are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommitted:
    """A batch was stored."""

    events: int
    payload_bytes: int
    deferred: int
    """Number of these events for which no caller waited."""
    seconds: float
    """Seconds between sending and acknowledgement."""
    latencies: Sequence[float] = ()
    """For each event that was accepted before it was sent: seconds between acceptance and acknowledgement."""
    messages: Sequence[type] = ()
    """The message types of the same events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRetried:
    """A batch was not acknowledged and is sent again. Its events are still stored only once."""

    reason: FailureReason
    events: int
    error: str = ""
    """The error as readable text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDegraded:
    """The store is unreachable or too slow. Callers no longer wait for it, and events are deferred."""

    reason: FailureReason
    error: str = ""
    """The error as readable text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecovered:
    """The store answers in time again."""

    reason: FailureReason
    """The reason of the outage."""
    seconds: float
    """Duration of the outage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsLost:
    """Events that are not in Redis and never will be. They were sent live."""

    reason: LossReason
    events: int
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignElementsRemoved:
    """Another program had appended elements to a stream. They were removed, and no event was lost."""

    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSized:
    """The bytes of a session in the store were summed up."""

    size: int
    """Bytes of all its events, of all workers."""
    limit: int
    """Maximum bytes of a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesDropped:
    """Messages between workers that were not delivered."""

    reason: DropReason
    messages: int


StoreEvent: TypeAlias = (
    BatchCommitted
    | BatchRetried
    | StoreDegraded
    | StoreRecovered
    | EventsLost
    | ForeignElementsRemoved
    | SessionSized
    | MessagesDropped
)
"""A background event of a store."""
