"""Latency, processor time and losses of MCP servers with each event store, end to end.

    python -m benchmarks.end_to_end [--small] [--rounds N] [--output PATH] [--only NAME …] [--fast] [--lose-data]

One client calls four uvicorn processes in turn: the SDK without an event store, the SDK with the in-memory store of its
documentation, mcp-eventscope, and mcp-persist. The measures are the latency of a call with Redis at several distances,
the processor time of the server per call, the resume of a call, an outage of Redis, and latency at fixed rates. The
program prints tables and writes JSON. It reports a missed target and exits with 0. Linux only.
"""

import argparse
import asyncio
import copy
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.e2e import cpu, latency, open_loop, outage, resume, verdict
from benchmarks.e2e.delay_proxy import precise_loop
from benchmarks.e2e.servers import CONTESTANTS
from benchmarks.processes import BenchmarkError

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "end_to_end.json"
MEASURES = {"latency": latency, "cpu": cpu, "resume": resume, "outage": outage, "open_loop": open_loop}
PACKAGES = ("mcp-persist", "h11", "pydantic", "prometheus-client", "opentelemetry-api")
_FULL: dict[str, Any] = {
    "latency": {"distances": [0, 2, 5], "messages": 20, "calls": 30},
    "cpu": {"sessions": 10, "messages": 20, "calls": 4, "blocks": 10},
    "resume": {"events": 1000, "times": 10},
    "outage": {"sessions": 10, "seconds": 10.0},
    "open_loop": {"sessions": 20, "messages": 2, "rates": [50, 100, 200], "seconds": 4.0},
    "rounds": 5,
}
_SMALL: dict[str, Any] = {
    "latency": {"distances": [0, 2], "messages": 20, "calls": 4},
    "cpu": {"sessions": 10, "messages": 20, "calls": 2, "blocks": 4},
    "resume": {"events": 100, "times": 2},
    "outage": {"sessions": 3, "seconds": 1.0},
    "open_loop": {"sessions": 5, "messages": 2, "rates": [50], "seconds": 1.0},
    "rounds": 1,
}


async def measure(sizes: dict[str, Any], only: set[str], *, small: bool, fast: bool, lose: bool) -> dict[str, Any]:
    """Take all measures, one after the other.

    Args:
        sizes: The sizes of the run; see `_FULL` and `_SMALL`.
        only: The measures and the contestants to include; of either, none is all.
        small: Whether contestants that are not installed may be left out.
        fast: Whether uvloop, httptools and hiredis are used where they are installed.
        lose: Whether Redis loses its data in the outage.

    Returns:
        The content of the JSON file.

    Raises:
        BenchmarkError: A contestant is not installed, or does not answer as it should.
    """
    names = [name for name in CONTESTANTS if name in only] or list(CONTESTANTS)
    missing = [name for name in names if CONTESTANTS[name].missing]
    if missing and not small:
        msg = f"not installed: {', '.join(CONTESTANTS[name].title for name in missing)}; pip install --group bench"
        raise BenchmarkError(msg)
    for name in missing:
        _report(f"left out: {name}, which is not installed")
    names = [name for name in names if name not in missing]
    figures: dict[str, Any] = {
        "measured_with": await report.measured_with(*PACKAGES),
        "sizes": sizes,
        "fast": fast,
        "data_lost_in_outage": lose,
        "contestants": {name: CONTESTANTS[name].title for name in names},
        "left_out": missing,
    }
    for key in [name for name in MEASURES if name in only] or list(MEASURES):
        _report(f"measuring: {key.replace('_', ' ')}")
        options = {**sizes[key], "rounds": sizes["rounds"], "fast": fast}
        if key == "outage":
            options["lose"] = lose
        figures[key] = await MEASURES[key].measure(names, **options)
    figures["results"] = report.results(verdict.lines(figures))
    return figures


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--small", action="store_true", help="a run of half a minute that only checks that it works")
    parser.add_argument("--rounds", type=int, help="the number of rounds")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[*MEASURES, *CONTESTANTS], help="these measures, these contestants"
    )
    parser.add_argument("--fast", action="store_true", help="with uvloop, httptools and hiredis where installed")
    parser.add_argument("--lose-data", action="store_true", help="Redis loses its data in the outage")
    options = parser.parse_args()
    sizes = copy.deepcopy(_SMALL if options.small else _FULL)
    if options.rounds is not None:
        sizes["rounds"] = max(1, options.rounds)
    run = measure(sizes, set(options.only), small=options.small, fast=options.fast, lose=options.lose_data)
    try:
        # The client sends on schedule, to which epoll adds up to a millisecond.
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            figures = runner.run(run)
    except BenchmarkError as error:
        sys.exit(str(error))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    made = figures["measured_with"]
    print(f"Python {made['python']}, {made['server']}, {made['cores']} cores, {sizes['rounds']} rounds, medians\n")
    print(verdict.tables(figures) + "\n")
    print(report.table([line for line in verdict.lines(figures) if line.limit is not None]))


def _report(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
