"""What a query names: its metrics, their matchers, the labels that are grouped by, and its ranges."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import promql_parser

from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.declarations import MetricType

WHILE_PARSED = {"$__rate_interval": "61s", "$__range": "62s", "$__interval": "63s"}
"""Grafana's variables, and what stands for them: durations that no query contains."""
RATE, SHOWN = timedelta(seconds=61), timedelta(seconds=62)
_FROM_SCRAPES = {"job", "instance"}
_PER_WORKER = {"pid"}


@dataclass(frozen=True)
class Selector:
    """One selector: its metric, and its matchers as they are written."""

    name: str
    matchers: dict[str, str]


@dataclass(frozen=True)
class Query:
    """One query, parsed."""

    text: str

    @property
    def expression(self) -> promql_parser.Expr:
        """The tree."""
        text = self.text
        for variable, duration in WHILE_PARSED.items():
            text = text.replace(variable, duration)
        return promql_parser.parse(text)

    def selectors(self) -> list[Selector]:
        """Every selector of the query."""
        return [_selector(node) for node in _nodes(self.expression) if isinstance(node, promql_parser.VectorSelector)]

    def groupings(self) -> Iterator[tuple[set[str], list[Selector]]]:
        """What is grouped by or matched on, each with the selectors below it."""
        for node in _nodes(self.expression):
            below = [_selector(n) for n in _nodes(node) if isinstance(n, promql_parser.VectorSelector)]
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                yield set(node.modifier.labels) - _added(node), below
            elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
                matching = node.modifier.matching
                yield set(matching.labels if matching is not None else ()) - _added(node), below

    def ranges(self, *functions: str) -> list[timedelta]:
        """The ranges that these functions are applied to."""
        return [
            argument.range
            for node in _nodes(self.expression)
            if isinstance(node, promql_parser.Call) and node.func.name in functions
            for argument in node.args
            if isinstance(argument, promql_parser.MatrixSelector)
        ]

    def counted(self, *functions: str) -> set[str]:
        """The metrics that these functions are applied to."""
        return {
            _selector(inner).name
            for node in _nodes(self.expression)
            if isinstance(node, promql_parser.Call) and node.func.name in functions
            for inner in _nodes(node)
            if isinstance(inner, promql_parser.VectorSelector)
        }


def exposed() -> dict[str, set[str]]:
    """What a scrape shows of the catalog: series names, and their labels."""
    series: dict[str, set[str]] = {}
    for metric in catalog.METRICS:
        labels = {label.name for label in metric.labels} | _FROM_SCRAPES | (_PER_WORKER if metric.per_worker else set())
        if metric.type is MetricType.HISTOGRAM:
            series |= {f"{metric.name}_{part}": labels for part in ("count", "sum")}
            series[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            series[metric.name] = labels
    return series


def values(label: str) -> set[str] | None:
    """The values that a label can have, whichever metric's; None: any."""
    found = [other for metric in catalog.METRICS for other in metric.labels if other.name == label]
    if not found or any(other.values is None for other in found):
        return None
    return {value for other in found for value in other.values or ()}


def _nodes(root: promql_parser.Expr) -> list[promql_parser.Expr]:
    nodes: list[promql_parser.Expr] = []
    promql_parser.walk(root, nodes.append)
    return nodes


def _added(root: promql_parser.Expr) -> set[str]:
    """The labels that `label_replace` adds below a node."""
    calls = (
        node for node in _nodes(root) if isinstance(node, promql_parser.Call) and node.func.name == "label_replace"
    )
    return {str(call.args[1].val) for call in calls if call.func.name == "label_replace"}


def _selector(node: promql_parser.VectorSelector) -> Selector:
    return Selector(node.name or "", {matcher.name: matcher.value for matcher in node.matchers.matchers})
