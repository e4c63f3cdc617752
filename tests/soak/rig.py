"""One run: starts Redis, proxy, workers, clients and faults, and ends all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from soak.client import SoakClient
from soak.faults import Faults, Parts
from soak.history import Observation, Recorder, What
from soak.network import Network, Surroundings
from soak.schedule import CALM, LEASE, ClientPlan, incidents
from soak.sdk_client import SdkClient
from support.http_client import NO_TLS
from support.processes import worker_processes
from support.proxy import proxy_in_thread
from support.valkeys import own_valkey

WORKER_OPTIONS: dict[str, Any] = {"worker_lease": LEASE}
"""The options of `http_app` in the workers."""
_LISTENS = 3
"""Of so many strict clients one has a standalone stream; each of the SDK's has one."""
_LATE_MILLISECONDS = 20
"""Beyond this the clients' patience is prolonged."""
_LAG_MILLISECONDS = 150
"""Beyond this the event loop of the clients is recorded as late."""


@dataclass(frozen=True)
class Settings:
    """The seed and the size of a run."""

    seed: int
    seconds: float
    history: Path
    clients: int = 100
    """Half of them are the SDK's own, and half strict."""
    workers: int = 4
    calm: bool = False
    """Whether there are no faults, only cuts: a control run of the rig itself."""


def run(settings: Settings) -> list[Observation]:
    """Run, and return the history, which is also in the file.

    Args:
        settings: The seed and the size of the run.
    """
    for noisy in ("asyncio", "mcp", "client"):  # The history has everything that they would warn of.
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    logs = settings.history.parent / settings.history.stem
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("worker-*.log"):
        old.unlink()
    with (
        own_valkey() as redis,
        proxy_in_thread(redis.socket) as proxy,
        worker_processes(settings.workers, proxy.url, redis.url, **WORKER_OPTIONS) as workers,
        Recorder(settings.history) as recorder,
    ):
        network = Network()
        faults = Faults(Parts(redis, proxy, workers, network), recorder, logs)
        asyncio.run(_soak(settings, [worker.url for worker in workers], network, faults, recorder))
        return recorder.history


async def _soak(settings: Settings, urls: Sequence[str], network: Network, faults: Faults, recorder: Recorder) -> None:
    note = f"seed {settings.seed}, {settings.clients} clients, {settings.workers} workers"
    recorder.note(What.BEGIN, number=settings.seed, note=note)
    tracks = incidents(settings.seed, settings.seconds, settings.workers)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx2.AsyncHTTPTransport(verify=NO_TLS, limits=limits, trust_env=False) as connections,
        _lag_recorded(recorder, network),
        faults.watched(),
        asyncio.TaskGroup() as tasks,
    ):
        for track in () if settings.calm else tracks:
            tasks.create_task(faults.run(track, settings.seconds - CALM))
        around = Surroundings(urls, connections, network, recorder)
        for number in range(settings.clients):
            plan = ClientPlan(settings.seed, number, settings.workers)
            client: SoakClient | SdkClient
            if number % 2:
                client = SdkClient(number, around, plan)
            else:
                listens = number % (2 * _LISTENS) == 0
                client = SoakClient(number, around, plan, listens=listens)
            tasks.create_task(client.run(settings.seconds))
    recorder.note(What.END)


@asynccontextmanager
async def _lag_recorded(recorder: Recorder, network: Network) -> AsyncIterator[None]:
    """Record when the event loop is late: then the rig may see late what happened early."""
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.05)
            late = round((loop.time() - before - 0.05) * 1000)
            if late > _LATE_MILLISECONDS:
                network.late(late / 1000)
            if late > _LAG_MILLISECONDS:
                recorder.note(What.LAG, number=late)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
