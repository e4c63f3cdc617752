"""The numbers that a store is given: what they are by default, and what they may be."""

from math import inf

STORE_TIMEOUT = 0.25
"""Seconds that a message waits for Redis to acknowledge it, before it goes out live without an id."""
BACKLOG_BYTES = 16 << 20
"""What a process keeps of events until Redis is back, in bytes."""
BACKLOG_EVENTS = 100_000
"""The same, in events."""
MAX_SESSION_BYTES = 64 << 20
"""The most bytes that a session's events take up in Redis."""
LEAST_SESSION_BYTES = 1 << 20
"""The least value of that: a session's pending events alone may be as many."""
FLUSH_SECONDS = 2.0
"""How long a process that ends waits at most for what is not stored yet."""
MAX_TTL = 10 * 365 * 24 * 3600
"""The longest TTL in seconds, ten years: Redis refuses far larger ones in the middle of a write."""


def check_limits(**bounds: float) -> None:
    """Refuse a bound that is none.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive, or, of the backlog, below 1.
    """
    for name, value in bounds.items():
        least = 1 if name.startswith("backlog") else 0
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"{name} must be a number, not {value!r}"
            raise TypeError(msg)
        if not (value >= least and value > 0 and value < inf):
            msg = f"{name} must be {'at least 1' if least else 'a positive number of seconds'}, not {value!r}"
            raise ValueError(msg)


def check_ttl(ttl: int | None) -> None:
    """Refuse a TTL that Redis would refuse later.

    Raises:
        TypeError: It is no int.
        ValueError: It is not between 1 second and ten years.
    """
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        msg = f"ttl must be a whole number of seconds, or None to keep events for ever; not {ttl!r}"
        raise TypeError(msg)
    if not 0 < ttl <= MAX_TTL:
        msg = f"ttl must be between 1 and {MAX_TTL} seconds, or None to keep events for ever; not {ttl}"
        raise ValueError(msg)


def check_session_bytes(limit: int) -> None:
    """Refuse a limit of a session that is none.

    Raises:
        TypeError: It is no int.
        ValueError: It is below `LEAST_SESSION_BYTES`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        msg = f"max_session_bytes must be a whole number of bytes, got {limit!r}; leave it out for 64 MiB"
        raise TypeError(msg)
    if limit < LEAST_SESSION_BYTES:
        msg = f"max_session_bytes must be at least {LEAST_SESSION_BYTES} (1 MiB), got {limit}; leave it out for 64 MiB"
        raise ValueError(msg)
