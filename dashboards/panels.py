"""What stands on a dashboard: one dataclass a panel, and short ways to make the usual ones."""

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
"""The colour of what needs nobody: that of the text, in either theme."""
GOOD, WARN, BAD, ASIDE = "green", "orange", "red", "#8e8e8e"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Link:
    """From a panel to what explains it: another panel, by its dashboard's uid and id, or a section of the runbook."""

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
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `id` is for ever: links name it."""

    id: int
    title: str
    type: Literal["timeseries", "stat", "heatmap", "table", "bargauge"]
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
    """A row, and what is in it."""

    id: int
    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


SHORT_LEGEND: Json = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
LOAD: Json = {"mode": "shades", "fixedColor": "blue"}
TROUBLE: Json = {"mode": "shades", "fixedColor": "orange"}
"""What is one of several is a shade of one colour: green, yellow and red mean something here."""
PER_SECOND = "suffix:/s"
AT_REST: Json = {
    "matcher": {"id": "byValue", "options": {"reducer": "allIsZero", "op": "gte", "value": 0}},
    "properties": [{"id": "custom.hideFrom", "value": {"legend": True, "tooltip": False, "viz": False}}],
}
"""What is 0 all the time is on its line, and not in the legend: there is what happened, and nothing else."""


def says(what: str, *, normal: str, otherwise: str) -> str:
    """A description: what it shows, what is normal, and what to do when it is not."""
    return f"{what}\n\n**Normal:** {normal}\n\n**If not:** {otherwise}"


def lines(  # noqa: PLR0913 - a panel has as many properties
    number: int,
    title: str,
    description: str,
    *targets: Target,
    unit: str = PER_SECOND,
    colour: Json = LOAD,
    most: float | None = 1,
    **rest: Any,
) -> Panel:
    """Lines over time, from zero. `most`: what the axis shows at least, so that nothing looks like nothing."""
    panel = Panel(number, title, "timeseries", description, targets, unit)
    named = len(targets) > 1 or "{{" in targets[0].legend
    return replace(
        panel,
        **(
            rest
            | {
                "defaults": {"min": 0, "color": colour} | rest.get("defaults", {}),
                "custom": ({} if most is None else {"axisSoftMax": most}) | rest.get("custom", {}),
                "overrides": (*rest.get("overrides", ()), AT_REST),
                "options": {"legend": SHORT_LEGEND | {"showLegend": named}} | rest.get("options", {}),
            }
        ),
    )


def counter(
    number: int, title: str, metric: Metric, description: str, *by: str, unit: str = PER_SECOND, **rest: Any
) -> Panel:
    """A counter of the catalog as lines: so many a second, by labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or title.lower()
    return lines(number, title, description, Target(promql.rate(metric, "", by), legend), unit=unit, **rest)


def gauge(
    number: int, title: str, metric: Metric, description: str, *by: str, unit: str = "short", **rest: Any
) -> Panel:
    """A gauge of the catalog as lines: the sum of workers, or the greatest of them where that is what it means."""
    fold = promql.total if metric.together == "livesum" else promql.highest
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
    """A histogram of the catalog as lines: what half of them, and 99 of 100, stay below."""
    targets = (
        Target(promql.quantile(0.99, metric, **labels), "99 %", exemplar=True),
        Target(promql.quantile(0.5, metric, **labels), "half", exemplar=True),
    )
    return lines(number, title, description, *targets, unit=unit, **({"most": None, "overrides": HALVES} | rest))


def heatmap(number: int, title: str, metric: Metric, description: str, *, unit: str, **rest: Any) -> Panel:
    """A histogram of the catalog as it is: how many of them in which bucket, at what time."""
    target = Target(promql.buckets(metric), "{{le}}", exemplar=True, format="heatmap")
    return replace(Panel(number, title, "heatmap", description, (target,), unit), **rest)


def stat(number: int, title: str, description: str, expr: str, *steps: Step, unit: str, **rest: Any) -> Panel:
    """One number, coloured only where it asks for somebody."""
    panel = Panel(number, title, "stat", description, (Target(expr, title, instant=True),), unit)
    usual: Json = {"steps": steps or ((None, CALM),), "width": 4, "height": 6, "options": {"text": {"valueSize": 38}}}
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


HALVES = coloured({"99 %": "blue", "half": "super-light-blue"})
OUTCOMES = coloured(
    {
        "resumed": "green",
        "caught_up": "super-light-green",
        "completed": "green",
        "ok": "green",
        "gap": "yellow",
        "missed": "orange",
        "gone": "orange",
        "deferred": "yellow",
        "limit": "super-light-green",
        "refused": "purple",
        "error": "red",
        "elsewhere": ASIDE,
        "client_gone": ASIDE,
        "cancelled": "#5f5f5f",
    }
)
"""An outcome has the same colour wherever it is."""
