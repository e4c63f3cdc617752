"""The SDK's messages as a store uses them, and their types by name."""

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
    "MessageType",
    "RequestId",
    "StreamId",
    "is_final",
    "type_of",
    "type_of_class",
]


class MessageType(StrEnum):
    """The type of the message that an event carries."""

    PRIMING = "priming"
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    ERROR = "error"


_TYPES: dict[type, MessageType] = {
    type(None): MessageType.PRIMING,
    JSONRPCRequest: MessageType.REQUEST,
    JSONRPCNotification: MessageType.NOTIFICATION,
    JSONRPCResponse: MessageType.RESPONSE,
    JSONRPCError: MessageType.ERROR,
}


def type_of(message: JSONRPCMessage | None) -> MessageType:
    """The type of a message; None is a priming event."""
    return _TYPES[type(message)]


def type_of_class(message: type) -> MessageType:
    """The type of the messages of a class."""
    return _TYPES[message]


FINAL = (JSONRPCResponse, JSONRPCError)
"""The message types that end the stream of a request."""


def is_final(stream_id: StreamId, message: JSONRPCMessage | None) -> bool:
    """Whether a message ends its stream, as the response to the stream's request.

    The standalone stream never ends. It carries the errors without an id, which belong to no request.
    """
    return stream_id != GET_STREAM_KEY and type(message) in FINAL
