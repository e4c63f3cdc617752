"""The figures of the end-to-end benchmark beside their targets."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.e2e.open_loop import SHARES
from benchmarks.e2e.outage import totals
from benchmarks.e2e.servers import CONTESTANTS
from benchmarks.report import Line

_LATENCY = {"2": 1.2, "5": 1.2}
"""Distance of Redis in milliseconds: the most that a call of ours may take, over the SDK without a store."""
_CPU = {"none": 1.2, "memory": 1.05}
_RESUME = {"memory": 0.5}
Value = Callable[[dict[str, Any]], float]


def lines(figures: dict[str, Any]) -> list[Line]:
    """The lines in their order. A ratio is the median of the ratios of the rounds."""
    found: list[Line] = []
    for distance, at in figures.get("latency", {}).items():
        where = f"call of {figures['sizes']['latency']['messages']} messages, Redis {distance} ms away"
        limits = {"none": _LATENCY.get(distance)}
        found += _compared(where, at["by"], lambda r: r["p50"], "ms", limits)
    if by := figures.get("cpu"):
        where = f"server CPU per call, {figures['sizes']['cpu']['sessions']} sessions"
        found += _compared(where, by, lambda r: r["cpu_ms_per_call"], "ms", _CPU)
    if by := figures.get("resume"):
        where = f"resume of {figures['sizes']['resume']['events']} events"
        found += _compared(where, by, lambda r: r["p50"], "ms", _RESUME)
        found += _compared(f"server CPU per {where}", by, lambda r: r["cpu_ms"], "ms", _RESUME)
    for name, rounds in figures.get("outage", {}).items():
        found += _outage(name, rounds, figures["sizes"]["outage"]["seconds"])
    for rate, by in figures.get("open_loop", {}).items():
        found += [
            Line(f"{rate} calls/s, {share}: {CONTESTANTS[name].title}", measured["ms"][share], "ms")
            for name, measured in by.items()
            for share in SHARES
        ]
    return found


def _compared(
    where: str, by: dict[str, list[dict[str, Any]]], value: Value, unit: str, limits: Mapping[str, float | None]
) -> list[Line]:
    """Each contestant, then each over those without a store and with the in-memory store."""
    found = []
    for name, rounds in by.items():
        values = [value(each) for each in rounds]
        found.append(Line(f"{where}: {CONTESTANTS[name].title}", statistics.median(values), unit, rounds=values))
    for base in ("none", "memory"):
        for name, rounds in by.items():
            if base in by and name not in ("none", base):
                ratios = [round(value(a) / value(b), 4) for a, b in zip(rounds, by[base], strict=True)]
                title = f"{where}: {CONTESTANTS[name].title}, over {CONTESTANTS[base].title}"
                limit = limits.get(base) if name == "ours" else None
                found.append(Line(title, statistics.median(ratios), "x", limit, rounds=ratios))
    return found


def _outage(name: str, rounds: Sequence[dict[str, Any]], seconds: float) -> list[Line]:
    total = totals(rounds)
    where = f"outage of {seconds:g} s, {CONTESTANTS[name].title}"
    limit = 0 if name == "ours" else None
    judged = {
        "messages without an id": "without_id",
        "messages delivered twice": "twice",
        "messages missing, cut calls": "missing",
        "messages missing, other calls": "missing_uncut",
        "cut calls without a cursor": "without_cursor",
    }
    counted = {
        "calls": "calls",
        "cut calls": "cut",
        "cut calls resumed": "resumed",
        "calls answered with an error": "errors",
        "calls or sessions refused": "refused",
    }
    return [
        *(
            Line(f"{where}: {title}", getattr(total, key), "", limit, exactly=True, rounds=[r[key] for r in rounds])
            for title, key in judged.items()
        ),
        *(
            Line(f"{where}: {title}", getattr(total, key), "", rounds=[r[key] for r in rounds])
            for title, key in counted.items()
        ),
    ]


def tables(figures: dict[str, Any]) -> str:
    """All measures with the contestants side by side."""
    found = []
    if figures.keys() & {"latency", "cpu", "resume"}:
        found.append(_side_by_side(figures))
    if by := figures.get("outage"):
        tallies = {name: totals(rounds) for name, rounds in by.items()}
        rows = [("outage", *(CONTESTANTS[name].title for name in tallies))]
        rows += [
            (key.replace("_", " "), *(f"{getattr(tally, key):,}" for tally in tallies.values()))
            for key in next(iter(tallies.values())).__dataclass_fields__
        ]
        found.append(_aligned(rows))
    if by := figures.get("open_loop"):
        rows = [("open loop", "calls/s", "due", *(f"{share} ms" for share in SHARES))]
        rows += [
            (
                CONTESTANTS[name].title,
                rate,
                f"{measured['due']}",
                *(f"{measured['ms'][share]:,.4g}" for share in SHARES),
            )
            for rate, some in by.items()
            for name, measured in some.items()
        ]
        found.append(_aligned(rows))
    return "\n\n".join(found)


def _side_by_side(figures: dict[str, Any]) -> str:
    measured: list[tuple[str, dict[str, list[dict[str, Any]]], Value]] = [
        (f"p50 of a call, Redis {distance} ms away", at["by"], lambda r: r["p50"])
        for distance, at in figures.get("latency", {}).items()
    ]
    if by := figures.get("cpu"):
        measured.append(("server CPU per call", by, lambda r: r["cpu_ms_per_call"]))
    if by := figures.get("resume"):
        where = f"resume of {figures['sizes']['resume']['events']} events"
        measured += [
            (f"p50 of a {where}", by, lambda r: r["p50"]),
            (f"server CPU per {where}", by, lambda r: r["cpu_ms"]),
        ]
    names = list(figures["contestants"])
    rows = [("ms (over no store)", *(CONTESTANTS[name].title for name in names))]
    for title, by, value in measured:
        cells = []
        for name in names:
            if name not in by:  # It cannot resume.
                cells.append("")
                continue
            values = [value(each) for each in by[name]]
            ratio = ""
            if "none" in by and name != "none":
                over = statistics.median(a / value(b) for a, b in zip(values, by["none"], strict=True))
                ratio = f" ({over:.3g}x)"
            cells.append(f"{statistics.median(values):,.4g}{ratio}")
        rows.append((title, *cells))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" if place else f"{cell:<{width}}" for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
