"""The scenes of sessions: a cut stream resumes on the other worker; a worker is killed."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp.client import Client

from mcp_eventscope.demo import modern, verdict
from mcp_eventscope.demo.client import count_down, count_words, in_session
from mcp_eventscope.demo.figures import Figures
from mcp_eventscope.demo.record import Kind, Record, of
from mcp_eventscope.demo.server import LEASE_SECONDS
from mcp_eventscope.demo.switch import Switch
from mcp_eventscope.demo.timeline import Timeline
from mcp_eventscope.demo.waiting import within
from mcp_eventscope.demo.worker import Worker

STEPS = 16
INTERVAL = 0.25
CUT_AFTER = 6
KILL_AFTER = 4
WORDS = "the session continues on the other worker"
_SCENE_SECONDS = 20.0
_SETTLE_SECONDS = 3.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Stage:
    """The parts that both scenes use."""

    workers: Sequence[Worker]
    switch: Switch
    timeline: Timeline

    def worker_of(self, client: Any) -> str:
        """The name of the worker behind a client's connection; "" if there is none."""
        port = self.switch.led_to(client)
        return next((worker.name for worker in self.workers if worker.port == port), "")

    def named(self, name: str) -> Worker | None:
        """The worker of this name."""
        return next((worker for worker in self.workers if worker.name == name), None)

    async def figures(self) -> dict[str, Figures]:
        """The metrics of each worker that is alive, by its name."""
        return {worker.name: Figures.of(await worker.metrics()) for worker in self.workers if worker.alive}


async def cut(stage: Stage, before: Mapping[str, Figures]) -> list[str]:
    """Cut the connections to the worker that runs a call. Returns the faults of the resume.

    Args:
        stage: The parts.
        before: The metrics of the workers at the start.

    Raises:
        DemoError: A condition did not hold in time.
    """
    record = Record(stage.timeline.show)
    sent_at: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - the SDK's names
        record.add(Kind.EVENT, message or "", int(progress))
        # Only once: a second sixth event is a fault for the verdict, and no reason for a second cut.
        if progress == CUT_AFTER and not of(Kind.CUT, record.moments):
            worker = stage.named(record.running_on)
            streams = 0 if worker is None else stage.switch.sever(worker.port)
            record.add(Kind.CUT, number=streams, worker=record.running_on)

    async def call(client: Client) -> None:
        sent_at.extend(await count_down(client, record, STEPS, INTERVAL, on_progress))

    async with within(_SCENE_SECONDS, "the tool's result"):
        await in_session(f"{stage.switch.url}/mcp", record, stage.worker_of, call)
    stage.switch.mend()
    stage.timeline.lateness(record.moments, record.started, sent_at)
    found, figures = await _settled(stage, before, lambda counts: verdict.of_cut(record.moments, counts, STEPS))
    stage.timeline.served(figures)
    return found


async def kill(stage: Stage, before: Mapping[str, Figures]) -> list[str]:
    """Kill the worker that runs a call and a task, then call again. Returns the faults of their ends and the session.

    Args:
        stage: The parts.
        before: The metrics of the workers at the start.

    Raises:
        DemoError: A condition did not hold in time.
    """
    record, task = Record(stage.timeline.show), Record(stage.timeline.show)
    tasks: list[str] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - the SDK's names
        record.add(Kind.EVENT, message or "", int(progress))
        if progress == KILL_AFTER and not of(Kind.KILL, record.moments):
            worker = stage.named(record.running_on)
            if worker is not None:
                tasks.append(await modern.start(worker, task))
            ended_by = 0 if worker is None else await worker.kill()
            record.add(Kind.KILL, number=ended_by, worker=record.running_on)

    async def call(client: Client) -> None:
        await count_down(client, record, STEPS, INTERVAL, on_progress)
        stage.timeline.answered(record.moments, LEASE_SECONDS)
        await count_words(client, record, WORDS)

    async with within(_SCENE_SECONDS, "an answer to the call of the killed worker"):
        await in_session(f"{stage.switch.url}/mcp", record, stage.worker_of, call)
        other = next(worker for worker in stage.workers if worker.alive)
        for task_id in tasks:
            await modern.collect(other, task, task_id)
    words = len(WORDS.split())
    found, _ = await _settled(
        stage, before, lambda counts: verdict.of_kill(record.moments, counts, STEPS, LEASE_SECONDS, words)
    )
    return [*found, *verdict.of_orphaned_task(task.moments, other.name)]


async def _settled(
    stage: Stage, before: Mapping[str, Figures], faults: Callable[[Mapping[str, Figures]], list[str]]
) -> tuple[list[str], dict[str, Figures]]:
    """The faults and the metrics, once the metrics include every message that the client received.

    Workers count a message shortly after they send it. Faults that remain are returned.
    """
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        figures = {worker: now.since(before[worker]) for worker, now in (await stage.figures()).items()}
        found = faults(figures)
        if not found or time.monotonic() > until:
            return found, figures
        await asyncio.sleep(_LOOK_SECONDS)
