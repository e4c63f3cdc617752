"""The server of worker processes, whose tools a test controls through Redis.

Where the Redis under test is to fail, another one controls the tools.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import ElicitResult
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from redis import asyncio as aioredis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mcp_eventscope import http_app, metrics_app
from support.servers import HOST

CONTROL_VARIABLE = "CHAOS_CONTROL_URL"
OPTIONS_VARIABLE = "CHAOS_OPTIONS"
SPANS_VARIABLE = "CHAOS_SPANS"
DEFAULT_APP = "support.worker_app:app"
NAME = "chaos"


class _Clock:
    """The wall clock of this process, which may jump."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._real = time.time
        time.time = self

    def __call__(self) -> float:
        return self._real() + self.offset


def app() -> Starlette:
    """The application, for `uvicorn --factory`."""
    return application(server(), **json.loads(os.environ[OPTIONS_VARIABLE]))


def server(**options: Any) -> MCPServer[Any]:  # noqa: C901 - its tools
    """A server with all tools.

    Args:
        options: For `MCPServer`.
    """
    mcp: MCPServer[Any] = MCPServer(NAME, log_level="WARNING", **options)
    clock = _Clock()

    def control() -> aioredis.Redis:
        return aioredis.Redis.from_url(os.environ[CONTROL_VARIABLE], decode_responses=True, socket_timeout=None)

    async def run(name: str, ctx: Context) -> int:
        done = 0
        async with control() as redis:
            await redis.set(f"runs:{name}", str(os.getpid()))
            while True:
                pushed = await redis.blpop([f"steer:{name}"])
                if pushed is None or (step := json.loads(pushed[1])) is None:
                    break
                done += 1
                await ctx.report_progress(done, message=step)
            await redis.set(f"ended:{name}", str(os.getpid()))
        return done

    @mcp.tool()
    async def steps(name: str, ctx: Context) -> str:
        """Report each step that is pushed to the list of this name, until an empty one; return their number."""
        return f"{await run(name, ctx)} steps"

    @mcp.tool()
    async def produce(name: str, ctx: Context, size: int = 0) -> str:
        """Run as `steps` does, and return a text of this size; without one, a text that has no JSON form."""
        await run(name, ctx)
        return "x" * size or "\ud800"

    @mcp.tool()
    async def ask(ctx: Context) -> str:
        """Ask the user on the standalone stream, and return the action."""
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        answer: ElicitResult = await ctx.session.elicit_form("Who?", schema)
        return answer.action

    @mcp.tool()
    async def echo(text: str) -> str:
        """Return the text."""
        await asyncio.sleep(0)
        return text

    @mcp.tool()
    async def announce(ctx: Context) -> str:
        """Announce on the standalone stream that the tools have changed."""
        await ctx.session.send_tool_list_changed()
        return "announced"

    _add_numbered_tools(mcp)

    @mcp.custom_route("/clock", methods=["POST"])  # type: ignore[untyped-decorator]
    async def jump(request: Request) -> Response:
        clock.offset = float(await request.body())
        return PlainTextResponse(str(time.time()))

    @mcp.custom_route("/pid", methods=["GET"])  # type: ignore[untyped-decorator]
    async def pid(_: Request) -> Response:
        return PlainTextResponse(str(os.getpid()))

    return mcp


def application(mcp: MCPServer[Any], **options: Any) -> Starlette:
    """The application of a server.

    Args:
        mcp: The server.
        options: For `http_app`.
    """
    served = http_app(mcp, **options)
    served.router.routes.insert(0, Route("/scraped", metrics_app()))
    if spans := os.environ.get(SPANS_VARIABLE):
        trace_to(Path(spans))
        served.add_middleware(OpenTelemetryMiddleware, exclude_spans=["receive", "send"])
    return served


def _add_numbered_tools(mcp: MCPServer[Any]) -> None:
    """Add the tools of the soak: each message carries a name and a number."""

    @mcp.tool()
    async def count(name: str, times: int, pause: float, padding: int, ctx: Context) -> str:
        """Report the numbers from 1 with pauses, under a name; return the name and the last number."""
        for number in range(1, times + 1):
            await ctx.report_progress(number, times, f"{name} {number} {'x' * padding}")
            await asyncio.sleep(pause)
        return f"{name} {times}"

    @mcp.tool()
    async def publish(name: str, number: int, ctx: Context) -> str:
        """Send a number on the standalone stream, under a name; return the name and 0, as `count` does."""
        await ctx.session.send_resource_updated(f"soak://{name}/{number}")
        return f"{name} 0"


def serve(environment: Mapping[str, str], log: str, port: int, graceful: int | None, app: str = DEFAULT_APP) -> None:
    """Serve until a signal ends the process: the entry point of a worker.

    Args:
        environment: Variables for this process.
        log: The file that it writes its output to.
        port: Where it listens.
        graceful: Seconds that running requests get when it is asked to stop; None: no limit.
        app: The factory of its application.
    """
    os.environ |= environment
    with Path(log).open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    uvicorn.run(
        app,
        factory=True,
        host=HOST,
        port=port,
        log_level="warning",
        ws="none",
        timeout_graceful_shutdown=graceful,
    )


def trace_to(file: Path) -> None:
    """Write the spans of this process, and those of its Redis client, into a file, as they end, one a line."""
    exporter = ConsoleSpanExporter(
        out=file.open("a", encoding="utf-8"), formatter=lambda span: f"{span.to_json(indent=None)}\n"
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    RedisInstrumentor().instrument()
