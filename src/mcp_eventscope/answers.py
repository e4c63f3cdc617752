"""The errors that a client gets where there is nothing else to say: JSON-RPC responses to its own requests.

Codes are from the band that JSON-RPC leaves to implementations, -32000 to -32099, of which MCP reserves all but
-32000 to -32019; the SDK uses the first two.
"""

from urllib.parse import unquote

from mcp.types import ErrorData, JSONRPCError, RequestId

from mcp_eventscope.types import StreamId

REQUEST_ORPHANED = -32010
"""The process that ran the request is gone."""
EVENTS_GONE = -32011
"""What the client missed is no longer stored."""


def orphaned(stream: StreamId) -> JSONRPCError:
    """The answer to a request whose worker is gone.

    Args:
        stream: The name of its stream.
    """
    return _error(
        stream,
        REQUEST_ORPHANED,
        "The server process that ran this request is gone. Whether it took effect is not known; "
        "send it again if that is safe",
    )


def events_gone(stream: StreamId) -> JSONRPCError:
    """The answer to a resume for which nothing is stored any more.

    Args:
        stream: The name of the stream.
    """
    return _error(
        stream,
        EVENTS_GONE,
        "What was said on this stream is no longer stored, so it cannot be resumed. Whether the request took effect "
        "is not known; send it again if that is safe",
    )


def lost(stream: StreamId) -> JSONRPCError:
    """What is stored in place of a response that could not be kept until the store was back.

    Args:
        stream: The name of its stream.
    """
    return _error(
        stream,
        EVENTS_GONE,
        "The response was sent while the event store was away, and could not be kept. Whether the request took effect "
        "is not known; send it again if that is safe",
    )


def _error(stream: StreamId, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=_request_id(stream), error=ErrorData(code=code, message=message))


def _request_id(stream: StreamId) -> RequestId:
    """The id of the request that a stream is named after. The name does not tell 1 from "1": numbers are usual."""
    text = unquote(stream)
    number = text.removeprefix("-")
    return int(text) if number.isascii() and number.isdigit() and len(number) < 16 and str(int(text)) == text else text
