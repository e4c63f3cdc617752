"""The client of OpenAI's Agents SDK."""

import asyncio
import json
import sys
from typing import Any

from agents.mcp import MCPServerStreamableHttp


async def received(message: Any) -> None:
    """Print the number of a log message: there is no callback for progress."""
    if getattr(message, "method", None) == "notifications/message":
        print(json.dumps({"progress": int(message.params.data)}), flush=True)


async def main(url: str, name: str, _: str) -> None:
    """List the tools, and call one."""
    parameters = {"url": url}
    async with MCPServerStreamableHttp(
        parameters, client_session_timeout_seconds=None, message_handler=received
    ) as server:
        tools = await server.list_tools()
        result = await server.call_tool("report", {"name": name}, meta={"io.modelcontextprotocol/logLevel": "info"})
        print(json.dumps({"tools": [tool.name for tool in tools], "result": result.content[0].text}))


asyncio.run(main(*sys.argv[1:]))
