"""Hypothesis strategies for JSON-RPC messages that the SDK can send, and for untrusted ids."""

from typing import Any

from hypothesis import strategies as st
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

_BEYOND_64_BITS = 10**40

_TEXT = st.text(max_size=20)
"""Without lone surrogates (Hypothesis's default): without a UTF-8 form, the SDK's transport cannot write them."""

_INTEGERS = st.integers() | st.integers(-_BEYOND_64_BITS, _BEYOND_64_BITS)


def json_values(max_leaves: int = 15) -> st.SearchStrategy[Any]:
    """Any value of `params`, `result` or `data`.

    The values include infinities and NaN, which JSON lacks, and which the SDK writes as null.

    Args:
        max_leaves: The approximate most scalars in a value.
    """
    return st.recursive(
        st.none() | st.booleans() | _INTEGERS | st.floats() | _TEXT,
        lambda children: st.lists(children, max_size=5) | st.dictionaries(_TEXT, children, max_size=5),
        max_leaves=max_leaves,
    )


def messages() -> st.SearchStrategy[JSONRPCMessage]:
    """Any JSON-RPC message of any kind, with members set, null and omitted."""
    ids = _INTEGERS | _TEXT
    members = st.dictionaries(_TEXT, json_values(), max_size=5)
    # Omitted `params` and `params: null` are different messages: unset members are not written, None is.
    nothing: dict[str, Any] = {}
    params = st.just(nothing) | st.fixed_dictionaries({"params": st.none() | members})
    data = st.just(nothing) | st.fixed_dictionaries({"data": json_values()})
    errors = st.builds(lambda code, text, rest: ErrorData(code=code, message=text, **rest), _INTEGERS, _TEXT, data)
    return st.one_of(
        st.builds(
            lambda request_id, method, rest: JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, **rest),
            ids,
            _TEXT,
            params,
        ),
        st.builds(lambda method, rest: JSONRPCNotification(jsonrpc="2.0", method=method, **rest), _TEXT, params),
        st.builds(
            lambda request_id, result: JSONRPCResponse(jsonrpc="2.0", id=request_id, result=result), ids, members
        ),
        st.builds(
            lambda request_id, error: JSONRPCError(jsonrpc="2.0", id=request_id, error=error), st.none() | ids, errors
        ),
    )


def stream_ids() -> st.SearchStrategy[str]:
    """Stream ids of the SDK: request ids as text, and that of the standalone stream."""
    return st.just("_GET_stream") | st.integers(0, 3).map(str) | st.text(max_size=200)


def session_ids() -> st.SearchStrategy[str]:
    """Session ids: visible ASCII, as specified (2025-11-25, Transports)."""
    return st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)


def foreign_event_ids() -> st.SearchStrategy[str]:
    """Any `Last-Event-ID` of a client: header characters, and numbers in various forms."""
    header = st.text(st.characters(max_codepoint=255), max_size=50)
    return header | st.text(max_size=20) | st.integers().map(str) | st.text("0123456789-+_.%", max_size=30)
