"""Facts about streams, signals and gaps, for telemetry."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class SignalPath(StrEnum):
    """How a signal reached the streams of this worker."""

    LOCAL = "local"
    """Published by this worker."""
    REMOTE = "remote"
    """Published by another worker."""
    REPAIR = "repair"
    """Sent in place of signals that may have been missed."""


class GapReason(StrEnum):
    """Why this worker may have missed signals of other workers."""

    LATE = "late"
    """Streams were opened before the position in Redis was known, because Redis was unreachable at start."""
    LOST = "lost"
    """Redis has lost the changes: it restarted empty, or another worker has found that some are missing."""
    ROLLED_BACK = "rolled_back"
    """Redis has lost the latest changes: by a failover, or a restart with older data."""
    TRIMMED = "trimmed"
    """This worker was frozen, or cut off, for longer than Redis keeps changes."""
    DAMAGED = "damaged"
    """Changes are missing in the middle, or another program has written to the key."""
    OVERFLOW = "overflow"
    """A worker had more pending changes than it keeps, and published that everything may have changed."""


class PublishFailure(StrEnum):
    """Why a change has not reached Redis, or has reached it later or less precisely."""

    UNREACHABLE = "unreachable"
    """Redis was not reached. The changes stay pending."""
    REFUSED = "refused"
    """Redis refused the write. The changes stay pending."""
    OVERFLOW = "overflow"
    """Too many pending changes: they are replaced by one for everything."""
    SHUTDOWN = "shutdown"
    """The worker ended while Redis was unreachable: other workers do not receive these changes."""
    UNSUPPORTED = "unsupported"
    """An event of an unknown type, which only streams of this worker receive."""

    @property
    def repeated(self) -> bool:
        """Whether the changes stay pending, and are sent again."""
        return self in {PublishFailure.UNREACHABLE, PublishFailure.REFUSED}


@dataclass(frozen=True, slots=True)
class Signalled:
    """An event was passed to open streams. Each stream applies its filter afterwards."""

    path: SignalPath
    streams: int
    lag: float | None = None
    """Seconds since another worker published it, by the clock of Redis; None for other paths."""


@dataclass(frozen=True, slots=True)
class GapFound:
    """Signals may have been missed; open streams are signalled that everything changed."""

    reason: GapReason
    streams: int
    """The number of open streams."""
    unknown: int = 0
    """The number of those whose resource URIs are unknown."""


@dataclass(frozen=True, slots=True)
class PublishFailed:
    """Changes were not sent."""

    reason: PublishFailure
    events: int


@dataclass(frozen=True, slots=True)
class Published:
    """Changes were sent to Redis, which has acknowledged them."""

    events: int
    seconds: float
    """Seconds since the oldest of them was published."""


@dataclass(frozen=True, slots=True)
class PendingChanged:
    """The number of changes that Redis has not acknowledged."""

    events: int


@dataclass(frozen=True, slots=True)
class NotRunning:
    """The bus is used outside of `running()`: signals stay within this worker."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A stream has subscribed."""


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A stream has unsubscribed."""


SubscriptionFact: TypeAlias = (
    Signalled | GapFound | PublishFailed | Published | PendingChanged | NotRunning | StreamOpened | StreamClosed
)
