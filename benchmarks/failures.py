"""Cuts a stream and kills a worker of servers with each event store, and records what the client receives.

    python -m benchmarks.failures [--rounds N] [--output PATH] [--only NAME …] [--cases NAME …]

Each contestant runs on two workers and one Valkey. A client calls a tool that sends 20 messages in two seconds, loses
its connection after five of them, and resumes with the last event id: on the same worker, on the other one, or on the
other one after the first was killed. It reconnects until it has a response, for at most `PATIENCE` seconds. The program
prints one line for each case and writes JSON.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.e2e.client import request_ids
from benchmarks.e2e.servers import CONTESTANTS, served
from benchmarks.processes import BenchmarkError, Worker, until, valkey
from benchmarks.wire import Event, Session, Stream

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "failures.json"
CASES = ("same_worker", "other_worker", "killed_worker")
MESSAGES, EVERY, CUT_AFTER = 20, 0.1, 5
PATIENCE = 30.0
"""Seconds after which a client gives up."""
NO_RESPONSE = "no response"
_RECONNECT = 0.25
_STEP = re.compile(rb"step (\d+) of")
_ID = re.compile(rb"(?m)^id: (\S+)")
_STORES = [name for name in CONTESTANTS if name != "none"]


async def measure(names: Sequence[str], rounds: int, of: Sequence[str] = CASES) -> dict[str, Any]:
    """Run the cases.

    Args:
        names: Of the contestants.
        rounds: How often each case is run.
        of: The cases.

    Returns:
        The content of the JSON file.
    """
    cases: dict[str, dict[str, list[dict[str, Any]]]] = {case: {name: [] for name in names} for case in of}
    for _ in range(rounds):
        for case in of:
            for name in names:
                async with AsyncExitStack() as stack:
                    url = await stack.enter_async_context(valkey())
                    workers = [(await stack.enter_async_context(served([name], url)))[name] for _ in range(2)]
                    cases[case][name].append(await _run(case, workers))
    return {
        "measured_with": await report.measured_with("mcp-persist"),
        "sizes": {"messages": MESSAGES, "every": EVERY, "cut_after": CUT_AFTER, "patience": PATIENCE, "rounds": rounds},
        "contestants": {name: CONTESTANTS[name].title for name in names},
        "cases": cases,
    }


async def _run(case: str, workers: Sequence[Worker]) -> dict[str, Any]:
    """One call, cut and resumed; see the docstring of the module."""
    home = workers[0]
    session = await Session.open(home.port)
    number = next(request_ids)
    stream = await session.call(home.port, number, "count", times=MESSAGES, every=EVERY)
    await until(lambda: len(_steps(stream.events())) >= CUT_AFTER, "the messages before the cut")
    stream.cut()
    events = stream.events()
    cursor = _ID.findall(stream.text)[-1].decode()
    if case == "killed_worker":
        os.kill(home.pid, signal.SIGKILL)
    began = time.monotonic()
    status = await _resume(session, (home if case == "same_worker" else workers[1]).port, cursor, number, events)
    steps = _steps(events)
    return {
        "outcome": _outcome(events, number),
        "seconds": round(time.monotonic() - began, 2),
        "missing": MESSAGES - len(set(steps)),
        "twice": len(steps) - len(set(steps)),
        "last_status": status,
    }


async def _resume(session: Session, port: int, cursor: str, number: int, events: list[Event]) -> str:
    """Reconnect until there is a response. Appends the events; returns the last HTTP status."""
    status = ""
    until_then = time.monotonic() + PATIENCE
    while _outcome(events, number) == NO_RESPONSE and time.monotonic() < until_then:
        stream: Stream | None = None
        try:
            async with asyncio.timeout(max(0.1, until_then - time.monotonic())):
                stream = await session.get(port, cursor)
                status = "200"
                await until(
                    lambda stream=stream: stream.ended.is_set() or _outcome(stream.events(), number) != NO_RESPONSE,  # type: ignore[misc]
                    "the response",
                    seconds=PATIENCE,
                )
        except (BenchmarkError, OSError, TimeoutError) as error:
            # The error of a refused resume quotes the beginning of the answer.
            if refused := re.search(r"HTTP/1\.1 (\d+)", str(error)):
                status = refused[1]
        if stream is not None:
            stream.cut()
            events += stream.events()
            if found := _ID.findall(stream.text):
                cursor = found[-1].decode()
        await asyncio.sleep(_RECONNECT)
    return status


def _steps(events: Sequence[Event]) -> list[bytes]:
    return [step[1] for event in events if (step := _STEP.search(event.data))]


def _outcome(events: Sequence[Event], number: int) -> str:
    """The response of the call: its result, the code of an error, or that there is none."""
    for event in events:
        message = json.loads(event.data)
        if message.get("id") == number:
            return "result" if "result" in message else f"error {message['error']['code']}"
    return NO_RESPONSE


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.failures", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is run")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file")
    parser.add_argument("--only", nargs="+", default=[], choices=_STORES, help="these contestants")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, help="these cases")
    options = parser.parse_args()
    names = options.only or _STORES
    if missing := [name for name in names if CONTESTANTS[name].missing]:
        sys.exit(f"not installed: {', '.join(missing)}; pip install --group bench")
    try:
        figures = asyncio.run(measure(names, max(1, options.rounds), options.cases))
    except BenchmarkError as error:
        sys.exit(str(error))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    for case, by in figures["cases"].items():
        for name, runs in by.items():
            shown = "; ".join(
                f"{run['outcome']} (HTTP {run['last_status']}), {run['missing']} missing, {run['seconds']:g} s"
                for run in runs
            )
            print(f"{case:14} {CONTESTANTS[name].title:22} {shown}")


if __name__ == "__main__":
    main()
