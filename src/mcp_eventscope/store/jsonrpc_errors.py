"""The JSON-RPC errors that stand in place of a response which cannot be delivered.

Codes are from the band that JSON-RPC leaves to implementations, -32000 to -32099, of which MCP reserves all but
-32000 to -32019; the SDK uses the first two.
"""

from mcp.types import ErrorData, JSONRPCError, RequestId

REQUEST_ORPHANED = -32010
"""The worker that ran the request is gone."""
EVENTS_GONE = -32011
"""The events that the client missed, or the response, are no longer stored."""

_UNKNOWN = "Whether the request took effect is unknown: do not repeat it unless the tool is idempotent"


def orphaned(request_id: RequestId) -> JSONRPCError:
    """The error for a request whose worker is gone.

    Args:
        request_id: The client's id of the request, with its JSON type.
    """
    return _error(request_id, REQUEST_ORPHANED, f"The server process that ran this request is gone. {_UNKNOWN}")


def events_gone(request_id: RequestId) -> JSONRPCError:
    """The error for a resume whose events are no longer stored. Arguments as in `orphaned`."""
    return _error(request_id, EVENTS_GONE, f"The events of this stream are no longer stored. {_UNKNOWN}")


def not_stored(request_id: RequestId, reason: str) -> JSONRPCError:
    """The error that is stored in place of a response.

    Args:
        request_id: As in `orphaned`.
        reason: Why the response is not stored: a clause for the client.
    """
    return _error(request_id, EVENTS_GONE, f"The response is not available: {reason}. {_UNKNOWN}")


def superseded(request_id: RequestId) -> JSONRPCError:
    """The error for a request whose id the client used again while it was running. Arguments as in `orphaned`."""
    return _error(request_id, EVENTS_GONE, f"Another request with the same id has replaced this one. {_UNKNOWN}")


def _error(request_id: RequestId, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message))
