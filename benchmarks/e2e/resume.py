"""Resumes of a call that has ended: the time until the client has all missed events, and the server's CPU."""

import asyncio
import random
from collections.abc import Sequence

from benchmarks.e2e.client import Client
from benchmarks.e2e.latency import no_collection
from benchmarks.e2e.servers import served
from benchmarks.latency import percentiles
from benchmarks.processes import cpu_seconds, valkey

_WARM = 3
_SETTLE = 0.05
"""Seconds after a block in which the server cleans up, and is still counted."""


async def measure(
    names: Sequence[str], *, events: int, times: int, rounds: int, fast: bool
) -> dict[str, list[dict[str, float]]]:
    """Let every contestant resume in turn, in an order that is shuffled for each turn.

    Args:
        names: Of the contestants. One without a store cannot resume, and is left out.
        events: Events that the client has missed, the response included.
        times: Resumes of each contestant in each round, one after the other.
        rounds: How many.
        fast: See `served`.

    Returns:
        Of each contestant, round by round: percentiles of milliseconds until the last event has arrived, and
        milliseconds of processor time per resume.
    """
    names = [name for name in names if name != "none"]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    shuffled, order = random.Random(0), list(names)  # noqa: S311 - no secret
    async with valkey() as url, served(names, url, fast=fast) as workers:
        clients = {name: await Client.open(worker.port) for name, worker in workers.items()}
        cursors = {name: await clients[name].cursor_of_call(events - 1) for name in names}
        for name in names:
            for _ in range(_WARM):
                await clients[name].resume(cursors[name], events)
        for _ in range(rounds):
            shuffled.shuffle(order)
            for name in order:
                used = cpu_seconds(workers[name].pid)
                with no_collection():
                    took = [await clients[name].resume(cursors[name], events) for _ in range(times)]
                await asyncio.sleep(_SETTLE)
                used = (cpu_seconds(workers[name].pid) - used) / times * 1e3
                results[name].append({**percentiles(took), "cpu_ms": round(used, 4)})
        for client in clients.values():
            client.close()
    return results
