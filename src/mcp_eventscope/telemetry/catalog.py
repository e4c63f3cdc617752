"""Every metric, span and log event, declared once, as data. Sinks, documentation and tests are built from it.

Rules (the Prometheus naming guide, and what a scrape costs): base units; `_total` on counters; labels are closed sets;
ids of sessions, streams and events go to spans and logs, never to labels.
"""

from mcp_eventscope.telemetry import catalog_resumes, catalog_sessions
from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType, Span

STORE_OUTCOME = Label("outcome", ("ok", "deferred", "refused", "error", "cancelled"))
KIND = Label("kind", ("priming", "request", "notification", "response", "error"))
REPLAY_OUTCOME = Label("outcome", ("resumed", "caught_up", "gap", "missed", "error", "client_gone", "cancelled"))
FOLLOW_OUTCOME = Label("outcome", ("completed", "limit", "gone", "error", "client_gone", "cancelled"))
MISS_REASON = Label("reason", ("malformed", "unknown", "expired"))
OPERATION = Label("operation", ("store", "replay", "follow"))
ERROR_TYPE = Label("error_type", ("unavailable", "rejected", "other"))
TROUBLE = Label(
    "reason",
    ("timeout", "connection", "pool", "loading", "busy", "readonly", "oom", "noscript", "auth", "other"),
)
LOSS_REASON = Label("reason", ("overflow", "rejected", "rollback", "session_limit", "shutdown"))
SINK = Label("sink", ("metrics", "otel_metrics", "traces", "logs"))
SAMPLE_OUTCOME = Label("outcome", ("ok", "elsewhere", "error", "cancelled"))

# Measured by `make bench`, p50 and p99: one writer 0.06 and 0.1 ms, 500 writers 3 and 7; past 250 ms it is deferred.
STORE_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_EVENTS = (1, 2, 4, 8, 16, 32, 63)  # 64 at most: one by one is told from full.
# Measured there: 0.4 ms for 100 events, 2.6 for 1,000; the rest is for slow clients.
REPLAY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000)
BYTES = (0, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864)
SAMPLE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
AGE_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 900, 1_800, 3_600, 14_400, 86_400)

STORE_DURATION = Metric(
    "eventscope_store_duration_seconds",
    MetricType.HISTOGRAM,
    "Seconds between accepting an event and Redis's acknowledgement, by how it ended.",
    (STORE, STORE_OUTCOME),
    STORE_SECONDS,
)
STORE_WAIT = Metric(
    "eventscope_store_wait_seconds",
    MetricType.HISTOGRAM,
    "Seconds that the sender of a message waited for the event store. It stores in the background.",
    (STORE,),
    STORE_SECONDS,
)
ACCEPTED_EVENTS = Metric(
    "eventscope_events_accepted_total",
    MetricType.COUNTER,
    "Events of sessions that were accepted: each is stored later, or counted as lost or refused.",
    (STORE,),
)
STORED_EVENTS = Metric(
    "eventscope_stored_events_total",
    MetricType.COUNTER,
    "Events stored, by the kind of message.",
    (STORE, KIND),
)
STORED_BYTES = Metric(
    "eventscope_stored_bytes_total", MetricType.COUNTER, "Payload bytes of the events stored.", (STORE,)
)
COMMIT_DURATION = Metric(
    "eventscope_commit_duration_seconds",
    MetricType.HISTOGRAM,
    "Seconds between sending a batch of events to Redis and its acknowledgement.",
    (STORE,),
    STORE_SECONDS,
)
COMMIT_EVENTS = Metric(
    "eventscope_commit_events", MetricType.HISTOGRAM, "Events stored together, in one batch.", (STORE,), BATCH_EVENTS
)
COMMIT_RETRIES = Metric(
    "eventscope_commit_retries_total",
    MetricType.COUNTER,
    "Batches that were sent again, by the reason. Each event is stored once all the same.",
    (STORE, TROUBLE),
)
DEGRADED = Metric(
    "eventscope_degraded",
    MetricType.GAUGE,
    "1 while Redis is unreachable or too slow: messages keep their ids, and are stored later.",
    (STORE,),
    together="livemax",
)
DEGRADED_SECONDS = Metric(
    "eventscope_degraded_seconds_total",
    MetricType.COUNTER,
    "Seconds for which Redis was away or too slow, by the reason; counted when it is back.",
    (STORE, TROUBLE),
    otel="eventscope.degraded_time",
)
DEGRADATIONS = Metric(
    "eventscope_degradations_total",
    MetricType.COUNTER,
    "Times that Redis was found to be away or too slow, by the reason.",
    (STORE, TROUBLE),
)
BACKLOG_EVENTS = Metric(
    "eventscope_backlog_events",
    MetricType.GAUGE,
    "Events that wait in memory until Redis is back.",
    (STORE,),
    together="livesum",
)
BACKLOG_BYTES = Metric(
    "eventscope_backlog_bytes",
    MetricType.GAUGE,
    "Bytes of memory that the events that wait take up.",
    (STORE,),
    together="livesum",
)
LOST_EVENTS = Metric(
    "eventscope_lost_events_total",
    MetricType.COUNTER,
    "Events that will never be stored, that Redis has lost, or that were evicted, by the reason: a resume cannot "
    "deliver them.",
    (STORE, LOSS_REASON),
)
REPLAY_DURATION = Metric(
    "eventscope_replay_duration_seconds",
    MetricType.HISTOGRAM,
    "Seconds of one replay, reading and sending, by how it ended.",
    (STORE, REPLAY_OUTCOME),
    REPLAY_SECONDS,
)
REPLAY_EVENTS = Metric(
    "eventscope_replay_events", MetricType.HISTOGRAM, "Events delivered by one replay.", (STORE,), COUNTS
)
REPLAY_BYTES = Metric(
    "eventscope_replay_bytes", MetricType.HISTOGRAM, "Payload bytes delivered by one replay.", (STORE,), BYTES
)
REPLAY_MISSES = Metric(
    "eventscope_replay_misses_total",
    MetricType.COUNTER,
    "Replays that found nothing to resume from, by the reason.",
    (STORE, MISS_REASON),
)
RESUME_AGE = Metric(
    "eventscope_resume_age_seconds",
    MetricType.HISTOGRAM,
    "Seconds between the last event that a client had and its return: near the TTL, events are about to be lost.",
    (STORE,),
    AGE_SECONDS,
)
MISSING_EVENTS = Metric(
    "eventscope_replay_missing_events_total",
    MetricType.COUNTER,
    "Events that were owed to a client, and were gone.",
    (STORE,),
)
CORRUPT_EVENTS = Metric(
    "eventscope_replay_corrupt_events_total",
    MetricType.COUNTER,
    "Events that could not be read, and were skipped.",
    (STORE,),
)
FOLLOWERS = Metric(
    "eventscope_followers",
    MetricType.GAUGE,
    "Resumed streams that are being followed now.",
    (STORE,),
    together="livesum",
)
FOLLOW_DURATION = Metric(
    "eventscope_follow_duration_seconds",
    MetricType.HISTOGRAM,
    "Seconds that a resumed stream was followed, by how it ended.",
    (STORE, FOLLOW_OUTCOME),
    AGE_SECONDS,
)
FOLLOWED_EVENTS = Metric(
    "eventscope_followed_events_total",
    MetricType.COUNTER,
    "Events delivered to resumed streams as they were stored.",
    (STORE,),
)
ORPHANED = Metric(
    "eventscope_requests_orphaned_total",
    MetricType.COUNTER,
    "Requests answered with an error by this worker, because the one that ran them is gone or is ending.",
    (STORE,),
    otel="eventscope.orphaned.requests",
)
ERRORS = Metric(
    "eventscope_errors_total",
    MetricType.COUNTER,
    "Operations on the store that failed, by operation and type of error.",
    (STORE, OPERATION, ERROR_TYPE),
)
TTL = Metric(
    "eventscope_ttl_seconds",
    MetricType.GAUGE,
    "Seconds that events are kept; 0 when they never expire, or the store does not say.",
    (STORE,),
    together="livemax",  # All say the same, but for the moment in which one starts, and says 0.
)
TELEMETRY_FAILURES = Metric(
    "eventscope_telemetry_failures_total",
    MetricType.COUNTER,
    "Signals that could not be recorded, by sink. The operations themselves were not affected.",
    (STORE, SINK),
)


def _redis_gauge(name: str, text: str) -> Metric:
    """A gauge that is set from a sample: of several workers the one counts that sampled last."""
    return Metric(f"eventscope_redis_{name}", MetricType.GAUGE, text, (STORE,), together="livemostrecent", sampled=True)


REDIS_KEYS = _redis_gauge("keys", "Keys under the prefix of the store, when all keys had last been looked at.")
REDIS_KEYS_WITHOUT_TTL = _redis_gauge(
    "keys_without_ttl", "Of these, the keys that will never expire: they should be none where a TTL is set."
)
REDIS_DB_KEYS = _redis_gauge("db_keys", "Keys in the whole database, whoever they belong to.")
REDIS_EVENT_BYTES = _redis_gauge(
    "event_bytes", "Memory that Redis needs for one event, on average of some that were weighed; without its index."
)
REDIS_MEMORY = _redis_gauge("memory_used_bytes", "Memory that Redis uses, for everything.")
REDIS_MEMORY_LIMIT = _redis_gauge(
    "memory_max_bytes", "Memory that Redis may use (maxmemory); 0 when there is no limit."
)
REDIS_EVICTED = Metric(
    "eventscope_redis_evicted_keys_total",
    MetricType.COUNTER,
    "Keys that Redis evicted between two samples, of whatever database: events that cannot be replayed any more.",
    (STORE,),
)
SAMPLE_DURATION = Metric(
    "eventscope_redis_sample_duration_seconds",
    MetricType.HISTOGRAM,
    "Seconds to sample Redis, by how it ended; elsewhere: another worker does it.",
    (STORE, SAMPLE_OUTCOME),
    SAMPLE_SECONDS,
)

METRICS = (
    STORE_DURATION,
    STORE_WAIT,
    ACCEPTED_EVENTS,
    STORED_EVENTS,
    STORED_BYTES,
    COMMIT_DURATION,
    COMMIT_EVENTS,
    COMMIT_RETRIES,
    DEGRADED,
    DEGRADED_SECONDS,
    DEGRADATIONS,
    BACKLOG_EVENTS,
    BACKLOG_BYTES,
    LOST_EVENTS,
    REPLAY_DURATION,
    REPLAY_EVENTS,
    REPLAY_BYTES,
    REPLAY_MISSES,
    RESUME_AGE,
    MISSING_EVENTS,
    CORRUPT_EVENTS,
    FOLLOWERS,
    FOLLOW_DURATION,
    FOLLOWED_EVENTS,
    ORPHANED,
    ERRORS,
    TTL,
    TELEMETRY_FAILURES,
    REDIS_KEYS,
    REDIS_KEYS_WITHOUT_TTL,
    REDIS_DB_KEYS,
    REDIS_EVENT_BYTES,
    REDIS_MEMORY,
    REDIS_MEMORY_LIMIT,
    REDIS_EVICTED,
    SAMPLE_DURATION,
    *catalog_resumes.METRICS,
    *catalog_sessions.METRICS,
)

_COMMON = ("eventscope.store", "eventscope.stream.id", "eventscope.session.hash", "eventscope.outcome", "error.type")

STORE_SPAN = Span(
    "event_store.store",
    "One event is stored.",
    (*_COMMON, "eventscope.event.id", "eventscope.message.kind", "eventscope.payload.bytes"),
)
REPLAY_SPAN = Span(
    "event_store.replay",
    "One replay, from the lookup of the last event id to the last event sent. Links to the stores of what it sent.",
    (
        *_COMMON,
        "eventscope.replay.events",
        "eventscope.replay.bytes",
        "eventscope.replay.missing",
        "eventscope.replay.corrupt",
        "eventscope.replay.miss_reason",
        "eventscope.replay.age",
    ),
)

SPANS = (STORE_SPAN, REPLAY_SPAN)

TTL_MISSING = LogEvent(
    "event_store.ttl_missing",
    "warning",
    "The store keeps events for ever: Redis fills up until it evicts or refuses writes.",
    ("store", "fix"),
)
UNSCOPED = LogEvent(
    "event_store.unscoped",
    "warning",
    "A root store is used through the SDK's interface: sessions share streams, and are replayed each other's events.",
    ("store", "fix"),
)
INERT = LogEvent(
    "event_store.inert",
    "warning",
    "The server runs in a mode, or a client speaks a revision of the protocol, in which nothing can be resumed.",
    ("mode", "fix"),
)
EMBEDDED = LogEvent(
    "event_store.embedded",
    "warning",
    "No Redis was named, so one is started beside this process.",
    ("address", "consequence", "fix"),
)
UNREACHABLE = LogEvent(
    "event_store.unreachable",
    "warning",
    "The store does not answer at start. The server serves; events are stored when the store is reachable.",
    ("address", "error", "fix"),
)
STORE_FAILED = LogEvent(
    "event_store.store_failed",
    "error",
    "A third-party store, or the root store, did not take an event. It was sent live, without an id.",
    ("store", "session", "stream_id", "error", "error_type", "suppressed"),
)
STORE_DEGRADED = LogEvent(
    "event_store.degraded",
    "warning",
    "Redis is unreachable or too slow. Messages keep their ids, and are stored when it has recovered.",
    ("store", "reason", "error"),
)
STORE_RECOVERED = LogEvent(
    "event_store.recovered",
    "info",
    "Redis is back, and what waited is being stored.",
    ("store", "reason", "seconds", "backlog_events"),
)
EVENTS_LOST = LogEvent(
    "event_store.events_lost",
    "error",
    "Events will never be stored, Redis has lost them, or they were evicted. A resume of their streams has a gap, or "
    "ends with an error.",
    ("store", "reason", "events", "payload_bytes", "fix", "suppressed"),
)
REPLAY_FAILED = LogEvent(
    "event_store.replay_failed",
    "error",
    "A replay or the following of a stream failed.",
    ("store", "session", "stream_id", "operation", "error", "error_type", "suppressed"),
)
REPLAY_INCOMPLETE = LogEvent(
    "event_store.replay_incomplete",
    "warning",
    "A client came back, and not all that was owed to it could be delivered.",
    ("store", "session", "stream_id", "outcome", "reason", "missing", "corrupt", "event_ids", "suppressed"),
)
TELEMETRY_FAILED = LogEvent(
    "event_store.telemetry_failed",
    "error",
    "A signal could not be recorded. The operation itself was not affected.",
    ("store", "sink", "error", "suppressed"),
)
SAMPLED_AGAIN = 600.0
"""Seconds: what one sample finds, the next one finds too."""
METRICS_UNSERVED = LogEvent(
    "event_store.metrics_unserved",
    "warning",
    "The separate port of the metrics cannot be had. The server serves; it is tried again, and not told again.",
    ("address", "error", "fix"),
)
SAMPLE_FAILED = LogEvent(
    "event_store.sample_failed",
    "warning",
    "Redis could not be sampled: the gauges about it are as old as the last sample.",
    ("store", "error", "error_type", "suppressed"),
    repeat=SAMPLED_AGAIN,
)
TTL_MISSING_KEYS = LogEvent(
    "event_store.ttl_missing_keys",
    "warning",
    "A TTL is set, and there are keys under the prefix that will never expire.",
    ("store", "keys", "kinds", "fix", "suppressed"),
    repeat=SAMPLED_AGAIN,
)

LOG_EVENTS = (
    TTL_MISSING,
    UNSCOPED,
    INERT,
    EMBEDDED,
    UNREACHABLE,
    STORE_FAILED,
    STORE_DEGRADED,
    STORE_RECOVERED,
    EVENTS_LOST,
    REPLAY_FAILED,
    REPLAY_INCOMPLETE,
    TELEMETRY_FAILED,
    METRICS_UNSERVED,
    SAMPLE_FAILED,
    TTL_MISSING_KEYS,
    *catalog_resumes.LOG_EVENTS,
    *catalog_sessions.LOG_EVENTS,
)
