"""Record sessions, and serve the sessions that other workers opened."""

import hashlib
import json

import pydantic_core
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, AuthorizationContext, authorization_context
from mcp.types import InitializeRequestParams
from starlette.types import Scope


def requestor_of(scope: Scope) -> AuthorizationContext | None:
    """The principal of a request, as the SDK compares it; None without authentication."""
    user = scope.get("user")
    return authorization_context(user) if isinstance(user, AuthenticatedUser) else None


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
    try:
        message = pydantic_core.from_json(body)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("method") != "initialize":
        return None
    return json.dumps(message.get("params") or {})


def params_of(handshake: str) -> InitializeRequestParams | None:
    """Parse the parameters that `handshake_of` returned; None if they are invalid."""
    try:
        return InitializeRequestParams.model_validate_json(handshake, by_name=False)
    except ValueError:
        return None
