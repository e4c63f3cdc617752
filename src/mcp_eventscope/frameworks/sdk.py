"""The applications of the MCP SDK: `MCPServer` and the low-level `Server`."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette

from mcp_eventscope.errors import IncompatibleSDKError
from mcp_eventscope.frameworks.application import Application, innermost, made
from mcp_eventscope.options import given
from mcp_eventscope.sdk_versions import TESTED
from mcp_eventscope.store.messages import SDK_1

if TYPE_CHECKING or not SDK_1:
    from mcp.server import MCPServer
    from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
else:
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.server.fastmcp.server import StreamableHTTPASGIApp

__all__ = ["MCPServer", "build"]


def build(server: object, options: Mapping[str, Any]) -> Application:
    """Build the application as `streamable_http_app()` does. Arguments and errors as in `frameworks.build`."""
    if not isinstance(server, MCPServer | Server):
        msg = (
            f"mcp must be an MCPServer, a low-level Server or a FastMCP, got {given(server)}; "
            "pass the MCP server itself, and mount the application that http_app() returns in your own"
        )
        if isinstance(server, type | FunctionType | MethodType):
            msg = f"mcp must be an MCPServer or another server, got {given(server)}; call it, and pass its result"
        raise TypeError(msg)
    if not hasattr(server, "streamable_http_app"):  # mcp 1.x
        msg = (
            "mcp must be a FastMCP with mcp 1.x, got a low-level Server, which has no HTTP application; "
            "use ResumableSessionManager"
        )
        raise TypeError(msg)
    make: Callable[..., Starlette] = server.streamable_http_app
    app = made(make, server, options)
    built = server.session_manager
    endpoints = [found for route in app.routes if (found := innermost(route, StreamableHTTPASGIApp)) is not None]
    endpoint: Any = endpoints[0] if len(endpoints) == 1 else None
    keeper: Any = server if SDK_1 else built.app
    if endpoint is None or endpoint.session_manager is not built or keeper._session_manager is not built:
        msg = (
            f"mcp {version('mcp')} builds its HTTP application in another way: its session manager was not found. "
            f"Install {TESTED}"
        )
        raise IncompatibleSDKError(msg)

    def install(manager: StreamableHTTPSessionManager) -> None:
        endpoint.session_manager = manager
        keeper._session_manager = manager  # What `mcp.session_manager` returns.

    names = (
        *("json_response", "stateless", "security_settings", "retry_interval", "session_idle_timeout"),
        *("max_request_body_size", "max_sessions"),
    )
    return Application(app, built.app, {name: getattr(built, name) for name in names}, install)
