"""An MCP server whose clients can resume, with /metrics and /healthz."""

import asyncio

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from mcp_eventscope import http_app

mcp = MCPServer("quickstart")


@mcp.tool()
async def count(to: int, ctx: Context) -> str:
    """Count slowly, so that a connection can drop in the middle."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to)
        await asyncio.sleep(0.5)
    return f"counted to {to}"


app = http_app(mcp)  # Redis: redis_url="redis://…", or the environment variable EVENTSCOPE_REDIS_URL
