"""`make demo`: two workers, two scenes, the figures of those who are left, and the verdict."""

import io
import logging

from rich.console import Console

from examples.demo import scenes
from examples.demo.stack import running
from examples.demo.switch import Switch
from examples.demo.timeline import Timeline


async def demo(console: Console) -> int:
    """Run it. Returns the exit status: 0 when all held that it shows.

    Raises:
        DemoError: Something was waited for in vain.
        EmbeddedUnavailableError: There is no Valkey.
    """
    timeline = Timeline(console, scenes.STEPS)
    log = io.StringIO()
    # The timeline tells what happens; what the SDK logs about it is for the case that it went wrong.
    logging.basicConfig(stream=log, force=True)
    timeline.title("Two workers, one Redis, and a switch that is not sticky")
    async with running([0, 0]) as workers:
        switch = Switch([worker.port for worker in workers])
        async with switch.running():
            ends = ", ".join(f"worker {worker.name} :{worker.port}" for worker in workers)
            timeline.path(["SDK client", f"switch :{switch.port}", ends, "Valkey"])
            stage = scenes.Stage(workers, switch, timeline)
            timeline.scene(1, "A stream is cut, and the other worker resumes it while the tool goes on")
            found = [f"scene 1: {fault}" for fault in await scenes.cut(stage, await stage.figures())]
            timeline.scene(2, "A worker is killed in the middle of a call")
            before = await stage.figures()
            found += [f"scene 2: {fault}" for fault in await scenes.kill(stage, before)]
            figures = await stage.figures()
    timeline.figures(figures, lost={name: said for name, said in before.items() if name not in figures})
    timeline.verdict(found)
    if found:
        timeline.log("the client", log.getvalue())
        for worker in workers:
            timeline.log(f"worker {worker.name}", worker.log)
    return 1 if found else 0
