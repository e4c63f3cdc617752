"""Install request states in a server, under a name that all of its processes share."""

import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary

from mcp_eventscope.options import check_text, given
from mcp_eventscope.request_state.protocol import RequestState

T = TypeVar("T")

_PLACEHOLDER = "mcp-server"
"""The name of an `MCPServer` that has none."""
_GENERATED = re.compile(r"FastMCP-[0-9a-f]{4}")
"""The name that a `FastMCP` generates when it has none."""
_DISTINCT_ID = 1000
_FIX = 'name the service, for example "orders", the same in all of its processes'


def check_audience(option: str, audience: object) -> None:
    """Refuse a name that differs between the processes of one service.

    Args:
        option: The name of the option in the error.
        audience: The name.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, a placeholder, or contains the name of the host or the id of the process.
    """
    check_text(option, audience, '"orders"', "leave it out for the name of the server")
    name, host = str(audience), socket.gethostname()
    # The host of a pod or a container has a generated name; others may well be named after their service.
    per_host = len(host) > 3 and any(each.isdigit() for each in host) and host in name
    # Low ids are usual in containers, and the same in each.
    per_process = os.getpid() >= _DISTINCT_ID and re.search(rf"(?<![0-9]){os.getpid()}(?![0-9])", name) is not None
    if name == _PLACEHOLDER or _GENERATED.fullmatch(name) or per_host or per_process:
        problem = "the name of this host" if per_host else "the id of this process" if per_process else repr(name)
        msg = f"{option} must be the same in all processes of the service, got {problem}; {_FIX}"
        raise ValueError(msg)


def install(state: RequestState, server: object) -> None:
    """Replace the server's `RequestStateBoundary` with the middleware of a request state, and run it with the server.

    Args:
        state: The request state.
        server: An `MCPServer`, a low-level `Server`, or a `FastMCP`.

    Raises:
        TypeError: The server is none of these.
        ValueError: The name is missing, or differs between processes; or the server has a request state already.
    """
    inner = server
    for name in ("_lowlevel_server", "_mcp_server"):  # MCPServer and FastMCP, which do not publish their lifespan.
        inner = getattr(server, name, inner)
    if not isinstance(inner, Server):
        msg = f"server must be an MCPServer, a low-level Server or a FastMCP, got {given(server)}; pass the server"
        raise TypeError(msg)
    name = inner.name if state.audience is None else state.audience
    check_audience("the name of the server" if state.audience is None else "audience", name)
    chain: list[Any] = inner.middleware
    if any(getattr(each, "protects_request_state", False) for each in chain):
        msg = "server must not have a request state already, got a second one; install one of them"
        raise ValueError(msg)
    inner.lifespan = _running_with(inner.lifespan, state)
    middleware = state.middleware(name)
    for place, each in enumerate(chain):
        if isinstance(each, RequestStateBoundary):
            chain[place] = middleware
            return
    # A low-level server has no boundary. Its spans stay outside, as in an MCPServer.
    traced = bool(chain) and type(chain[0]).__name__ == "OpenTelemetryMiddleware"
    chain.insert(int(traced), middleware)


def _running_with(lifespan: Callable[..., AbstractAsyncContextManager[T]], state: RequestState) -> Callable[..., Any]:
    @asynccontextmanager
    async def running(server: Server[Any]) -> AsyncIterator[T]:
        async with state.running(), lifespan(server) as entered:
            yield entered

    return running
