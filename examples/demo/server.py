"""The MCP server of the demonstration: three small tools, on an event store that resumes."""

import hashlib
import time
from typing import Annotated, Any, TypedDict

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import Field
from starlette.applications import Starlette

from mcp_eventscope import http_app

RETRY_MILLISECONDS = 600
"""How long a client waits before it comes back. Short, as somebody is watching; longer than one step of the countdown,
so that something is missed."""
LEASE_SECONDS = 2.0
"""How long a worker that is gone is believed in. Short, for the same reason."""

mcp: MCPServer[Any] = MCPServer("eventscope-demo", log_level="WARNING")


class Liftoff(TypedDict):
    """What a countdown returns."""

    steps: int
    said_at: list[float]
    """When each step was reported, by this server's clock: so a client can tell how late it heard of it."""


@mcp.tool()
async def countdown(
    ctx: Context,
    steps: Annotated[int, Field(ge=1, le=1000)] = 16,
    interval: Annotated[float, Field(ge=0, le=60)] = 0.25,
) -> Liftoff:
    """Count down to zero, reporting every step as progress; `interval` is the seconds between two of them."""
    said_at: list[float] = []
    for step in range(1, steps + 1):
        await anyio.sleep(interval)
        said_at.append(time.time())
        await ctx.report_progress(step, steps, f"T-{steps - step}")
    return {"steps": steps, "said_at": said_at}


@mcp.tool()
async def word_count(text: str) -> dict[str, int]:
    """Count the characters, words and lines of a text."""
    return {"characters": len(text), "words": len(text.split()), "lines": len(text.splitlines())}


@mcp.tool()
async def sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def app() -> Starlette:
    """The application, for `uvicorn --factory`: /mcp, /metrics and /healthz, on the Redis of EVENTSCOPE_REDIS_URL."""
    return http_app(mcp, retry_interval=RETRY_MILLISECONDS, worker_lease=LEASE_SECONDS)
