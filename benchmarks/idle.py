"""The cost of idle sessions to Redis."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from redis import asyncio as aioredis

from benchmarks.latency import open_sessions
from benchmarks.processes import Worker, cpu_seconds, valkey, worker
from mcp_eventscope.redis.client import connect

RENEWAL = {"set": 1, "evalsha": 1, "pexpire": 1, "xrevrange": 2}
"""The commands with which a worker renews its lease (SET) and its inbox (a script), and how often each of them."""
INBOX = "xread"
"""The command with which a worker waits for messages of others."""
_SETTLING_SECONDS = 1.0
_MOST_SETTLING = 15
"""How often that is repeated at most while opened sessions still cause commands: for longer than a lease."""


async def measure(*, sessions: int, seconds: float) -> dict[str, Any]:
    """Sessions on one of two workers, first without any stream, then each with its standalone stream open.

    Returns:
        The commands per second that Redis ran, by name, from its own statistics.
    """
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(valkey())
        workers = [await stack.enter_async_context(worker(url)) for _ in range(2)]
        client = await stack.enter_async_context(connect(url))
        opened = await open_sessions(workers[0], sessions)
        figures = {"sessions": sessions, "workers": len(workers), "alone": await _watch(client, workers, seconds)}
        bound = asyncio.Semaphore(8)

        async def stream(place: int) -> None:
            async with bound:
                opened_stream = await opened[place].get(workers[0].port)
                stack.callback(opened_stream.cut)

        await asyncio.gather(*(stream(place) for place in range(sessions)))
        figures["with_standalone_streams"] = await _watch(client, workers, seconds)
        return figures


async def _watch(client: aioredis.Redis, workers: list[Worker], seconds: float) -> dict[str, Any]:
    for _ in range(_MOST_SETTLING):
        earlier = await commands(client)
        await asyncio.sleep(_SETTLING_SECONDS)
        if not _others(per_second(earlier, await commands(client), _SETTLING_SECONDS)):
            break
    before, used = await commands(client), [cpu_seconds(worker.pid) for worker in workers]
    await asyncio.sleep(seconds)
    rates = per_second(before, await commands(client), seconds)
    return {
        "seconds": seconds,
        "commands_per_second": rates,
        "lease_renewals_per_second": rates.get("set", 0.0),
        "inbox_reads_per_second": rates.get(INBOX, 0.0),
        "scripts_per_second": rates.get("evalsha", 0.0),
        "other_per_second": _others(rates),
        "worker_cpu_per_second": [
            round((cpu_seconds(worker.pid) - was) / seconds, 4) for worker, was in zip(workers, used, strict=True)
        ],
    }


def _others(rates: dict[str, float]) -> float:
    """The rate of the commands that are neither renewals nor reads of an inbox."""
    renewals = rates.get("set", 0.0)
    others = (rate - renewals * RENEWAL.get(name, 0) for name, rate in rates.items() if name != INBOX)
    return round(sum(max(0.0, rate) for rate in others), 2)


async def commands(client: aioredis.Redis) -> dict[str, int]:
    """How often Redis has run each command."""
    stats = await client.info("commandstats")
    return {name.removeprefix("cmdstat_"): values["calls"] for name, values in stats.items()}


def per_second(before: dict[str, int], after: dict[str, int], seconds: float) -> dict[str, float]:
    """The difference, without the command that asked for it."""
    differences = {name: calls - before.get(name, 0) for name, calls in sorted(after.items()) if name != "info"}
    return {name: round(calls / seconds, 2) for name, calls in differences.items() if calls and seconds}
