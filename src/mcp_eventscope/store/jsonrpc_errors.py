"""JSON-RPC errors that replace a response which cannot be delivered.

JSON-RPC leaves the codes -32000 to -32099 to implementations. MCP reserves all of them except -32000 to -32019, of
which the SDK uses the first two.
"""

from mcp_eventscope.store.messages import ErrorData, JSONRPCError, RequestId

REQUEST_ORPHANED = -32010
"""The worker that ran the request has stopped or is declared dead."""
EVENTS_GONE = -32011
"""The missed events, or the response, are not available."""
ANSWER_IN_PROGRESS = -32012
"""The same answer to a request state is still being processed."""
STATE_UNAVAILABLE = -32013
"""An answer to a request state was not processed, and had no effect, because Redis is unavailable."""

_UNKNOWN = "The request may have taken effect. Do not repeat it unless the tool is idempotent."


def orphaned(request_id: RequestId) -> JSONRPCError:
    """The error for a request whose worker has stopped or is declared dead.

    Args:
        request_id: The client's id of the request, with its JSON type.
    """
    return _error(request_id, REQUEST_ORPHANED, f"The server process of this request is not available. {_UNKNOWN}")


def events_unavailable(request_id: RequestId) -> JSONRPCError:
    """The error for a resume whose events are no longer stored. Arguments as in `orphaned`."""
    return _error(request_id, EVENTS_GONE, f"The events of this stream are no longer stored. {_UNKNOWN}")


def not_stored(request_id: RequestId, reason: str) -> JSONRPCError:
    """The error that is stored in place of a response.

    Args:
        request_id: As in `orphaned`.
        reason: A clause that explains to the client why the response is not stored.
    """
    return _error(request_id, EVENTS_GONE, f"The response is not available: {reason}. {_UNKNOWN}")


def superseded(request_id: RequestId) -> JSONRPCError:
    """The error for a request whose id the client reused before its response. Arguments as in `orphaned`."""
    return _error(request_id, EVENTS_GONE, f"Another request with the same id has replaced this one. {_UNKNOWN}")


def _error(request_id: RequestId, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message))
