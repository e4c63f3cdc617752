"""The JSON-RPC errors of tasks."""

from mcp_eventscope.store.jsonrpc_errors import not_stored, orphaned
from mcp_eventscope.store.messages import ErrorData


def worker_lost() -> ErrorData:
    """The error of a task whose worker is dead, has stopped, or no longer knows it: it may have taken effect."""
    return orphaned(0).error


def result_unavailable(reason: str) -> ErrorData:
    """The error of a task that was carried out, but whose result cannot be stored.

    Args:
        reason: A clause that explains to the client why it cannot.
    """
    return not_stored(0, reason).error


def too_large(size: int, limit: int) -> ErrorData:
    """The error of a task whose result exceeds the limit of its store. Sizes are in bytes."""
    return result_unavailable(f"it has {size} bytes of JSON, and the server stores at most {limit}")
