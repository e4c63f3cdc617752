"""Commands to each master of a cluster, or to the only server."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from redis import asyncio as aioredis

from mcp_eventscope.redis.client import AnyRedis, UnexpectedReplyError, parsing


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


async def info(redis: AnyRedis, node: str | None, *sections: str) -> Mapping[str, Any]:
    """Read the INFO of one master.

    Args:
        redis: The client.
        node: As returned by `masters`.
        sections: Its sections; none: the default ones.

    Raises:
        UnexpectedReplyError: The reply is no INFO. An empty one is.
    """
    with parsing("INFO"):
        found: Any = await redis.info(*sections, **at(redis, node))
    # redis-py collects the lines that have no colon.
    if not isinstance(found, dict) or found.keys() == {"__raw__"}:
        raise UnexpectedReplyError(command="INFO")
    return found


async def processes(redis: AnyRedis) -> frozenset[str]:
    """The ids of the processes of all masters: another process may have taken over without the last writes.

    Returns:
        Their `run_id`; of a server of another make, which has none, nothing.
    """
    found = [(await info(redis, node, "server")).get("run_id") for node in await masters(redis)]
    return frozenset(str(each) for each in found if each)
