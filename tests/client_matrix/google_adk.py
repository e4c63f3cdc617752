"""The client of Google's Agent Development Kit."""

import asyncio
import json
import sys

from google.adk.tools.mcp_tool import McpToolset, StreamableHTTPConnectionParams


async def progressed(progress: float, *_: object, **__: object) -> None:
    """Print a value of the progress."""
    print(json.dumps({"progress": progress}), flush=True)


async def main(url: str, name: str, _: str) -> None:
    """List the tools, and call one."""
    toolset = McpToolset(connection_params=StreamableHTTPConnectionParams(url=url), progress_callback=progressed)
    tools = {tool.name: tool for tool in await toolset.get_tools()}
    result = await tools["report"].run_async(args={"name": name}, tool_context=None)
    print(json.dumps({"tools": list(tools), "result": result["content"][0]["text"]}))
    await toolset.close()


asyncio.run(main(*sys.argv[1:]))
