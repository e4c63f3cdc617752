"""Validate the options of a session manager."""

from math import inf

from mcp.server.lowlevel.server import Server

_DAY = 86_400.0
_RANGES = {"follow_timeout": (0.001, inf), "worker_lease": (1.0, 3600.0), "shutdown_timeout": (0.0, _DAY)}
"""Minimum and maximum in seconds. A busy process cannot renew a lease of less than a second in time."""


def check_name(name: object) -> None:
    """Validate the name of a server.

    Args:
        name: A text that is not empty; None: the server's own name.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty.
    """
    if name is not None and not isinstance(name, str):
        msg = f"name must be a string, got {type(name).__name__}; leave it out for the name of the MCP server"
        raise TypeError(msg)
    if name is not None and not name.strip():
        msg = f"name must not be empty, got {name!r}; leave it out for the name of the MCP server"
        raise ValueError(msg)


def check_settings(app: object, **timeouts: float) -> None:
    """Validate the server and the timeouts.

    Args:
        app: The low-level server.
        timeouts: In seconds: `follow_timeout`, at least a millisecond, `inf` for no timeout; `worker_lease`, from a
            second to an hour; `shutdown_timeout`, from 0 to a day.

    Raises:
        TypeError: `app` is not a low-level server, or a timeout is not a number.
        ValueError: A timeout is out of range.
    """
    if not isinstance(app, Server):
        msg = f"app must be a low-level Server, got {type(app).__name__}; for an MCPServer or a FastMCP use http_app()"
        raise TypeError(msg)
    for name, value in timeouts.items():
        least, most = _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"{name} must be a number of seconds, got {value!r}; convert it with float()"
            raise TypeError(msg)
        if not least <= value <= most:
            msg = f"{name} must be between {least:g} and {most:g} seconds, got {value!r}; leave it out for the default"
            raise ValueError(msg)
