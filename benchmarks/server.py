"""The server of the measured workers: calls that send messages on schedule."""

import asyncio
import os
import time
from collections import defaultdict
from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from prometheus_client import CollectorRegistry
from pydantic import AnyHttpUrl
from starlette.applications import Starlette

from mcp_eventscope import http_app

MAX_SESSIONS = "BENCHMARK_MAX_SESSIONS"
"""Environment variable: the limit of sessions of a worker."""
PRINCIPALS = "BENCHMARK_PRINCIPALS"
"""Environment variable: if set, requests need an access token, which is the name of their principal."""
_signs: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


class Verifier:
    """Accepts each token as the name of a principal."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The principal."""
        return AccessToken(token=token, client_id=token, scopes=[], subject=token)


def _authentication() -> dict[str, Any]:
    if not os.environ.get(PRINCIPALS):
        return {}
    issuer, server = AnyHttpUrl("https://issuer.example"), AnyHttpUrl("http://127.0.0.1/mcp")
    settings = AuthSettings(issuer_url=issuer, resource_server_url=server, validate_token_resource=False)
    return {"token_verifier": Verifier(), "auth": settings}


def app() -> Starlette:
    """The application of one worker, on the Redis of EVENTSCOPE_REDIS_URL."""
    mcp: MCPServer[object] = MCPServer("benchmark", log_level="ERROR", **_authentication())

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
