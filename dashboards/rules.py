"""Recording rules and alerts: of the objective first, then of what endangers it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dashboards import links, yaml
from dashboards.objective import BUDGET, HEADROOM, LATE, LEAST_RESUMES, OBJECTIVE, REPLAY_SECONDS, STREAMS
from dashboards.promql import FAILED, OWED, SUCCEEDED, Values, series
from mcp_eventscope.telemetry import catalog, catalog_sessions
from mcp_eventscope.telemetry.catalog_resumes import TTL_RATIO
from mcp_eventscope.telemetry.declarations import Metric

OF = ("job", "store")
"""What rules keep apart: a deployment, and a store of it. Its workers are one."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Its name is a section of the runbook. `dashboard` is where to look first."""

    name: str
    severity: Literal["critical", "warning"]
    expr: str
    wait: str
    summary: str
    description: str
    dashboard: str = links.OVERVIEW
    of: tuple[str, ...] = OF


def _all(
    metric: Metric, window: str, function: str = "increase", part: str = "", by: tuple[str, ...] = OF, **labels: Values
) -> str:
    return f"sum by ({', '.join(by)}) ({function}({series(metric, part, (), **labels)}[{window}]))"


def _max(metric: Metric) -> str:
    return f"max by ({', '.join(OF)}) ({series(metric, '', ())})"


def _p99(metric: Metric, window: str, **labels: Values) -> str:
    return f"histogram_quantile(0.99, {_all(metric, window, 'rate', 'bucket', ('le', *OF), **labels)})"


WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_LOST = tuple(reason for reason in catalog.LOSS_REASON.values or () if reason != "session_limit")
_COUNTED = (*SUCCEEDED, *FAILED)
FOLLOWERS = "job_store:eventscope_followers:sum"
SESSIONS = "job_store:eventscope_sessions:sum"
BACKLOG = "job_store:eventscope_backlog_events:sum"
OWED_RATIO = "job_store:eventscope_owed_failed:ratio_rate1h"
OWED_NUMBER = "job_store:eventscope_owed:increase1h"


def _ratio(window: str) -> str:
    return f"job_store:eventscope_resumes_failed:ratio_rate{window}"


def _number(window: str) -> str:
    return f"job_store:eventscope_resumes:increase{window}"


def _share(window: str, counted: tuple[str, ...]) -> str:
    bad = _all(catalog.REPLAY_DURATION, window, "rate", "count", outcome=FAILED)
    return f"{bad}\n/\n({_all(catalog.REPLAY_DURATION, window, 'rate', 'count', outcome=counted)} > 0)"


def recordings() -> Iterator[Recording]:
    """What alerts compare, and what is worth keeping for longer than the metrics themselves."""
    for window in WINDOWS:
        yield Recording(_number(window), _all(catalog.REPLAY_DURATION, window, part="count", outcome=_COUNTED))
        yield Recording(_ratio(window), _share(window, _COUNTED))
    yield Recording(OWED_NUMBER, _all(catalog.REPLAY_DURATION, "1h", part="count", outcome=OWED))
    yield Recording(OWED_RATIO, _share("1h", OWED))
    yield Recording(FOLLOWERS, f"sum by (job, store) ({series(catalog.FOLLOWERS, '', ())})")
    yield Recording(SESSIONS, f"sum by (job, store) ({series(catalog_sessions.SESSIONS, '', ())})")
    yield Recording(BACKLOG, f"sum by (job, store) ({series(catalog.BACKLOG_EVENTS, '', ())})")


def _burning(*pairs: tuple[float, str, str]) -> str:
    """Faster than so many times the budget, over the long window and still over the short one, and of enough."""
    return "\nor\n".join(
        f"(\n  {_ratio(long)} > {factor:g} * {BUDGET:g}\n"
        f"  and {_ratio(short)} > {factor:g} * {BUDGET:g}\n"
        f"  and {_number(long)} >= {LEAST_RESUMES}\n)"
        for factor, long, short in pairs
    )


_SHARE = "{{ $value | humanizePercentage }}"
_NUMBER = "{{ $value | humanize }}"
_UNDELIVERED = (
    f"{_SHARE} of the clients that came back did not get what was owed to them; "
    f"the objective is that {OBJECTIVE:.0%} do."
)
_WHO = "{{ $labels.job }}, store {{ $labels.store }}"


def alerts() -> Iterator[Alert]:
    """The alerts, in the order of the runbook."""
    yield Alert(
        "EventscopeResumesFailing",
        "critical",
        _burning((14.4, "1h", "5m"), (6, "6h", "30m")),
        "2m",
        f"Resumes fail: {_WHO}",
        f"{_UNDELIVERED} At this speed the budget of 30 days is used up within five.",
    )
    yield Alert(
        "EventscopeResumesFailingSlowly",
        "warning",
        _burning((3, "1d", "2h"), (1, "3d", "6h")),
        "1h",
        f"More resumes fail than should: {_WHO}",
        _UNDELIVERED,
    )
    yield Alert(
        "EventscopeOwedEventsUndelivered",
        "warning",
        f"{OWED_RATIO} > 0.5\nand {OWED_NUMBER} >= {LEAST_RESUMES}",
        "5m",
        f"Most clients that were owed events did not get them: {_WHO}",
        f"Of the clients that had missed something within an hour {_SHARE} did not get all of it. Idle clients, which "
        "always succeed, may hide this in the objective.",
        links.RESUME,
    )
    yield Alert(
        "EventscopeStoreDegraded",
        "critical",
        f"{_max(catalog.DEGRADED)} == 1",
        "1m",
        f"Redis is away or too slow: {_WHO}",
        "At least one worker has not reached Redis for a minute. Messages are sent, and stay in memory until they are "
        "stored; a client that returns to another worker waits.",
        links.REDIS,
    )
    yield Alert(
        "EventscopeStoreFlapping",
        "warning",
        # Rounded: `increase` extrapolates, and makes a little more than three of three.
        f"max by (job, store) (\n  round({_all(catalog.DEGRADATIONS, '15m', by=('job', 'store', 'instance'))})\n) > 3",
        "0m",
        f"Redis goes away again and again: {_WHO}",
        f"A worker found Redis away or too slow {_NUMBER} times within 15 minutes.",
        links.REDIS,
    )
    yield Alert(
        "EventscopeStoreErrors",
        "warning",
        f"{_all(catalog.ERRORS, '5m', 'rate', by=(*OF, 'operation', 'error_type'))} > 0",
        "5m",
        f"Operations on the event store fail: {_WHO}",
        f"{_NUMBER} a second of the operation {{{{ $labels.operation }}}} fail, {{{{ $labels.error_type }}}}. "
        "A replay that fails delivers nothing; a message whose store fails cannot be resumed.",
        of=(*OF, "operation", "error_type"),
    )
    yield Alert(
        "EventscopeEventsLost",
        "critical",
        # A session that exceeds its limit loses what its client most probably has: panels show it.
        f"{_all(catalog.LOST_EVENTS, '15m', by=(*OF, 'reason'), reason=_LOST)} > 0",
        "0m",
        f"Events are lost: {_WHO}",
        f"{_NUMBER} events within 15 minutes are not stored and will never be, {{{{ $labels.reason }}}}: no resume can "
        "deliver them.",
        of=(*OF, "reason"),
    )
    yield Alert(
        "EventscopeBacklogGrowing",
        "warning",
        f"{BACKLOG} > 1000\nand deriv({BACKLOG}[5m]) > 0",
        "1m",
        f"More and more events wait for Redis: {_WHO}",
        f"{_NUMBER} events are pending in the memory of workers. When it is full, events are lost.",
    )
    yield Alert(
        "EventscopeTTLHeadroomLow",
        "warning",
        f"1 - {_all(TTL_RATIO, '1h', part='bucket', le=f'{1 - HEADROOM:g}')}\n"
        f"/ ({_all(TTL_RATIO, '1h', part='count')} > 0) > {LATE:g}\n"
        f"and {_all(TTL_RATIO, '1h', part='count')} >= {LEAST_RESUMES}",
        "15m",
        f"Clients come back when their events are about to be gone: {_WHO}",
        f"{_SHARE} of the clients that came back within an hour had less than {HEADROOM:.0%} of the TTL left, or none.",
        links.RESUME,
    )
    yield Alert(
        "EventscopeTTLMissing",
        "warning",
        f"{_max(catalog.TTL)} == 0",
        "10m",
        f"Events never expire: {_WHO}",
        "The store has no TTL, or does not say: Redis fills up until it evicts or refuses writes.",
    )
    yield Alert(
        "EventscopeKeysWithoutTTL",
        "warning",
        f"{_max(catalog.REDIS_KEYS_WITHOUT_TTL)} > 0\nand {_max(catalog.TTL)} > 0",
        "30m",
        f"Keys that will never expire: {_WHO}",
        f"A TTL is set, and {_NUMBER} keys under the prefix have none.",
        links.REDIS,
    )
    yield Alert(
        "EventscopeRequestsOrphaned",
        "warning",
        f"{_all(catalog.ORPHANED, '15m')} > 0",
        "0m",
        f"Requests were left by their worker: {_WHO}",
        f"{_NUMBER} requests within 15 minutes were answered with an error, since the worker that ran them is gone or "
        "was ending.",
    )
    yield Alert(
        "EventscopeReplaySlow",
        "warning",
        f"{_p99(catalog.REPLAY_DURATION, '10m', outcome=('resumed', 'gap'))} > {REPLAY_SECONDS}\n"
        f"and {_all(catalog.REPLAY_DURATION, '10m', part='count', outcome=('resumed', 'gap'))} >= {LEAST_RESUMES}",
        "10m",
        f"Replays are slow: {_WHO}",
        "One of a hundred replays takes {{ $value | humanizeDuration }} or longer.",
        links.RESUME,
    )
    yield Alert(
        "EventscopeFollowersGrowing",
        "warning",
        f"{FOLLOWERS} > 100\nand {FOLLOWERS} > {STREAMS} * {SESSIONS}",
        "30m",
        f"Followed streams pile up: {_WHO}",
        f"{_NUMBER} streams are followed, more than {STREAMS} for each session.",
        links.RESUME,
    )
    yield Alert(
        "EventscopeRedisEvicting",
        "warning",
        f"{_all(catalog.REDIS_EVICTED, '15m')} > 0",
        "0m",
        f"Redis evicts keys: {_WHO}",
        f"{_NUMBER} keys within 15 minutes, whoever's they were. An event that was evicted is a gap in a replay.",
        links.REDIS,
    )
    yield Alert(
        "EventscopeRedisMemoryNearLimit",
        "warning",
        f"{_max(catalog.REDIS_MEMORY)}\n/ ({_max(catalog.REDIS_MEMORY_LIMIT)} > 0) > 0.9",
        "10m",
        f"Redis is nearly full: {_WHO}",
        f"{_SHARE} of maxmemory is used. Beyond it Redis evicts, or refuses to store.",
        links.REDIS,
    )
    ttl = series(catalog.TTL, "", ())
    yield Alert(
        "EventscopeMetricsAbsent",
        "critical",
        f"(group by (job) ({ttl} offset 1h) unless group by (job) ({ttl}))\nor absent({ttl})",
        "5m",
        "No metrics of mcp-eventscope{{ with $labels.job }}: {{ . }}{{ end }}",
        "They were there an hour ago, or there are none at all: whether resumes work is not known.",
        of=("job",),
    )
    yield Alert(
        "EventscopeTelemetryFailing",
        "warning",
        f"{_all(catalog.TELEMETRY_FAILURES, '5m', 'rate', by=(*OF, 'sink'))} > 0",
        "5m",
        f"Telemetry fails: {_WHO}",
        f"{_NUMBER} signals a second could not be recorded, {{{{ $labels.sink }}}}: the dashboards show too little.",
        of=(*OF, "sink"),
    )
    yield Alert(
        "EventscopeRedisUnsampled",
        "warning",
        f"{_all(catalog.SAMPLE_DURATION, '15m', part='count', outcome='error')} > 0\n"
        f"unless {_all(catalog.SAMPLE_DURATION, '15m', part='count', outcome='ok')} > 0",
        "5m",
        f"Redis cannot be sampled: {_WHO}",
        "No sample has succeeded for 15 minutes: what the dashboards show of keys and memory is old.",
        links.REDIS,
    )


def dashboard_url(alert: Alert) -> str:
    """Where to look, below the address of Grafana, with what the alert is about chosen."""
    chosen = [f"var-{label}={{{{ $labels.{label} }}}}" for label in ("job", "store") if label in alert.of]
    return f"/d/{alert.dashboard}?{'&'.join(chosen)}"


def runbook_url(alert: Alert) -> str:
    """What to do, below the address of Grafana."""
    return f"/d/{links.RUNBOOK}?viewPanel={links.section(alert.name)}"


def recording_file() -> str:
    """The file of recording rules."""
    rules = [{"record": rule.record, "expr": rule.expr} for rule in recordings()]
    return yaml.groups("eventscope-recording", rules)


def alert_file() -> str:
    """The file of alerts."""
    return yaml.groups(
        "eventscope-alerts",
        [
            {
                "alert": alert.name,
                "expr": alert.expr,
                "for": alert.wait,
                "labels": {"severity": alert.severity},
                "annotations": {
                    "summary": alert.summary,
                    "description": alert.description,
                    "runbook_url": runbook_url(alert),
                    "dashboard_url": dashboard_url(alert),
                },
            }
            for alert in alerts()
        ],
    )
