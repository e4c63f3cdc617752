"""The clock of event ids: this machine's, suspend included, set to Redis's time once that is known."""

import time
from collections.abc import Callable
from functools import partial

_NANOSECONDS_PER_MICROSECOND = 1_000
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)
"""Counts while the machine is suspended. Linux only; elsewhere the monotonic clock has to do."""

boot_nanoseconds: Callable[[], int] = (
    time.monotonic_ns if _BOOTTIME is None else partial(time.clock_gettime_ns, _BOOTTIME)
)
"""Nanoseconds since an arbitrary instant; it never jumps, and includes suspend where the system supports it."""


def boot_microseconds() -> int:
    """The same in microseconds."""
    return boot_nanoseconds() // _NANOSECONDS_PER_MICROSECOND


class EventClock:
    """Redis's time as this process estimates it, in microseconds since 1970."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() // _NANOSECONDS_PER_MICROSECOND - boot_microseconds()

    def now(self) -> int:
        """Microseconds since 1970, by Redis's clock once `synchronize` was called."""
        return boot_nanoseconds() // _NANOSECONDS_PER_MICROSECOND + self._offset

    def synchronize(self, redis_microseconds: int) -> None:
        """Set the clock to Redis's `TIME`, as a reply that has just been read gives it."""
        self._offset = redis_microseconds - boot_microseconds()
