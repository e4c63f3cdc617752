"""Validate the options of a session manager."""

from mcp.server.lowlevel.server import Server


def check_settings(app: object, *, follow_timeout: float, worker_lease: float, shutdown_timeout: float) -> None:
    """Validate the server and the timeouts.

    Args:
        app: The low-level server.
        follow_timeout: Seconds; positive.
        worker_lease: Seconds; positive.
        shutdown_timeout: Seconds; 0 or more.

    Raises:
        TypeError: `app` is not a low-level server.
        ValueError: A timeout is out of range.
    """
    if not isinstance(app, Server):
        msg = f"app must be a low-level Server, got {type(app).__name__}; for an MCPServer use http_app()"
        raise TypeError(msg)
    for name, value, least in (
        ("follow_timeout", follow_timeout, None),
        ("worker_lease", worker_lease, None),
        ("shutdown_timeout", shutdown_timeout, 0),
    ):
        if not (value > 0 or value == least):
            msg = f"{name} must be a {'non-negative' if least == 0 else 'positive'} number of seconds, got {value!r}"
            raise ValueError(msg)
