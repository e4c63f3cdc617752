"""The SDK's messages as a store uses them, their types by name, and their form at the SDK's interface.

In mcp 2.x a message is one of four models. mcp 1.x passes it to a store in a `RootModel`, and expects it so from a
replay. In this package a message never has this wrapper: it is removed and added where the SDK or a third-party store
calls or is called. Nothing else depends on the major version of the SDK.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import (
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

__all__ = [
    "FINAL",
    "GET_STREAM_KEY",
    "SDK_1",
    "ErrorData",
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
    "StoredEvent",
    "StreamId",
    "is_final",
    "type_of",
    "type_of_class",
    "unwrapped",
    "unwrapping",
    "wrapped",
    "wrapping",
]


@dataclass
class StoredEvent(EventMessage):
    """An event of a replay, with the JSON from which it was decoded, which a transport can send."""

    payload: bytes = b""


M = TypeVar("M", bound=JSONRPCMessage | None)
_message: Any = JSONRPCMessage
_wrapper: Any = _message if isinstance(_message, type) else None
"""The `RootModel` of mcp 1.x; None in mcp 2.x, where `JSONRPCMessage` is a union."""

SDK_1 = _wrapper is not None
"""Whether this is mcp 1.x, whose transport omits members that are null. That of mcp 2.x omits those that are unset."""


def unwrapped(message: M) -> M:
    """The message that the SDK passes to a store, without the wrapper of mcp 1.x."""
    received: Any = message
    return received.root if _wrapper and isinstance(received, _wrapper) else message


def wrapped(message: M) -> M:
    """The inverse of `unwrapped`: the form that a store of the SDK's interface receives."""
    return _wrapper.model_construct(message) if _wrapper and message is not None else message


def unwrapping(send: EventCallback) -> EventCallback:
    """A callback for a third-party store, which passes its messages to `send` without wrapper."""
    return _converting(send, unwrapped)


def wrapping(send: EventCallback) -> EventCallback:
    """A callback for a replay of this package, which passes its messages to the SDK's `send` with wrapper."""
    return _converting(send, wrapped)


def _converting(
    send: EventCallback, convert: Callable[[JSONRPCMessage | None], JSONRPCMessage | None]
) -> EventCallback:
    if not _wrapper:
        return send

    async def converted(event: EventMessage) -> None:
        message: Any = convert(event.message)
        await send(EventMessage(message, event.event_id))

    return converted


class MessageType(StrEnum):
    """The type of the message that an event carries."""

    PRIMING = "priming"
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    ERROR = "error"


_TYPES: Mapping[type, MessageType] = {
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
