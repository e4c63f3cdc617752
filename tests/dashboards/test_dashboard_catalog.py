"""Dashboards and rules use only metrics of the catalog, and every metric is used."""

import pytest

from dashboards import external
from dashboards.rules import recordings
from mcp_eventscope.telemetry import catalog
from support import promql
from support.boards import board_queries, rule_queries, targets
from support.promql import Query

UNSEEN: dict[str, str] = {}
"""Metrics that are on no panel, each with the reason."""

EXPOSED = promql.exposed()
RECORDED = {rule.record: {"job", "store"} for rule in recordings()}
BOARD, RULES = board_queries(), rule_queries()
# Target labels, which the variables select; those of redis_exporter are the same.
OTHERS = {name: set(labels | external.SCRAPED) for name, labels in external.ALL.items()}


def check(query: Query, known: dict[str, set[str]]) -> None:
    """Check that every metric, label and label value exists."""
    for selector in query.selectors():
        assert selector.name in known, f"{selector.name} is not exposed"
        assert set(selector.matchers) <= known[selector.name], f"{selector.name} has not all of these labels"
        for label, matcher in selector.matchers.items():
            values = promql.values(label) if selector.name in EXPOSED else None
            if values is not None:
                assert set(matcher.split("|")) <= values, f"{selector.name}: {label} is never {matcher}"
    for labels, selectors in query.groupings():
        for selector in selectors:
            assert labels <= known[selector.name], f"{selector.name} has not all of {sorted(labels)}"


@pytest.mark.parametrize("name", BOARD)
def test_dashboards_name_what_is_exposed(name: str) -> None:
    """Panels and annotations use only metrics and labels of the catalog, and listed third-party ones."""
    check(BOARD[name], EXPOSED | OTHERS)


@pytest.mark.parametrize("name", RULES)
def test_rules_name_what_is_exposed(name: str) -> None:
    """Rules use only metrics and labels of the catalog."""
    check(RULES[name], EXPOSED | RECORDED)


@pytest.mark.parametrize("metric", [metric.name for metric in catalog.METRICS])
def test_every_metric_is_on_a_panel(metric: str) -> None:
    """Every metric is on a panel, or has a reason why not."""
    series = {metric, *(f"{metric}_{part}" for part in ("count", "sum", "bucket"))}
    seen = any(selector.name in series for _, target in targets() for selector in Query(target["expr"]).selectors())
    assert seen != (metric in UNSEEN)


def test_listed_exceptions_exist_and_have_a_reason() -> None:
    """So that none stays when its metric is shown."""
    assert set(UNSEEN) <= {metric.name for metric in catalog.METRICS}
    assert all(UNSEEN.values())


def test_third_party_metrics_are_used() -> None:
    """Each of those that are listed."""
    used = {selector.name for query in BOARD.values() for selector in query.selectors()}
    assert set(external.ALL) <= used


def test_recording_rules_are_used_by_alerts() -> None:
    """Every recording rule is used by an alert."""
    used = {selector.name for query in RULES.values() for selector in query.selectors()}
    unused = set(RECORDED) - used
    # Each window's number comes with its ratio; an alert needs those of its long windows.
    assert {name for name in unused if "increase" not in name} == set()
