"""The panels of a dashboard: one dataclass, and shorthands for the usual kinds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from dashboards import promql
from dashboards.promql import Values
from mcp_eventscope.telemetry.declarations import Metric

Json: TypeAlias = dict[str, Any]
Step: TypeAlias = tuple[float | None, str]
"""From this value on, this colour. The first has None."""

CALM = "text"
"""The colour of values that need no action: the text colour of the theme."""
GOOD, WARN, BAD, ASIDE = "green", "orange", "red", "#8e8e8e"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Link:
    """From a panel to its explanation: a dashboard, one of its panels, or a section of the runbook."""

    title: str
    uid: str
    panel: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One query. `legend` may name labels: `{{outcome}}`."""

    expr: str
    legend: str = ""
    instant: bool = False
    exemplar: bool = False
    format: Literal["time_series", "heatmap", "table"] = "time_series"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. Its `id` never changes: links name it."""

    id: int
    title: str
    type: Literal["timeseries", "stat", "heatmap", "table"]
    description: str
    targets: tuple[Target, ...]
    unit: str
    width: int = 8
    height: int = 7
    defaults: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    options: Json = field(default_factory=dict)
    steps: tuple[Step, ...] = ((None, CALM),)
    links: tuple[Link, ...] = ()
    transformations: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row and its panels."""

    id: int
    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


LEGEND: Json = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
ONE: Json = {"mode": "shades", "fixedColor": "blue"}
"""For a single series."""
SEVERAL: Json = {"mode": "palette-classic"}
"""For several series without fixed colours, such as workers."""
PROBLEM: Json = {"mode": "shades", "fixedColor": "orange"}
"""For a single series that should be 0."""
PER_SECOND = "suffix:/s"
AT_REST: Json = {
    "matcher": {"id": "byValue", "options": {"reducer": "allIsZero", "op": "gte", "value": 0}},
    "properties": [{"id": "custom.hideFrom", "value": {"legend": True, "tooltip": False, "viz": False}}],
}
"""Hides series that are 0 throughout from the legend, which then lists what happened."""
DASHED: Json = {"thresholdsStyle": {"mode": "dashed"}}
"""Draws thresholds as lines."""


def describe(what: str, *, normal: str, otherwise: str) -> str:
    """A description: what the panel shows, what is normal, and what to do otherwise."""
    return f"{what}\n\n**Normal:** {normal}\n\n**If not:** {otherwise}"


def lines(  # noqa: PLR0913 - a panel has as many properties
    number: int,
    title: str,
    description: str,
    *targets: Target,
    unit: str = PER_SECOND,
    colour: Json | None = None,
    most: float | None = 1,
    **rest: Any,
) -> Panel:
    """Lines over time, from zero. `most` is the least upper bound of the axis, so that noise looks like noise."""
    panel = Panel(number, title, "timeseries", description, targets, unit)
    named = len(targets) > 1 or "{{" in targets[0].legend
    return replace(
        panel,
        **(
            rest
            | {
                "defaults": {"min": 0, "color": colour or (SEVERAL if named else ONE)} | rest.get("defaults", {}),
                "custom": ({} if most is None else {"axisSoftMax": most}) | rest.get("custom", {}),
                "overrides": (*rest.get("overrides", ()), AT_REST),
                "options": {"legend": LEGEND} | rest.get("options", {}),
            }
        ),
    )


def counter(
    number: int, title: str, metric: Metric, description: str, *by: str, unit: str = PER_SECOND, **rest: Any
) -> Panel:
    """The rate of a counter of the catalog as lines, by labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or title.lower()
    fixed = REASONS if set(by) & {"reason", "sink"} else ()
    target = Target(promql.rate(metric, "", by), legend)
    return lines(number, title, description, target, unit=unit, **({"overrides": fixed} | rest))


def gauge(
    number: int, title: str, metric: Metric, description: str, *by: str, unit: str = "short", **rest: Any
) -> Panel:
    """A gauge of the catalog as lines: the sum of the workers, or their maximum, by its multiprocess mode.

    By `instance` means by worker: where workers share a target, the label `pid` distinguishes them.
    """
    if metric.per_worker and "instance" in by:
        by = (*by, "pid")
    fold = promql.total if metric.multiprocess_mode == "livesum" else promql.highest
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or title.lower()
    return lines(number, title, description, Target(fold(promql.series(metric), by), legend), unit=unit, **rest)


def quantiles(  # noqa: PLR0913 - as above
    number: int,
    title: str,
    metric: Metric,
    description: str,
    *,
    unit: str = "s",
    labels: Mapping[str, Values],
    **rest: Any,
) -> Panel:
    """The p50 and p99 of a histogram of the catalog as lines."""
    targets = (
        Target(promql.quantile(0.99, metric, **labels), "p99", exemplar=True),
        Target(promql.quantile(0.5, metric, **labels), "p50", exemplar=True),
    )
    return lines(number, title, description, *targets, unit=unit, **({"most": None, "overrides": QUANTILES} | rest))


def heatmap(number: int, title: str, metric: Metric, description: str, *, unit: str, **rest: Any) -> Panel:
    """A histogram of the catalog as a heat map of its buckets over time."""
    target = Target(promql.buckets(metric), "{{le}}", exemplar=True, format="heatmap")
    return replace(Panel(number, title, "heatmap", description, (target,), unit), **rest)


def stat(number: int, title: str, description: str, expr: str, *steps: Step, unit: str, **rest: Any) -> Panel:
    """One number, coloured only where it needs action."""
    panel = Panel(number, title, "stat", description, (Target(expr, title, instant=True),), unit)
    usual: Json = {"steps": steps or ((None, CALM),), "width": 4, "height": 4, "options": {"text": {"valueSize": 34}}}
    return replace(panel, **(usual | rest))


def coloured(colours: Mapping[str, str]) -> tuple[Json, ...]:
    """Overrides that give each series, by its name, its colour."""
    return tuple(
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in colours.items()
    )


def column(name: str, title: str, unit: str, **more: Any) -> Json:
    """The override of a table's column: its title, its unit, and other properties."""
    properties: list[Json] = [{"id": "displayName", "value": title}, {"id": "unit", "value": unit}]
    properties += [{"id": key, "value": value} for key, value in more.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def steps_of(*steps: Step) -> Json:
    """Thresholds, as Grafana writes them."""
    return {"mode": "absolute", "steps": [{"value": at, "color": colour} for at, colour in steps]}


def redis_state(*, coloured_text: bool) -> list[Json]:
    """The words for the values of `eventscope_degraded`, the same on all panels."""
    words = {"0": ("available", CALM), "1": ("unavailable", BAD)}
    options = {
        value: {"text": text, "index": int(value)} | ({"color": colour} if coloured_text else {})
        for value, (text, colour) in words.items()
    }
    return [{"type": "value", "options": options}]


QUANTILES = coloured({"p99": "blue", "p50": "super-light-blue"})
OUTCOMES = coloured(
    {
        "resumed": "green",
        "caught_up": "super-light-green",
        "completed": "green",
        "ok": "green",
        "gap": "yellow",
        "missed": "orange",
        "worker_lost": "orange",
        "deferred": "yellow",
        "timeout": "super-light-green",
        "refused": "purple",
        "unavailable": "purple",
        "error": "red",
        "other_worker": ASIDE,
        "client_disconnected": ASIDE,
        "cancelled": "#5f5f5f",
        # of tasks, and of answers to questions
        "failed": "red",
        "fenced": "purple",
        "discarded": ASIDE,
        "unsettled": "orange",
        "too_large": "yellow",
    }
)
"""An outcome has the same colour on all panels."""
REASONS = coloured(
    {
        # of failures
        "connection": "red",
        "timeout": "orange",
        "loading": "yellow",
        "pool": "purple",
        "busy": "super-light-purple",
        "readonly": "blue",
        "oom": "dark-red",
        "auth": "dark-purple",
        "noscript": ASIDE,
        "other": "#5f5f5f",
        # of losses
        "overflow": "red",
        "rejected": "orange",
        "rollback": "purple",
        "session_limit": "blue",
        "shutdown": "yellow",
        # of the ends of sessions
        "deleted": "blue",
        "other_worker": "super-light-blue",
        "idle": ASIDE,
        "failed": "red",
        # of refusals
        "unavailable": "red",
        "limit": "orange",
        "not_owner": "purple",
        "other_server": "dark-purple",
        "resumes": "blue",
        "invalid": "yellow",
        "unknown": ASIDE,
        "malformed": ASIDE,
        "unknown_key": "dark-red",
        "expired": "orange",
        "binding": "super-light-purple",
        "audience": "purple",
        "principal": "dark-purple",
        "other_answer": "blue",
        "in_progress": "yellow",
        "not_running": "super-light-blue",
        # of gaps, and of changes that were not published
        "late": "yellow",
        "lost": "dark-red",
        "rolled_back": "purple",
        "trimmed": "orange",
        "too_large": "super-light-blue",
        "damaged": "blue",
        "unreachable": "orange",
        "refused": "purple",
        "unsupported": ASIDE,
        # of sinks
        "metrics": "blue",
        "otel_metrics": "super-light-blue",
        "traces": "purple",
        "logs": "orange",
    }
)
"""A reason and a sink have the same colour on all panels."""
