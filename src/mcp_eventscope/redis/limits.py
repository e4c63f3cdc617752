"""Defaults and ranges of a store's numeric options."""

from collections.abc import Mapping

from mcp_eventscope.options import Number

STORE_TIMEOUT = 0.25
"""Seconds for which an append to the root store waits for Redis before the event is deferred."""
BACKLOG_BYTES = 16 << 20
"""Maximum bytes of events that a process buffers until Redis recovers."""
BACKLOG_EVENTS = 100_000
"""Maximum number of events that a process buffers until Redis recovers."""
MAX_SESSION_BYTES = 64 << 20
"""Maximum bytes that a session's events may use in Redis."""
FLUSH_SECONDS = 2.0
"""Maximum seconds for which a stopping process waits until its pending events are stored."""
PROBE_SECONDS = 60
"""Seconds for which the key of a probe is kept."""
MAX_TTL = 10 * 365 * 24 * 3600
"""The longest TTL in seconds (ten years). Redis refuses far larger ones, in the middle of a write."""

NUMBERS: Mapping[str, Number] = {
    "ttl": Number("seconds", 1, MAX_TTL, whole=True, none="no expiry"),
    # A shorter timeout would count every reply as an outage.
    "store_timeout": Number("seconds", 0.001, 3600),
    "backlog_bytes": Number("bytes", 1, whole=True),
    "backlog_events": Number("events", 1, whole=True),
    # The pending events of one session may take up 1 MiB.
    "max_session_bytes": Number("bytes", 1 << 20, whole=True),
}
"""The types and ranges of the numeric options of `RedisEventStore`."""


def check_limits(**values: float | None) -> None:
    """Validate the numeric options of a store, which Redis would otherwise refuse later.

    Args:
        values: The options by name.

    Raises:
        TypeError: A value is not a number, or not a whole one where one is needed.
        ValueError: A value is out of range.
    """
    for name, value in values.items():
        NUMBERS[name].check(name, value)
