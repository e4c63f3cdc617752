"""`demo`: cuts a stream and kills a worker of a small deployment on this machine."""

import asyncio
import io
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import click
from rich.console import Console

from mcp_eventscope.cli.output import Exit, print_json
from mcp_eventscope.demo.scenario import demo
from mcp_eventscope.demo.serve import PORT, serve

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(*, keep_serving: bool, port: int | None, as_json: bool) -> int:
    """Run the demo; see `main`.

    Args:
        keep_serving: Whether to run one worker until a signal ends it, instead of the scenes.
        port: The port of that worker; None: 8000.
        as_json: Whether to print the failed checks as one JSON object instead of the timeline.

    Returns:
        The exit code: an `Exit`, or 128 and the number of the signal that ended the scenes.

    Raises:
        EventscopeError: The demo could not continue.
        click.UsageError: The options contradict each other.
        click.Abort: A signal ended the scenes, with `as_json`.
    """
    if keep_serving and as_json:
        msg = "--json must be given without --serve, which has no result"
        raise click.UsageError(msg)
    if port is not None and not keep_serving:
        msg = "--port must be given with --serve; the scenes choose free ports"
        raise click.UsageError(msg)
    console = Console(file=io.StringIO() if as_json else None, highlight=False)
    faults: list[str] = []

    async def play() -> None:
        if keep_serving:
            await serve(console, PORT if port is None else port)
        else:
            faults.extend(await demo(console))

    stopped_by = asyncio.run(_until_signal(play))
    if stopped_by is not None:
        if as_json:
            raise click.Abort
        console.print(f"\n  Stopped by {stopped_by.name}.\n")
        # A signal is the normal end of `serve`, and an early end of the scenes.
        return Exit.OK if keep_serving else 128 + stopped_by
    if as_json:
        print_json("demo", passed=not faults, faults=faults)
    return Exit.FAILED if faults else Exit.OK


async def _until_signal(play: Callable[[], Coroutine[Any, Any, None]]) -> signal.Signals | None:
    """Run a coroutine until it ends or a signal cancels it. Returns that signal."""
    task = asyncio.create_task(play())
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:  # A second Ctrl-C would cancel the cleanup, whose time is bounded anyway.
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        # `nohup` ignores SIGHUP on purpose; a shell ignores SIGINT for background jobs, which may receive it anyway.
        if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
        return received[0]
    return None
