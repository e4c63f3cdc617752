"""Catalog: statistics that Redis is polled for."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType

REDIS_STATS_OUTCOME = Label("outcome", ("ok", "other_worker", "error", "cancelled"))
REDIS_STATS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


def _redis_gauge(name: str, text: str, counted: str = "") -> Metric:
    """A gauge that Redis statistics set. Of several workers, the latest poll counts."""
    return Metric(
        f"eventscope_redis_{name}",
        MetricType.GAUGE,
        text,
        (STORE,),
        counted=counted,
        multiprocess_mode="livemostrecent",
        polled=True,
        optional=True,
    )


REDIS_KEYS = _redis_gauge("keys", "Keys under the prefix of the store, as of the last full scan.", "key")
REDIS_KEYS_WITHOUT_TTL = _redis_gauge(
    "keys_without_ttl",
    "Keys under the prefix that never expire, as of the last full scan. 0 where a TTL is set.",
    "key",
)
REDIS_DB_KEYS = _redis_gauge("db_keys", "Keys in the whole database, including those of other applications.", "key")
REDIS_EVENT_SIZE = _redis_gauge(
    "event_size_bytes", "Redis memory per event, averaged over a sample of events; without the list itself."
)
REDIS_MEMORY = _redis_gauge("memory_used_bytes", "Memory that Redis uses in total.")
REDIS_MEMORY_LIMIT = _redis_gauge("memory_max_bytes", "Memory limit of Redis (maxmemory); 0 means unlimited.")
REDIS_KEYS_EVICTED = Metric(
    "eventscope_redis_keys_evicted_total",
    MetricType.COUNTER,
    "Keys that Redis evicted, in all databases. An evicted event cannot be replayed.",
    (STORE,),
    counted="key",
)
REDIS_STATS_DURATION = Metric(
    "eventscope_redis_stats_duration_seconds",
    MetricType.HISTOGRAM,
    "Duration of a poll of Redis statistics, by outcome; other_worker: another worker polls.",
    (STORE, REDIS_STATS_OUTCOME),
    REDIS_STATS_SECONDS,
)

METRICS = (
    REDIS_KEYS,
    REDIS_KEYS_WITHOUT_TTL,
    REDIS_DB_KEYS,
    REDIS_EVENT_SIZE,
    REDIS_MEMORY,
    REDIS_MEMORY_LIMIT,
    REDIS_KEYS_EVICTED,
    REDIS_STATS_DURATION,
)

REDIS_STATS_REPEAT = 600.0
"""Seconds between warnings: consecutive polls find the same problem."""
REDIS_STATS_FAILED = LogEvent(
    "event_store.redis_stats_failed",
    "warning",
    "Polling Redis statistics failed: the gauges of Redis are as old as the last successful poll.",
    ("store", "error", "error_type", "suppressed"),
    repeat=REDIS_STATS_REPEAT,
)
KEYS_WITHOUT_TTL = LogEvent(
    "event_store.keys_without_ttl",
    "warning",
    "A TTL is set, but keys under the prefix never expire.",
    ("store", "keys", "key_types", "fix", "suppressed"),
    repeat=REDIS_STATS_REPEAT,
)

LOG_EVENTS = (
    REDIS_STATS_FAILED,
    KEYS_WITHOUT_TTL,
)
