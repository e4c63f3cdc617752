"""The overview: one screen that answers whether all is well; below it, collapsed rows for the diagnosis."""

from dataclasses import replace

from dashboards import diagnosis, links, promql, upkeep
from dashboards.board import STACKED, Dashboard
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.objective import ANSWERS_REFUSED, BACKLOG, OBJECTIVE
from dashboards.panels import (
    BAD,
    CALM,
    GOOD,
    OUTCOMES,
    WARN,
    Json,
    Panel,
    Row,
    Target,
    column,
    describe,
    lines,
    redis_state,
    stat,
    steps_of,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.sessions import REQUESTS_REFUSED, SESSIONS_ACTIVE
from mcp_eventscope.telemetry.declarations import Metric


def _times(metric: Metric, part: str = "", **labels: promql.Values) -> str:
    """The count within the time range; whole, since `increase` extrapolates."""
    return f"round({promql.count(metric, part, (), **labels)})"


def _problem(name: str, expr: str, alert: str) -> str:
    """A row of the table: a number, with the problem and the section of the runbook as labels."""
    section = links.section(alert)
    return f'label_replace(label_replace({expr}, "problem", "{name}", "", ""), "section", "{section}", "", "")'


def _on_screen(panel: Panel) -> Panel:
    """A panel in the size of the first screen."""
    return replace(panel, width=8, height=6)


_PROBLEMS = (
    _problem("Redis became unavailable", _times(catalog.store.DEGRADATIONS), "EventscopeStoreDegraded"),
    _problem("Keys evicted by Redis", _times(catalog.redis_stats.REDIS_KEYS_EVICTED), "EventscopeRedisEvicting"),
    _problem("Store errors", _times(catalog.store.ERRORS, operation="store"), "EventscopeStoreErrors"),
    _problem("Events lost", _times(catalog.store.EVENTS_LOST_TOTAL), "EventscopeEventsLost"),
    _problem("Requests orphaned", _times(catalog.store.REQUESTS_ORPHANED), "EventscopeRequestsOrphaned"),
    _problem(
        "Requests refused",
        _times(REQUESTS_REFUSED, reason=("limit", "unavailable", "resumes")),
        "EventscopeRequestsRefused",
    ),
    _problem("Resumes after expiry", _times(catalog.store.REPLAY_MISSES, reason="expired"), "EventscopeTTLHeadroomLow"),
    _problem(
        "Resumes with unknown id",
        _times(catalog.store.REPLAY_MISSES, reason=("unknown", "malformed")),
        "EventscopeResumesFailing",
    ),
    _problem(
        "Replays with a gap", _times(catalog.store.REPLAY_DURATION, "count", outcome="gap"), "EventscopeResumesFailing"
    ),
    _problem(
        "Replay errors", _times(catalog.store.REPLAY_DURATION, "count", outcome="error"), "EventscopeResumesFailing"
    ),
    _problem("Tasks orphaned", _times(catalog.tasks.TASKS_ORPHANED), "EventscopeTasksOrphaned"),
    _problem("Task results uncollected", _times(catalog.tasks.TASKS_UNCOLLECTED), "EventscopeTasksUncollected"),
    _problem("Gaps in subscriptions", _times(catalog.subscriptions.GAPS), "EventscopeChangesNotDelivered"),
    _problem(
        "Answers refused",
        _times(catalog.request_state.STATES_REFUSED, reason=ANSWERS_REFUSED),
        "EventscopeAnswersRefused",
    ),
    _problem("Signals not recorded", _times(catalog.store.TELEMETRY_FAILURES), "EventscopeTelemetryFailing"),
)

_HIDDEN: Json = {"custom.hidden": True, "custom.hideFrom": {"legend": True, "tooltip": True, "viz": True}}
"""Hides a column of a table, in older versions of Grafana and in newer ones."""

_SCREEN = (
    stat(
        1,
        "Resume success ratio",
        describe(
            "The share of resumes in the time range that delivered all events due to the client. A client that had "
            "missed nothing counts as a success; a client that disconnected does not count.",
            normal=f"green, at or above the objective of {OBJECTIVE:.0%}. 'no resumes': no client has reconnected.",
            otherwise="see 'Problems': each row links to the runbook. A resume that finds Redis unavailable is "
            "repeated, and counts when it ends.",
        ),
        promql.success_shown(),
        (None, BAD),
        (OBJECTIVE, GOOD),
        unit="percentunit",
        defaults={"noValue": "no resumes", "decimals": 1, "max": 1},
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
    stat(
        2,
        "Success ratio, events due",
        describe(
            "The same ratio without clients that had missed nothing. Idle streams reconnect every few minutes and "
            "always succeed; with many of them, 'Resume success ratio' hides failures that this one shows.",
            normal="like 'Resume success ratio', or slightly lower. 'nothing due': no client has missed an event.",
            otherwise="as for 'Resume success ratio'.",
        ),
        promql.owed_shown(),
        (None, BAD),
        (0.5, CALM),
        unit="percentunit",
        defaults={"noValue": "nothing due", "decimals": 1, "max": 1},
        links=(to("Resume drill-down", RESUME), runbook("EventscopeDueEventsUndelivered")),
    ),
    stat(
        3,
        "Redis",
        describe(
            "Whether Redis is unreachable, too slow, or refuses writes for any worker now. Messages are still sent, "
            "and pending events are kept in memory; a client that resumes on another worker waits.",
            normal="available.",
            otherwise="see 'Redis state by worker': one worker or all? The Redis dashboard shows the reason. It is "
            "urgent once 'Events lost' rises.",
        ),
        promql.highest(promql.series(catalog.store.DEGRADED)),
        (None, CALM),
        (1, BAD),
        unit="short",
        defaults={"mappings": redis_state(coloured_text=False)},
        options={"text": {"valueSize": 20}},  # "unavailable" on a narrow screen.
        links=(to("Redis dashboard", REDIS), runbook("EventscopeStoreDegraded")),
    ),
    stat(
        7,
        "Pending events",
        describe(
            "Events that are sent but not yet acknowledged by Redis, in the memory of the workers: the lag of the "
            "store.",
            normal=f"near 0; below {BACKLOG:,}.",
            otherwise="Redis is unavailable or too slow: see 'Redis state by worker' and 'Store latency'.",
        ),
        promql.total(promql.series(catalog.store.BACKLOG_LENGTH)),
        (None, CALM),
        (BACKLOG, WARN),
        unit="short",
        links=(to("Pending events by worker", links.OVERVIEW, 42), runbook("EventscopeBacklogGrowing")),
    ),
    stat(
        4,
        "Events lost",
        describe(
            "Events in the time range that will never be stored, that Redis lost, or that were evicted: no resume can "
            "deliver them.",
            normal="0. An outage alone loses none while the backlog has room.",
            otherwise="see 'Events lost by reason', below.",
        ),
        _times(catalog.store.EVENTS_LOST_TOTAL),
        (None, CALM),
        (1, BAD),
        unit="short",
        links=(to("Events lost by reason", links.OVERVIEW, 43), runbook("EventscopeEventsLost")),
    ),
    stat(
        8,
        "Active sessions",
        describe(
            "Sessions that the workers serve. A session that several workers serve counts once per worker.",
            normal="about the number of connected clients.",
            otherwise="see 'Sessions ended by reason', below.",
        ),
        promql.total(promql.series(SESSIONS_ACTIVE)),
        unit="short",
        links=(to("Active sessions by worker", links.OVERVIEW, 51),),
    ),
    lines(
        6,
        "Resume rate by outcome",
        describe(
            "Green: all events due were delivered, or none were due. Yellow, orange and red: some, none, or an error. "
            "Grey: the client disconnected.",
            normal="green, with a little grey.",
            otherwise="did a worker start (blue line) or was Redis unavailable (red area) when it began? The "
            "drill-down breaks failures down by worker, reason and age.",
        ),
        Target(promql.rate(catalog.store.REPLAY_DURATION, "count", ("outcome",)), "{{outcome}}"),
        height=6,
        custom=STACKED,
        overrides=OUTCOMES,
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
    _on_screen(diagnosis.RESUME_LATENCY),
    Panel(
        5,
        "Problems",
        "table",
        describe(
            "How often each problem occurred in the time range, most frequent first.",
            normal="0 in every row.",
            otherwise="click a problem for its section of the runbook.",
        ),
        (Target("\nor\n".join(_PROBLEMS), "{{problem}}", instant=True, format="table"),),
        "short",
        width=8,
        height=18,
        overrides=(
            column("problem", "Problem", "string", links=[links.per_row("Runbook", links.RUNBOOK, "section")]),
            column("section", "Section", "string", **_HIDDEN),
            column(
                "Value",
                "Count",
                "short",
                decimals=0,
                thresholds=steps_of((None, CALM), (1, WARN)),
                **{"custom.cellOptions": {"type": "color-text"}, "custom.width": 90},
            ),
        ),
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {"problem": 0, "Value": 1, "section": 2},
                    "renameByName": {},
                },
            },
            {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": "Value", "desc": True}]}},
        ),
        links=(
            to("Resume drill-down", RESUME),
            to("Redis dashboard", REDIS),
            to("Tasks and subscriptions", links.MODERN),
        ),
    ),
    _on_screen(diagnosis.STORE_LATENCY),
    _on_screen(upkeep.PENDING_EVENTS),
    _on_screen(upkeep.REDIS_STATE),
    _on_screen(upkeep.ACTIVE_SESSIONS),
)

OVERVIEW = Dashboard(
    links.OVERVIEW,
    "MCP resumability: overview",
    "Do clients that reconnect receive the events they missed? If not, why not? Of mcp-eventscope.",
    (
        Row(10, "Service health", _SCREEN),
        Row(20, "Resumes: errors, TTL headroom, followed streams", diagnosis.RESUMES, collapsed=True),
        Row(30, "Store: rate, errors, duration", diagnosis.STORE, collapsed=True),
        Row(40, "Durability: events lost, backlog memory, TTL", upkeep.DURABILITY, collapsed=True),
        Row(50, "Sessions and requests", upkeep.SESSIONS_ROW, collapsed=True),
        Row(70, "Operations: rate, errors, duration by method", upkeep.OPERATIONS, collapsed=True),
        Row(60, "Telemetry health", upkeep.HEALTH, collapsed=True),
    ),
)
