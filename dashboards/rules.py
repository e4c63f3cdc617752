"""Recording rules and alerts: those of the objective first, then those of its causes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dashboards import links, yaml
from dashboards.objective import (
    ANSWERS_REFUSED,
    BACKLOG,
    BUDGET,
    COMMIT_SECONDS,
    HEADROOM,
    LAG_SECONDS,
    LATE,
    LEAST_FAILED,
    LEAST_RESUMES,
    LEAST_UNCOLLECTED,
    MEMORY,
    OPERATIONS_FAILED,
    REPLAY_SECONDS,
    STREAMS,
    UNCOLLECTED,
)
from dashboards.promql import FAILED, OWED, SUCCEEDED, Values, series
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.resumes import RESUME_TTL_RATIO
from mcp_eventscope.telemetry.declarations import Metric

OF = ("job", "store")
"""The labels that rules keep: deployment and store. Workers are aggregated."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Its name is a section of the runbook; `dashboard` is the place to look first.

    Attributes:
        first: The first command to run.
    """

    name: str
    severity: Literal["critical", "warning"]
    expr: str
    wait: str
    summary: str
    description: str
    first: str
    dashboard: str = links.OVERVIEW
    of: tuple[str, ...] = OF


def _all(
    metric: Metric, window: str, function: str = "increase", part: str = "", by: tuple[str, ...] = OF, **labels: Values
) -> str:
    return f"sum by ({', '.join(by)}) ({function}({series(metric, part, (), **labels)}[{window}]))"


def _max(metric: Metric) -> str:
    return f"max by ({', '.join(OF)}) ({series(metric, '', ())})"


def _quantile(quantile: float, metric: Metric, window: str, **labels: Values) -> str:
    return f"histogram_quantile({quantile:g}, {_all(metric, window, 'rate', 'bucket', ('le', *OF), **labels)})"


WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_LOST = tuple(reason for reason in catalog.store.LOSS_REASON.values or () if reason != "session_limit")
_REFUSED = ("limit", "unavailable", "resumes")
_GAPS = ("lost", "rolled_back", "trimmed", "damaged")
_UNPUBLISHED = ("refused", "overflow", "shutdown")
_TARGET = (*OF, "instance")
_SERVER_ERRORS = ("-32603", "-32010", "-32011")
"""The errors of operations that clients do not cause: an exception, a lost worker, lost events."""
_COUNTED = (*SUCCEEDED, *FAILED)
FOLLOWERS = "job_store:eventscope_streams_followed:sum"
SESSIONS = "job_store:eventscope_sessions_active:sum"
PENDING = "job_store:eventscope_backlog_length:sum"
OWED_RATIO = "job_store:eventscope_owed_failed:ratio_rate1h"
OWED_NUMBER = "job_store:eventscope_owed:increase1h"


def _ratio(window: str) -> str:
    return f"job_store:eventscope_resumes_failed:ratio_rate{window}"


def _number(window: str) -> str:
    return f"job_store:eventscope_resumes:increase{window}"


def _share(window: str, counted: tuple[str, ...]) -> str:
    bad = _all(catalog.store.REPLAY_DURATION, window, "rate", "count", outcome=FAILED)
    return f"{bad}\n/\n({_all(catalog.store.REPLAY_DURATION, window, 'rate', 'count', outcome=counted)} > 0)"


def recordings() -> Iterator[Recording]:
    """Inputs of alerts, and series worth keeping for longer than the metrics themselves."""
    for window in WINDOWS:
        yield Recording(_number(window), _all(catalog.store.REPLAY_DURATION, window, part="count", outcome=_COUNTED))
        yield Recording(_ratio(window), _share(window, _COUNTED))
    yield Recording(OWED_NUMBER, _all(catalog.store.REPLAY_DURATION, "1h", part="count", outcome=OWED))
    yield Recording(OWED_RATIO, _share("1h", OWED))
    yield Recording(FOLLOWERS, f"sum by (job, store) ({series(catalog.store.STREAMS_FOLLOWED, '', ())})")
    yield Recording(SESSIONS, f"sum by (job, store) ({series(catalog.sessions.SESSIONS_ACTIVE, '', ())})")
    yield Recording(PENDING, f"sum by (job, store) ({series(catalog.store.BACKLOG_LENGTH, '', ())})")


def _burning(*pairs: tuple[float, str, str]) -> str:
    """Burn rate above a factor over the long and the short window, with enough resumes and failures in the long one."""
    return "\nor\n".join(
        f"(\n  {_ratio(long)} > {factor:g} * {BUDGET:g}\n"
        f"  and {_ratio(short)} > {factor:g} * {BUDGET:g}\n"
        f"  and {_number(long)} >= {LEAST_RESUMES}\n"
        f"  and round({_ratio(long)} * {_number(long)}) >= {LEAST_FAILED}\n)"
        for factor, long, short in pairs
    )


_SHARE = "{{ $value | humanizePercentage }}"
_NUMBER = "{{ $value | humanize }}"
_AS_RATE = 'printf "%.3g"'
"""`humanize` would write 0.01 as 10m."""
_RATE = f"{{{{ $value | {_AS_RATE} }}}}"
_UNDELIVERED = (
    f"{_SHARE} of resumes did not deliver all events due (objective: {BUDGET:.0%} at most). Their clients miss "
    "messages, or receive an error instead of a result."
)
_WHO = "{{ $labels.job }}, store {{ $labels.store }}"


def _error_ratio(window: str) -> str:
    """Errors by operation and type, as a share of the operations, which are errors and successes."""
    failed = (*OF, "operation", "error_type")
    errors = _all(catalog.store.ERRORS, window, "rate", by=failed)
    successes = "\n  or ".join(
        f'label_replace({_all(metric, window, "rate", part, **labels)}, "operation", "{operation}", "", "")'
        for operation, metric, part, labels in (
            ("store", catalog.store.STORE_DURATION, "count", {"outcome": ("ok", "deferred", "refused")}),
            ("replay", catalog.store.REPLAY_DURATION, "count", {"outcome": tuple(sorted({*_COUNTED} - {"error"}))}),
            ("follow", catalog.store.EVENTS_FOLLOWED, "", {}),
        )
    )
    on = ", ".join((*OF, "operation"))
    total = (
        f"(\n  {_all(catalog.store.ERRORS, window, 'rate', by=(*OF, 'operation'))}\n  + on ({on}) (\n  {successes})\n)"
    )
    return f"{errors}\n/ on ({on}) group_left ()\n{total}"


def _rate_now(metric: Metric, window: str, *labels: str) -> str:
    """The rate of an alert's series, as a template: a second number beside the ratio."""
    matchers = ", ".join(f"{label}=%q" for label in labels)
    arguments = " ".join(f"$labels.{label}" for label in labels)
    query = f"sum(rate({metric.name}{{{matchers}}}[{window}]))"
    return f"{{{{ with printf `{query}` {arguments} | query }}}}{{{{ . | first | value | {_AS_RATE} }}}}{{{{ end }}}}"


def _value_now(metric: Metric, *labels: str) -> str:
    """The value of a gauge for an alert's series, as a template in parentheses; nothing if there is none."""
    matchers = ", ".join(f"{label}=%q" for label in labels)
    arguments = " ".join(f"$labels.{label}" for label in labels)
    query = f"sum({metric.name}{{{matchers}}})"
    value = "{{ . | first | value | humanize }}"
    return f"{{{{ with printf `{query}` {arguments} | query }}}} ({value} now){{{{ end }}}}"


def _unless_degraded(error: str = "", value: str = "") -> str:
    """Except during an outage, which EventscopeStoreDegraded reports, and until it has left the ranges of the rules.

    Args:
        error: The label whose value an outage causes; "": the expression has none.
        value: That value.
    """
    outage = f"max by ({', '.join(OF)}) (max_over_time({series(catalog.store.DEGRADED, '', ())}[10m])) == 1"
    if not error:
        return f"\nunless on ({', '.join(OF)}) {outage}"
    return f'\nunless on ({", ".join((*OF, error))}) label_replace({outage}, "{error}", "{value}", "", "")'


def alerts() -> Iterator[Alert]:
    """The alerts, in the order of the runbook."""
    yield Alert(
        "EventscopeResumesFailing",
        "critical",
        _burning((14.4, "1h", "5m"), (6, "6h", "30m")),
        "2m",
        f"Resumes fail: {_WHO}",
        f"{_UNDELIVERED} At this rate the error budget of 30 days is spent within five days.",
        "mcp-eventscope doctor",
    )
    yield Alert(
        "EventscopeResumesFailingSlowly",
        "warning",
        _burning((3, "1d", "2h"), (1, "3d", "6h")),
        "1h",
        f"Resume error ratio above budget: {_WHO}",
        f"{_UNDELIVERED} At this rate the error budget of 30 days is spent within 10 to 30 days: it can wait until the "
        "morning.",
        "mcp-eventscope doctor",
    )
    yield Alert(
        "EventscopeDueEventsUndelivered",
        "warning",
        f"{OWED_RATIO} > 0.5\nand {OWED_NUMBER} >= {LEAST_RESUMES}",
        "5m",
        f"Most resumes with events due fail: {_WHO}",
        f"{_SHARE} of the resumes with events due failed within an hour (limit: 50%). Their clients miss messages or "
        "results. Idle clients, which always succeed, can hide this in the success ratio.",
        "grep event_store.replay_incomplete LOG",
        links.RESUME,
    )
    yield Alert(
        "EventscopeStoreDegraded",
        "critical",
        f"{_max(catalog.store.DEGRADED)} == 1",
        "1m",
        f"Redis is unavailable: {_WHO}",
        "At least one worker has found Redis unreachable, too slow, or refusing writes for a minute. Messages are "
        f"sent, and events stay in the memory of the workers{_value_now(catalog.store.BACKLOG_LENGTH, *OF)}; clients "
        "that resume on another worker wait. Do not restart workers: their pending events would be lost.",
        "mcp-eventscope doctor",
        links.REDIS,
    )
    yield Alert(
        "EventscopeStoreFlapping",
        "warning",
        # Rounded: `increase` extrapolates, and makes slightly more than three of three. Workers that share a target add
        # up their counters, and have a gauge each.
        f"max by (job, store) (round(\n  {_all(catalog.store.DEGRADATIONS, '15m', by=_TARGET)}\n"
        f"  / count by ({', '.join(_TARGET)}) ({series(catalog.store.DEGRADED, '', ())})\n)) > 3",
        "0m",
        f"Redis is intermittently unavailable: {_WHO}",
        f"Redis was unreachable, too slow, or refused writes {_NUMBER} times per worker within 15 minutes. "
        "No events are lost; clients that resume on another worker wait for moments.",
        "redis-cli --latency-history",
        links.REDIS,
    )
    yield Alert(
        "EventscopeStoreErrors",
        "warning",
        f"({_error_ratio('5m')} > 0){_unless_degraded('error_type', 'unavailable')}",
        "5m",
        f"{{{{ $labels.operation }}}} operations fail: {_WHO}",
        f"{_SHARE} of {{{{ $labels.operation }}}} operations fail "
        f"({_rate_now(catalog.store.ERRORS, '5m', *OF, 'operation', 'error_type')}/s, {{{{ $labels.error_type }}}}). "
        "A failed replay delivers nothing; a message that was not stored cannot be resumed.",
        "grep -E 'event_store.(store|replay)_failed' LOG",
        of=(*OF, "operation", "error_type"),
    )
    yield Alert(
        "EventscopeEventsLost",
        "critical",
        # A session that exceeds its limit loses events that its client most probably has: panels show it.
        f"{_all(catalog.store.EVENTS_LOST_TOTAL, '15m', by=(*OF, 'reason'), reason=_LOST)} > 0",
        "0m",
        f"Events lost: {_WHO}",
        f"{_NUMBER} events were lost within 15 minutes ({{{{ $labels.reason }}}}). No resume can deliver them: clients "
        "that were disconnected miss messages or receive an error.",
        "grep event_store.events_lost LOG",
        of=(*OF, "reason"),
    )
    yield Alert(
        "EventscopeBacklogGrowing",
        "warning",
        f"{PENDING} > {BACKLOG}\nand deriv({PENDING}[5m]) > 0{_unless_degraded()}",
        "1m",
        f"Backlog growing: {_WHO}",
        f"{_NUMBER} events are pending in memory (limit: {BACKLOG:,}), and more arrive than Redis stores, although it "
        "is available. Once the backlog is full, events are lost.",
        "mcp-eventscope doctor",
    )
    yield Alert(
        "EventscopeTTLHeadroomLow",
        "warning",
        f"1 - {_all(RESUME_TTL_RATIO, '1h', part='bucket', le=f'{1 - HEADROOM:g}')}\n"
        f"/ ({_all(RESUME_TTL_RATIO, '1h', part='count')} > 0) > {LATE:g}\n"
        f"and {_all(RESUME_TTL_RATIO, '1h', part='count')} >= {LEAST_RESUMES}",
        "15m",
        f"Clients resume close to the TTL: {_WHO}",
        f"{_SHARE} of the resumes within an hour had less than {HEADROOM:.0%} of the TTL left (limit: {LATE:.0%}). "
        "Clients that stay disconnected slightly longer lose events.",
        "mcp-eventscope forecast",
        links.RESUME,
    )
    yield Alert(
        "EventscopeTTLMissing",
        "warning",
        f"{_max(catalog.store.DEGRADED)} unless {_max(catalog.store.TTL)}",
        "10m",
        f"Events never expire: {_WHO}",
        "The store reports no TTL, so that nothing is ever deleted. Redis fills up until it evicts keys or refuses "
        "writes.",
        "grep event_store.ttl_missing LOG",
    )
    yield Alert(
        "EventscopeKeysWithoutTTL",
        "warning",
        f"{_max(catalog.redis_stats.REDIS_KEYS_WITHOUT_TTL)} > 0\nand {_max(catalog.store.TTL)}",
        "30m",
        f"Keys without TTL: {_WHO}",
        f"{_NUMBER} keys under the prefix never expire although a TTL is set. Their memory is never freed.",
        "mcp-eventscope doctor",
        links.REDIS,
    )
    yield Alert(
        "EventscopeRequestsOrphaned",
        "warning",
        f"{_all(catalog.store.REQUESTS_ORPHANED, '15m')} > 0",
        "0m",
        f"Requests orphaned: {_WHO}",
        f"{_NUMBER} requests within 15 minutes were answered with an error, because their worker died or was stopping. "
        "They may have taken effect, and are not run again.",
        "mcp-eventscope workers",
    )
    yield Alert(
        "EventscopeReplaySlow",
        "warning",
        f"{_quantile(0.99, catalog.store.REPLAY_DURATION, '10m', outcome=('resumed', 'gap'))} > {REPLAY_SECONDS}\n"
        f"and {_all(catalog.store.REPLAY_DURATION, '10m', part='count', outcome=('resumed', 'gap'))} >= {LEAST_RESUMES}"
        f"{_unless_degraded()}",
        "10m",
        f"Resume latency high: {_WHO}",
        f"The p99 latency of resumes is {{{{ $value | humanizeDuration }}}} (limit: {REPLAY_SECONDS} s). Clients wait "
        "that long for missed events.",
        "redis-cli --latency-history",
        links.RESUME,
    )
    yield Alert(
        "EventscopeFollowersGrowing",
        "warning",
        f"{FOLLOWERS} > 100\nand {FOLLOWERS} > {STREAMS} * {SESSIONS}",
        "30m",
        f"Followed streams pile up: {_WHO}",
        f"{_NUMBER} streams are followed, more than {STREAMS} per session (limit). Each uses memory of a worker and "
        "polls Redis.",
        "mcp-eventscope sessions list",
        links.RESUME,
    )
    yield Alert(
        "EventscopeRedisEvicting",
        "warning",
        f"{_all(catalog.redis_stats.REDIS_KEYS_EVICTED, '15m')} > 0",
        "0m",
        f"Redis evicts keys: {_WHO}",
        f"Redis evicted {_NUMBER} keys within 15 minutes, of any application, for lack of memory. An evicted event "
        "is a gap in a resume.",
        "mcp-eventscope forecast",
        links.REDIS,
    )
    yield Alert(
        "EventscopeRedisMemoryNearLimit",
        "warning",
        f"{_max(catalog.redis_stats.REDIS_MEMORY)}\n"
        f"/ ({_max(catalog.redis_stats.REDIS_MEMORY_LIMIT)} > 0) > {MEMORY:g}",
        "10m",
        f"Redis memory near its limit: {_WHO}",
        f"{_SHARE} of maxmemory is used (limit: {MEMORY:.0%}). When it is full, Redis evicts keys or refuses writes.",
        "mcp-eventscope forecast",
        links.REDIS,
    )
    present = series(catalog.sessions.BUILD_INFO, "", ())
    yield Alert(
        "EventscopeMetricsAbsent",
        "critical",
        f"(group by (job) ({present} offset 1h) unless group by (job) ({present}))\nor absent({present})",
        "5m",
        "No metrics of mcp-eventscope{{ with $labels.job }}: {{ . }}{{ end }}",
        "No target exposes them, although one did an hour ago, or none ever did. The state of resumption is unknown.",
        "curl http://WORKER/metrics",
        of=("job",),
    )
    yield Alert(
        "EventscopeTelemetryFailing",
        "warning",
        f"{_all(catalog.store.TELEMETRY_FAILURES, '5m', 'rate', by=(*OF, 'sink'))} > 0",
        "5m",
        f"Telemetry fails: {_WHO}",
        f"{_RATE} signals per second are not recorded ({{{{ $labels.sink }}}}). Requests are not affected; dashboards "
        "and alerts see too little.",
        "grep event_store.telemetry_failed LOG",
        of=(*OF, "sink"),
    )
    yield Alert(
        "EventscopeRedisStatsStale",
        "warning",
        f"{_all(catalog.redis_stats.REDIS_STATS_DURATION, '15m', part='count', outcome='error')} > 0\n"
        f"unless {_all(catalog.redis_stats.REDIS_STATS_DURATION, '15m', part='count', outcome='ok')} > 0"
        f"{_unless_degraded()}",
        "5m",
        f"Redis statistics are stale: {_WHO}",
        "No poll has succeeded for 15 minutes. Panels and alerts about keys, memory and evictions show old values.",
        "mcp-eventscope doctor",
        links.REDIS,
    )
    yield Alert(
        "EventscopeRequestsRefused",
        "warning",
        f"{_all(catalog.sessions.REQUESTS_REFUSED, '5m', 'rate', by=(*OF, 'reason'), reason=_REFUSED)} > 0"
        f"{_unless_degraded('reason', 'unavailable')}",
        "5m",
        f"Requests answered 503: {_WHO}",
        f"{_RATE} requests per second are answered 503 ({{{{ $labels.reason }}}}). Their clients cannot work, and "
        "retry. limit: too many sessions are open. unavailable: Redis cannot be read, although it is not known to be "
        "down. resumes: a client resumes in a loop.",
        "grep event_store.session_refused LOG",
        of=(*OF, "reason"),
    )
    yield Alert(
        "EventscopeTasksOrphaned",
        "warning",
        f"{_all(catalog.tasks.TASKS_ORPHANED, '15m')} > 0",
        "0m",
        f"Tasks orphaned: {_WHO}",
        f"{_NUMBER} tasks within 15 minutes were declared failed, because their worker was dead or no longer knew "
        "them. They may have taken effect, and are not run again. See the panel 'Orphaned and uncollected tasks'.",
        "mcp-eventscope workers",
        links.MODERN,
    )
    uncollected = _all(catalog.tasks.TASKS_UNCOLLECTED, "1h")
    yield Alert(
        "EventscopeTasksUncollected",
        "warning",
        f"{uncollected}\n/ ({uncollected} + {_all(catalog.tasks.POLL_AGE, '1h', part='count')}) > {UNCOLLECTED:g}\n"
        f"and round({uncollected}) >= {LEAST_UNCOLLECTED}",
        "5m",
        f"Results of tasks are not collected: {_WHO}",
        f"No poll had returned {_SHARE} of the results within an hour when nine tenths of their TTL were over (limit: "
        f"{UNCOLLECTED:.0%}). Results expire before their clients see them. See the panel 'Age of collected results'.",
        "grep task_store.uncollected LOG",
        links.MODERN,
    )
    gaps = _all(catalog.subscriptions.GAPS, "15m", by=(*OF, "reason"), reason=_GAPS)
    unpublished = _all(catalog.subscriptions.PUBLISH_FAILURES, "15m", by=(*OF, "reason"), reason=_UNPUBLISHED)
    yield Alert(
        "EventscopeChangesNotDelivered",
        "warning",
        f"({gaps}\nor {unpublished}) > 0",
        "0m",
        f"Changes may not have reached clients: {_WHO}",
        f"{_NUMBER} gaps, or failures to publish, within 15 minutes ({{{{ $labels.reason }}}}). Clients refetch "
        "everything, or, after a shutdown, may keep outdated data. See the panel 'Subscription gaps by reason'.",
        "grep subscriptions. LOG",
        links.MODERN,
        of=(*OF, "reason"),
    )
    refused = catalog.request_state.STATES_REFUSED
    yield Alert(
        "EventscopeAnswersRefused",
        "warning",
        f"{_all(refused, '5m', 'rate', by=(*OF, 'reason'), reason=ANSWERS_REFUSED)} > 0"
        f"{_unless_degraded('reason', 'unavailable')}",
        "5m",
        f"Answers of clients are refused: {_WHO}",
        f"{_RATE} answers per second are refused ({{{{ $labels.reason }}}}). Their users have to be asked again, or "
        "their clients have to retry. See the panel 'Refused answers by reason'.",
        "grep request_state.refused LOG",
        links.MODERN,
        of=(*OF, "reason"),
    )
    yield Alert(
        "EventscopeStoreSlow",
        "warning",
        f"{_quantile(0.9, catalog.store.COMMIT_DURATION, '10m')} > {COMMIT_SECONDS}\n"
        f"and {_all(catalog.store.COMMIT_DURATION, '10m', part='count')} >= {LEAST_RESUMES}{_unless_degraded()}",
        "10m",
        f"Redis write latency high: {_WHO}",
        f"The p90 latency of writes is {{{{ $value | humanizeDuration }}}} (limit: {COMMIT_SECONDS} s). Messages are "
        "not delayed; clients that resume on another worker receive events that much later. From store_timeout on "
        "(0.25 s by default) it counts as an outage.",
        "redis-cli --latency-history",
        links.REDIS,
    )
    yield Alert(
        "EventscopeFollowLagHigh",
        "warning",
        f"{_quantile(0.99, catalog.store.FOLLOW_LAG, '10m')} > {LAG_SECONDS}\n"
        f"and {_all(catalog.store.FOLLOW_LAG, '10m', part='count')} >= {LEAST_RESUMES}{_unless_degraded()}",
        "10m",
        f"Followers are late: {_WHO}",
        f"1% of the events for resumed clients arrive more than {{{{ $value | humanizeDuration }}}} late (limit: "
        f"{LAG_SECONDS} s). Clients that resumed on another worker see progress and results that much later.",
        "mcp-eventscope doctor",
        links.RESUME,
    )
    method = (*OF, "mcp_method_name")
    failed = _all(catalog.sessions.OPERATION_DURATION, "10m", part="count", by=method, error_type=_SERVER_ERRORS)
    ended = _all(catalog.sessions.OPERATION_DURATION, "10m", part="count", by=method)
    yield Alert(
        "EventscopeOperationsFailing",
        "warning",
        f"{failed}\n/ ({ended} > 0) > {OPERATIONS_FAILED:g}\nand {ended} >= {LEAST_RESUMES}{_unless_degraded()}",
        "5m",
        f"{{{{ $labels.mcp_method_name }}}} fails: {_WHO}",
        f"{_SHARE} of {{{{ $labels.mcp_method_name }}}} requests fail with an error of the server (limit: "
        f"{OPERATIONS_FAILED:.0%}): an exception, or a lost worker. Their clients receive an error. See the panel "
        "'Operation error rate by type'.",
        "grep Traceback LOG",
        of=method,
    )
    builds = f"group by (job, store, eventscope) ({present})"
    yield Alert(
        "EventscopeVersionsDiffer",
        "warning",
        f"count by (job, store) ({builds}) > 1",
        "1h",
        f"Workers run different versions: {_WHO}",
        f"{_NUMBER} versions of mcp-eventscope have run at the same time for an hour. A deployment is incomplete; "
        "sessions move between workers that may treat them differently. See the panel 'Versions'.",
        "mcp-eventscope workers",
    )


def description_of(alert: Alert) -> str:
    """The description, which ends with the first command to run."""
    return f"{alert.description} First run: {alert.first}"


def dashboard_url(alert: Alert) -> str:
    """The dashboard, relative to Grafana's address, with job and store selected."""
    chosen = [f"var-{label}={{{{ $labels.{label} }}}}" for label in ("job", "store") if label in alert.of]
    return f"/d/{alert.dashboard}?{'&'.join(chosen)}"


def runbook_url(alert: Alert, runbook: str = "") -> str:
    """The section of the runbook.

    Args:
        alert: The alert.
        runbook: The absolute URL of a page whose sections are named after the alerts, such as `docs/runbook.md` where
            it is published; "": the dashboard, relative to Grafana's address.
    """
    if runbook:
        return f"{runbook}#{alert.name.lower()}"
    return f"/d/{links.RUNBOOK}?viewPanel={links.section(alert.name)}"


def recording_file() -> str:
    """The file of recording rules."""
    rules = [{"record": rule.record, "expr": rule.expr} for rule in recordings()]
    return yaml.groups("eventscope-recording", rules)


def alert_file(runbook: str = "") -> str:
    """The file of alerts.

    Args:
        runbook: The absolute URL of the runbook; "": its dashboard, relative to Grafana's address.
    """
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
                    "description": description_of(alert),
                    "runbook_url": runbook_url(alert, runbook),
                    "dashboard_url": dashboard_url(alert),
                },
            }
            for alert in alerts()
        ],
    )
