"""The clock of event ids."""

import time

import pytest

from mcp_eventscope.redis import clock
from mcp_eventscope.redis.clock import EventClock, boot_microseconds

SECOND = 1_000_000


def test_begins_with_the_time_of_this_machine() -> None:
    """Before Redis has answered, this machine's time is the best guess."""
    assert abs(EventClock().now() - time.time() * SECOND) < 60 * SECOND


def test_follows_redis() -> None:
    """A reply gives Redis's time, in either direction."""
    events = EventClock()
    for offset in (3600, -3600):
        redis = round(time.time() + offset) * SECOND
        events.synchronize(redis)
        assert 0 <= events.now() - redis < SECOND


def test_reply_that_is_read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several replies the one that is read soonest counts: the time of the others has passed meanwhile."""
    events = EventClock()
    boot, redis = SECOND, 1_000 * SECOND
    monkeypatch.setattr(clock, "boot_nanoseconds", lambda: boot * 1000)
    for late in (300_000, 5_000, 800_000, 90_000):
        boot += SECOND
        redis += SECOND
        boot += late
        events.synchronize(redis)
        redis += late
    assert 5_000 <= redis - events.now() < 5_010


def test_a_step_of_the_system_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of one process do not jump when an operator or NTP sets the time."""
    events = EventClock()
    before = events.now()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert 0 <= events.now() - before < SECOND


def test_never_goes_back() -> None:
    """Two readings are in order."""
    readings = [boot_microseconds() for _ in range(100)]
    assert readings == sorted(readings)


def test_system_without_a_boot_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock takes its place."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert clock._boot_clock() is time.monotonic_ns
