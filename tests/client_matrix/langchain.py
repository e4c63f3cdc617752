"""The client of LangChain's MCP adapters."""

import asyncio
import json
import sys

from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient


async def progressed(progress: float, *_: object) -> None:
    """Print a value of the progress."""
    print(json.dumps({"progress": progress}), flush=True)


async def main(url: str, name: str, _: str) -> None:
    """List the tools, and call one."""
    connections = {"eventscope": {"transport": "streamable_http", "url": url}}
    client = MultiServerMCPClient(connections, callbacks=Callbacks(on_progress=progressed))
    tools = {tool.name: tool for tool in await client.get_tools()}
    result = await tools["report"].ainvoke({"name": name})
    print(json.dumps({"tools": list(tools), "result": result[0]["text"]}))


asyncio.run(main(*sys.argv[1:]))
