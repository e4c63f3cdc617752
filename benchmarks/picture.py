"""The figures of stores and replays as a picture, one chart per measure."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.competitors import COMPETITORS

_OURS, _PEER, _REFERENCE = "#2563eb", "#9ca3af", "#d6b25e"
_COLUMNS = 2
_INK = "#1f2937"


@dataclass(frozen=True)
class _Chart:
    """One chart: bars from top to bottom, the first of them ours, with which the others are compared."""

    title: str
    bars: Sequence[tuple[str, float, str]]
    unit: str
    logarithmic: bool = False


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures.

    Args:
        figures: The figures of `benchmarks.store`.
        path: The file; its suffix chooses SVG or PNG.

    Raises:
        ImportError: matplotlib is not installed; the group `bench` has it.
    """
    import matplotlib as mpl  # noqa: PLC0415 - it need not be installed
    from matplotlib.figure import Figure  # noqa: PLC0415

    charts = [chart for chart in _charts(figures) if chart.bars]
    if not charts:
        return
    # Text stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "eventscope", "font.size": 9, "text.color": _INK}):
        lines = [charts[at : at + _COLUMNS] for at in range(0, len(charts), _COLUMNS)]
        heights = [max(len(chart.bars) for chart in line) + 1.6 for line in lines]
        figure = Figure(figsize=(13, 0.27 * sum(heights) + 0.6), facecolor="white", layout="constrained")
        axes = figure.subplots(len(lines), _COLUMNS, squeeze=False, gridspec_kw={"height_ratios": heights})
        for row, line in zip(axes, lines, strict=True):
            for axis in row[len(line) :]:
                axis.set_visible(False)
            for axis, chart in zip(row, line, strict=False):
                _draw(axis, chart)
                # Bars of one height, whatever stands beside them.
                axis.set_ylim(max(len(chart.bars) for chart in line) - 0.4, -0.6)
        machine = figures["measured_with"]
        figure.suptitle(
            f"Medians of {figures['sizes']['rounds']} round(s); Python {machine['python']}, {machine['server']}, "
            f"{machine['cores']} cores. In brackets: to the first bar",
            fontsize=9,
            x=0.01,
            ha="left",
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(axis: Any, chart: _Chart) -> None:
    names = [name for name, _, _ in chart.bars]
    values = [value for _, value, _ in chart.bars]
    axis.barh(range(len(values)), values, color=[colour for _, _, colour in chart.bars], height=0.72)
    axis.set_yticks(range(len(values)), names)
    axis.set_title(f"{chart.title}, {chart.unit}", loc="left", fontsize=10, fontweight="bold")
    axis.tick_params(length=0)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    if chart.logarithmic:
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 8)
        axis.set_xticks([])
        axis.minorticks_off()
    else:
        axis.set_xlim(0, max(values) * 1.3)
    for place, value in enumerate(values):
        ratio = "" if place == 0 else f"  ({value / values[0]:,.3g}x)"
        axis.annotate(
            f"{value:,.4g}{ratio}" if value < 1000 else f"{value:,.0f}{ratio}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )


def _charts(figures: dict[str, Any]) -> list[_Chart]:
    charts = []
    for writers, by in figures.get("stores", {}).items():
        where = f"{writers} writers" if writers != "1" else "one writer"
        charts += [
            _Chart(f"Stores per second, {where}", _bars(by, lambda r: r["stores_per_second"]), "more is better"),
            _Chart(
                f"p99 of a store, {where}", _bars(by, lambda r: r["ms"]["p99"]), "ms, logarithmic", logarithmic=True
            ),
        ]
    if rounds := figures.get("one_writer"):
        names = {"store": "mcp-eventscope", "evalsha": "the same EVALSHA by redis-py", "nothing": "an empty script"}
        bars = [
            (title, statistics.median(r["p50_ms"][key] for r in rounds), _OURS if key == "store" else _REFERENCE)
            for key, title in names.items()
        ]
        charts.append(_Chart("p50 of a store, one writer, by turns", bars, "ms"))
    if by := figures.get("replay"):
        events = figures["sizes"]["replay"]["events"]
        charts.append(_Chart(f"Replay of {events:,} events", _bars(by, lambda r: r["p50"]), "ms"))
    if rounds := figures.get("long_stream"):
        last = figures["sizes"]["long_stream"]["last"]
        bars = [
            (f"of {length:,}", statistics.median(r["ms"][str(length)] for r in rounds), _OURS)
            for length in figures["sizes"]["long_stream"]["lengths"]
        ]
        charts.append(_Chart(f"Replay of the last {last} events", bars, "ms"))
    if by := figures.get("memory"):
        charts.append(_Chart("Memory of Redis per event", _bars(by, lambda r: r["used_memory_per_event"]), "bytes"))
    if by := figures.get("telemetry"):
        bars = [(case, values["append_us"], _OURS) for case, values in by.items()]
        charts.append(_Chart("Telemetry: processor per append, with no Redis", bars, "µs"))
    return charts


def _bars(
    by: dict[str, list[dict[str, Any]]], value: Callable[[dict[str, Any]], float]
) -> list[tuple[str, float, str]]:
    return [
        (
            COMPETITORS[name].title,
            statistics.median(value(each) for each in rounds),
            _OURS if COMPETITORS[name].product in {"ours", "root"} else _PEER,
        )
        for name, rounds in by.items()
    ]
