"""The server of the client matrix's workers: that of the chaos tests, with a tool that every client can watch."""

import json
import os

from mcp.server.mcpserver import Context
from redis import asyncio as aioredis
from starlette.applications import Starlette

from support.worker_app import CONTROL_VARIABLE, OPTIONS_VARIABLE, application, server

TOOL = "report"


def app() -> Starlette:
    """The application, for `uvicorn --factory`."""
    mcp = server()
    mcp.add_tool(report, name=TOOL)
    return application(mcp, **json.loads(os.environ[OPTIONS_VARIABLE]))


async def report(name: str, ctx: Context) -> str:
    """Report numbers from 1, one for each step of `ToolControl`, as progress and as log messages."""
    number = 0
    async with aioredis.Redis.from_url(os.environ[CONTROL_VARIABLE], socket_timeout=None) as redis:
        await redis.set(f"runs:{name}", str(os.getpid()))
        while (pushed := await redis.blpop([f"steer:{name}"])) and json.loads(pushed[1]) is not None:
            number += 1
            await ctx.report_progress(number)
            # Not every client shows progress.
            await ctx.session.send_log_message("info", str(number), related_request_id=ctx.request_id)
        await redis.set(f"ended:{name}", str(os.getpid()))
    return f"reported {number} in {ctx.protocol_version}"
