"""The MCP server of the demo: three small tools, for clients of every revision."""

import hashlib
import time
from typing import Annotated, Any, TypedDict

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import Field
from starlette.applications import Starlette

from mcp_eventscope.app import http_app
from mcp_eventscope.scope import EventScope

RETRY_MILLISECONDS = 600
"""How long a client waits before it reconnects: longer than one step of the countdown, so that it misses events."""
LEASE_SECONDS = 2.0
"""How long a dead worker keeps its lease. Short, so that the demo is short."""
TTL_SECONDS = 600
"""How long events remain if the demo cannot remove them."""
LAUNCHES = "demo://launches"
"""The resource that a countdown changes at its end."""
NAME = "eventscope-demo"


class Liftoff(TypedDict):
    """The result of a countdown."""

    steps: int
    sent_at: list[float]
    """When each step was sent, by this server's clock."""


async def countdown(
    ctx: Context,
    steps: Annotated[int, Field(ge=1, le=1000)] = 16,
    interval: Annotated[float, Field(ge=0, le=60)] = 0.25,
) -> Liftoff:
    """Count down to zero and report each step as progress, with `interval` seconds between steps."""
    sent_at: list[float] = []
    for step in range(1, steps + 1):
        await anyio.sleep(interval)
        sent_at.append(time.time())
        await ctx.report_progress(step, steps, f"T-{steps - step}")
    await ctx.notify_resource_updated(LAUNCHES)
    return {"steps": steps, "sent_at": sent_at}


async def word_count(text: str) -> dict[str, int]:
    """Count the characters, words and lines of a text."""
    return {"characters": len(text), "words": len(text.split()), "lines": len(text.splitlines())}


async def sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def app() -> Starlette:
    """The application, for `uvicorn --factory`: /mcp, /metrics and /healthz, on the Redis of EVENTSCOPE_REDIS_URL."""
    scope = EventScope(NAME, worker_lease=LEASE_SECONDS, ttl=TTL_SECONDS)
    mcp: MCPServer[Any] = MCPServer(NAME, log_level="WARNING", **scope.server_options(tasks={"countdown"}))
    for tool in (countdown, word_count, sha256):
        mcp.tool()(tool)
    return http_app(mcp, scope=scope, retry_interval=RETRY_MILLISECONDS)
