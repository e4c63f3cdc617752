"""`make demo`: a call is cut in the middle, the client resumes, and the verdict is spoken."""

import asyncio
import io
import logging
import time
from collections.abc import Sequence

from rich.console import Console

from examples.demo.client import count_down
from examples.demo.figures import Figures
from examples.demo.record import Kind, Moment, Record, after_cut, of
from examples.demo.stack import running
from examples.demo.switch import Switch
from examples.demo.timeline import Timeline
from examples.demo.verdict import faults
from examples.demo.waiting import within
from examples.demo.worker import Worker

STEPS = 16
INTERVAL = 0.25
CUT_AFTER = 6
CALL_SECONDS = 20.0
_SETTLE_SECONDS = 3.0
_LOOK_SECONDS = 0.05


async def demo(console: Console) -> int:
    """Run it. Returns the exit status: 0 when every event came once and in order.

    Raises:
        DemoError: Something was waited for in vain.
        EmbeddedUnavailableError: There is no Valkey.
    """
    timeline = Timeline(console, STEPS)
    log = io.StringIO()
    # The timeline tells what happens; what the SDK logs about it is for the case that it went wrong.
    logging.basicConfig(stream=log, force=True)
    timeline.title("A call is cut in the middle, and resumes")
    async with running([0]) as workers:
        switch = Switch([worker.port for worker in workers])
        async with switch.running():
            hops = (f"switch :{switch.port}", *(f"worker :{worker.port}" for worker in workers))
            timeline.path(["SDK client", *hops, "Valkey"])
            record = Record(timeline.show)
            async with within(CALL_SECONDS, "the tool's result"):
                said_at = await _call(switch, record)
        timeline.lateness(record.moments, record.started, said_at)
        figures = await _settled(workers, record.moments)
    timeline.figures(figures)
    found = faults(record.moments, figures, STEPS)
    timeline.verdict(found)
    if found:
        timeline.log("the client", log.getvalue())
        for number, worker in enumerate(workers, 1):
            timeline.log(f"worker {number}", worker.log)
    return 1 if found else 0


async def _call(switch: Switch, record: Record) -> list[float]:
    """Count down, and cut once in the middle. Returns when each step was reported."""

    async def heard(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - the SDK's names
        record.add(Kind.EVENT, message or "", int(progress))
        # Only once: should the sixth event come again, that is a fault to be told, not to be followed by a second cut.
        if progress == CUT_AFTER and not of(Kind.CUT, record.moments):
            record.add(Kind.CUT, number=switch.sever())

    return await count_down(f"{switch.url}/mcp", record, STEPS, INTERVAL, heard)


async def _settled(workers: Sequence[Worker], moments: Sequence[Moment]) -> Figures:
    """The figures, once they account for what the client was sent.

    A followed stream is counted when it ends, and that is a moment after its last event was sent. Figures that never
    account for it are returned as they are: the verdict says so.
    """
    owed = len([moment for moment in after_cut(moments) if moment.kind in {Kind.EVENT, Kind.RESULT}])
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        figures = Figures.of([await worker.metrics() for worker in workers])
        if figures.delivered >= owed or time.monotonic() > until:
            return figures
        await asyncio.sleep(_LOOK_SECONDS)
