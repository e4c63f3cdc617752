"""The SDK's own client, as it is, which calls the tool and notes what it is told."""

import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult

from examples.demo.record import Kind, Record


async def count_down(url: str, record: Record, steps: int, interval: float, progress: ProgressFnT) -> list[float]:
    """Call `countdown` in a session of its own.

    Args:
        url: The MCP endpoint.
        record: Notes each return after a cut, and the result or the failure.
        steps: How far to count.
        interval: Seconds between two steps.
        progress: Called by the SDK with each step.

    Returns:
        When the server says that it reported each step, in seconds since the epoch; empty when the call failed.
    """

    async def answered(response: httpx2.Response) -> None:
        if last := response.request.headers.get("last-event-id"):
            record.add(Kind.RETURN, last, response.status_code)

    said_at: list[float] = []
    try:
        async with (
            # No proxy of the environment's, and an ear for the header that asks for a resume; all else is the SDK's.
            httpx2.AsyncClient(timeout=30, trust_env=False, event_hooks={"response": [answered]}) as http,
            # "legacy" is the SDK's word for the revisions up to 2025-11-25: later ones have no streams to resume.
            Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            arguments = {"steps": steps, "interval": interval}
            said_at = _noted(record, await client.call_tool("countdown", arguments, progress_callback=progress))
    except* (MCPError, httpx2.HTTPError) as failures:
        record.add(Kind.FAILURE, "; ".join(_told(failures)))
    return said_at


def _noted(record: Record, result: CallToolResult) -> list[float]:
    """Note the result. Returns when the server says that it reported each step."""
    said = result.structured_content
    if result.is_error or said is None:
        record.add(Kind.FAILURE, f"the tool answered {result.content}")
        return []
    record.add(Kind.RESULT, f"{said['steps']} steps counted", said["steps"])
    return [float(at) for at in said["said_at"]]


def _told(error: BaseException) -> list[str]:
    """What an error says, or those in it: task groups wrap theirs, one in the other."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in _told(inner)]
    return [str(error) or repr(error)]
