"""The background events of a store: commits, retries, outages and losses, which no caller sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


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
