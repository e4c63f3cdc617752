"""PromQL, made of the catalog's metrics: a name or a label that is not declared cannot be written."""

from collections.abc import Mapping
from typing import TypeAlias

from mcp_eventscope.telemetry.catalog import REPLAY_DURATION
from mcp_eventscope.telemetry.declarations import Metric, MetricType

Values: TypeAlias = str | tuple[str, ...]
"""What a label has to be: one value, or one of several."""

CHOSEN = ('job=~"$job"', 'instance=~"$instance"', 'store=~"$store"')
"""What every selector of a dashboard says first: the variables at its top."""
RATE = "$__rate_interval"
SHOWN = "$__range"
"""The whole time that is shown, for a number that says how many or which share of it."""
COMES_WITH_A_SCRAPE = frozenset({"job", "instance", "store", "le"})

SUCCEEDED = ("resumed", "caught_up")
FAILED = ("gap", "missed", "error")
"""The objective's two sides. What the client itself ended, `client_gone` and `cancelled`, is on neither."""
OWED = ("resumed", *FAILED)
"""Without `caught_up`: idle streams, which come back every few minutes for nothing, would hide the others."""


def series(metric: Metric, part: str = "", scope: tuple[str, ...] = CHOSEN, /, **labels: Values) -> str:
    """A selector.

    Args:
        metric: Of the catalog.
        part: Of a histogram: "count", "sum" or "bucket".
        scope: What it says beside the labels; () in rules.
        labels: What the metric's own labels have to be.

    Raises:
        ValueError: The metric has no such part, no such label, or the label never has that value.
    """
    if (metric.type is MetricType.HISTOGRAM) != bool(part):
        msg = f"{metric.name} is a {metric.type}: it has no part {part!r}"
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
        msg = f"{metric.name} has no label {label!r} that is {sorted(unknown)}"
        raise ValueError(msg)
    return f'{label}="{values}"' if isinstance(values, str) else f'{label}=~"{"|".join(values)}"'


def total(expr: str, by: tuple[str, ...] = ()) -> str:
    """The sum, of all or by labels."""
    return f"sum{_by(by)}({expr})"


def highest(expr: str, by: tuple[str, ...] = ()) -> str:
    """The maximum, of all or by labels."""
    return f"max{_by(by)}({expr})"


def rate(metric: Metric, part: str = "", by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """How many a second, as a line."""
    _check_by(metric, by)
    return total(f"rate({series(metric, part, **labels)}[{RATE}])", by)


def counted(metric: Metric, by: tuple[str, ...] = ()) -> str:
    """How many of late, as a line: for what is counted rarely, and much at once."""
    _check_by(metric, by)
    return total(f"increase({series(metric)}[{RATE}])", by)


def count(metric: Metric, part: str = "", by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """How many in the time that is shown, as a number."""
    _check_by(metric, by)
    return total(f"increase({series(metric, part, **labels)}[{SHOWN}])", by)


def quantile(share: float, metric: Metric, by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """A quantile of a histogram, as a line. Nothing, and not NaN, while nothing happens."""
    return f"histogram_quantile({share:g}, {buckets(metric, by, **labels)}) >= 0"


def buckets(metric: Metric, by: tuple[str, ...] = (), /, **labels: Values) -> str:
    """The buckets of a histogram, added up."""
    _check_by(metric, by)
    return total(f"rate({series(metric, 'bucket', **labels)}[{RATE}])", ("le", *by))


def success_shown() -> str:
    """The objective, of the time that is shown. Nothing where nobody resumed."""
    good = count(REPLAY_DURATION, "count", outcome=SUCCEEDED)
    return f"{good} / ({count(REPLAY_DURATION, 'count', outcome=(*SUCCEEDED, *FAILED))} > 0)"


def owed_shown() -> str:
    """Of the resumes to which events were owed, or that failed: the share that was delivered."""
    good = count(REPLAY_DURATION, "count", outcome="resumed")
    return f"{good} / ({count(REPLAY_DURATION, 'count', outcome=OWED)} > 0)"


def failing(counted: tuple[str, ...] = (*SUCCEEDED, *FAILED)) -> str:
    """The share of resumes that failed, as a line. Nothing while nobody resumes."""
    bad = rate(REPLAY_DURATION, "count", outcome=FAILED)
    return f"{bad} / ({rate(REPLAY_DURATION, 'count', outcome=counted)} > 0)"


def foreign(name: str, labels: Mapping[str, str] | None = None) -> str:
    """A selector of redis_exporter's, by the variables that choose it."""
    matchers = ['job=~"$redis_job"', 'instance=~"$redis_instance"']
    matchers += [f'{label}="{value}"' for label, value in (labels or {}).items()]
    return f"{name}{{{', '.join(matchers)}}}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""


def _check_by(metric: Metric, by: tuple[str, ...]) -> None:
    unknown = set(by) - COMES_WITH_A_SCRAPE - {label.name for label in metric.labels}
    if unknown:
        msg = f"{metric.name} has no label {sorted(unknown)}"
        raise ValueError(msg)
