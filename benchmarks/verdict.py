"""The figures of stores and replays with their targets."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import layout
from benchmarks.competitors import COMPETITORS
from benchmarks.report import Line

Value = Callable[[dict[str, Any]], float]

_STORES = {
    # writers: at least so many times as many stores per second as the peer
    "500": {"persist": 12.0, "fastmcp": 40.0},
    "50": {"persist": 8.0, "fastmcp": 25.0},
}
_ROOT_STORES = {"500": 5.0, "50": 4.0, "1": 1.0}
"""The same for the root store, which returns after the acknowledgement, compared with mcp-persist."""
_P99 = {"500": {"persist": 0.05}}
_REPLAY = {"persist": 0.25, "fastmcp": 0.03}
_LAYOUT = {"cpu_us": 0.6, "bytes": 0.75}
"""Of the server, per event, compared with the layout of `layout.BASELINE_COMMIT`."""
_LONG = 1.2
_ONE_WRITER = 1.1
_TELEMETRY = {"500": {"metrics": 0.9, "spans": 0.7}}


def lines(figures: dict[str, Any]) -> list[Line]:
    """The lines in order. A ratio is the median of the rounds' ratios, because other load slows neighbours alike."""
    found: list[Line] = []
    for writers, by in figures.get("stores", {}).items():
        found += _stores(writers, by)
    if rounds := figures.get("one_writer"):
        found += _one_writer(rounds)
    if by := figures.get("replay"):
        found += _replay(by, figures["sizes"]["replay"]["events"])
    if rounds := figures.get("long_stream"):
        found += _long(rounds, figures["sizes"]["long_stream"])
    if by := figures.get("memory"):
        found += _memory(by)
    if rounds := figures.get("layout"):
        found += _layout(rounds)
    for case, values in figures.get("telemetry", {}).items():
        for key, name in (("append", "append"), ("replayed", "replayed event")):
            rounds = values["rounds"][key]
            found.append(Line(f"telemetry, {case}: processor per {name}", values[f"{key}_us"], "µs", rounds=rounds))
    return found


def _stores(writers: str, by: dict[str, list[dict[str, Any]]]) -> list[Line]:
    found = []
    where = f"{writers} at the same time" if writers != "1" else "one writer"
    for name, theirs in by.items():
        if COMPETITORS[name].product in {"ours", "root"} or not (ours := _twin(by, name)):
            continue
        title = COMPETITORS[name].title
        limit = _STORES.get(writers, {}).get(name)
        found.append(_ratio(f"stores per second, {where}, to {title}", ours, theirs, _rate, limit, at_least=True))
        if writers != "1":
            limit = _P99.get(writers, {}).get(name)
            found.append(_ratio(f"p99 of a store, {where}, to {title}", ours, theirs, _p99, limit))
        found.append(_ratio(f"processor per store, {where}, to {title}", ours, theirs, _cpu))
    if "root" in by and "persist" in by:
        title = f"stores per second, {where}, the root store to mcp-persist"
        limit = _ROOT_STORES.get(writers)
        found.append(_ratio(title, by["root"], by["persist"], _rate, limit, at_least=True))
    for name, ours in by.items():
        if COMPETITORS[name].product == "ours" and name != "ours" and "ours" in by:
            limit = _TELEMETRY.get(writers, {}).get(name)
            title = f"stores per second, {where}, {COMPETITORS[name].title}, to without"
            found.append(_ratio(title, ours, by["ours"], _rate, limit, at_least=True))
            title = f"processor per store, {where}, {COMPETITORS[name].title}, to without"
            found.append(_ratio(title, ours, by["ours"], _cpu))
    return found


def _twin(by: dict[str, list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """Our results with the same parser."""
    return by.get("ours-hiredis" if COMPETITORS[name].hiredis else "ours", [])


def _one_writer(rounds: list[dict[str, Any]]) -> list[Line]:
    titles = {"store": "ours", "evalsha": "the same EVALSHA by redis-py", "nothing": "a script that does nothing"}
    found = [
        _line(f"p50, one writer: {title}", rounds, lambda r, name=name: r["p50_ms"][name], "ms")  # type: ignore[misc]
        for name, title in titles.items()
    ]
    return [
        *found,
        _line("p50, one writer, to the same EVALSHA", rounds, lambda r: r["ratios"]["evalsha"], "x", _ONE_WRITER),
        _line("p50, one writer, to a script that does nothing", rounds, lambda r: r["ratios"]["nothing"], "x"),
    ]


def _replay(by: dict[str, list[dict[str, Any]]], events: int) -> list[Line]:
    what = f"replay of {events:,} events"
    found = [_line(f"{what}: {COMPETITORS[name].title}", rounds, _p50, "ms") for name, rounds in by.items()]
    for name, theirs in by.items():
        if COMPETITORS[name].product not in {"ours", "root"} and (ours := _twin(by, name)):
            found.append(_ratio(f"{what}, to {COMPETITORS[name].title}", ours, theirs, _p50, _REPLAY.get(name)))
    if "root" in by and "persist" in by:
        found.append(_ratio(f"{what}, the root store to mcp-persist", by["root"], by["persist"], _p50))
    return found


def _long(rounds: list[dict[str, Any]], sizes: dict[str, Any]) -> list[Line]:
    what = f"replay of the last {sizes['last']}"
    found = [
        _line(f"{what} of {length:,}", rounds, lambda r, key=str(length): r["ms"][key], "ms")  # type: ignore[misc]
        for length in sizes["lengths"]
    ]
    short, long = sizes["lengths"][0], sizes["lengths"][-1]
    return [*found, _line(f"{what} of {long:,}, to {short:,}", rounds, lambda r: r["ratio"], "x", _LONG)]


def _memory(by: dict[str, list[dict[str, Any]]]) -> list[Line]:
    found = []
    for key, account in (("used_memory_per_event", "used_memory"), ("memory_usage_per_event", "MEMORY USAGE")):
        found += [
            _line(f"bytes per event ({account}): {COMPETITORS[name].title}", rounds, lambda r, key=key: r[key], "B")  # type: ignore[misc]
            for name, rounds in by.items()
        ]
        for name in ("persist", "fastmcp"):
            if "ours" in by and name in by:
                title = f"bytes per event ({account}), to {COMPETITORS[name].title}"
                limit = 1.0 if name == "persist" else None
                found.append(_ratio(title, by["ours"], by[name], lambda r, key=key: r[key], limit))  # type: ignore[misc]
    return found


def _layout(rounds: list[dict[str, Any]]) -> list[Line]:
    found = []
    earlier = f"the layout of {layout.BASELINE_COMMIT}"
    for length in rounds[0]:
        of = [each[length] for each in rounds]
        for key, title, unit in (("bytes", "bytes per event", "B"), ("cpu_us", "Valkey's processor per event", "µs")):
            where = f"streams of {length} events: {title}"
            ours, theirs = [each["ours"] for each in of], [each["earlier"] for each in of]
            found += [
                _line(where, ours, lambda r, key=key: r[key], unit),  # type: ignore[misc]
                _line(f"{where}, {earlier}", theirs, lambda r, key=key: r[key], unit),  # type: ignore[misc]
                _ratio(f"{where}, to {earlier}", ours, theirs, lambda r, key=key: r[key], _LAYOUT[key]),  # type: ignore[misc]
            ]
    return found


def _rate(figures: dict[str, Any]) -> float:
    rate: float = figures["stores_per_second"]
    return rate


def _cpu(figures: dict[str, Any]) -> float:
    value: float = figures["cpu_us_per_store"]
    return value


def _p99(figures: dict[str, Any]) -> float:
    value: float = figures["ms"]["p99"]
    return value


def _p50(figures: dict[str, Any]) -> float:
    value: float = figures["p50"]
    return value


def table(figures: dict[str, Any]) -> str:
    """The stores of all competitors as a text table."""
    rows = [("", "writers", "stores/s", "p50 ms", "p99 ms", "max ms", "processor µs", "Valkey's µs")]
    for writers, by in figures.get("stores", {}).items():
        for name, rounds in by.items():
            values: list[Value] = [
                _rate,
                lambda r: r["ms"]["p50"],
                _p99,
                lambda r: r["ms"]["max"],
                lambda r: r["cpu_us_per_store"],
                lambda r: r["server_cpu_us_per_store"],
            ]
            rate, *others = (statistics.median(value(each) for each in rounds) for value in values)
            rows.append((COMPETITORS[name].title, writers, f"{rate:,.0f}", *(f"{each:,.4g}" for each in others)))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" if place else f"{cell:<{width}}" for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _line(name: str, rounds: Sequence[dict[str, Any]], value: Value, unit: str, limit: float | None = None) -> Line:
    values = [value(each) for each in rounds]
    return Line(name, statistics.median(values), unit, limit, rounds=values)


def _ratio(  # noqa: PLR0913 - what a ratio is
    name: str,
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]],
    value: Value,
    limit: float | None = None,
    *,
    at_least: bool = False,
) -> Line:
    values = [round(value(a) / value(b), 4) for a, b in zip(ours, theirs, strict=True)]
    return Line(name, statistics.median(values), "x", limit, rounds=values, at_least=at_least)
