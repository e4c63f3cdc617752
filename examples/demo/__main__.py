"""`python -m examples.demo [serve [--port N]]`, run from the repository's root."""

import argparse
import asyncio
import io
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the command line. Returns the exit status."""
    # Until there is something to clean up, Ctrl-C ends the process without a traceback from an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("demo", "serve"), default="demo")
    parser.add_argument("--port", type=int, help="for serve; if it is taken, or 0, a free port is used (default: 8000)")
    arguments = parser.parse_args()

    from rich.console import Console  # noqa: PLC0415 - below the line that makes Ctrl-C safe

    from examples.demo.scenario import demo  # noqa: PLC0415
    from examples.demo.serve import PORT, serve  # noqa: PLC0415
    from examples.demo.waiting import DemoError  # noqa: PLC0415
    from mcp_eventscope import EventscopeError  # noqa: PLC0415

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal without UTF-8 shows a question mark.
    console = Console(highlight=False)
    serving = arguments.what == "serve"
    port = PORT if arguments.port is None else arguments.port
    try:
        status, stopped_by = asyncio.run(_until_signal(lambda: serve(console, port) if serving else demo(console)))
    except (DemoError, EventscopeError) as error:
        Console(stderr=True, highlight=False).print(
            f"\n  FAIL  {error}\n", style="bold red", markup=False, soft_wrap=True
        )
        return 1
    if stopped_by is None:
        return status
    console.print(f"\n  Stopped by {stopped_by.name}.\n")
    # A signal is the normal end of `serve`, and an early end of the demo.
    return 0 if serving else 128 + stopped_by


async def _until_signal(run: Callable[[], Coroutine[Any, Any, int]]) -> tuple[int, signal.Signals | None]:
    """Run a coroutine until it ends or a signal cancels it. Returns its status and the signal."""
    task = asyncio.create_task(run())
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:  # A second Ctrl-C would cancel the cleanup, whose time is bounded anyway.
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP.
            loop.add_signal_handler(number, stop, number)
    try:
        return await task, None
    except asyncio.CancelledError:
        if not received:
            raise
        return 0, received[0]


if __name__ == "__main__":
    sys.exit(main())
