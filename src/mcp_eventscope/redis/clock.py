"""The clock of event ids: the local boot clock, synchronized with Redis's time."""

import time
from collections.abc import Callable
from functools import partial

_NANOSECONDS_PER_MICROSECOND = 1_000
_LATE = 1_000_000
"""Microseconds by which a reply may be read late. A time that is further back is a step of Redis's clock."""


def _boot_clock() -> Callable[[], int]:
    """Return the clock that includes suspend where there is one (Linux), else the monotonic clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns if boottime is None else partial(time.clock_gettime_ns, boottime)


boot_nanoseconds = _boot_clock()
"""Nanoseconds since an arbitrary instant. The clock never jumps, and includes suspend where the system supports it."""


def boot_microseconds() -> int:
    """`boot_nanoseconds` in microseconds."""
    return boot_nanoseconds() // _NANOSECONDS_PER_MICROSECOND


class EventClock:
    """Redis's time as this process estimates it, in microseconds since 1970."""

    __slots__ = ("_offset", "_synchronized")

    def __init__(self) -> None:
        self._offset = time.time_ns() // _NANOSECONDS_PER_MICROSECOND - boot_microseconds()
        self._synchronized = False

    def now(self) -> int:
        """Microseconds since 1970, from Redis's clock once `synchronize` was called."""
        return self.at(boot_nanoseconds())

    def at(self, nanoseconds: int) -> int:
        """The same for an instant of `boot_nanoseconds`."""
        return nanoseconds // _NANOSECONDS_PER_MICROSECOND + self._offset

    def synchronize(self, redis_microseconds: int) -> None:
        """Set the clock to Redis's `TIME` from a reply that has just been read.

        A reply may be read late, never early: of several replies, the one with the least delay is the most accurate.
        """
        offset = redis_microseconds - boot_microseconds()
        if self._synchronized and 0 < self._offset - offset < _LATE:
            self._offset -= 1  # Follows slowly, in case Redis's clock is slower than ours.
        else:
            self._offset = offset
            self._synchronized = True
