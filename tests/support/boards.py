"""The committed dashboards, and what is on them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dashboards.rules import alerts, recordings
from support.promql import Query

JSON = dict[str, Any]
FOLDER = Path(__file__).parents[2] / "dashboards"
GRAFANA = FOLDER / "grafana"
PROMETHEUS = FOLDER / "prometheus"
RUNBOOK = "eventscope-runbook"

BOARDS: dict[str, JSON] = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(GRAFANA.glob("*.json"))}
WATCHING = [uid for uid in BOARDS if uid != RUNBOOK]
"""Those with data on them."""


def panels(uid: str) -> list[JSON]:
    """Every panel of a dashboard, rows and what is folded into them included."""
    return [inner for panel in BOARDS[uid]["panels"] for inner in (panel, *panel.get("panels", []))]


def drawn() -> list[tuple[str, JSON]]:
    """Every panel with data, and the dashboard that it is on."""
    return [(uid, panel) for uid in WATCHING for panel in panels(uid) if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, JSON]]:
    """Every query of a panel, with a name for it."""
    for uid, panel in drawn():
        for target in panel["targets"]:
            yield f"{uid}: {panel['title']} {target['refId']}", target


def board_queries() -> dict[str, Query]:
    """Every query of the dashboards: of panels, of annotations."""
    found = {name: Query(target["expr"]) for name, target in targets()}
    for uid in WATCHING:
        for annotation in BOARDS[uid]["annotations"]["list"]:
            found[f"{uid}: annotation {annotation['name']}"] = Query(annotation["expr"])
    return found


def rule_queries() -> dict[str, Query]:
    """Every query of the rules."""
    return {rule.record: Query(rule.expr) for rule in recordings()} | {rule.name: Query(rule.expr) for rule in alerts()}
