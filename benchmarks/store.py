"""Stores and replays compared with the public peers: throughput, latency and bytes.

    python -m benchmarks.store [--small] [--rounds N] [--output PATH] [--only NAME …]

Every competitor is a process of its own. All use the same Valkey and take turns, round after round, so that other load
on the machine slows all alike. It prints a table, and writes JSON and a picture. Linux only.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks import layout, memory, picture, report, telemetry, verdict
from benchmarks.competitors import COMPETITORS
from benchmarks.contestant import Ask, contestant
from benchmarks.processes import BenchmarkError, valkey
from mcp_eventscope.redis.client import connect

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "store.json"
MEASURES = ("stores", "one_writer", "replay", "long_stream", "memory", "layout", "telemetry")
PACKAGES = (
    *("mcp-persist", "fastmcp", "py-key-value-aio", "pydantic", "opentelemetry-sdk", "prometheus-client", "matplotlib"),
)
_FULL: dict[str, Any] = {
    "stores": {"writers": [500, 50, 1], "sessions": 50, "count": 20_000, "seconds": 2.0},
    "one_writer": {"blocks": 25, "each": 100},
    "replay": {"events": 1000, "times": 30, "seconds": 3.0, "warm": 0.5},
    "long_stream": {"lengths": [1000, 1_000_000], "last": 100, "blocks": 20, "each": 10},
    "memory": {"writers": 50, "sessions": 50, "count": 20_000},
    "layout": {"lengths": [2, 22, 200], "writers": 10, "sessions": 50, "count": 22_000},
    "telemetry": {"events": 20_000, "rounds": 7},
    "rounds": 5,
}
_SMALL: dict[str, Any] = {
    "stores": {"writers": [500, 50, 1], "sessions": 50, "count": 1000, "seconds": 0.2},
    "one_writer": {"blocks": 3, "each": 20},
    "replay": {"events": 100, "times": 2, "seconds": 0.2, "warm": 0.01},
    "long_stream": {"lengths": [200, 2000], "last": 20, "blocks": 2, "each": 2},
    "memory": {"writers": 50, "sessions": 50, "count": 1000},
    "layout": {"lengths": [22], "writers": 10, "sessions": 10, "count": 440},
    "telemetry": {"events": 1000, "rounds": 1},
    "rounds": 1,
}


async def measure(sizes: dict[str, Any], only: set[str], *, small: bool) -> dict[str, Any]:
    """Measure everything, one after the other.

    Args:
        sizes: The sizes of the run; see `_FULL` and `_SMALL`.
        only: The measures and the competitors to include; without one of either kind, all.
        small: Whether competitors that are not installed may be left out.

    Returns:
        The content of the JSON file.

    Raises:
        BenchmarkError: A competitor is not installed; the message has the fix.
    """
    measures = [name for name in MEASURES if name in only] or list(MEASURES)
    names = [name for name in COMPETITORS if name in only] or list(COMPETITORS)
    missing = {name: COMPETITORS[name].missing for name in names if COMPETITORS[name].missing}
    if missing and not small:
        modules = ", ".join(sorted({module for each in missing.values() for module in each}))
        msg = f"not installed: {modules}. `make bench` installs them, and so does: pip install --group bench"
        raise BenchmarkError(msg)
    for name, modules_of in missing.items():
        _log(f"left out: {name}, for want of {' and '.join(modules_of)}")
    names = [name for name in names if name not in missing]
    figures: dict[str, Any] = {
        "measured_with": await report.measured_with(*PACKAGES),
        "sizes": sizes,
        "competitors": {name: COMPETITORS[name].title for name in names},
        "left_out": sorted(missing),
    }
    async with valkey() as url, _contestants(url, names) as asks:
        for name in measures:
            if name != "telemetry":
                figures[name] = await _Run(url, asks, sizes).measure(name)
    if "telemetry" in measures:
        _log("telemetry")
        figures["telemetry"] = await telemetry.measure(**sizes["telemetry"])
    figures["results"] = report.results(verdict.lines(figures))
    return figures


class _Run:
    """Run the rounds of one measure: all competitors in turn, each on an empty server."""

    def __init__(self, url: str, asks: dict[str, Ask], sizes: dict[str, Any]) -> None:
        self._url = url
        self._asks = asks
        self._sizes = sizes

    async def measure(self, what: str) -> Any:
        """Measure it."""
        result: dict[str, Any] = await getattr(self, f"_{what}")(**self._sizes[what])
        return result

    def _turns(self, what: str, asks: dict[str, Ask]) -> Iterator[tuple[str, Ask]]:
        """All competitors, round after round, each round starting with a different one."""
        names = list(asks)
        for number in range(self._sizes["rounds"] if names else 0):
            _log(f"{what}, round {number + 1} of {self._sizes['rounds']}")
            first = number % len(names)
            for name in names[first:] + names[:first]:
                yield name, asks[name]

    def _plain(self, *further: str) -> dict[str, Ask]:
        """The competitors without a variation, and some more."""
        named = {"ours", "root", "persist", "fastmcp", *further}
        return {name: ask for name, ask in self._asks.items() if name in named}

    def _only(self, name: str) -> dict[str, Ask]:
        return {name: self._asks[name]} if name in self._asks else {}

    async def _stores(self, *, writers: list[int], **order: Any) -> dict[str, Any]:
        results: dict[str, Any] = {str(count): {name: [] for name in self._asks} for count in writers}
        async with connect(self._url) as client:
            for count in writers:
                for name, ask in self._turns(f"stores, {count} at the same time", self._asks):
                    await client.flushall()
                    before = await layout.server_seconds(client)
                    figures = await ask("store", writers=count, **order)
                    # Its warm-up is included.
                    spent = await layout.server_seconds(client) - before
                    figures["server_cpu_us_per_store"] = round(
                        spent / (figures["stores"] + figures.pop("warmed")) * 1e6, 2
                    )
                    results[str(count)][name].append(figures)
        return results

    async def _one_writer(self, **order: Any) -> list[Any]:
        # A session's part sends batches in the background; only the root store sends a command for each event.
        return await self._alone("one_writer", "root", **order)

    async def _long_stream(self, **order: Any) -> list[Any]:
        return await self._alone("long", "ours", **order)

    async def _alone(self, what: str, name: str, **order: Any) -> list[Any]:
        results: list[Any] = []
        async with connect(self._url) as client:
            for _, ask in self._turns(what.replace("_", " "), self._only(name)):
                await client.flushall()
                results.append(await ask(what, **order))
            await client.flushall()
        return results

    async def _replay(self, *, events: int, **order: Any) -> dict[str, Any]:
        asks = self._plain("persist-hiredis", "fastmcp-hiredis", "ours-hiredis", "ours-both", "ours-uvloop", "metrics")
        results: dict[str, Any] = {name: [] for name in asks}
        async with connect(self._url) as client:
            await client.flushall()
        for ask in asks.values():
            await ask("prepare", events=events)
        for name, ask in self._turns(f"replay of {events} events", asks):
            results[name].append(await ask("replay", **order))
        return results

    async def _memory(self, **order: Any) -> dict[str, Any]:
        results: dict[str, Any] = {name: [] for name in self._plain()}
        async with connect(self._url) as client:
            for name, ask in self._turns("memory", self._plain()):
                results[name].append(await memory.measure(client, ask, **order))
        return results

    async def _layout(self, **order: Any) -> list[Any]:
        results: list[Any] = []
        async with connect(self._url) as client:
            for _, ask in self._turns("layout", self._only("ours")):
                await client.flushall()
                results.append(await layout.measure(client, ask, **order))
        return results


@asynccontextmanager
async def _contestants(url: str, names: list[str]) -> AsyncIterator[dict[str, Ask]]:
    """Start the processes, and wait until all have imported their modules."""
    async with AsyncExitStack() as stack:
        asks = {name: await stack.enter_async_context(contestant(COMPETITORS[name], url)) for name in names}
        await asyncio.gather(*(ask("hello") for ask in asks.values()))
        yield asks


def main() -> None:
    """Measure, print and write. A missed target is reported and does not change the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a run of a few seconds that only checks that it works")
    parser.add_argument("--rounds", type=int, help="the number of rounds")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file; the picture is written beside it"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[*MEASURES, *COMPETITORS], help="these measures, these competitors"
    )
    options = parser.parse_args()
    sizes = dict(_SMALL if options.small else _FULL)
    if options.rounds is not None:
        sizes["rounds"] = max(1, options.rounds)
    try:
        figures = asyncio.run(measure(sizes, set(options.only), small=options.small))
    except BenchmarkError as error:
        sys.exit(str(error))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    try:
        picture.draw(figures, options.output.with_suffix(".svg"))
    except ImportError:
        _log("left out: the picture, for want of matplotlib")
    machine = figures["measured_with"]
    print(
        f"Python {machine['python']}, {machine['server']}, {machine['cores']} cores, {sizes['rounds']} rounds, medians"
    )
    if "stores" in figures:
        print(verdict.table(figures) + "\n")
    lines = verdict.lines(figures)
    for some in ([line for line in lines if line.limit is None], [line for line in lines if line.limit is not None]):
        print(report.table(some) + "\n")


def _log(what: str) -> None:
    print(what if what.startswith("left out") else f"measuring: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
