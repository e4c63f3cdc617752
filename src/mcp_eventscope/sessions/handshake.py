"""The recorded handshake of a session, its size limit, and the owner of the session."""

import hashlib
import json
from http import HTTPStatus
from typing import Any

import pydantic_core
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, AuthorizationContext, authorization_context
from mcp.types import INVALID_REQUEST, InitializeRequestParams
from starlette.responses import JSONResponse, Response
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
    error = {"code": INVALID_REQUEST, "message": text}
    content = {"jsonrpc": "2.0", "id": request_id if known else None, "error": error}
    return JSONResponse(content, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def params_of(handshake: str) -> InitializeRequestParams | None:
    """Parse the parameters that `handshake_of` returned; None if they are invalid."""
    try:
        return InitializeRequestParams.model_validate_json(handshake, by_name=False)
    except ValueError:
        return None
