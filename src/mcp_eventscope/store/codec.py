"""Encode JSON-RPC messages as stored payloads, and decode them."""

import json
from typing import Any

import pydantic_core

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.store.messages import (
    SDK_1,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

_DIGITS = 4000
"""Digits of an integer that are parsed in one step: Python refuses to parse more than 4300."""

_from_json = pydantic_core.from_json
_notification = JSONRPCNotification.__pydantic_validator__.validate_json
"""Bypasses `model_validate_json`, which takes twice as long."""
_SECOND_MEMBER = 18
"""Where the name of the second member begins that `encode` writes in mcp 2.x: `{"jsonrpc":"2.0","…`."""
_METHOD = b"m"[0]
"""How it begins in a notification; in other messages it is the id."""


def encode(message: JSONRPCMessage | None) -> bytes:
    """Encode a message exactly as the transport writes it live; b"" for a priming event.

    In mcp 2.x with `exclude_unset`, since `exclude_none` drops the `id: null` of an error, and explicit nulls.

    Args:
        message: A JSON-RPC message, or None for a priming event.

    Returns:
        JSON in UTF-8, or b"".

    Raises:
        ValueError: The message has no JSON form (for example a lone surrogate); the transport could not send it either.
    """
    if message is None:
        return b""
    # As `model_dump_json`, without the intermediate text.
    return message.__pydantic_serializer__.to_json(message, by_alias=True, exclude_unset=not SDK_1, exclude_none=SDK_1)


def decode(payload: bytes) -> JSONRPCMessage:
    """Decode a stored payload.

    Args:
        payload: JSON in UTF-8, not empty.

    Returns:
        The message. Its members determine its type: trying the types of the union in turn takes four times as long.

    Raises:
        CorruptEventError: The payload is not JSON, or not a JSON-RPC message.
    """
    try:
        # Most events are notifications, decoded in one step. `startswith` takes a tenth of the time of that step.
        if payload[_SECOND_MEMBER] == _METHOD:
            # An id would make it a request: `forbid` rejects it.
            notification: JSONRPCNotification = _notification(payload, extra="forbid")
            return notification
    except (ValueError, IndexError):
        pass
    try:
        return _message_of(payload)
    except (ValueError, RecursionError):
        # Not chained: the text of a validation error contains the payload.
        msg = "not a JSON-RPC message"
        raise CorruptEventError(msg) from None


def _message_of(payload: bytes) -> JSONRPCMessage:
    try:
        return _validated(_from_json(payload))
    except ValueError:
        # Pydantic writes more than it reads: deeper nesting than 200, integers of more than 4300 digits.
        message = _validated(json.loads(payload.decode(), parse_int=_integer))
        # This parser accepts payloads that pydantic cannot write, such as lone surrogates; `encode` rejects them.
        encode(message)
        return message


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    value = 0
    for start in range(0, len(digits), _DIGITS):
        part = digits[start : start + _DIGITS]
        value = value * 10 ** len(part) + int(part)
    return sign * value


def _validated(members: Any) -> JSONRPCMessage:
    message: JSONRPCMessage = _type_of(members).__pydantic_validator__.validate_python(members)
    return message


def _type_of(
    members: object,
) -> type[JSONRPCRequest | JSONRPCNotification | JSONRPCResponse | JSONRPCError]:
    """The message type that the members belong to."""
    if not isinstance(members, dict):
        msg = "not an object"
        raise ValueError(msg)  # noqa: TRY004 - the caller maps ValueError to "corrupt"
    if "method" in members:
        return JSONRPCRequest if "id" in members else JSONRPCNotification
    return JSONRPCResponse if "result" in members else JSONRPCError
