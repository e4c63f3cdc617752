"""Record sessions, and serve the sessions that other workers opened."""

import hashlib
import json
import secrets
from http import HTTPStatus
from typing import Any

import anyio
import pydantic_core
from anyio.abc import TaskStatus
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, AuthorizationContext, authorization_context
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import Server
from mcp.server.runner import serve_connection
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.transport_context import TransportContext
from mcp.types import INVALID_REQUEST, ErrorData, InitializeRequestParams, JSONRPCError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION
from starlette.responses import Response
from starlette.types import Scope

MOST_HANDSHAKE_BYTES = 64 * 1024
"""Maximum bytes of an `initialize` request. Those of usual clients have a few hundred."""


def requestor_of(scope: Scope) -> AuthorizationContext | None:
    """The principal of a request, as the SDK compares it; None without authentication."""
    user = scope.get("user")
    return authorization_context(user) if isinstance(user, AuthenticatedUser) else None


def audience_of(scope: Scope) -> str:
    """The audience of a request's token (its RFC 8707 resource indicator); "" if it names none."""
    user = scope.get("user")
    return (user.access_token.resource or "") if isinstance(user, AuthenticatedUser) else ""


def owner_of(requestor: AuthorizationContext | None) -> str:
    """The principal as stored in Redis: a digest, used for comparison only; "" without one."""
    if requestor is None:
        return ""
    return hashlib.sha256(json.dumps(requestor, sort_keys=True).encode()).hexdigest()


def handshake_of(body: bytes) -> str | None:
    """The parameters of an `initialize` request as JSON; None for any other body.

    Args:
        body: The body of the request that opened a session.
    """
    message = _initialize_of(body)
    return None if message is None else pydantic_core.to_json(message.get("params") or {}).decode()


def _initialize_of(body: bytes) -> dict[str, Any] | None:
    try:
        message = pydantic_core.from_json(body)
    except ValueError:
        return None
    return message if isinstance(message, dict) and message.get("method") == "initialize" else None


def too_large(body: bytes) -> Response | None:
    """The refusal of an `initialize` request whose parameters are too large to record; None for any other body.

    Its parameters are kept in memory and in Redis for as long as the session.
    """
    if len(body) <= MOST_HANDSHAKE_BYTES or (message := _initialize_of(body)) is None:
        return None
    request_id = message.get("id")
    text = (
        f"initialize request must have at most {MOST_HANDSHAKE_BYTES} bytes, got {len(body)}; "
        "send less in clientInfo, capabilities and _meta"
    )
    known = isinstance(request_id, int | str) and not isinstance(request_id, bool)
    error = JSONRPCError(
        jsonrpc="2.0", id=request_id if known else None, error=ErrorData(code=INVALID_REQUEST, message=text)
    )
    content = error.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(content, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, media_type="application/json")


def params_of(handshake: str) -> InitializeRequestParams | None:
    """Parse the parameters that `handshake_of` returned; None if they are invalid."""
    try:
        return InitializeRequestParams.model_validate_json(handshake, by_name=False)
    except ValueError:
        return None


def negotiated_version(params: InitializeRequestParams) -> str:
    """The protocol version of a session with these `initialize` parameters, as the SDK negotiates it."""
    known = params.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS
    return params.protocol_version if known else LATEST_HANDSHAKE_VERSION


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
