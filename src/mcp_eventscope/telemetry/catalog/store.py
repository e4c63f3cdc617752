"""Catalog: storing, replaying and following events, and the messages between workers."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType, Span

STORE_OUTCOME = Label("outcome", ("ok", "deferred", "refused", "error", "cancelled"))
MESSAGE_TYPE = Label("message_type", ("priming", "request", "notification", "response", "error"))
REPLAY_OUTCOME = Label(
    "outcome", ("resumed", "caught_up", "gap", "missed", "unavailable", "error", "client_disconnected", "cancelled")
)
FOLLOW_OUTCOME = Label("outcome", ("completed", "timeout", "worker_lost", "error", "client_disconnected", "cancelled"))
MISS_REASON = Label("reason", ("malformed", "unknown", "expired"))
GAP_REASON = Label("reason", ("trimmed", "evicted", "overflow", "rejected", "rollback", "store_lost"))
OPERATION = Label("operation", ("store", "replay", "follow"))
ERROR_TYPE = Label("error_type", ("unavailable", "rejected", "other"), convention="error.type")
FAILURE_REASON = Label(
    "reason",
    ("timeout", "connection", "pool", "loading", "busy", "readonly", "oom", "noscript", "auth", "other"),
)
DROP_REASON = Label("reason", ("expired", "overflow", "refused", "malformed", "lost", "too_large"))
LOSS_REASON = Label("reason", ("overflow", "rejected", "rollback", "session_limit", "shutdown"))
SINK = Label("sink", ("metrics", "otel_metrics", "traces", "logs"))

# Measured by `make bench`, p50 and p99: one writer 0.06 and 0.1 ms, 500 writers 3 and 7; deferred after 250 ms.
STORE_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 255, 383)  # A full batch, of 256 or 384 events, has a bucket of its own.
# Measured by the same: 0.4 ms for 100 events, 2.6 for 1,000; the upper buckets are for slow clients.
REPLAY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000)
BYTES = (0, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
SIZE_RATIOS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
AGE_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 900, 1_800, 3_600, 14_400, 86_400)

STORE_DURATION = Metric(
    "eventscope_store_duration_seconds",
    MetricType.HISTOGRAM,
    "Latency of storing an event, from acceptance to the acknowledgement by Redis, by outcome.",
    (STORE, STORE_OUTCOME),
    STORE_SECONDS,
)
STORE_WAIT = Metric(
    "eventscope_store_wait_seconds",
    MetricType.HISTOGRAM,
    "Time for which storing an event blocked the sender of the message. Events are stored in the background.",
    (STORE,),
    STORE_SECONDS,
)
EVENTS_ACCEPTED = Metric(
    "eventscope_events_accepted_total",
    MetricType.COUNTER,
    "Session events that received an id. Each is stored later, or counted as lost or refused.",
    (STORE,),
    counted="event",
)
EVENTS_STORED = Metric(
    "eventscope_events_stored_total",
    MetricType.COUNTER,
    "Events stored, by message type.",
    (STORE, MESSAGE_TYPE),
    counted="event",
)
PAYLOAD_STORED_BYTES = Metric(
    "eventscope_payload_stored_bytes_total", MetricType.COUNTER, "Payload bytes of the events stored.", (STORE,)
)
COMMIT_DURATION = Metric(
    "eventscope_commit_duration_seconds",
    MetricType.HISTOGRAM,
    "Redis write latency: from sending a batch of events to its acknowledgement.",
    (STORE,),
    STORE_SECONDS,
)
COMMIT_BATCH_SIZE = Metric(
    "eventscope_commit_batch_size",
    MetricType.HISTOGRAM,
    "Events per batch.",
    (STORE,),
    BATCH_EVENTS,
    counted="event",
)
COMMIT_RETRIES = Metric(
    "eventscope_commit_retries_total",
    MetricType.COUNTER,
    "Batches sent again, by reason. A retry never stores an event twice.",
    (STORE, FAILURE_REASON),
    counted="retry",
)
DEGRADED = Metric(
    "eventscope_degraded",
    MetricType.GAUGE,
    "1 while Redis is unreachable, too slow, or refuses writes. Messages keep their ids; they are stored later.",
    (STORE,),
    counted="state",
    multiprocess_mode="livemax",
    per_worker=True,
)
DEGRADATION_DURATION = Metric(
    "eventscope_degradation_duration_seconds_total",
    MetricType.COUNTER,
    "Seconds for which Redis was unreachable, too slow, or refused writes, by reason; added at recovery.",
    (STORE, FAILURE_REASON),
)
DEGRADATIONS = Metric(
    "eventscope_degradations_total",
    MetricType.COUNTER,
    "Times that Redis became unreachable, too slow, or refused writes, by reason.",
    (STORE, FAILURE_REASON),
    counted="degradation",
)
BACKLOG_LENGTH = Metric(
    "eventscope_backlog_length",
    MetricType.GAUGE,
    "Pending events: sent to clients, in memory, not yet acknowledged by Redis.",
    (STORE,),
    counted="event",
    multiprocess_mode="livesum",
    per_worker=True,
)
BACKLOG_SIZE = Metric(
    "eventscope_backlog_size_bytes",
    MetricType.GAUGE,
    "Memory that pending events take up.",
    (STORE,),
    multiprocess_mode="livesum",
    per_worker=True,
)
EVENTS_LOST_TOTAL = Metric(
    "eventscope_events_lost_total",
    MetricType.COUNTER,
    "Events never stored, lost by Redis, or evicted, by reason. A resume cannot deliver them.",
    (STORE, LOSS_REASON),
    counted="event",
)
WORKER_MESSAGES_DROPPED = Metric(
    "eventscope_worker_messages_dropped_total",
    MetricType.COUNTER,
    "Messages between workers (answers, cancellations, ends of streams) that were not delivered, by reason.",
    (STORE, DROP_REASON),
    counted="message",
)
REPLAY_DURATION = Metric(
    "eventscope_replay_duration_seconds",
    MetricType.HISTOGRAM,
    "Latency of a replay, reading and sending, by outcome.",
    (STORE, REPLAY_OUTCOME),
    REPLAY_SECONDS,
)
REPLAY_EVENTS = Metric(
    "eventscope_replay_events",
    MetricType.HISTOGRAM,
    "Events delivered per replay.",
    (STORE,),
    COUNTS,
    counted="event",
)
REPLAY_SIZE = Metric(
    "eventscope_replay_size_bytes", MetricType.HISTOGRAM, "Payload bytes delivered per replay.", (STORE,), BYTES
)
REPLAY_MISSES = Metric(
    "eventscope_replay_misses_total",
    MetricType.COUNTER,
    "Replays that found nothing to resume from, by reason.",
    (STORE, MISS_REASON),
    counted="replay",
)
RESUME_AGE = Metric(
    "eventscope_resume_age_seconds",
    MetricType.HISTOGRAM,
    "Age of the last event that a resuming client had received. Near the TTL, events are about to be lost.",
    (STORE,),
    AGE_SECONDS,
)
EVENTS_MISSING = Metric(
    "eventscope_events_missing_total",
    MetricType.COUNTER,
    "Events due to a resuming client that no longer existed, by reason: older than the TTL (trimmed), evicted by "
    "max_session_bytes, dropped in a long outage (overflow), refused by Redis (rejected), lost by Redis and reported "
    "by their worker (rollback), or lost by Redis unnoticed (store_lost).",
    (STORE, GAP_REASON),
    counted="event",
)
EVENTS_CORRUPT = Metric(
    "eventscope_events_corrupt_total",
    MetricType.COUNTER,
    "Events due to a resuming client that could not be decoded, and were skipped; and elements that another program "
    "had appended to a stream, and that its worker removed.",
    (STORE,),
    counted="event",
)
STREAMS_FOLLOWED = Metric(
    "eventscope_streams_followed",
    MetricType.GAUGE,
    "Streams that are read from the store as events arrive: resumed calls and standalone streams.",
    (STORE,),
    counted="stream",
    multiprocess_mode="livesum",
    per_worker=True,
)
FOLLOW_DURATION = Metric(
    "eventscope_follow_duration_seconds",
    MetricType.HISTOGRAM,
    "Time for which a resumed stream was followed, by outcome.",
    (STORE, FOLLOW_OUTCOME),
    AGE_SECONDS,
)
FOLLOW_LAG = Metric(
    "eventscope_follow_lag_seconds",
    MetricType.HISTOGRAM,
    "Time from the acceptance of an event by one worker, by Redis's clock, to its delivery to a follower on another "
    "one. Without events that are older than the following.",
    (STORE,),
    LAG_SECONDS,
)
SESSION_SIZE_RATIO = Metric(
    "eventscope_sessions_size_ratio",
    MetricType.HISTOGRAM,
    "Bytes of a session in Redis, divided by max_session_bytes, whenever a worker adds to them: after 32 requests, a "
    "64th of the limit, or the end of a session. Above 1, its oldest events are evicted.",
    (STORE,),
    SIZE_RATIOS,
)
EVENTS_FOLLOWED = Metric(
    "eventscope_events_followed_total",
    MetricType.COUNTER,
    "Events delivered to followed streams as they were stored.",
    (STORE,),
    counted="event",
)
REQUESTS_ORPHANED = Metric(
    "eventscope_requests_orphaned_total",
    MetricType.COUNTER,
    "Orphaned requests: answered with an error by this worker because their worker died or was stopping.",
    (STORE,),
    counted="request",
)
ERRORS = Metric(
    "eventscope_errors_total",
    MetricType.COUNTER,
    "Failed store operations, by operation and error type.",
    (STORE, OPERATION, ERROR_TYPE),
    counted="error",
)
TTL = Metric(
    "eventscope_ttl_seconds",
    MetricType.GAUGE,
    "TTL of events. Absent where events never expire, and for third-party stores.",
    (STORE,),
    multiprocess_mode="livemax",
    optional=True,
)
TELEMETRY_FAILURES = Metric(
    "eventscope_telemetry_failures_total",
    MetricType.COUNTER,
    "Signals that could not be recorded, by sink. The operations themselves were not affected.",
    (STORE, SINK),
    counted="signal",
)

METRICS = (
    STORE_DURATION,
    STORE_WAIT,
    EVENTS_ACCEPTED,
    EVENTS_STORED,
    PAYLOAD_STORED_BYTES,
    COMMIT_DURATION,
    COMMIT_BATCH_SIZE,
    COMMIT_RETRIES,
    DEGRADED,
    DEGRADATION_DURATION,
    DEGRADATIONS,
    BACKLOG_LENGTH,
    BACKLOG_SIZE,
    EVENTS_LOST_TOTAL,
    WORKER_MESSAGES_DROPPED,
    REPLAY_DURATION,
    REPLAY_EVENTS,
    REPLAY_SIZE,
    REPLAY_MISSES,
    RESUME_AGE,
    EVENTS_MISSING,
    EVENTS_CORRUPT,
    STREAMS_FOLLOWED,
    FOLLOW_DURATION,
    EVENTS_FOLLOWED,
    FOLLOW_LAG,
    SESSION_SIZE_RATIO,
    REQUESTS_ORPHANED,
    ERRORS,
    TTL,
    TELEMETRY_FAILURES,
)

_COMMON = (
    "eventscope.store",
    "eventscope.worker",
    "eventscope.stream_id",
    "eventscope.session_hash",
    "eventscope.outcome",
    "error.type",
)

STORE_SPAN = Span(
    "event_store.store",
    "Storing one event, until it is acknowledged.",
    (*_COMMON, "eventscope.event_id", "eventscope.message_type", "eventscope.payload_bytes"),
)
REPLAY_SPAN = Span(
    "event_store.replay",
    "One replay, from looking up the last event id to sending the last event. Belongs to the trace of the call whose "
    "events it delivers, and links to the HTTP request that resumed, and to the spans that stored the events. On the "
    "standalone stream, and if the call was not sampled: belongs to the trace of that request.",
    (
        *_COMMON,
        "eventscope.events",
        "eventscope.payload_bytes",
        "eventscope.missing_events",
        "eventscope.corrupt_events",
        "eventscope.reason",
        "eventscope.age_seconds",
    ),
)

FOLLOW_SPAN = Span(
    "event_store.follow",
    "Following one stream after a replay, until its response or the follow timeout: seconds to minutes. Trace and "
    "links as of `event_store.replay`.",
    (
        *_COMMON,
        "eventscope.events",
        "eventscope.payload_bytes",
        "eventscope.missing_events",
        "eventscope.corrupt_events",
        "eventscope.reason",
    ),
)

SPANS = (
    STORE_SPAN,
    REPLAY_SPAN,
    FOLLOW_SPAN,
)

TTL_MISSING = LogEvent(
    "event_store.ttl_missing",
    "warning",
    "The store has no TTL: Redis fills up until it evicts keys or refuses writes.",
    ("store", "fix"),
)
SESSIONS_NOT_ISOLATED = LogEvent(
    "event_store.sessions_not_isolated",
    "warning",
    "A root store is used through the SDK's interface: sessions share streams, and receive each other's events.",
    ("store", "fix"),
)
RESUMPTION_DISABLED = LogEvent(
    "event_store.resumption_disabled",
    "warning",
    "A server mode, or the protocol revision of a client, rules out resumption.",
    ("mode", "fix"),
)
EMBEDDED = LogEvent(
    "event_store.embedded",
    "warning",
    "No Redis is configured: an embedded Valkey is started as a child process.",
    ("address", "consequence", "fix"),
)
UNREACHABLE = LogEvent(
    "event_store.unreachable",
    "warning",
    "The store is unreachable at start. The server serves; events are stored once it is reachable.",
    ("address", "error", "fix"),
)
STORE_FAILED = LogEvent(
    "event_store.store_failed",
    "error",
    "A third-party store or the root store failed to store an event. The message was sent without an id.",
    ("store", "session_hash", "stream_id", "error", "error_type", "suppressed"),
)
STORE_DEGRADED = LogEvent(
    "event_store.degraded",
    "warning",
    "Redis is unreachable, too slow, or refuses writes. Messages keep their ids, and are stored after recovery.",
    ("store", "reason", "error"),
)
STORE_RECOVERED = LogEvent(
    "event_store.recovered",
    "info",
    "Redis has recovered, and the pending events are being stored.",
    ("store", "reason", "degraded_seconds", "backlog_length"),
)
EVENTS_LOST = LogEvent(
    "event_store.events_lost",
    "error",
    "Events will never be stored, were lost by Redis, or were evicted. A resume of their streams reports a gap or an "
    "error.",
    ("store", "reason", "events", "payload_bytes", "fix", "suppressed"),
)
FOREIGN_ELEMENTS_REMOVED = LogEvent(
    "event_store.foreign_elements_removed",
    "warning",
    "Another program had appended elements to a stream. They would have hidden later events, and were removed.",
    ("store", "elements", "fix", "suppressed"),
)
MESSAGES_DROPPED = LogEvent(
    "event_store.messages_dropped",
    "warning",
    "Messages to or from other workers were not delivered: an answer, a cancellation, or the end of a stream.",
    ("store", "reason", "messages", "fix", "suppressed"),
)
REPLAY_FAILED = LogEvent(
    "event_store.replay_failed",
    "error",
    "Replaying or following a stream failed.",
    ("store", "session_hash", "stream_id", "operation", "error", "error_type", "suppressed"),
)
REPLAY_INCOMPLETE = LogEvent(
    "event_store.replay_incomplete",
    "warning",
    "A resume could not deliver all events that were due to the client. Of several reasons, that of the most events; "
    "none if events are corrupt only.",
    (
        "store",
        "session_hash",
        "stream_id",
        "operation",
        "outcome",
        "reason",
        "missing_events",
        "corrupt_events",
        "event_ids",
        "fix",
        "suppressed",
    ),
)
TELEMETRY_FAILED = LogEvent(
    "event_store.telemetry_failed",
    "error",
    "A signal could not be recorded. The operation itself was not affected.",
    ("store", "sink", "error", "suppressed"),
)
METRICS_PORT_UNAVAILABLE = LogEvent(
    "event_store.metrics_port_unavailable",
    "warning",
    "The metrics port cannot be opened. The server serves, and retries in the background; logged once.",
    ("address", "error", "fix"),
)

LOG_EVENTS = (
    TTL_MISSING,
    SESSIONS_NOT_ISOLATED,
    RESUMPTION_DISABLED,
    EMBEDDED,
    UNREACHABLE,
    STORE_FAILED,
    STORE_DEGRADED,
    STORE_RECOVERED,
    EVENTS_LOST,
    FOREIGN_ELEMENTS_REMOVED,
    MESSAGES_DROPPED,
    REPLAY_FAILED,
    REPLAY_INCOMPLETE,
    TELEMETRY_FAILED,
    METRICS_PORT_UNAVAILABLE,
)
