"""Applies the scheduled faults to Redis and the workers, and records them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import httpx2

from soak.history import Recorder, What
from soak.network import Network
from soak.schedule import LEAST_GAP, Fault, Incident
from support.http_client import NO_TLS
from support.processes import WorkerProcess
from support.proxy import Proxy
from support.valkeys import OwnValkey
from support.waiting import until

_START_SECONDS = 40.0
_CUT_EVERY = 0.25
_LOOK_SECONDS = 0.5


class RigError(Exception):
    """The rig failed, so that the run proves nothing."""


@dataclass(frozen=True)
class Parts:
    """The parts of the rig that faults happen to."""

    redis: OwnValkey
    """The Redis of the workers."""
    proxy: Proxy
    """Stands between the workers and Redis."""
    workers: Sequence[WorkerProcess]
    network: Network
    """Between clients and workers."""


class Faults:
    """Lets faults happen.

    Args:
        parts: Redis, workers and the networks between them.
        recorder: The history.
        logs: The directory for the logs of workers.
    """

    def __init__(self, parts: Parts, recorder: Recorder, logs: Path) -> None:
        self._redis = parts.redis
        self._proxy = parts.proxy
        self._workers = parts.workers
        self._network = parts.network
        self._recorder = recorder
        self._logs = logs
        self._killed: set[int] = set()

    async def run(self, incidents: Sequence[Incident], until: float) -> None:
        """Let the incidents of one track happen, one after the other; leave out those that would come too late.

        Args:
            incidents: The incidents, in order.
            until: The second of the run by which the last has to end.
        """
        ended = 0.0
        for incident in incidents:
            # A worker may have taken longer to start than the schedule assumes.
            at = max(incident.at, ended + LEAST_GAP)
            if at + incident.lead + incident.seconds > until:
                return
            await asyncio.sleep(max(0.0, at - self._recorder.now))
            await self._happen(incident)
            ended = self._recorder.now

    async def _happen(self, incident: Incident) -> None:
        if incident.worker >= 0:
            await self._worker(incident)
        elif incident.fault is Fault.CLIENTS_CUT:
            self._recorder.note(What.CLIENTS_CUT, number=self._network.cut())
        else:
            self._network.redis_well_since = inf
            await self._of_redis(incident)
            self._network.redis_well_since = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Record workers that end although no fault ended them."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            for number in range(len(self._workers)):
                self._keep_log(number)

    async def _of_redis(self, incident: Incident) -> None:
        note, redis = self._recorder.note, self._redis
        if incident.fault is Fault.REDIS_FREEZE:
            note(What.REDIS_FROZEN)
            redis.freeze()
            await asyncio.sleep(incident.seconds)
            redis.thaw()
            note(What.REDIS_THAWED)
        elif incident.fault is Fault.REDIS_SLOW:
            note(What.REDIS_SLOW, note=f"{incident.delay} s")
            self._proxy.delay = incident.delay
            await asyncio.sleep(incident.seconds)
            self._proxy.delay = 0.0
            note(What.REDIS_FAST)
        elif incident.fault is Fault.REDIS_FLUSH:
            note(What.REDIS_FLUSHED)
            await asyncio.to_thread(redis.flush)
        elif incident.fault is Fault.REDIS_CUT:
            note(What.REDIS_CUTTING)
            for _ in range(1 + int(incident.seconds / _CUT_EVERY)):
                self._proxy.reset_from_thread()
                await asyncio.sleep(_CUT_EVERY)
            note(What.REDIS_MENDED)
        else:
            saved = incident.fault is Fault.REDIS_KILL_SAVED
            if saved:
                await asyncio.to_thread(redis.save)
                await asyncio.sleep(incident.lead)
            note(What.REDIS_KILLED, kind="saved" if saved else "empty")
            await asyncio.to_thread(redis.kill)
            if not saved:
                redis.drop_snapshot()
            await asyncio.sleep(incident.seconds)
            await asyncio.to_thread(redis.start)
            note(What.REDIS_BACK)

    async def _worker(self, incident: Incident) -> None:
        note, number = self._recorder.note, incident.worker
        worker = self._workers[number]
        if incident.fault is not Fault.WORKER_KILL:
            note(What.WORKER_FROZEN, worker=number)
            worker.freeze()
            await asyncio.sleep(incident.seconds)
            worker.thaw()
            note(What.WORKER_THAWED, worker=number)
            return
        self._killed.add(number)
        note(What.WORKER_KILLED, worker=number)
        await asyncio.to_thread(worker.kill)
        self._keep_log(number)
        await asyncio.sleep(incident.seconds)
        worker.start()
        await self._serves(number)
        note(What.WORKER_BACK, worker=number)
        self._killed.discard(number)

    async def _serves(self, number: int) -> None:
        """Return when a worker answers anything: its health may depend on Redis, which may be down."""
        worker = self._workers[number]

        async def answers() -> bool:
            if not worker.alive:
                msg = f"worker {number} ended while it started: {worker.log}"
                raise RigError(msg)
            try:
                await http.get(f"{worker.url}/healthz")
            except httpx2.TransportError:
                return False
            return True

        async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=_START_SECONDS) as http:
            await until(answers, within=_START_SECONDS, every=0.05)

    async def _watch(self) -> None:
        died: set[int] = set()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for number, worker in enumerate(self._workers):
                if not worker.alive and number not in self._killed | died:
                    died.add(number)
                    self._recorder.note(What.WORKER_DIED, worker=number, note=worker.log[-500:])

    def _keep_log(self, number: int) -> None:
        with (self._logs / f"worker-{number}.log").open("a", encoding="utf-8") as file:
            file.write(self._workers[number].log)
