"""A FastAPI application with two MCP servers, whose clients can resume: three lines have changed.

Run it with two workers, on a Redis that both can reach:

    EVENTSCOPE_REDIS_URL=redis://localhost:6379 uvicorn --workers 2 fastapi_two_servers:app

The servers are at /tools/mcp and /notes/mcp. Either of /tools/metrics and /notes/metrics shows the metrics of both.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from mcp_eventscope import http_app

tools: MCPServer[None] = MCPServer("tools")
notes: MCPServer[None] = MCPServer("notes")


@tools.tool()
async def count(to: int, ctx: Context) -> str:
    """Count slowly, so that a connection can drop in the middle."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to)
        await asyncio.sleep(0.1)
    return f"counted to {to}"


@notes.tool()
async def note(text: str, ctx: Context) -> str:
    """Take a note."""
    await ctx.report_progress(1, 1)
    return f"noted: {text}"


tools_app = http_app(tools, key_prefix="tools:")  # Was: tools.streamable_http_app()
notes_app = http_app(notes, key_prefix="notes:")  # Was: notes.streamable_http_app()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run both servers while the application runs."""
    # Was: async with tools.session_manager.run(), notes.session_manager.run():
    async with tools_app.router.lifespan_context(app), notes_app.router.lifespan_context(app):
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/tools", tools_app)
app.mount("/notes", notes_app)


@app.get("/version")
async def version() -> dict[str, str]:
    """A route that was there before, and stays."""
    return {"version": "1"}
