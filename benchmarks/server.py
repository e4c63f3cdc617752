"""What the measured workers serve: calls that wait for a sign, then speak on schedule and say when they spoke."""

import asyncio
import time
from collections import defaultdict

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from mcp_eventscope import http_app

_signs: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


def app() -> Starlette:
    """The application of one worker; Redis is where EVENTSCOPE_REDIS_URL says."""
    mcp: MCPServer[object] = MCPServer("benchmark", log_level="ERROR")

    @mcp.tool()
    async def speak(sign: str, times: int, every: float, first: float, ctx: Context) -> str:
        """After the sign, and `first` seconds, report progress so many times, with the time of the clock."""
        await _signs[sign].wait()
        begin = time.monotonic() + first
        for i in range(times):
            await asyncio.sleep(begin + i * every - time.monotonic())
            await ctx.report_progress(i, message=str(time.time_ns()))
        return "done"

    @mcp.tool()
    async def go(sign: str) -> str:
        """Give the sign."""
        _signs[sign].set()
        return sign

    return http_app(mcp, registry=CollectorRegistry())
