"""The client of Pydantic AI, which is FastMCP's, by default or as given."""

import asyncio
import json
import sys

from fastmcp import Client
from pydantic_ai.mcp import MCPToolset


async def progressed(progress: float, *_: object) -> None:
    """Print a value of the progress."""
    print(json.dumps({"progress": progress}), flush=True)


async def main(url: str, name: str, revision: str) -> None:
    """List the tools, and call one."""
    toolset = (
        MCPToolset(url, progress_handler=progressed)
        if revision == "2026-07-28"
        else MCPToolset(Client(url, mode="legacy", progress_handler=progressed))
    )
    async with toolset:
        tools = await toolset.list_tools()
        result = await toolset.direct_call_tool("report", {"name": name})
        print(json.dumps({"tools": [tool.name for tool in tools], "result": result}))


asyncio.run(main(*sys.argv[1:]))
