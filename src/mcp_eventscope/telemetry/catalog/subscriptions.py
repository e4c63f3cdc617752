"""Catalog: open `subscriptions/listen` streams and the bus that signals them."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType, Span

SIGNAL_PATH = Label("path", ("local", "remote", "repair"))
GAP_REASON = Label("reason", ("late", "lost", "rolled_back", "trimmed", "damaged", "overflow"))
PUBLISH_FAILURE = Label("reason", ("unreachable", "refused", "overflow", "shutdown", "unsupported"))

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a round trip on one host to an outage."""

STREAMS_OPEN = Metric(
    "eventscope_subscriptions_open",
    MetricType.GAUGE,
    "Open subscriptions/listen streams of this worker (revision 2026-07-28).",
    (STORE,),
    counted="stream",
    multiprocess_mode="livesum",
    per_worker=True,
)
SIGNALS_DELIVERED = Metric(
    "eventscope_subscriptions_signals_delivered_total",
    MetricType.COUNTER,
    "Changes passed to open streams, once for each stream, before its filter; by path: published by this worker "
    "(local), by another worker (remote), or sent in place of changes that may have been missed (repair).",
    (STORE, SIGNAL_PATH),
    counted="signal",
)
SIGNAL_LAG = Metric(
    "eventscope_subscriptions_signal_lag_seconds",
    MetricType.HISTOGRAM,
    "Time from the publication of a change on another worker to its delivery to the streams of this worker, by the "
    "clock of Redis.",
    (STORE,),
    _SECONDS,
)
GAPS = Metric(
    "eventscope_subscriptions_gaps_total",
    MetricType.COUNTER,
    "Gaps after which the streams of this worker were signalled that everything changed, by reason: Redis not reached "
    "at start (late), changes lost by Redis (lost), or the latest of them (rolled_back), worker frozen or cut off for "
    "too long (trimmed), changes missing or unreadable (damaged), too many pending changes on a worker (overflow).",
    (STORE, GAP_REASON),
    counted="gap",
)
CHANGES_PUBLISHED = Metric(
    "eventscope_subscriptions_changes_published_total",
    MetricType.COUNTER,
    "Changes that this worker published and Redis acknowledged. Equal changes that were pending together count once.",
    (STORE,),
    counted="change",
)
PUBLISH_DURATION = Metric(
    "eventscope_subscriptions_publish_duration_seconds",
    MetricType.HISTOGRAM,
    "Time from the publication of the oldest change of a batch to the acknowledgement by Redis. No caller waits.",
    (STORE,),
    _SECONDS,
)
CHANGES_PENDING = Metric(
    "eventscope_subscriptions_changes_pending",
    MetricType.GAUGE,
    "Distinct changes that this worker published and Redis has not acknowledged.",
    (STORE,),
    counted="change",
    multiprocess_mode="livesum",
    per_worker=True,
)
PUBLISH_FAILURES = Metric(
    "eventscope_subscriptions_publish_failures_total",
    MetricType.COUNTER,
    "Failures to publish changes to other workers, by reason: attempts while Redis was unreachable, or refused the "
    "write, which are repeated; too many pending changes, replaced by one for everything (overflow); changes that were "
    "pending at shutdown, and are lost; events of an unsupported type.",
    (STORE, PUBLISH_FAILURE),
    counted="failure",
)

METRICS: tuple[Metric, ...] = (
    STREAMS_OPEN,
    SIGNALS_DELIVERED,
    SIGNAL_LAG,
    GAPS,
    CHANGES_PUBLISHED,
    PUBLISH_DURATION,
    CHANGES_PENDING,
    PUBLISH_FAILURES,
)

SPANS: tuple[Span, ...] = ()

GAP_REPAIRED = LogEvent(
    "subscriptions.gap_repaired",
    "warning",
    "Changes of other workers may have been missed. Each open stream is signalled that everything that it listens to "
    "has changed. unknown_streams: streams whose resources are unknown, because of a wrapped listener; they are "
    "signalled the resources of the other streams.",
    ("store", "reason", "streams", "unknown_streams", "fix", "suppressed"),
)
PUBLISH_FAILED = LogEvent(
    "subscriptions.publish_failed",
    "warning",
    "Changes have not reached the other workers, or have reached them late or as one change of everything.",
    ("store", "reason", "changes", "fix", "suppressed"),
)
NOT_RUNNING = LogEvent(
    "subscriptions.not_running",
    "warning",
    "A bus on Redis is used and does not run, so that changes reach the streams of this worker only. Logged once.",
    ("store", "fix", "suppressed"),
)

LOG_EVENTS: tuple[LogEvent, ...] = (GAP_REPAIRED, PUBLISH_FAILED, NOT_RUNNING)
