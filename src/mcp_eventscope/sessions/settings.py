"""What a session manager may be told."""

from mcp.server.lowlevel.server import Server


def check_settings(app: object, *, follow_timeout: float, worker_lease: float, shutdown_timeout: float) -> None:
    """Refuse what is no server, and what is no time.

    Args:
        app: The low-level server.
        follow_timeout: Seconds; positive.
        worker_lease: Seconds; positive.
        shutdown_timeout: Seconds; 0 or more.

    Raises:
        TypeError: `app` is no low-level server.
        ValueError: A number is out of its range.
    """
    if not isinstance(app, Server):
        msg = f"app must be a low-level Server, not {type(app).__name__}; for an MCPServer use http_app()"
        raise TypeError(msg)
    for name, value, least in (
        ("follow_timeout", follow_timeout, None),
        ("worker_lease", worker_lease, None),
        ("shutdown_timeout", shutdown_timeout, 0),
    ):
        if not (value > 0 or value == least):
            msg = f"{name} must be a {'' if least == 0 else 'positive '}number of seconds, not {value!r}"
            raise ValueError(msg)
