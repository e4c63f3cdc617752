"""Builds the HTTP application of a server, and finds the place of its session manager."""

from collections.abc import Mapping
from typing import Any

from mcp_eventscope.frameworks import fastmcp, sdk
from mcp_eventscope.frameworks.application import Application

__all__ = ["Application", "build"]


def build(server: object, options: Mapping[str, Any]) -> Application:
    """Build the application of a server as its own framework does.

    Args:
        server: An `MCPServer` or low-level `Server` of the SDK, or a `FastMCP`.
        options: The keywords of the framework's own function.

    Raises:
        TypeError: It is none of these, or the framework does not know an option.
        ValueError: An option's value is not supported.
        IncompatibleSDKError: The installed framework builds its application in another way.
    """
    return fastmcp.build(server, options) if fastmcp.is_server(server) else sdk.build(server, options)
