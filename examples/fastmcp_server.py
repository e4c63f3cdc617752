"""A FastMCP server whose clients can resume: `http_app()` replaces `mcp.http_app()`.

Run it with two workers, on a Redis that both can reach:

    EVENTSCOPE_REDIS_URL=redis://localhost:6379 uvicorn --workers 2 fastmcp_server:app
"""

import asyncio

from fastmcp import Context, FastMCP

from mcp_eventscope import http_app

mcp: FastMCP[None] = FastMCP("counter")


@mcp.tool
async def count(to: int, ctx: Context) -> str:
    """Count slowly, so that a connection can drop in the middle."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to)
        await asyncio.sleep(0.1)
    return f"counted to {to}"


app = http_app(mcp)  # Was: app = mcp.http_app()
