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
    """A payload is what the transport writes, and its message writes the same again."""
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
def test_odd_payload(payload: bytes) -> None:
    """The short way of notifications comes to the same as the long one."""
    message = codec.decode(payload)
    members = json.loads(payload)
    expected = (JSONRPCRequest if "id" in members else JSONRPCNotification).model_validate(members)
    assert type(message) is type(expected)
    assert message == expected
    assert message.model_fields_set == expected.model_fields_set


def test_priming_event_has_an_empty_payload() -> None:
    """A priming event is stored as the empty string, as the layout has it."""
    assert codec.encode(None) == b""


@pytest.mark.parametrize("payload", CORRUPT.values(), ids=CORRUPT.keys())
def test_corrupt_payload(payload: bytes) -> None:
    """What is no message is told as corrupt, without a word of what it held, and without its cause."""
    with pytest.raises(CorruptEventError) as caught:
        codec.decode(payload)
    assert str(caught.value) == "not a JSON-RPC message"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("digits", [4299, 4300, 4301, 8000, 8001, 12_345])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_of_any_length(digits: int, sign: int) -> None:
    """Integers that Python refuses to read are read all the same: they were sent."""
    message = JSONRPCResponse(jsonrpc="2.0", id=1, result={"n": sign * (10 ** (digits - 1) + 7)})
    assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("result", [{"v": "\ud800"}, {"v": b"\xff"}, {"v": object()}])
def test_message_without_a_json_form(result: dict[str, object]) -> None:
    """What the transport could not write either is a `ValueError`, and is not stored."""
    with pytest.raises(ValueError, match=r"serializ"):
        codec.encode(JSONRPCResponse(jsonrpc="2.0", id=1, result=result))
