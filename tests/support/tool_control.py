"""Controls the tools of worker processes, and watches calls of the SDK's client."""

import json
from dataclasses import dataclass, field

from anyio.abc import TaskGroup
from mcp import MCPError
from mcp.client import Client
from redis import asyncio as aioredis

from support.waiting import until


class ToolControl:
    """Controls one call of the tool `steps`, on whichever worker it runs.

    Args:
        redis: A client of the controlling Redis.
        name: The call's.
    """

    def __init__(self, redis: aioredis.Redis, name: str) -> None:
        self.name = name
        self._redis = redis

    async def step(self, *messages: str) -> None:
        """Let it report these messages."""
        await self._redis.rpush(f"steer:{self.name}", *map(json.dumps, messages))

    async def finish(self) -> None:
        """Let it return."""
        await self._redis.rpush(f"steer:{self.name}", json.dumps(None))

    async def started(self) -> None:
        """Return once it runs."""
        await until(lambda: self._redis.exists(f"runs:{self.name}"))

    async def ended(self) -> None:
        """Return once it is about to return."""
        await until(lambda: self._redis.exists(f"ended:{self.name}"))


@dataclass
class WatchedCall:
    """One call of the tool `steps` by the SDK's client, with its progress and outcome."""

    client: Client
    tool: ToolControl
    progress: list[str] = field(default_factory=list)
    outcomes: list[object] = field(default_factory=list)
    """The result, or the code of the error: one, when it has ended."""

    def start(self, tasks: TaskGroup) -> None:
        """Make the call."""
        tasks.start_soon(self._call)

    async def _call(self) -> None:
        async def noted(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - by name
            self.progress.append(message or "")

        try:
            result = await self.client.call_tool("steps", {"name": self.tool.name}, progress_callback=noted)
        except MCPError as error:
            self.outcomes.append(error.code)
        else:
            self.outcomes.append((result.structured_content or {}).get("result"))

    async def has(self, *messages: str) -> None:
        """Return once the client has all of these, and fail if it has anything else."""
        await until(lambda: len(self.progress) >= len(messages))
        assert self.progress == list(messages)

    async def reported(self, *messages: str) -> None:
        """Let it report further messages, and return when the client has them."""
        expected = self.progress + list(messages)
        await self.tool.step(*messages)
        await self.has(*expected)

    async def over(self) -> object:
        """The outcome, once there is one."""
        await until(lambda: self.outcomes)
        (outcome,) = self.outcomes
        return outcome
