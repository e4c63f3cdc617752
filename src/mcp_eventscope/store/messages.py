"""The SDK's message types that a store uses, and their kinds."""

from enum import StrEnum

from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, RequestId

__all__ = [
    "FINAL",
    "GET_STREAM_KEY",
    "EventCallback",
    "EventId",
    "EventMessage",
    "EventStore",
    "JSONRPCError",
    "JSONRPCMessage",
    "JSONRPCNotification",
    "JSONRPCRequest",
    "JSONRPCResponse",
    "MessageKind",
    "RequestId",
    "StreamId",
    "is_final",
    "kind_of",
    "kind_of_type",
]


class MessageKind(StrEnum):
    """The kind of message that an event carries."""

    PRIMING = "priming"
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    ERROR = "error"


_KINDS: dict[type, MessageKind] = {
    type(None): MessageKind.PRIMING,
    JSONRPCRequest: MessageKind.REQUEST,
    JSONRPCNotification: MessageKind.NOTIFICATION,
    JSONRPCResponse: MessageKind.RESPONSE,
    JSONRPCError: MessageKind.ERROR,
}


def kind_of(message: JSONRPCMessage | None) -> MessageKind:
    """The kind of a message; None is a priming event."""
    return _KINDS[type(message)]


def kind_of_type(message: type) -> MessageKind:
    """The kind of a message type."""
    return _KINDS[message]


FINAL = (JSONRPCResponse, JSONRPCError)
"""The message types that end the stream of a request."""


def is_final(stream_id: StreamId, message: JSONRPCMessage | None) -> bool:
    """Whether a message ends its stream, as the response to the stream's request.

    The standalone stream never ends. It carries the errors without an id, which belong to no request.
    """
    return stream_id != GET_STREAM_KEY and type(message) in FINAL
