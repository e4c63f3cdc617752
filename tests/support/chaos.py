"""Steps that the tests of worker processes share."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from redis import asyncio as aioredis

from support.http_client import Connect, Event, HTTPClient, events
from support.processes import WorkerProcess
from support.tool_control import ToolControl
from support.waiting import until

Pair = tuple[WorkerProcess, WorkerProcess]
NewToolControl = Callable[[], ToolControl]


def on_worker(client: HTTPClient, worker: WorkerProcess) -> HTTPClient:
    """The same client and session, at that worker."""
    return replace(client, url=f"{worker.url}/mcp")


def content_of(event: Event) -> str:
    """The message of a progress notification, or the result or error code of a response."""
    message = event.message
    if "method" in message:
        return str(message["params"]["message"])
    if "error" in message:
        return str(message["error"]["code"])
    return str(message["result"]["structuredContent"]["result"])


async def open_session(connect: Connect, url: str) -> HTTPClient:
    """A client with a session that it opened at the server with a base URL."""
    client = connect(url)
    await client.initialize()
    return client


@asynccontextmanager
async def resumed_call(
    connect: Connect, new_tool: NewToolControl, opener: WorkerProcess, follower: WorkerProcess
) -> AsyncIterator[tuple[HTTPClient, ToolControl, AsyncIterator[Event]]]:
    """A call that runs on one worker, and whose stream is resumed on another: its client, its tool, and its events."""
    client, tool = await open_session(connect, opener.url), new_tool()
    received = await start_call(client, tool)
    async with on_worker(client, follower).get(received[-1].id) as response:
        yield client, tool, events(response)


async def start_call(client: HTTPClient, tool: ToolControl, *messages: str, request_id: int | str = 1) -> list[Event]:
    """Call the tool, let it report messages, and cut the stream. Returns the events, priming first."""
    received: list[Event] = []
    async with client.call(request_id, "steps", name=tool.name) as response:
        stream = events(response)
        received.append(await anext(stream))
        for message in messages:
            await tool.step(message)
            received.append(await anext(stream))
        await tool.started()
    return received


async def check_session(client: HTTPClient, request_id: int = 99) -> None:
    """Make a call in the session, which must succeed."""
    async with client.call(request_id, "echo", text="x") as response:
        assert content_of([event async for event in events(response)][-1]) == "x"


def on_url(client: HTTPClient, url: str) -> HTTPClient:
    """The same client and session, at the server with a base URL."""
    return replace(client, url=f"{url}/mcp")


async def until_stored(url: str, event_id: str) -> None:
    """Return once Redis holds an event. A resume would show it, but end the stream under test."""
    event, _, _ = event_id.partition(".")
    _, number, run = event.split("-")

    async with aioredis.Redis.from_url(url) as redis:

        async def holds() -> bool:
            keys = [key async for key in redis.scan_iter(match=f"*:stream:*:{run}", count=1000)]
            last: Any = await redis.lindex(keys[0], -1) if keys else None
            return last is not None and int(last.split(b" ", 1)[0]) >= int(number)

        await until(holds)
