"""Ranges and validation of the options of a session manager."""

from collections.abc import Mapping
from math import inf

from mcp.server.lowlevel.server import Server

from mcp_eventscope.options import Number, check_text

_DAY = 86_400

NUMBERS: Mapping[str, Number] = {
    "follow_timeout": Number("seconds", 0.001, inf),
    # A busy process cannot renew a lease of less than a second in time.
    "worker_lease": Number("seconds", 1, 3600),
    "shutdown_timeout": Number("seconds", 0, _DAY),
}
"""The types and ranges of the numeric options of `ResumableSessionManager`."""


def check_name(option: str, name: object) -> None:
    """Validate the name of a server.

    Args:
        option: The name of the option in the error.
        name: A text that is not empty.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty.
    """
    check_text(option, name, '"shop"', "leave it out for the name of the MCP server")


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
        NUMBERS[name].check(name, value)
