"""The SDK's own client, as it is, which calls tools and notes what it is told, and by whom."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult

from examples.demo.record import Kind, Record
from mcp_eventscope.store.messages import GET_STREAM_KEY


async def in_session(
    url: str, record: Record, worker_of: Callable[[Any], str], use: Callable[[Client], Awaitable[None]]
) -> None:
    """Open a session, use it, and end it.

    Args:
        url: The MCP endpoint.
        record: Notes who answers each call and each return after a cut, and a session that breaks.
        worker_of: Names the worker that a connection leads to, by the client's own address of it.
        use: Called with the client.
    """

    async def answered(response: httpx2.Response) -> None:
        request = response.request
        worker = worker_of(response.extensions["network_stream"].get_extra_info("client_addr"))
        last = request.headers.get("last-event-id")
        if tool := _called(request):
            record.add(Kind.CALL, tool, worker=worker)
        # The standalone stream, on which nothing is said here, comes back too.
        elif last and not last.endswith(f".{GET_STREAM_KEY}"):
            record.add(Kind.RETURN, last, response.status_code, worker)

    try:
        async with (
            # No proxy of the environment's, and an ear for who answers; all else is the SDK's.
            httpx2.AsyncClient(timeout=30, trust_env=False, event_hooks={"response": [answered]}) as http,
            # "legacy" is the SDK's word for the revisions up to 2025-11-25: later ones have no streams to resume.
            Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            await use(client)
    except* (MCPError, httpx2.HTTPError) as failures:
        record.add(Kind.FAILURE, "; ".join(_told(failures)))


async def count_down(client: Client, record: Record, steps: int, interval: float, progress: ProgressFnT) -> list[float]:
    """Call `countdown`.

    Args:
        client: Who calls.
        record: Notes the result, or the failure.
        steps: How far to count.
        interval: Seconds between two steps.
        progress: Called by the SDK with each step.

    Returns:
        When the server says that it reported each step, in seconds since the epoch; empty when the call failed.
    """
    said = await _call(client, record, "countdown", {"steps": steps, "interval": interval}, progress)
    if said is None:
        return []
    record.add(Kind.RESULT, f"{said['steps']} steps counted", said["steps"])
    return [float(at) for at in said["said_at"]]


async def count_words(client: Client, record: Record, text: str) -> None:
    """Call `word_count`.

    Args:
        client: Who calls.
        record: Notes the result, or the failure.
        text: What is counted.
    """
    said = await _call(client, record, "word_count", {"text": text})
    if said is not None:
        record.add(Kind.RESULT, f"{said['words']} words counted", said["words"])


async def _call(
    client: Client, record: Record, tool: str, arguments: dict[str, Any], progress: ProgressFnT | None = None
) -> dict[str, Any] | None:
    """Call a tool. Returns its structured result; None when it failed, which is noted."""
    try:
        result: CallToolResult = await client.call_tool(tool, arguments, progress_callback=progress)
    except MCPError as error:
        record.add(Kind.FAILURE, error.message, error.code)
        return None
    said: dict[str, Any] | None = result.structured_content
    if result.is_error or said is None:
        record.add(Kind.FAILURE, f"the tool answered {result.content}")
        return None
    return said


def _called(request: httpx2.Request) -> str:
    """The tool that a request calls; "" when it calls none."""
    if request.method != "POST":
        return ""
    message = json.loads(request.content)
    return str(message["params"]["name"]) if message.get("method") == "tools/call" else ""


def _told(error: BaseException) -> list[str]:
    """What an error says, or those in it: task groups wrap theirs, one in the other."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in _told(inner)]
    return [str(error) or repr(error)]
