"""Every metric, span and log event, declared once, as data.

Sinks, documentation, dashboards, rules and tests are built from it. Rules: base units; `_total` on counters; labels are
closed sets; ids of sessions, streams and events are in spans and logs, never in labels. A dimension has one name
everywhere: a label and a log field `outcome`, a span attribute `eventscope.outcome`.
"""

from mcp_eventscope.telemetry.catalog import (
    redis_stats,
    request_state,
    resumes,
    sessions,
    start,
    store,
    subscriptions,
    tasks,
)

METRICS = (
    *store.METRICS,
    *redis_stats.METRICS,
    *resumes.METRICS,
    *sessions.METRICS,
    *start.METRICS,
    *subscriptions.METRICS,
    *request_state.METRICS,
    *tasks.METRICS,
)
SPANS = (
    *store.SPANS,
    *subscriptions.SPANS,
    *request_state.SPANS,
    *tasks.SPANS,
)
LOG_EVENTS = (
    *store.LOG_EVENTS,
    *redis_stats.LOG_EVENTS,
    *resumes.LOG_EVENTS,
    *sessions.LOG_EVENTS,
    *start.LOG_EVENTS,
    *subscriptions.LOG_EVENTS,
    *request_state.LOG_EVENTS,
    *tasks.LOG_EVENTS,
)
