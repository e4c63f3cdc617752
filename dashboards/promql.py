"""PromQL built from the catalog: undeclared metrics and labels raise an error."""

from collections.abc import Mapping
from typing import TypeAlias

from mcp_eventscope.telemetry.catalog.store import REPLAY_DURATION
from mcp_eventscope.telemetry.declarations import Metric, MetricType

Values: TypeAlias = str | tuple[str, ...]
"""The value that a label must have, or the alternatives."""

CHOSEN = ('job=~"$job"', 'instance=~"$instance"', 'store=~"$store"')
"""The matchers of every selector of a dashboard: its variables."""
RATE = "$__rate_interval"
SHOWN = "$__range"
"""The time range of the dashboard, for single numbers."""
COMES_WITH_A_SCRAPE = frozenset({"job", "instance", "store", "le"})

SUCCEEDED = ("resumed", "caught_up")
FAILED = ("gap", "missed", "error")
"""Outcomes that the objective counts.

Not counted: `client_disconnected` and `cancelled`, which clients cause, and `unavailable`, an attempt that is repeated.
"""
OWED = ("resumed", *FAILED)
"""Outcomes with events due. `caught_up` is left out: idle streams reconnect every few minutes."""


def series(metric: Metric, part: str = "", scope: tuple[str, ...] = CHOSEN, /, **labels: Values) -> str:
    """A selector.

    Args:
        metric: A metric of the catalog.
        part: "count", "sum" or "bucket" of a histogram.
        scope: Matchers beside the labels; () in rules.
        labels: Values of the metric's own labels.

    Raises:
        ValueError: The metric has no such part or label, or the label no such value.
    """
    if (metric.type is MetricType.HISTOGRAM) != bool(part):
        msg = f"{metric.name} is a {metric.type}: part must be one of a histogram, got {part!r}"
        raise ValueError(msg)
    matchers = [*scope, *(_matcher(metric, label, values) for label, values in labels.items())]
    name = f"{metric.name}_{part}" if part else metric.name
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def _matcher(metric: Metric, label: str, values: Values) -> str:
    declared = {declared.name: declared.values for declared in metric.labels}
    declared["le"] = tuple(f"{bound:g}" for bound in metric.buckets)
    wanted = (values,) if isinstance(values, str) else values
    unknown = set(wanted) - set(declared.get(label) or ())
    if unknown:
        msg = f"{metric.name} has no label {label!r} with the value {sorted(unknown)}"
        raise ValueError(msg)
    return f'{label}="{values}"' if isinstance(values, str) else f'{label}=~"{"|".join(values)}"'


def total(expr: str, by: tuple[str, ...] = ()) -> str:
    """The sum, in total or by labels."""
    return f"sum{_by(by)}({expr})"


def highest(expr: str, by: tuple[str, ...] = ()) -> str:
    """The maximum, in total or by labels."""
    return f"max{_by(by)}({expr})"


def lowest(expr: str, by: tuple[str, ...] = ()) -> str:
    """The minimum, in total or by labels."""
    return f"min{_by(by)}({expr})"


def rate(metric: Metric, part: str = "", by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """The rate per second, over time."""
    _check_by(metric, by)
    return total(f"rate({series(metric, part, **labels)}[{RATE}])", by)


def counted(metric: Metric, by: tuple[str, ...] = ()) -> str:
    """The increase within the rate interval, over time: for rare, large increments."""
    _check_by(metric, by)
    return total(f"increase({series(metric)}[{RATE}])", by)


def count(metric: Metric, part: str = "", by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """The increase within the time range, as a number."""
    _check_by(metric, by)
    return total(f"increase({series(metric, part, **labels)}[{SHOWN}])", by)


def quantile(share: float, metric: Metric, by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """A quantile of a histogram, over time. Empty, not NaN, without observations."""
    return f"histogram_quantile({share:g}, {buckets(metric, by, **labels)}) >= 0"


def buckets(metric: Metric, by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """The summed bucket rates of a histogram."""
    _check_by(metric, by)
    return total(f"rate({series(metric, 'bucket', **labels)}[{RATE}])", ("le", *by))


def success_shown() -> str:
    """The resume success ratio within the time range. Empty without resumes."""
    good = count(REPLAY_DURATION, "count", outcome=SUCCEEDED)
    return f"{good} / ({count(REPLAY_DURATION, 'count', outcome=(*SUCCEEDED, *FAILED))} > 0)"


def owed_shown() -> str:
    """The success ratio of the resumes with events due within the time range."""
    good = count(REPLAY_DURATION, "count", outcome="resumed")
    return f"{good} / ({count(REPLAY_DURATION, 'count', outcome=OWED)} > 0)"


def failing(counted: tuple[str, ...] = (*SUCCEEDED, *FAILED)) -> str:
    """The resume error ratio, over time. Empty without resumes."""
    bad = rate(REPLAY_DURATION, "count", outcome=FAILED)
    return f"{bad} / ({rate(REPLAY_DURATION, 'count', outcome=counted)} > 0)"


def foreign(name: str, labels: Mapping[str, str] | None = None) -> str:
    """A selector of a redis_exporter metric, with the variables that select the exporter."""
    matchers = ['job=~"$redis_job"', 'instance=~"$redis_instance"']
    matchers += [f'{label}="{value}"' for label, value in (labels or {}).items()]
    return f"{name}{{{', '.join(matchers)}}}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""


def _check_by(metric: Metric, by: tuple[str, ...]) -> None:
    from_scrape = COMES_WITH_A_SCRAPE | ({"pid"} if metric.per_worker else set())
    unknown = set(by) - from_scrape - {label.name for label in metric.labels}
    if unknown:
        msg = f"{metric.name} has no label {sorted(unknown)}"
        raise ValueError(msg)
