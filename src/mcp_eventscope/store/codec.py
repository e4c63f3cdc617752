"""JSON-RPC messages to stored payloads, and back."""

import json
from typing import Any

import pydantic_core
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from mcp_eventscope.errors import CorruptEventError

_DIGITS = 4000
"""Digits of an integer read at once: Python refuses to read more than 4300, and counts in any number of them."""

_from_json = pydantic_core.from_json
_notification = JSONRPCNotification.__pydantic_validator__.validate_json
"""Without the detour through `model_validate_json`, which takes as long again."""
_NOTIFICATION = b'{"jsonrpc":"2.0","method":'
"""How `encode` begins a notification; in a request the id comes before the method."""


def encode(message: JSONRPCMessage | None) -> bytes:
    """The payload of a message: exactly what the transport writes live; b"" for a priming event.

    `exclude_unset`, not `exclude_none`: the latter drops the `id: null` of an error, and a null that was sent.

    Args:
        message: A JSON-RPC message, or None for a priming event.

    Returns:
        JSON in UTF-8, or b"".

    Raises:
        ValueError: The message has no JSON form (a lone surrogate, say); the transport could not send it either.
    """
    if message is None:
        return b""
    # What `model_dump_json` does, without the detour through text.
    return message.__pydantic_serializer__.to_json(message, by_alias=True, exclude_unset=True)


def decode(payload: bytes) -> JSONRPCMessage:
    """The message of a stored payload.

    Args:
        payload: JSON in UTF-8, not empty.

    Returns:
        The message, of the one type that its members name: trying the union in turn costs four times as much.

    Raises:
        CorruptEventError: It is not JSON, or no JSON-RPC message.
    """
    if payload.startswith(_NOTIFICATION):
        try:
            # What most events are, in one step. With an id it would be a request: that is a member too many.
            notification: JSONRPCNotification = _notification(payload, extra="forbid")
        except ValueError:
            pass
        else:
            return notification
    try:
        return _message_of(payload)
    except (ValueError, RecursionError):
        # Not chained: a validation error carries the payload in its text.
        msg = "not a JSON-RPC message"
        raise CorruptEventError(msg) from None


def _message_of(payload: bytes) -> JSONRPCMessage:
    try:
        return _validated(_from_json(payload))
    except ValueError:
        # Pydantic writes more than it reads: deeper nesting than 200, integers of more than 4300 digits.
        message = _validated(json.loads(payload.decode(), parse_int=_integer))
        # And this parser reads what pydantic cannot write, such as lone surrogates, which nobody has sent.
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
    """The type of message that these members are."""
    if not isinstance(members, dict):
        msg = "not an object"
        raise ValueError(msg)  # noqa: TRY004 - the caller's one way to say "corrupt"
    if "method" in members:
        return JSONRPCRequest if "id" in members else JSONRPCNotification
    return JSONRPCResponse if "result" in members else JSONRPCError
