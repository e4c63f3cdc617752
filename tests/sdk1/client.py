"""A plain HTTP client for the tests on mcp 1.x, whose environment has httpx."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from mcp import types

VERSION = types.LATEST_PROTOCOL_VERSION
"""A revision whose clients receive priming events: the first is 2025-11-25, and mcp 1.23 sends them to all clients."""


CLIENT = {"name": "c", "version": "1"}


def call(tool: str, request_id: int = 7) -> dict[str, Any]:
    """A call of a tool without arguments."""
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": {"name": tool, "arguments": {}}}


@asynccontextmanager
async def session(url: str, *, token: str = "", **capabilities: object) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with an initialized session."""
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": VERSION}
    if token:
        headers["authorization"] = f"Bearer {token}"
    async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
        opening = {
            "jsonrpc": "2.0",
            "id": 0,
            "method": "initialize",
            "params": {"protocolVersion": VERSION, "capabilities": capabilities, "clientInfo": CLIENT},
        }
        opened = await http.post(url, json=opening)
        http.headers["mcp-session-id"] = opened.headers["mcp-session-id"]
        (await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})).raise_for_status()
        yield http


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """The events of a stream: ids and messages; None is a priming event."""
    event_id = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name.rstrip(":") == "data":
            yield event_id, json.loads(value) if value else None


def step_of(message: Any) -> str | None:
    """The text of a log message, whose `related_request_id` is the call's; None for any other message."""
    if not message or message.get("method") != "notifications/message":
        return None
    data = message["params"]["data"]
    return str(data["msg"] if isinstance(data, dict) else data)  # FastMCP 3 adds fields.


async def cut_after(http: httpx.AsyncClient, url: str, step: str) -> str:
    """Call the tool `steps`, cut the connection after one of its steps, and return the id of that event."""
    seen: list[str | None] = []
    async with http.stream("POST", url, json=call("steps")) as response:
        async for event_id, message in events(response):
            assert event_id
            seen.append(step_of(message))
            if seen[-1] == step:
                break
    assert seen == [None, *map(str, range(1, int(step) + 1))]
    return event_id


async def resume(
    http: httpx.AsyncClient, url: str, last_event_id: str, primed: Callable[[], None] | None = None
) -> list[tuple[str, Any]]:
    """Resume a stream, call `primed` with its priming event, and return its messages up to the response."""
    received = []
    async with http.stream("GET", url, headers={"last-event-id": last_event_id}) as response:
        assert response.status_code == 200
        async for event_id, message in events(response):
            if message is None:
                if primed is not None:
                    primed()
                continue
            received.append((event_id, message))
            if "result" in message:
                break
    return received
