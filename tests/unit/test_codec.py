"""The codec between messages and payloads."""

import json

import pytest
from hypothesis import given, settings
from mcp.types import JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.store import codec
from mcp_eventscope.testing import messages, on_the_wire

CORRUPT = {
    "empty": b"",
    "not JSON": b"{not json",
    "two values": b'{"jsonrpc":"2.0","method":"a"} {}',
    "not UTF-8": b'{"jsonrpc":"2.0","method":"\xff"}',
    "UTF-16": '{"jsonrpc":"2.0","method":"a"}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "not JSON-RPC": b'{"hello":"world"}',
    "another version": b'{"jsonrpc":"1.0","method":"a"}',
    "a request without id": b'{"jsonrpc":"2.0","id":null,"method":"a"}',
    "an error that lost its id": b'{"jsonrpc":"2.0","error":{"code":1,"message":"a"}}',
    "a result of the wrong type": b'{"jsonrpc":"2.0","id":1,"result":[]}',
    "a lone surrogate": rb'{"jsonrpc":"2.0","method":"\ud800"}',
    "a lone surrogate beside many digits": rb'{"jsonrpc":"2.0","method":"\ud800","params":{"n":1%s}}' % (b"0" * 5000),
    "deeper than can be written": b'{"jsonrpc":"2.0","id":1,"result":{"v":' + b"[" * 300 + b"]" * 300 + b"}}",
    "deeper than can be read": b"[" * 100_000,
}


@settings(max_examples=200, deadline=None)
@given(messages())
def test_decode_is_the_inverse_of_encode(message: JSONRPCMessage) -> None:
    """A payload equals the transport's text, and decodes to an equal message."""
    payload = codec.encode(message)
    assert payload.decode() == on_the_wire(message)
    decoded = codec.decode(payload)
    assert type(decoded) is type(message)
    assert on_the_wire(decoded) == payload.decode()


ODD = {
    "a request whose id comes last": b'{"jsonrpc":"2.0","method":"x","params":{},"id":5}',
    "a request whose id is escaped": b'{"jsonrpc":"2.0","method":"x","\\u0069d":5,"params":{}}',
    "a member too many": b'{"jsonrpc":"2.0","method":"x","extra":1}',
    "the same member twice": b'{"jsonrpc":"2.0","method":"x","method":"y"}',
    "params that are null": b'{"jsonrpc":"2.0","method":"x","params":null}',
    "no number": b'{"jsonrpc":"2.0","method":"x","params":{"a":Infinity,"b":-0.0}}',
}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD.keys())
def test_decode_of_unusual_payload_matches_the_model(payload: bytes) -> None:
    """The fast path for notifications agrees with full validation."""
    message = codec.decode(payload)
    members = json.loads(payload)
    expected = (JSONRPCRequest if "id" in members else JSONRPCNotification).model_validate(members)
    assert type(message) is type(expected)
    assert message == expected
    assert message.model_fields_set == expected.model_fields_set


def test_encode_of_priming_event_is_empty() -> None:
    """A priming event is stored as the empty string, as the layout defines."""
    assert codec.encode(None) == b""


@pytest.mark.parametrize("payload", CORRUPT.values(), ids=CORRUPT.keys())
def test_decode_of_corrupt_payload_raises_without_its_content(payload: bytes) -> None:
    """The error names neither the content nor the cause."""
    with pytest.raises(CorruptEventError) as caught:
        codec.decode(payload)
    assert str(caught.value) == "not a JSON-RPC message"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("digits", [4299, 4300, 4301, 8000, 8001, 12_345])
@pytest.mark.parametrize("sign", [1, -1])
def test_decode_of_long_integer_keeps_it(digits: int, sign: int) -> None:
    """Integers longer than Python's limit are read."""
    message = JSONRPCResponse(jsonrpc="2.0", id=1, result={"n": sign * (10 ** (digits - 1) + 7)})
    assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("result", [{"v": "\ud800"}, {"v": b"\xff"}, {"v": object()}])
def test_encode_of_message_without_json_form_is_an_error(result: dict[str, object]) -> None:
    """A message that has no JSON form is a `ValueError`."""
    with pytest.raises(ValueError, match=r"serializ"):
        codec.encode(JSONRPCResponse(jsonrpc="2.0", id=1, result=result))
