"""Grafana's dashboard-linter rules, and our own for usable dashboards."""

import re
from datetime import timedelta
from typing import Any

import pytest

from dashboards import links, promql
from mcp_eventscope.telemetry import catalog
from support.boards import BOARDS, JSON, RUNBOOK, WATCHING, drawn, panels, targets
from support.promql import RATE, SHOWN, Query

DRAWN = {f"{uid}: {panel['id']} {panel['title']}": (uid, panel) for uid, panel in drawn()}
TARGETS = dict(targets())
SOME_COLOURED = {"error_type", "mcp_protocol_version"}
"""The labels of which only the most important values have a colour: the others are many, and rare."""
COUNTING = ("rate", "irate", "increase")


def _variable(uid: str, name: str) -> JSON:
    found: list[JSON] = [variable for variable in BOARDS[uid]["templating"]["list"] if variable["name"] == name]
    assert len(found) == 1, name
    return found[0]


def _links(value: Any) -> list[str]:
    """All addresses within a value."""
    if isinstance(value, dict):
        own = [value["url"]] if value.get("url") else []
        return own + [address for inner in value.values() for address in _links(inner)]
    return [address for inner in value for address in _links(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("uid", BOARDS)
def test_dashboard_can_be_provisioned_from_a_file(uid: str) -> None:
    """Classic JSON for file providers: no inputs, no numeric id."""
    board = BOARDS[uid]
    assert board["uid"] == uid
    assert len(uid) <= 40
    assert board["id"] is None
    assert board["schemaVersion"] == 39
    assert board["editable"] is False
    assert board["title"]
    assert board["description"]
    assert "__inputs" not in board
    ids = [panel["id"] for panel in panels(uid)]
    assert len(set(ids)) == len(ids)
    assert all(ids)


@pytest.mark.parametrize("uid", WATCHING)
def test_dashboard_variables_select_all_by_default(uid: str) -> None:
    """Data source, job and instance can be selected; all by default."""
    source = _variable(uid, "datasource")
    assert (source["type"], source["label"], source["query"]) == ("datasource", "Data source", "prometheus")
    for name in ("job", "instance"):
        variable = _variable(uid, name)
        assert variable["type"] == "query"
        assert variable["datasource"]["uid"] == "${datasource}"
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".+"
        assert variable["refresh"] == 2
        assert variable["current"]["value"] == ["$__all"]
    assert 'job=~"$job"' in _variable(uid, "instance")["query"]


@pytest.mark.parametrize("uid", WATCHING)
def test_dashboard_annotations_show_restarts_and_outages(uid: str) -> None:
    """Restarts and outages are on every panel."""
    annotations = BOARDS[uid]["annotations"]["list"]
    assert [annotation["name"] for annotation in annotations] == ["Restarts", "Redis unavailable"]
    assert all(annotation["datasource"]["uid"] == "${datasource}" for annotation in annotations)


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_do_not_overlap(uid: str) -> None:
    """Panels have disjoint places within the 24 columns; so have those of each collapsed row."""
    shown: list[JSON] = BOARDS[uid]["panels"]
    for group in (shown, *(panel["panels"] for panel in shown if panel.get("collapsed"))):
        taken: set[tuple[int, int]] = set()
        for panel in group:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not taken & cells, panel["title"]
            assert place["x"] + place["w"] <= 24
            taken |= cells


def test_overview_fits_one_screen() -> None:
    """Without expanding a row, all panels of the overview fit into 1080 lines: 38 per row, below 100 of Grafana."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in BOARDS[links.OVERVIEW]["panels"][:14])
    assert all(panel["collapsed"] for panel in BOARDS[links.OVERVIEW]["panels"][14:])
    assert 100 + 38 * rows <= 1080


@pytest.mark.parametrize("name", DRAWN)
def test_panel_has_title_source_unit_and_query_ids(name: str) -> None:
    """A panel has a title, a templated data source, a unit, and queries with reference ids."""
    _, panel = DRAWN[name]
    assert panel["type"] in {"timeseries", "stat", "heatmap", "table"}
    assert panel["title"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"]["defaults"]["unit"]
    refs = [target["refId"] for target in panel["targets"]]
    assert refs
    assert len(set(refs)) == len(refs)
    assert all(refs)
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@pytest.mark.parametrize("name", DRAWN)
def test_panel_describes_its_normal_values(name: str) -> None:
    """A description states content, normal values and the remedy, and names existing panels."""
    _, panel = DRAWN[name]
    what, normal, otherwise = panel["description"].split("\n\n")
    assert len(what) > 15
    assert normal.startswith("**Normal:** ")
    assert otherwise.startswith("**If not:** ")
    titles = {other["title"] for _, other in drawn()}
    for named in re.findall(r"'([A-Z][^']+)'", panel["description"]):
        assert any(title.startswith(named) for title in titles), f"there is no panel {named!r}"


@pytest.mark.parametrize("name", DRAWN)
def test_links_lead_to_panels(name: str) -> None:
    """A link leads to an existing panel, and keeps time range and variables."""
    _, panel = DRAWN[name]
    for address in _links(panel):
        found = re.fullmatch(r"/d/([\w-]+)\?(.*)", address)
        assert found, address
        uid, query = found.groups()
        assert "${__url_time_range}" in query
        assert "${job:queryparam}" in query
        if query.endswith("&viewPanel=${__data.fields.section}"):
            views = [int(section) for section in _sections(panel)]
            assert len(views) == sum(target["expr"].count("\nor\n") + 1 for target in panel["targets"])
        else:
            views = [int(view) for view in re.findall(r"&viewPanel=(\d+)", query)]
        assert set(views) <= {other["id"] for other in panels(uid)}, address


def _sections(panel: JSON) -> list[str]:
    """The sections of the runbook to which the rows of a table lead."""
    return re.findall(r'"section", "(\d+)"', " ".join(target["expr"] for target in panel["targets"]))


def test_panels_lead_to_the_runbook() -> None:
    """Every section of the runbook is linked from a panel."""
    led = {uid: "".join(_links([panel for on, panel in drawn() if on == uid])) for uid in WATCHING}
    for number, section in enumerate(links.SECTIONS, 1):
        assert any(f"/d/{RUNBOOK}?" in text and f"viewPanel={number}" in text for text in led.values()), section


def test_links_name_what_they_lead_to() -> None:
    """A link to a panel has its title."""
    titles = {(uid, panel["id"]): panel["title"] for uid in BOARDS for panel in panels(uid)}
    for _, panel in drawn():
        for link in panel["links"]:
            found = re.match(r"/d/([\w-]+)\?.*&viewPanel=(\d+)", link["url"])
            if found:
                title = titles[found[1], int(found[2])]
                assert title == link["title"].removeprefix("Runbook: "), f"{panel['title']}: {link['title']}"


@pytest.mark.parametrize("name", TARGETS)
def test_query_keeps_to_what_was_chosen(name: str) -> None:
    """Every selector uses the variables."""
    for selector in Query(TARGETS[name]["expr"]).selectors():
        prefix = "redis_" if selector.name.startswith("redis_") else ""
        assert selector.matchers["job"] == f"${prefix}job"
        assert selector.matchers["instance"] == f"${prefix}instance"
        if not prefix:
            assert selector.matchers["store"] == "$store"


@pytest.mark.parametrize("name", TARGETS)
def test_query_counts_over_a_fitting_time(name: str) -> None:
    """Lines use $__rate_interval, single numbers $__range."""
    target = TARGETS[name]
    wanted: timedelta = SHOWN if target["instant"] else RATE
    assert set(Query(target["expr"]).ranges(*COUNTING)) <= {wanted}


@pytest.mark.parametrize("name", TARGETS)
def test_counters_appear_within_rate_or_increase_only(name: str) -> None:
    """Counters appear only within rate or increase."""
    query = Query(TARGETS[name]["expr"])
    counters = {s.name for s in query.selectors() if re.search(r"_(total|count|sum|bucket)$", s.name)}
    assert counters <= query.counted(*COUNTING)


@pytest.mark.parametrize("name", TARGETS)
def test_histogram_queries_request_exemplars(name: str) -> None:
    """Histogram queries request exemplars."""
    target = TARGETS[name]
    if "_bucket{" in target["expr"] and not target["instant"]:
        assert target["exemplar"] or "commit_batch_size" in target["expr"]


@pytest.mark.parametrize("name", DRAWN)
def test_values_in_a_legend_have_colours(name: str) -> None:
    """Each value of a label in a legend has a colour, unless all have those of the palette."""
    _, panel = DRAWN[name]
    overridden = [override["matcher"] for override in panel["fieldConfig"]["overrides"]]
    fixed = {matcher["options"] for matcher in overridden if matcher["id"] == "byName"}
    shown: set[str] = set()
    for target in panel["targets"]:
        legend = re.fullmatch(r"\{\{(\w+)\}\}", target["legendFormat"])
        if legend and legend[1] not in SOME_COLOURED:
            families = {re.sub("_(count|sum|bucket)$", "", each.name) for each in Query(target["expr"]).selectors()}
            labels = [label for metric in catalog.METRICS if metric.name in families for label in metric.labels]
            shown |= {value for label in labels if label.name == legend[1] for value in label.values or ()}
    assert not fixed or shown - fixed == set()


def test_outcome_has_one_colour_everywhere() -> None:
    """An outcome has the same colour on all panels."""
    colours: dict[str, set[str]] = {}
    for _, panel in drawn():
        for override in panel["fieldConfig"]["overrides"]:
            for entry in override["properties"]:
                if entry["id"] == "color" and override["matcher"]["options"] in promql.SUCCEEDED + promql.FAILED:
                    colours.setdefault(override["matcher"]["options"], set()).add(entry["value"]["fixedColor"])
    assert {name: len(found) for name, found in colours.items() if name != "error"} == dict.fromkeys(
        ("resumed", "caught_up", "gap", "missed"), 1
    )
