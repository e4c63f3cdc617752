"""The parts of mcp 2.x on which sessions rely, and which mcp 1.x has in another form: `_sdk_1`."""

import secrets
from collections.abc import Iterator
from typing import Any

import anyio
from anyio.abc import TaskStatus
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import Server
from mcp.server.runner import serve_connection
from mcp.server.streamable_http import StreamableHTTPServerTransport, check_accept_headers
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.transport_context import TransportContext
from mcp.types import InitializeRequestParams
from mcp_types.version import (
    HANDSHAKE_PROTOCOL_VERSIONS,
    LATEST_HANDSHAKE_VERSION,
    MODERN_PROTOCOL_VERSIONS,
    is_version_at_least,
)
from starlette.requests import Request

from mcp_eventscope.subscriptions.ending import end_subscriptions

__all__ = [
    "DISPATCHER_ATTRIBUTES",
    "LATEST_HANDSHAKE_VERSION",
    "LIFESPAN_ATTRIBUTES",
    "MCP_PROTOCOL_VERSION_HEADER",
    "MODERN_PROTOCOL_VERSIONS",
    "NO_REQUEST",
    "accepts_sse",
    "end_subscriptions",
    "is_version_at_least",
    "missing",
    "negotiated_version",
    "serve_adopted",
]

NO_REQUEST = None
"""The id of an error that belongs to no request."""
LIFESPAN_ATTRIBUTES = ("_lifespan_state",)
DISPATCHER_ATTRIBUTES = ("_next_id",)


def accepts_sse(request: Request) -> bool:
    """Whether the client accepts a stream."""
    return check_accept_headers(request)[1]


def negotiated_version(params: InitializeRequestParams) -> str:
    """The protocol version of a session with these `initialize` parameters, as the SDK negotiates it."""
    known = params.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS
    return params.protocol_version if known else LATEST_HANDSHAKE_VERSION


def missing() -> Iterator[str]:
    """The parts that the installed SDK lacks."""
    for name in DISPATCHER_ATTRIBUTES:
        if name not in JSONRPCDispatcher.__init__.__code__.co_names:
            yield f"JSONRPCDispatcher has no `{name}`"


async def serve_adopted(
    app: Server[Any],
    transport: StreamableHTTPServerTransport,
    params: InitializeRequestParams,
    lifespan_state: Any,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a session of another worker until it ends or its idle timeout expires.

    Args:
        app: The low-level server.
        transport: The session's transport here.
        params: The session's `initialize` parameters. The session starts initialized, or it would refuse every request.
        lifespan_state: The lifespan state of the server.
        task_status: Started once requests can be served.
    """
    async with transport.connect() as (read_stream, write_stream):
        dispatcher: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(read_stream, write_stream)
        # The worker that opened the session numbers its requests to the client from 1. Another range keeps the answers
        # apart.
        dispatcher._next_id = secrets.randbelow(2**40) + 2**32
        connection = Connection.for_loop(dispatcher, session_id=transport.mcp_session_id)
        connection.client_params = params
        connection.protocol_version = negotiated_version(params)
        connection.initialized.set()
        task_status.started()
        with transport.idle_scope or anyio.CancelScope():
            await serve_connection(app, dispatcher, connection=connection, lifespan_state=lifespan_state)
