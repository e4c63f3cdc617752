"""Processor time of the server per call, with concurrent sessions."""

import asyncio
import random
from collections.abc import Sequence

from benchmarks.e2e.client import Client, open_clients
from benchmarks.e2e.latency import no_collection
from benchmarks.e2e.servers import served
from benchmarks.processes import cpu_seconds, valkey

_WARM = 5
_SETTLE = 0.05
"""Seconds after a block in which work in the background ends and is still counted."""


async def measure(  # noqa: PLR0913 - the sizes of a run
    names: Sequence[str], *, sessions: int, messages: int, calls: int, blocks: int, rounds: int, fast: bool
) -> dict[str, list[dict[str, float]]]:
    """Give every contestant a block of calls in turn, in an order that is shuffled for each turn.

    Args:
        names: Of the contestants.
        sessions: How many call at the same time.
        messages: Progress notifications of a call.
        calls: Of each session in each block.
        blocks: Of each contestant in each round.
        rounds: How many.
        fast: See `served`.

    Returns:
        Of each contestant, round by round: milliseconds of processor time per call, and calls per second.
    """
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    shuffled, order = random.Random(0), list(names)  # noqa: S311 - no secret
    async with valkey() as url, served(names, url, fast=fast) as workers:
        clients = {name: await open_clients(worker.port, sessions) for name, worker in workers.items()}
        for name in names:
            await _block(clients[name], messages, _WARM)
        for _ in range(rounds):
            used, took = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
            for _ in range(blocks):
                shuffled.shuffle(order)
                for name in order:
                    before = cpu_seconds(workers[name].pid)
                    with no_collection():
                        took[name] += await _block(clients[name], messages, calls)
                    await asyncio.sleep(_SETTLE)
                    used[name] += cpu_seconds(workers[name].pid) - before
            count = sessions * calls * blocks
            for name in names:
                figures = {"cpu_ms_per_call": used[name] / count * 1e3, "calls_per_second": count / took[name]}
                results[name].append({key: round(value, 4) for key, value in figures.items()})
        for some in clients.values():
            for client in some:
                client.close()
    return results


async def _block(clients: Sequence[Client], messages: int, calls: int) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def session(client: Client) -> None:
        for _ in range(calls):
            await client.call(messages)

    await asyncio.gather(*map(session, clients))
    return loop.time() - began
