"""Latency of a call with 20 messages, with Redis at several distances."""

import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from redis import asyncio as aioredis

from benchmarks.e2e.client import Client
from benchmarks.e2e.delay_proxy import distant
from benchmarks.e2e.servers import served
from benchmarks.latency import percentiles
from benchmarks.processes import valkey

_WARM = 5
_PINGS = 30


async def measure(  # noqa: PLR0913 - the sizes of a run
    names: Sequence[str], *, distances: Sequence[float], messages: int, calls: int, rounds: int, fast: bool
) -> dict[str, Any]:
    """Call every contestant in turn, call by call, in an order that is shuffled for each turn.

    Args:
        names: Of the contestants.
        distances: Round trips to Redis, in milliseconds.
        messages: Progress notifications of a call.
        calls: Of each contestant in each round.
        rounds: How many.
        fast: See `served`.

    Returns:
        For each distance: the round trip as it was measured, and each contestant's percentiles, round by round.
    """
    results: dict[str, Any] = {}
    for distance in distances:
        async with valkey() as direct, _at(direct, distance) as url, served(names, url, fast=fast) as workers:
            clients = {name: await Client.open(worker.port) for name, worker in workers.items()}
            for client in clients.values():
                for _ in range(_WARM):
                    await client.call(messages)
            by: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for number in range(rounds):
                for name, values in (await _round(clients, messages, calls, number)).items():
                    by[name].append(percentiles(values))
            results[f"{distance:g}"] = {"round_trip_ms": await _round_trip(url), "by": by}
            for client in clients.values():
                client.close()
    return results


async def _round(clients: dict[str, Client], messages: int, calls: int, seed: int) -> dict[str, list[float]]:
    shuffled, order = random.Random(seed), list(clients)  # noqa: S311 - no secret
    values: dict[str, list[float]] = {name: [] for name in clients}
    with no_collection():
        for _ in range(calls):
            shuffled.shuffle(order)
            for name in order:
                values[name].append((await clients[name].call(messages)).milliseconds)
    return values


class no_collection:  # noqa: N801 - a context manager, as those of contextlib
    """Keep the garbage collector of the client out of the measurement."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()


@asynccontextmanager
async def _at(url: str, milliseconds: float) -> AsyncIterator[str]:
    async with distant(url, milliseconds / 1000) if milliseconds else nullcontext(url) as there:
        yield there


async def _round_trip(url: str) -> float:
    client = aioredis.Redis.from_url(url)
    try:
        await client.ping()
        took = []
        for _ in range(_PINGS):
            before = time.perf_counter()
            await client.ping()
            took.append((time.perf_counter() - before) * 1e3)
    finally:
        await client.aclose()
    return round(statistics.median(took), 3)
