"""The outcomes of answers, as they are recorded and served again."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pydantic_core
from mcp.server.context import HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, ErrorData
from pydantic import BaseModel, ValidationError

from mcp_eventscope.store.jsonrpc_errors import ANSWER_IN_PROGRESS, EVENTS_GONE, REQUEST_ORPHANED, STATE_UNAVAILABLE

_EFFECT = "It may have taken effect. Do not repeat the request unless the tool is idempotent."


def digest_of(text: str) -> str:
    """A digest that does not reveal the text: 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_answer(params: Mapping[str, Any]) -> str:
    """The digest of a request's `inputResponses`, in which the order of members does not count."""
    return digest_of(json.dumps(params.get("inputResponses"), sort_keys=True, separators=(",", ":")))


def encode_result(result: HandlerResult) -> bytes:
    """Encode a result as JSON, in its form on the wire.

    Raises:
        ValueError: It has no JSON form.
    """
    if isinstance(result, BaseModel):
        result = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return pydantic_core.to_json({"result": result or {}})


def encode_error(error: Exception) -> bytes:
    """Encode an exception as the JSON-RPC error that the SDK makes of it."""
    if isinstance(error, MCPError):
        data = error.error
    elif isinstance(error, ValidationError):
        data = ErrorData(code=INVALID_PARAMS, message="Invalid request parameters", data="")
    else:
        data = ErrorData(code=INTERNAL_ERROR, message="Internal server error")
    return pydantic_core.to_json({"error": data.model_dump(by_alias=True, mode="json", exclude_none=True)})


def serve(outcome: bytes) -> dict[str, Any]:
    """Return a recorded result, or raise the recorded error.

    Raises:
        MCPError: An error is recorded.
    """
    try:
        found = json.loads(outcome)
        error = ErrorData.model_validate(found["error"]) if "error" in found else None
        result = None if error is not None else found["result"]
    except (ValueError, TypeError, KeyError, RecursionError):  # Damaged in Redis.
        return serve(not_recorded())
    if error is not None:
        raise MCPError.from_error_data(error)
    return result if isinstance(result, dict) else serve(not_recorded())


def cancelled() -> bytes:
    """The outcome of an answer whose processing was cancelled."""
    text = f"The request with this answer was cancelled, or its connection was lost. {_EFFECT}"
    return encode_error(MCPError(REQUEST_ORPHANED, text, {"reason": "cancelled"}))


def worker_lost() -> bytes:
    """The outcome of an answer whose worker was declared dead."""
    text = f"The server process that was processing this answer is not available. {_EFFECT}"
    return encode_error(MCPError(REQUEST_ORPHANED, text, {"reason": "worker_lost"}))


def not_recorded() -> bytes:
    """The outcome of an answer whose result was too large, or had no JSON form."""
    text = f"The answer was processed before, and its result is not available a second time. {_EFFECT}"
    return encode_error(MCPError(EVENTS_GONE, text, {"reason": "too_large"}))


def other_answer() -> MCPError:
    """The error for another answer than the first one."""
    text = "This requestState was already answered with another answer. Start the request over."
    return MCPError(INVALID_PARAMS, text, {"reason": "other_answer"})


def in_progress() -> MCPError:
    """The error for a repeated answer whose first use takes too long."""
    text = "The answer is still being processed. Send the same answer again later."
    return MCPError(ANSWER_IN_PROGRESS, text, {"reason": "in_progress", "retryable": True})


def unavailable(reason: str) -> MCPError:
    """The error for an answer that was not processed.

    Args:
        reason: A value of `StateRefusal`.
    """
    text = "The answer was not processed, since the server's store is unavailable. Send the same answer again."
    return MCPError(STATE_UNAVAILABLE, text, {"reason": reason, "retryable": True})
