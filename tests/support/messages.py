"""Small messages."""

from mcp.types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCResponse


def note(number: int, text: str = "") -> JSONRPCNotification:
    """A notification with a number and a text."""
    return JSONRPCNotification(jsonrpc="2.0", method="note", params={"n": number, "text": text})


def answer(request_id: int | str = 1) -> JSONRPCResponse:
    """The response that ends a stream."""
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result={})


def failure(request_id: int | str | None = 1) -> JSONRPCError:
    """The error that ends a stream."""
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=-32603, message="no"))
