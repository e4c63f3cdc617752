"""The applications of FastMCP, which is never imported here: only its users have servers of it."""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette

from mcp_eventscope.errors import IncompatibleSDKError
from mcp_eventscope.frameworks.application import Application, innermost, made
from mcp_eventscope.store.messages import SDK_1

_TRANSPORTS = ("http", "streamable-http")
_SETTINGS = ("json_response", "stateless_http", *(() if SDK_1 else ("http_session_idle_timeout",)))


def is_server(server: object) -> bool:
    """Whether a server is FastMCP's: a `FastMCP`, or the low-level server inside of one."""
    return bool(_classes(server) & {"FastMCP", "LowLevelServer"})


def refuse_inner(option: str, server: object) -> None:
    """Refuse the low-level server inside of a `FastMCP`, which would be served openly where the `FastMCP` is not.

    Args:
        option: The name in the error.
        server: Any server.

    Raises:
        TypeError: It is one.
    """
    if "LowLevelServer" in _classes(server):
        msg = (
            f"{option} must not be the low-level server inside of a FastMCP, got one, which has none of its "
            "authentication, routes and middleware; pass the FastMCP server itself to http_app()"
        )
        raise TypeError(msg)


def _classes(server: object) -> set[str]:
    """The classes of fastmcp that a server is an instance of."""
    return {each.__name__ for each in type(server).__mro__ if each.__module__.partition(".")[0] == "fastmcp"}


def build(server: Any, options: Mapping[str, Any]) -> Application:
    """Build the application as `FastMCP.http_app()` does. Arguments and errors as in `frameworks.build`.

    Its authentication, routes and middleware are kept. FastMCP creates its session manager when the application starts;
    the installed one replaces it, and enters the server's lifespan in the same way.
    """
    refuse_inner("mcp", server)
    transport = options.get("transport", "http")
    if transport not in _TRANSPORTS:
        msg = f'transport must be "http", got {transport!r}; only streamable HTTP can be resumed'
        raise ValueError(msg)
    make: Callable[..., Starlette] = server.http_app
    app = made(make, server, options)
    endpoint_type = getattr(sys.modules.get("fastmcp.server.http"), "StreamableHTTPASGIApp", None)
    settings = getattr(sys.modules.get("fastmcp"), "settings", None)
    if endpoint_type is None or not all(hasattr(settings, name) for name in _SETTINGS):
        _incompatible("its endpoint or its settings were not found")
    endpoints = [found for route in app.routes if (found := innermost(route, endpoint_type)) is not None]
    endpoint: Any = endpoints[0] if len(endpoints) == 1 else None
    if endpoint is None or not hasattr(endpoint, "session_manager"):
        _incompatible("the place of its session manager was not found")
    if not hasattr(getattr(server, "_mcp_server", None), "lifespan"):
        _incompatible("its low-level server was not found")
    # In FastMCP 2 and 3 the application enters the server's lifespan, in FastMCP 4 the session manager.
    lifespan = getattr(server, "_lifespan_manager", None) if SDK_1 else nullcontext
    if lifespan is None:
        _incompatible("its lifespan was not found")

    def chosen(option: str, setting: str) -> Any:
        value = options.get(option)
        return getattr(settings, setting) if value is None else value

    manager_options = {
        "json_response": chosen("json_response", "json_response"),
        "stateless": chosen("stateless_http", "stateless_http"),
        "retry_interval": options.get("retry_interval"),
        # FastMCP protects against DNS rebinding by a middleware of its own.
        "security_settings": TransportSecuritySettings(enable_dns_rebinding_protection=False),
    }
    idle_timeout = "auto" if SDK_1 else chosen("session_idle_timeout", "http_session_idle_timeout")
    if idle_timeout != "auto":  # Which is the SDK's default.
        manager_options["session_idle_timeout"] = idle_timeout

    def install(manager: StreamableHTTPSessionManager) -> None:
        endpoint.session_manager = manager

    return Application(app, server._mcp_server, manager_options, install, lifespan)


def _incompatible(reason: str) -> NoReturn:
    msg = (
        f"fastmcp {getattr(sys.modules.get('fastmcp'), '__version__', '')} builds its HTTP application in another way: "
        f"{reason}; install fastmcp 4.1.2, or 3.4.11 with mcp 1.30, with which this version was tested"
    )
    raise IncompatibleSDKError(msg)
