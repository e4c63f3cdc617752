"""The SDK's client, unchanged; records the messages and the workers that answer."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult

from mcp_eventscope.demo.record import Kind, Record
from mcp_eventscope.store.messages import GET_STREAM_KEY


async def in_session(
    url: str, record: Record, worker_of: Callable[[Any], str], use: Callable[[Client], Awaitable[None]]
) -> None:
    """Open a session, use it, and close it.

    Args:
        url: The MCP endpoint.
        record: Records the worker that answers each call and each reconnect, and a session that fails.
        worker_of: Returns the worker behind a connection, by the client's address of that connection.
        use: Called with the client.
    """

    async def answered(response: httpx2.Response) -> None:
        request = response.request
        worker = worker_of(response.extensions["network_stream"].get_extra_info("client_addr"))
        last = request.headers.get("last-event-id")
        if tool := _called(request):
            record.add(Kind.CALL, tool, worker=worker)
        # The standalone stream reconnects, too; the demo sends nothing on it.
        elif last and not last.endswith(f".{GET_STREAM_KEY}"):
            record.add(Kind.RETURN, last, response.status_code, worker)

    try:
        async with (
            # Without the environment's proxy, and with a hook on responses; otherwise the SDK's defaults.
            httpx2.AsyncClient(timeout=30, trust_env=False, event_hooks={"response": [answered]}) as http,
            # "legacy" is the SDK's name for revisions up to 2025-11-25; later ones have no streams to resume.
            Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            await use(client)
    except* (MCPError, httpx2.HTTPError) as failures:
        record.add(Kind.FAILURE, "; ".join(_texts(failures)))


async def count_down(client: Client, record: Record, steps: int, interval: float, progress: ProgressFnT) -> list[float]:
    """Call `countdown`.

    Args:
        client: The client.
        record: Records the result or the failure.
        steps: The number of steps.
        interval: Seconds between two steps.
        progress: Called by the SDK with each step.

    Returns:
        When the server sent each step, in seconds since the epoch; empty if the call failed.
    """
    result = await _call(client, record, "countdown", {"steps": steps, "interval": interval}, progress)
    if result is None:
        return []
    record.add(Kind.RESULT, f"{result['steps']} steps counted", result["steps"])
    return [float(at) for at in result["sent_at"]]


async def count_words(client: Client, record: Record, text: str) -> None:
    """Call `word_count`.

    Args:
        client: The client.
        record: Records the result or the failure.
        text: The text.
    """
    result = await _call(client, record, "word_count", {"text": text})
    if result is not None:
        record.add(Kind.RESULT, f"{result['words']} words counted", result["words"])


async def _call(
    client: Client, record: Record, tool: str, arguments: dict[str, Any], progress: ProgressFnT | None = None
) -> dict[str, Any] | None:
    """Call a tool. Returns its structured result; None if it failed, which is recorded."""
    try:
        result: CallToolResult = await client.call_tool(tool, arguments, progress_callback=progress)
    except MCPError as error:
        record.add(Kind.FAILURE, error.message, error.code)
        return None
    content: dict[str, Any] | None = result.structured_content
    if result.is_error or content is None:
        record.add(Kind.FAILURE, f"the tool returned {result.content}")
        return None
    return content


def _called(request: httpx2.Request) -> str:
    """The tool that a request calls; "" if it calls none."""
    if request.method != "POST":
        return ""
    message = json.loads(request.content)
    return str(message["params"]["name"]) if message.get("method") == "tools/call" else ""


def _texts(error: BaseException) -> list[str]:
    """The texts of an error, or of the errors in it: task groups nest theirs."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in _texts(inner)]
    return [str(error) or repr(error)]
