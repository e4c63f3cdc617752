"""Latency at a fixed rate of calls, from the moment each call was due."""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.e2e.client import Client, open_clients
from benchmarks.e2e.latency import no_collection
from benchmarks.e2e.servers import served
from benchmarks.processes import BenchmarkError, valkey

_WARM = 5
_MOST_OPEN = 300
"""Calls in flight at which a run is ended: the server does not keep up, and each further call only waits longer."""


async def measure(  # noqa: PLR0913 - the sizes of a run
    names: Sequence[str],
    *,
    sessions: int,
    messages: int,
    rates: Sequence[float],
    seconds: float,
    rounds: int,
    fast: bool,
) -> dict[str, Any]:
    """Run every contestant at every rate, in turn, in an order that is shuffled for each turn.

    Arrivals are a Poisson process, the same for every contestant. A call that is due is sent, whatever is in
    flight, and its latency counts from the moment at which it was due: a slow server cannot slow its load down.

    Args:
        names: Of the contestants.
        sessions: Over which the calls are spread.
        messages: Progress notifications of a call.
        rates: Calls per second.
        seconds: Of a run.
        rounds: How many.
        fast: See `served`.

    Returns:
        For each rate and contestant: percentiles of all rounds together, and the calls that were due and answered.
    """
    values: dict[str, dict[str, list[float]]] = {f"{rate:g}": {name: [] for name in names} for rate in rates}
    due: dict[str, dict[str, int]] = {f"{rate:g}": dict.fromkeys(names, 0) for rate in rates}
    p99: dict[str, dict[str, list[float]]] = {f"{rate:g}": {name: [] for name in names} for rate in rates}
    shuffled, order = random.Random(0), list(names)  # noqa: S311 - no secret
    async with valkey() as url, served(names, url, fast=fast) as workers:
        clients = {name: await open_clients(worker.port, sessions) for name, worker in workers.items()}
        for some in clients.values():
            for client in some:
                for _ in range(_WARM):
                    await client.call(messages)
        for number in range(rounds):
            for rate in rates:
                arrivals = _arrivals(rate, seconds, number)
                shuffled.shuffle(order)
                for name in order:
                    with no_collection():
                        run = await _run(clients[name], messages, arrivals)
                    key = f"{rate:g}"
                    values[key][name] += run
                    due[key][name] += len(arrivals)
                    p99[key][name].append(percentile(run, 0.99))
        for some in clients.values():
            for client in some:
                client.close()
    return {
        key: {
            name: {
                "due": due[key][name],
                "answered": len(some),
                "ms": {title: percentile(some, share) for title, share in SHARES.items()},
                "p99_of_rounds": p99[key][name],
            }
            for name, some in by.items()
        }
        for key, by in values.items()
    }


SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by such a share of all."""
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 3)


def _arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    drawn, moment, moments = random.Random(seed), 0.0, []  # noqa: S311 - no secret
    while (moment := moment + drawn.expovariate(rate)) < seconds:
        moments.append(moment)
    return moments or [0.0]


async def _run(clients: Sequence[Client], messages: int, arrivals: Sequence[float]) -> list[float]:
    """Milliseconds of each call; a call that was not sent since too many were in flight counts until the end."""
    running: set[asyncio.Task[float]] = set()
    every: list[asyncio.Task[float]] = []

    async def one(client: Client, due: float) -> float:
        return (await client.call(messages, due)).milliseconds

    began = time.perf_counter()
    sent = 0
    for place, moment in enumerate(arrivals):
        if (wait := began + moment - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if len(running) >= _MOST_OPEN:
            break
        task = asyncio.create_task(one(clients[place % len(clients)], began + moment))
        running.add(task)
        task.add_done_callback(running.discard)
        every.append(task)
        sent += 1
        if sent % 10 == 0:
            # Without a pause a late run would send without reading.
            await asyncio.sleep(0)
    try:
        took = list(await asyncio.gather(*every))
    except BenchmarkError:
        for task in every:
            task.cancel()
        raise
    now = time.perf_counter()
    return took + [(now - began - moment) * 1e3 for moment in arrivals[sent:]]
