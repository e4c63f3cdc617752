"""Commands to each master of a cluster, or to the only server."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from redis import asyncio as aioredis

from mcp_eventscope.redis.client import AnyRedis


async def masters(redis: AnyRedis) -> list[str | None]:
    """The names of the masters of a cluster; None stands for the only server."""
    if not isinstance(redis, aioredis.RedisCluster):
        return [None]
    await redis.initialize()
    return [*sorted(node.name for node in redis.get_primaries())]


def at(redis: AnyRedis, node: str | None) -> dict[str, Any]:
    """The options of a command that concerns one master."""
    if not isinstance(redis, aioredis.RedisCluster):
        return {}
    return {"target_nodes": redis.get_node(node_name=node)}


@dataclass(frozen=True, slots=True)
class Master:
    """The client of one master, for scripts and other commands without a key."""

    redis: AnyRedis
    node: str | None
    """As returned by `masters`."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """Send one command and return its reply."""
        any_client: Any = self.redis
        reply: Awaitable[Any] = any_client.execute_command(*args, **options, **at(self.redis, self.node))
        return reply
