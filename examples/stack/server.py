"""The server of the stack: a slow tool whose connection breaks now and then."""

import random

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from starlette.applications import Starlette

from mcp_eventscope import http_app

CUT_ONE_IN = 20
"""The connection is closed after one of so many pages; the client then resumes."""

mcp: MCPServer[object] = MCPServer("stack", log_level="WARNING")


@mcp.tool()
async def report(pages: int, ctx: Context) -> str:
    """Write a report, page by page."""
    for page in range(1, pages + 1):
        await anyio.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - not a secret
        await ctx.report_progress(page, pages, f"page {page}")
        if random.randrange(CUT_ONE_IN) == 0:  # noqa: S311
            await ctx.close_sse_stream()
    return f"{pages} pages"


def app() -> Starlette:
    """The application, for `uvicorn --factory --workers 2`, with the settings of the environment (compose.yaml).

    `/metrics` has a separate port, which is not published outside the network of the stack. Whichever worker answers
    reports for all of them (PROMETHEUS_MULTIPROC_DIR).
    """
    return http_app(mcp, retry_interval=200)
