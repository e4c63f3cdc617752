"""`mcp-eventscope demo`: two workers, three scenes, the metrics of the remaining worker, and the verdict."""

import io
import logging

from rich.console import Console

from mcp_eventscope.demo import modern, scenes
from mcp_eventscope.demo.stack import running
from mcp_eventscope.demo.switch import Switch
from mcp_eventscope.demo.timeline import Timeline


async def demo(console: Console) -> list[str]:
    """Run the demo.

    Args:
        console: Where the timeline is printed.

    Returns:
        A sentence for each check that failed.

    Raises:
        DemoError: A condition did not hold in time.
        EmbeddedUnavailableError: There is no Valkey.
    """
    timeline = Timeline(console, scenes.STEPS)
    log = io.StringIO()
    # The SDK's log is shown only after a failure.
    logging.basicConfig(stream=log, force=True)
    timeline.title("Two workers, one Redis, and a load balancer without sticky sessions")
    async with running([0, 0]) as stack:
        workers = stack.workers
        switch = Switch([worker.port for worker in workers])
        async with switch.running():
            ends = ", ".join(f"worker {worker.name} :{worker.port}" for worker in workers)
            timeline.path(["SDK client", f"load balancer :{switch.port}", ends, "Redis"])
            timeline.redis(stack.redis)
            stage = scenes.Stage(workers, switch, timeline)
            timeline.scene(1, "A stream is cut; the other worker resumes it while the tool runs on")
            found = [f"scene 1: {fault}" for fault in await scenes.cut(stage, await stage.figures())]
            timeline.scene(2, "Revision 2026-07-28: a task outlives its client; a change is signalled on all workers")
            runner, other = workers
            found += [f"scene 2: {fault}" for fault in await modern.outlive(runner, other, timeline)]
            timeline.scene(3, "A worker is killed during a call and a task")
            before = await stage.figures()
            found += [f"scene 3: {fault}" for fault in await scenes.kill(stage, before)]
            figures = await stage.figures()
    timeline.figures(figures, lost={name: last for name, last in before.items() if name not in figures})
    timeline.verdict(found)
    if found:
        timeline.log("the client", log.getvalue())
        for worker in workers:
            timeline.log(f"worker {worker.name}", worker.log)
    return found
