"""Following at scale: latency of followers, and the cost of followers and idle sessions.

    python -m benchmarks.follow [--small] [--rounds N] [--output PATH]

It starts a Valkey and workers of its own on the loopback interface, prints a table, and writes JSON. Figures are
medians of the rounds; the JSON has every round. Linux only.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import crowd, idle, latency, report

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "follow.json"
_FULL = {
    "latency": {"followers": 200, "rate": 200.0, "seconds": 10.0},
    "crowd": {"followers": 10_000, "idle": 5.0},
    "idle": {"sessions": 1000, "seconds": 10.0},
    "traced": 1000,
    "rounds": 3,
}
_SMALL = {
    "latency": {"followers": 10, "rate": 50.0, "seconds": 1.0},
    "crowd": {"followers": 200, "idle": 0.5},
    "idle": {"sessions": 20, "seconds": 1.0},
    "traced": 0,
    "rounds": 1,
}


async def measure(sizes: dict[str, Any]) -> dict[str, Any]:
    """Measure everything, one after the other.

    Args:
        sizes: The sizes of the run; see `_FULL` and `_SMALL`.

    Returns:
        The content of the JSON file.
    """
    figures: dict[str, Any] = {"measured_with": await report.measured_with(), "sizes": sizes}
    _log("latency")
    figures["latency"] = await latency.measure(**sizes["latency"], rounds=sizes["rounds"])
    figures["crowd"] = []
    for number in range(sizes["rounds"]):
        _log(f"crowd, round {number + 1} of {sizes['rounds']}")
        traced = sizes["traced"] if number == 0 else 0
        figures["crowd"].append(await crowd.measure(**sizes["crowd"], traced=traced))
    _log("idle sessions")
    figures["idle"] = await idle.measure(**sizes["idle"])
    figures["results"] = report.results(report.lines(figures))
    return figures


def main() -> None:
    """Measure, print and write. A missed target is reported and does not change the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.follow", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a run of a few seconds that only checks that it works")
    parser.add_argument("--rounds", type=int, help="the number of rounds of latency and crowd")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file")
    options = parser.parse_args()
    sizes = dict(_SMALL if options.small else _FULL)
    if options.rounds is not None:
        sizes["rounds"] = max(1, options.rounds)
    figures = asyncio.run(measure(sizes))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    machine = figures["measured_with"]
    print(
        f"Python {machine['python']}, {machine['server']}, {machine['cores']} cores, {sizes['rounds']} rounds, medians"
    )
    print(report.table(report.lines(figures)))


def _log(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
