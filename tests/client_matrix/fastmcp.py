"""FastMCP's client."""

import asyncio
import json
import sys

from fastmcp import Client


async def progressed(progress: float, *_: object) -> None:
    """Print a value of the progress."""
    print(json.dumps({"progress": progress}), flush=True)


async def main(url: str, name: str, revision: str) -> None:
    """List the tools, and call one."""
    async with Client(url, mode="auto" if revision == "2026-07-28" else "legacy") as client:
        tools = await client.list_tools()
        result = await client.call_tool("report", {"name": name}, progress_handler=progressed)
        print(json.dumps({"tools": [tool.name for tool in tools], "result": result.content[0].text}))


asyncio.run(main(*sys.argv[1:]))
