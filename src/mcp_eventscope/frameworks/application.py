"""An application as a framework builds it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.routing import BaseRoute


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


def innermost(route: BaseRoute, endpoint_type: type) -> object:
    """The endpoint of a type in a route, inside the middleware that wraps it (`RequireAuthMiddleware`), or None."""
    endpoint = getattr(route, "endpoint", None)
    while endpoint is not None and not isinstance(endpoint, endpoint_type):
        endpoint = getattr(endpoint, "app", None)
    return endpoint
