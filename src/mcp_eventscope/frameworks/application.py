"""An application as a framework builds it."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.routing import BaseRoute

_OPTIONS_OF_SERVERS = frozenset({"auth", "token_verifier", "auth_server_provider", "debug"})
"""Options of some applications that other frameworks have on their servers, with the same meaning."""


_ELSEWHERE: Mapping[str, str] = {
    "url": "write redis_url=",
    "prefix": "write key_prefix=",
    "store": "write event_store=",
    "redis": "pass it to EventScope(redis=…), and that as scope=",
    "client": "pass it to EventScope(redis=…), and that as scope=",
    "tasks": "pass it to EventScope.server_options()",
    "stateless": "write stateless_http=",
    **dict.fromkeys(("port", "workers", "reload", "log_level"), "pass it to uvicorn"),
}
"""The remedies for options that are not known, and are likely to be meant as others."""
_PATHS: Mapping[str, str] = {"path": "streamable_http_path", "streamable_http_path": "path"}
"""The options of FastMCP and the SDK for the same thing."""


@dataclass(frozen=True, slots=True)
class Application:
    """An application without a session manager of its own."""

    app: Starlette
    """Its lifespan is to be replaced by one that runs the installed manager."""
    server: "Server[Any]"
    """The low-level server."""
    manager_options: dict[str, Any]
    """The keywords with which the framework would create the SDK's session manager."""
    install: Callable[[StreamableHTTPSessionManager], None]
    """Puts a session manager where the application looks for it."""
    lifespan: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    """Runs around the session manager."""


def made(make: Callable[..., Starlette], server: object, options: Mapping[str, Any]) -> Starlette:
    """Build an application by the framework's own function.

    Args:
        make: The function, a method of the server.
        server: The server.
        options: The keywords of the function.

    Raises:
        TypeError: The function has no such keyword: it may be one of another framework, or of the server itself.
    """
    known = inspect.signature(make).parameters
    for name in options.keys() - known:
        kind = type(server).__name__
        own = name in _OPTIONS_OF_SERVERS and name in inspect.signature(type(server)).parameters
        fix = f"pass it to {kind}({name}=…)" if own else _ELSEWHERE.get(name, "leave it out")
        if (other := _PATHS.get(name)) in known:
            fix = f"write {other}="
        msg = f"{name} must be an option of http_app() or of {kind}.{make.__name__}(), got another name; {fix}"
        raise TypeError(msg)
    return make(**options)


def innermost(route: BaseRoute, endpoint_type: type) -> object:
    """The endpoint of a type in a route, inside the middleware that wraps it (`RequireAuthMiddleware`), or None."""
    endpoint = getattr(route, "endpoint", None)
    while endpoint is not None and not isinstance(endpoint, endpoint_type):
        endpoint = getattr(endpoint, "app", None)
    return endpoint
