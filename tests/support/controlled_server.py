"""An MCP server in the test's process, whose tools the test controls."""

import asyncio
from collections import defaultdict

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel


class Name(BaseModel):
    """The form that a user fills in."""

    name: str


class ControlledServer:
    """A server with the tool `steps`, which reports and returns when the test lets it."""

    def __init__(self, **settings: object) -> None:
        self.mcp: MCPServer[object] = MCPServer("steered", log_level="ERROR", **settings)  # type: ignore[arg-type]
        self._steps: defaultdict[str, asyncio.Queue[str | None]] = defaultdict(asyncio.Queue)

        @self.mcp.tool()
        async def steps(name: str, ctx: Context) -> str:
            """Report each step, then the number of steps."""
            done = 0
            while (step := await self._steps[name].get()) is not None:
                if step == "close":
                    await ctx.close_sse_stream()
                    continue
                done += 1
                await ctx.report_progress(done, message=step)
            return f"{done} steps"

        @self.mcp.tool()
        async def echo(text: str) -> str:
            """Return the text."""
            return text

        @self.mcp.tool()
        async def ask(ctx: Context) -> str:
            """Ask the user for a name, and return it."""
            answer = await ctx.elicit("Who?", Name)
            return answer.data.name if answer.action == "accept" else answer.action

        @self.mcp.tool()
        async def announce(ctx: Context) -> str:
            """Announce on the standalone stream that the tools have changed."""
            await ctx.session.send_tool_list_changed()
            return "announced"

    def step(self, name: str, *messages: str) -> None:
        """Let the call with this name report these messages."""
        for message in messages:
            self._steps[name].put_nowait(message)

    def finish(self, name: str) -> None:
        """Let the call with this name return."""
        self._steps[name].put_nowait(None)
