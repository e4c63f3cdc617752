"""A server whose tools run as tasks, in this process or as a worker process, controlled through Redis."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel
from redis import asyncio as aioredis
from starlette.applications import Starlette

from mcp_eventscope import InstrumentedTaskStore, RedisEventStore, RedisTaskStore, TasksExtension, TaskStore, http_app
from mcp_eventscope.redis.client import connect
from mcp_eventscope.settings import URL_VARIABLE
from support.worker_app import CONTROL_VARIABLE, OPTIONS_VARIABLE

TOOLS = {"work", "ask", "ask_by_result", "sized", "refuse", "logged"}
"""The tools that run as tasks. `plain` does not."""


class Answer(BaseModel):
    """What `ask` asks for."""

    name: str


def add_tools(mcp: MCPServer[Any], control_url: str) -> None:  # noqa: C901 - its tools
    """Add the tools."""

    @mcp.tool()
    async def work(name: str, ctx: Context) -> str:
        """Report each step that is pushed to the list of this name, until an empty one; return their number."""
        done = 0
        async with aioredis.Redis.from_url(control_url, decode_responses=True, socket_timeout=None) as redis:
            await redis.incr(f"count:{name}")
            await redis.set(f"runs:{name}", str(os.getpid()))
            try:
                while True:
                    pushed = await redis.blpop([f"steer:{name}"])
                    if pushed is None or (step := json.loads(pushed[1])) is None:
                        break
                    done += 1
                    await ctx.report_progress(done, message=step)
            finally:
                await redis.set(f"ended:{name}", str(os.getpid()))
        return f"{done} steps"

    @mcp.tool()
    async def ask(ctx: Context) -> str:
        """Ask the user, and return the answer."""
        answer = await ctx.elicit("Who?", Answer)
        return answer.data.name if answer.action == "accept" else answer.action

    @mcp.tool()
    async def ask_by_result(ctx: Context) -> str | InputRequiredResult:
        """Ask the user in a result, and return the answer."""
        if ctx.input_responses is None:
            schema = {"type": "object", "properties": {"name": {"type": "string"}}}
            request = ElicitRequest(params=ElicitRequestFormParams(message="Who?", requested_schema=schema))
            return InputRequiredResult(input_requests={"who": request}, request_state="state")
        answer = ctx.input_responses["who"]
        assert isinstance(answer, ElicitResult)
        return f"{(answer.content or {})['name']} {ctx.request_state}"

    @mcp.tool()
    async def sized(size: int) -> str:
        """Return a text of this size; of a negative one, a text that has no JSON form."""
        return "x" * size if size >= 0 else "\ud800"

    @mcp.tool()
    async def refuse() -> str:
        """Fail with a JSON-RPC error."""
        raise MCPError(-32050, "refused")

    @mcp.tool()
    async def logged(ctx: Context) -> str:
        """Log, and ask the user."""
        await ctx.info("a log message")
        return (await ctx.elicit("Who?", Answer)).action

    @mcp.tool()
    async def plain() -> str:
        """Return immediately: not a task."""
        return "plain"


def task_app(
    events: RedisEventStore,
    tasks: TaskStore,
    control_url: str,
    *,
    options: dict[str, Any],
    server: dict[str, Any] | None = None,
    **extension: Any,
) -> Starlette:
    """The application of a worker.

    Args:
        events: The event store.
        tasks: The task store.
        control_url: The Redis that controls the tools.
        options: For `http_app`.
        server: For `MCPServer`.
        extension: For `TasksExtension`.
    """
    extended = TasksExtension(tasks, tools=TOOLS, **extension)

    @asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        async with extended.running():
            yield

    mcp: MCPServer[None] = MCPServer(
        "tasks", extensions=[extended], lifespan=lifespan, log_level="WARNING", **(server or {})
    )
    add_tools(mcp, control_url)
    return http_app(mcp, event_store=events, **options)


def app() -> Starlette:
    """The application of a worker process, for `uvicorn --factory`."""
    options = json.loads(os.environ[OPTIONS_VARIABLE])
    store, shutdown_timeout = options.pop("tasks", {}), options.get("shutdown_timeout", 1)
    events = RedisEventStore(connect(os.environ[URL_VARIABLE]), key_prefix=options.pop("key_prefix", "mcp:"), ttl=600)
    tasks = InstrumentedTaskStore(RedisTaskStore(events.backend, **store))
    control_url = os.environ[CONTROL_VARIABLE]
    return task_app(events, tasks, control_url, options=options, shutdown_timeout=shutdown_timeout)
