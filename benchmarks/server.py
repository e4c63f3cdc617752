"""The server of the measured workers: calls that send messages on schedule."""

import asyncio
import os
import time
from collections import defaultdict

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from mcp_eventscope import http_app

MAX_SESSIONS = "BENCHMARK_MAX_SESSIONS"
"""Environment variable: the limit of sessions of a worker."""
_signs: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


def app() -> Starlette:
    """The application of one worker, on the Redis of EVENTSCOPE_REDIS_URL."""
    mcp: MCPServer[object] = MCPServer("benchmark", log_level="ERROR")

    @mcp.tool()
    async def speak(sign: str, times: int, every: float, first: float, ctx: Context) -> str:
        """Wait for the signal and `first` seconds, then report progress so many times, with the time."""
        await _signs[sign].wait()
        begin = time.monotonic() + first
        for i in range(times):
            await asyncio.sleep(begin + i * every - time.monotonic())
            await ctx.report_progress(i, message=str(time.time_ns()))
        return "done"

    @mcp.tool()
    async def go(sign: str) -> str:
        """Give the signal."""
        _signs[sign].set()
        return sign

    @mcp.tool()
    async def large(size: int) -> str:
        """Return so many characters."""
        return "x" * size

    @mcp.tool()
    async def flood(times: int, size: int, ctx: Context) -> str:
        """Report progress so many times as fast as the client reads, each time with so many characters."""
        for i in range(times):
            await ctx.report_progress(i, message="x" * size)
        return "done"

    return http_app(mcp, registry=CollectorRegistry(), max_sessions=int(os.environ.get(MAX_SESSIONS, "10000")))
