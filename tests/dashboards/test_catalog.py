"""The dashboards and the rules name what the catalog has, and nothing that it has is left out."""

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
# Chosen by the variables of the dashboards, or by who scrapes; redis_exporter's have the same two.
OTHERS = {name: set(labels | external.SCRAPED) for name, labels in external.ALL.items()}


def check(query: Query, known: dict[str, set[str]]) -> None:
    """Every metric, every label, and every value of a label is one that there is."""
    for selector in query.selectors():
        assert selector.name in known, f"nobody exposes {selector.name}"
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
    """No panel and no annotation names a metric or a label that is not in the catalog, or another's that is listed."""
    check(BOARD[name], EXPOSED | OTHERS)


@pytest.mark.parametrize("name", RULES)
def test_rules_name_what_is_exposed(name: str) -> None:
    """No rule does; others' metrics are in none."""
    check(RULES[name], EXPOSED | RECORDED)


@pytest.mark.parametrize("metric", [metric.name for metric in catalog.METRICS])
def test_every_metric_is_on_a_panel(metric: str) -> None:
    """What is exposed is seen somewhere, or there is a reason why not."""
    series = {metric, *(f"{metric}_{part}" for part in ("count", "sum", "bucket"))}
    seen = any(selector.name in series for _, target in targets() for selector in Query(target["expr"]).selectors())
    assert seen != (metric in UNSEEN)


def test_every_exception_is_one() -> None:
    """What is listed exists, and has a reason."""
    assert set(UNSEEN) <= {metric.name for metric in catalog.METRICS}
    assert all(UNSEEN.values())


def test_others_are_used() -> None:
    """The list of others' metrics is no longer than needed; that Redis is up chooses it, too."""
    used = {selector.name for query in BOARD.values() for selector in query.selectors()}
    assert set(external.ALL) <= used


def test_recorded_is_used() -> None:
    """What is recorded is used by an alert."""
    used = {selector.name for query in RULES.values() for selector in query.selectors()}
    unused = set(RECORDED) - used
    # Each window's number comes with its ratio; an alert needs those of its long windows.
    assert {name for name in unused if "increase" not in name} == set()
