"""Bytes per event in Redis, as a deployment writes them."""

import asyncio
from typing import Any

from redis import asyncio as aioredis

from benchmarks.contestant import Ask

_SCANNED = 1000
_STILL = 256
"""Bytes; the request itself makes the server use some more."""


async def measure(client: aioredis.Redis, ask: Ask, *, writers: int, sessions: int, count: int) -> dict[str, Any]:
    """Store so many events on an empty server.

    Returns:
        Bytes per event, as the growth of the server's memory and as the sum of `MEMORY USAGE` of all keys; and keys per
        event.
    """
    # Load scripts and grow buffers before anything is counted.
    await ask("fill", writers=writers, sessions=sessions, count=2 * writers)
    await client.flushall()
    before = await used(client)
    await ask("fill", writers=writers, sessions=sessions, count=count)
    taken = await used(client) - before
    keys, summed = 0, 0
    cursor = 0
    while True:
        cursor, found = await client.scan(cursor, count=_SCANNED)
        pipeline = client.pipeline(transaction=False)
        for key in found:
            pipeline.memory_usage(key, samples=0)
        keys += len(found)
        summed += sum(await pipeline.execute())
        if not cursor:
            break
    return {
        "events": count,
        "used_memory_per_event": round(taken / count, 2),
        "memory_usage_per_event": round(summed / count, 2),
        "keys_per_event": round(keys / count, 4),
    }


async def used(client: aioredis.Redis) -> int:
    """Wait until it is stable: connections are closed, and tables moved, in the background."""
    found, last = 0, -1_000_000
    for _ in range(50):
        found = int((await client.info("memory"))["used_memory"])
        if abs(found - last) <= _STILL:
            break
        last = found
        await asyncio.sleep(0.3)
    return found
