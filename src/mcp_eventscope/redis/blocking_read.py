"""Wait for new entries of Redis Streams, within the time limits of any client."""

from collections.abc import Mapping
from typing import Any

import anyio

from mcp_eventscope.redis.client import ANSWER_TIMEOUT, AnyRedis

BLOCK_SECONDS = 5.0
"""Maximum seconds that Redis holds a read without entries."""


async def wait_for_entries(redis: AnyRedis, read: Mapping[str, str], most: float = BLOCK_SECONDS) -> bool:
    """Wait until one of several streams has an entry behind a position. It occupies a connection, and no breaker.

    Args:
        redis: The client.
        read: The positions, as ids of entries, by key. On a cluster the keys are in one slot.
        most: Maximum seconds.

    Returns:
        Whether there is an entry; False after that time.

    Raises:
        TimeoutError: Redis did not answer in time.
        RedisError: Redis was not reached, or refused.
    """
    kwargs = getattr(getattr(redis, "connection_pool", None), "connection_kwargs", None)
    if kwargs is None:
        kwargs = redis.get_connection_kwargs()
    limit = kwargs.get("socket_timeout")
    # The client would take a longer silence for a failure.
    seconds = most if limit is None else min(limit / 2, most)
    positions: dict[Any, Any] = dict(read)
    with anyio.fail_after(seconds + ANSWER_TIMEOUT):
        # Its reply has another shape with each version of client and protocol: only a script's is stable.
        return bool(await redis.xread(positions, count=1, block=max(1, round(seconds * 1000))))
