"""Defaults and validation of a store's numeric options."""

from math import inf

STORE_TIMEOUT = 0.25
"""Seconds for which an append to the root store waits for Redis before the event is deferred."""
BACKLOG_BYTES = 16 << 20
"""Maximum bytes of events that a process buffers until Redis recovers."""
BACKLOG_EVENTS = 100_000
"""Maximum number of events that a process buffers until Redis recovers."""
MAX_SESSION_BYTES = 64 << 20
"""Maximum bytes that a session's events may use in Redis."""
LEAST_SESSION_BYTES = 1 << 20
"""The smallest `max_session_bytes`: the pending events of one session may be that large."""
FLUSH_SECONDS = 2.0
"""Maximum seconds for which a stopping process waits until its pending events are stored."""
PROBE_SECONDS = 60
"""Seconds for which the key of a probe is kept."""
MAX_TTL = 10 * 365 * 24 * 3600
"""The longest TTL in seconds (ten years). Redis refuses far larger ones, in the middle of a write."""


def check_limits(**bounds: float) -> None:
    """Validate the timeouts and the bounds of the backlog.

    Raises:
        TypeError: A value is not a number.
        ValueError: A timeout is not positive, or a bound of the backlog is below 1.
    """
    for name, value in bounds.items():
        least = 1 if name.startswith("backlog") else 0
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"{name} must be a number, got {value!r}"
            raise TypeError(msg)
        if not (value >= least and value > 0 and value < inf):
            msg = f"{name} must be {'at least 1' if least else 'a positive number of seconds'}, got {value!r}"
            raise ValueError(msg)


def check_ttl(ttl: int | None) -> None:
    """Validate a TTL, which Redis would otherwise refuse later.

    Raises:
        TypeError: The TTL is not an int.
        ValueError: The TTL is not between 1 second and ten years.
    """
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        msg = f"ttl must be a whole number of seconds or None (no expiry), got {ttl!r}"
        raise TypeError(msg)
    if not 0 < ttl <= MAX_TTL:
        msg = f"ttl must be between 1 and {MAX_TTL} seconds or None (no expiry), got {ttl}"
        raise ValueError(msg)


def check_session_bytes(limit: int) -> None:
    """Validate `max_session_bytes`.

    Raises:
        TypeError: The limit is not an int.
        ValueError: The limit is below `LEAST_SESSION_BYTES`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        msg = f"max_session_bytes must be a whole number of bytes, got {limit!r}; leave it out for 64 MiB"
        raise TypeError(msg)
    if limit < LEAST_SESSION_BYTES:
        msg = f"max_session_bytes must be at least {LEAST_SESSION_BYTES} (1 MiB), got {limit}; leave it out for 64 MiB"
        raise ValueError(msg)
