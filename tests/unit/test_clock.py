"""The clock of event ids."""

import time

import pytest

from mcp_eventscope.redis import clock
from mcp_eventscope.redis.clock import EventClock, boot_microseconds

SECOND = 1_000_000


def test_clock_before_the_first_reply_has_local_time() -> None:
    """Before Redis has answered, the clock has this machine's time."""
    assert abs(EventClock().now() - time.time() * SECOND) < 60 * SECOND


def test_clock_after_a_reply_has_the_time_of_redis() -> None:
    """A reply moves the clock to Redis's time, in either direction."""
    events = EventClock()
    for offset in (3600, -3600):
        redis = round(time.time() + offset) * SECOND
        events.synchronize(redis)
        assert 0 <= events.now() - redis < SECOND


def test_clock_with_late_replies_uses_the_promptest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several replies the one read soonest counts."""
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


def test_clock_when_the_system_clock_steps_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids do not jump when an operator or NTP sets the time."""
    events = EventClock()
    before = events.now()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert 0 <= events.now() - before < SECOND


def test_clock_readings_are_in_order() -> None:
    """Two readings are in order."""
    readings = [boot_microseconds() for _ in range(100)]
    assert readings == sorted(readings)


def test_clock_without_boot_clock_uses_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock takes the place of a missing boot clock."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert clock._boot_clock() is time.monotonic_ns
