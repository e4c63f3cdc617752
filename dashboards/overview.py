"""The overview: whether resumes work, what is wrong when they do not, and the rows in the order of diagnosis."""

from dashboards import diagnosis, links, promql, upkeep
from dashboards.board import STACKED, Dashboard
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.objective import OBJECTIVE
from dashboards.panels import (
    BAD,
    CALM,
    GOOD,
    OUTCOMES,
    WARN,
    Json,
    Link,
    Panel,
    Row,
    Target,
    lines,
    says,
    stat,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog_sessions import (
    SESSIONS_REFUSED,
)
from mcp_eventscope.telemetry.declarations import Metric

_NONE_OR_SOME = ((None, CALM), (1, WARN))
_NONE_OR_BAD = ((None, CALM), (1, BAD))
_AWAY: Json = {
    "mappings": [
        {
            "type": "value",
            "options": {"0": {"text": "up", "index": 0}, "1": {"text": "away", "index": 1}},
        }
    ]
}


def _times(metric: Metric, part: str = "", **labels: promql.Values) -> str:
    """How many in the time that is shown; whole, for `increase` extrapolates."""
    return f"round({promql.count(metric, part, (), **labels)})"


def _cause(name: str, expr: str, link: Link) -> Target:
    return Target(expr, name, instant=True, link=link)


_FAILING = runbook("EventscopeResumesFailing")
_TTL = runbook("EventscopeTTLHeadroomLow")

_TRUTH = (
    stat(
        1,
        "Succeeded",
        says(
            "Of the clients that came back with a Last-Event-ID in the time shown: the share that got all that was "
            "owed to it. One that had missed nothing counts as a success, one that left by itself does not count.",
            normal=f"green, at or above the objective of {OBJECTIVE:.0%}. No resumes: nobody has come back.",
            otherwise="look at the list beside: each cause that is not 0 leads to what to do about it. Who finds "
            "out that Redis is away counts as a failure, and gets all of it later: an outage looks a little too bad.",
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
        "When owed",
        says(
            "The same without the clients that had missed nothing. Idle streams come back every few minutes and always "
            "succeed; where there are many, the share beside says little, and this one says it.",
            normal="as the share beside, or a little lower. Nothing owed: no client has missed anything.",
            otherwise="as beside. When this is low and the other is not, it is the few clients that really needed "
            "the store whom it fails.",
        ),
        promql.owed_shown(),
        (None, BAD),
        (0.5, CALM),
        unit="percentunit",
        defaults={"noValue": "nothing owed", "decimals": 1, "max": 1},
        links=(to("Resume drill-down", RESUME), runbook("EventscopeOwedEventsUndelivered")),
    ),
    stat(
        3,
        "Redis",
        says(
            "Whether Redis is unreachable or too slow for any of the workers shown, now. Messages are sent meanwhile, "
            "and stay in memory until they are stored; a client that returns to another worker waits.",
            normal="up.",
            otherwise="is it one worker or all of them? Why, says the reason, on the Redis dashboard. It becomes "
            "urgent when events are lost, beside.",
        ),
        promql.highest(promql.series(catalog.DEGRADED)),
        (None, CALM),
        (1, BAD),
        unit="short",
        defaults=_AWAY,
        links=(to("Redis, as workers see it", REDIS), runbook("EventscopeStoreDegraded")),
    ),
    stat(
        4,
        "Events lost",
        says(
            "Events that will never be stored, that Redis has lost, or that were evicted, in the time shown: a resume "
            "of their streams cannot deliver them.",
            normal="0. An outage alone loses none, as long as the backlog has room.",
            otherwise="the reason is on 'Events lost, by reason', below: overflow is an outage that was too long for "
            "the backlog, rejected an event that Redis refused, shutdown a worker that ended in an outage, rollback a "
            "Redis that came back without its latest data, session_limit a session that exceeded max_session_bytes.",
        ),
        _times(catalog.LOST_EVENTS),
        *_NONE_OR_BAD,
        unit="short",
        links=(to("Events lost, by reason", links.OVERVIEW, 43), runbook("EventscopeEventsLost")),
    ),
    Panel(
        5,
        "What is wrong",
        "bargauge",
        says(
            "Everything that keeps a client from what is owed to it, as often as it happened in the time shown.",
            normal="all 0.",
            otherwise="begin with the topmost that is not 0: the causes stand above their effects. Click it for what "
            "it means, how to confirm it, and what to do.",
        ),
        (
            _cause("Redis went away", _times(catalog.DEGRADATIONS), runbook("EventscopeStoreDegraded")),
            _cause("Redis evicted", _times(catalog.REDIS_EVICTED), runbook("EventscopeRedisEvicting")),
            _cause("store failed", _times(catalog.ERRORS, operation="store"), runbook("EventscopeStoreErrors")),
            _cause("event lost", _times(catalog.LOST_EVENTS), runbook("EventscopeEventsLost")),
            _cause("worker left", _times(catalog.ORPHANED), runbook("EventscopeRequestsOrphaned")),
            _cause(
                "session refused",
                _times(SESSIONS_REFUSED, reason=("limit", "unavailable")),
                to("Requests without a session, by reason", links.OVERVIEW, 56),
            ),
            _cause("after the TTL", _times(catalog.REPLAY_MISSES, reason="expired"), _TTL),
            _cause("unknown id", _times(catalog.REPLAY_MISSES, reason=("unknown", "malformed")), _FAILING),
            _cause("gap in a replay", _times(catalog.REPLAY_DURATION, "count", outcome="gap"), _FAILING),
            _cause("replay failed", _times(catalog.REPLAY_DURATION, "count", outcome="error"), _FAILING),
            _cause("signal lost", _times(catalog.TELEMETRY_FAILURES), runbook("EventscopeTelemetryFailing")),
        ),
        "short",
        width=8,
        height=12,
        defaults={"min": 0, "max": 1000000000000},
        steps=_NONE_OR_SOME,
        links=(to("Resume drill-down", RESUME), to("Redis, as workers see it", REDIS)),
    ),
    lines(
        6,
        "Resumes, by how they ended",
        says(
            "Clients that came back, a second. Green: all that was owed was delivered, or nothing was. Yellow, orange "
            "and red: not all, nothing, or an error. Grey: the client left by itself.",
            normal="green, with a little grey.",
            otherwise="when did it begin, and was a worker started (blue line) or Redis away (red area) just then? "
            "The drill-down tells which workers, which reason, and how long the clients had been away.",
        ),
        Target(promql.rate(catalog.REPLAY_DURATION, "count", ("outcome",)), "{{outcome}}"),
        width=16,
        height=6,
        custom=STACKED,
        overrides=OUTCOMES,
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
)

OVERVIEW = Dashboard(
    links.OVERVIEW,
    "MCP resumability: overview",
    "Do clients that were cut off get what they missed? If not, why not: from the top down. Of mcp-eventscope.",
    (
        Row(10, "Do resumes work?", _TRUTH),
        Row(20, "Resumes: rate, errors, duration", diagnosis.RESUMES),
        Row(30, "Store: rate, errors, duration", diagnosis.STORE),
        Row(40, "Durability: Redis away, what waits, what is lost, how long it is kept", upkeep.DURABILITY),
        Row(50, "Sessions and requests", upkeep.SESSIONS_ROW),
        Row(60, "Health of the telemetry itself", upkeep.HEALTH),
    ),
)
