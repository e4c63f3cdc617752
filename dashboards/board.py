"""Dashboards as Grafana's classic JSON, with the variables, annotations and links that all of them share."""

import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass

from dashboards import external, promql
from dashboards.links import CHOICE
from dashboards.panels import LEGEND, SOURCE, Json, Link, Panel, Row, steps_of
from mcp_eventscope.telemetry import catalog

COLUMNS = 24
SCHEMA = 39
TAG = "eventscope"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard. With `redis_exporter` it has variables that select one."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    redis_exporter: bool = False

    def json(self) -> Json:
        """The JSON that Grafana imports."""
        return _head(self.uid, self.title, self.description) | {
            "annotations": {"list": list(_annotations())},
            "templating": {"list": list(_variables(redis_exporter=self.redis_exporter))},
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[Json]:
        top = 0
        for row in self.rows:
            head = _row(row, top)
            places = _places(row.panels, top + 1)
            inside = [_panel(panel, x, y) for panel, (x, y) in zip(row.panels, places, strict=True)]
            if row.collapsed:
                head["panels"] = inside
                yield head
                top += 1  # Grafana moves the rows below when a row is expanded.
            else:
                yield head
                yield from inside
                top = max((y + panel.height for panel, (_, y) in zip(row.panels, places, strict=True)), default=top + 1)


def page(uid: str, title: str, description: str, texts: list[tuple[int, str, str, int]]) -> Json:
    """A dashboard of text panels, by ids, titles, Markdown and heights. It has no data and no variables."""
    tops = itertools.accumulate((height for *_, height in texts), initial=0)
    return _head(uid, title, description) | {
        "annotations": {"list": []},
        "templating": {"list": []},
        "panels": [
            {
                "id": number,
                "type": "text",
                "title": name,
                "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": height},
                "options": {"mode": "markdown", "content": text},
            }
            for (number, name, text, height), top in zip(texts, tops, strict=False)
        ],
    }


def _head(uid: str, title: str, description: str) -> Json:
    """The part that all dashboards share. `id` is null: the uid identifies a dashboard."""
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG, "mcp", "redis"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "weekStart": "",
        "links": [_others()],
    }


def _places(panels: tuple[Panel, ...], top: int) -> list[tuple[int, int]]:
    """Positions of panels: each in the topmost free place, then the leftmost, but not above its predecessor."""
    places: list[tuple[int, int]] = []
    taken: set[tuple[int, int]] = set()
    y = top
    for panel in panels:
        while True:
            room = (x for x in range(COLUMNS - panel.width + 1) if not taken & _cells(panel, x, y))
            x = next(room, -1)
            if x >= 0:
                break
            y += 1
        places.append((x, y))
        taken |= _cells(panel, x, y)
    return places


def _cells(panel: Panel, x: int, y: int) -> set[tuple[int, int]]:
    return {(column, line) for column in range(x, x + panel.width) for line in range(y, y + panel.height)}


def _row(row: Row, y: int) -> Json:
    return {
        "id": row.id,
        "type": "row",
        "title": row.title,
        "collapsed": row.collapsed,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": [],
    }


def _panel(panel: Panel, x: int, y: int) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "color": _COLOURS[panel.type],
        "thresholds": steps_of(*panel.steps),
        "mappings": [],
        **panel.defaults,
    }
    axis: Json = {"yAxis": {"unit": panel.unit}} if panel.type == "heatmap" else {}
    if panel.type in _CUSTOM:
        defaults["custom"] = _CUSTOM[panel.type] | panel.custom
    return {
        "id": panel.id,
        "type": panel.type,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": _OPTIONS[panel.type] | axis | panel.options,
        "targets": [
            {
                "refId": letter,
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": target.expr,
                "legendFormat": target.legend,
                "instant": target.instant,
                "range": not target.instant,
                "exemplar": target.exemplar,
                "format": target.format,
            }
            for letter, target in zip(string.ascii_uppercase, panel.targets, strict=False)
        ],
        "transformations": list(panel.transformations),
        "links": [_LINK | _link(link) for link in panel.links],
    }


def _link(link: Link) -> Json:
    view = "" if link.panel is None else f"&viewPanel={link.panel}"
    return {"title": link.title, "url": f"/d/{link.uid}?{CHOICE}{view}", "targetBlank": False}


_ONE_NUMBER = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, Json] = {
    "timeseries": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {
        "reduceOptions": _ONE_NUMBER,
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "value",
        "justifyMode": "auto",
        "orientation": "auto",
        "showPercentChange": False,
        "wideLayout": True,
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 32, "exponent": 0.5, "fill": "blue", "reverse": False},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "legend": {"show": False},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "showValue": "never",
    },
    "table": {
        "showHeader": True,
        "cellHeight": "sm",
    },
}
_COLOURS: dict[str, Json] = {
    "timeseries": {"mode": "palette-classic"},
    "stat": {"mode": "thresholds"},
    "heatmap": {"mode": "thresholds"},
    "table": {"mode": "thresholds"},
}
_CUSTOM: dict[str, Json] = {
    "timeseries": {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 8,
        "gradientMode": "none",
        "showPoints": "auto",
        "pointSize": 5,
        "spanNulls": False,
        "stacking": {"mode": "none", "group": "A"},
        "axisPlacement": "auto",
        "axisLabel": "",
        "axisBorderShow": False,
        "scaleDistribution": {"type": "linear"},
        "hideFrom": {"tooltip": False, "viz": False, "legend": False},
        "thresholdsStyle": {"mode": "off"},
    },
    "table": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "minWidth": 90},
    "heatmap": {"hideFrom": {"tooltip": False, "viz": False, "legend": False}, "scaleDistribution": {"type": "linear"}},
}
STACKED: Json = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 60, "lineWidth": 0}
"""For series with a meaningful sum."""


_LINK: Json = {
    "type": "link",
    "tags": [],
    "asDropdown": False,
    "includeVars": False,  # The address has them.
    "keepTime": False,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
}


def _others() -> Json:
    return _LINK | {
        "title": "mcp-eventscope",
        "type": "dashboards",
        "tags": [TAG],
        "includeVars": True,
        "keepTime": True,
        "url": "",
    }


def _annotations() -> Iterator[Json]:
    scope = ", ".join(promql.CHOSEN[:2])
    restarts = (
        f"{external.PROCESS_START}{{{scope}}} and on (job, instance) {promql.series(catalog.sessions.BUILD_INFO)}"
    )
    yield _annotation("Restarts", f"({restarts}) * 1000", "blue", "{{instance}} started", by_value=True)
    degraded = f"max by (instance, store) ({promql.series(catalog.store.DEGRADED)}) == 1"
    yield _annotation("Redis unavailable", degraded, "red", "{{instance}}: Redis is unavailable, {{store}} is degraded")


def _annotation(name: str, expr: str, colour: str, text: str, *, by_value: bool = False) -> Json:
    return {
        "name": name,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "datasource": SOURCE,
        "expr": expr,
        "step": "",
        "titleFormat": name,
        "textFormat": text,
        "tagKeys": "instance",
        "useValueForTime": "on" if by_value else "off",
    }


def _variables(*, redis_exporter: bool) -> Iterator[Json]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "current": {},
        "skipUrlSync": False,
    }
    name = catalog.sessions.BUILD_INFO.name
    yield _variable("job", "Job", f"label_values({name}, job)")
    yield _variable("instance", "Instance", f'label_values({name}{{job=~"$job"}}, instance)')
    yield _variable("store", "Store", f'label_values({name}{{job=~"$job", instance=~"$instance"}}, store)')
    if redis_exporter:
        yield _variable("redis_job", "redis_exporter", "label_values(redis_up, job)")
        yield _variable("redis_instance", "Redis", 'label_values(redis_up{job=~"$redis_job"}, instance)')


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "definition": query,
        "regex": "",
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "skipUrlSync": False,
    }
