"""Catalog: the start of an application, and the self-test of Redis."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType

CAPABILITY = Label(
    "capability", ("version", "scripts", "commands", "keys", "publish", "subscribe", "writes", "no_eviction")
)

REDIS_CAPABILITY = Metric(
    "eventscope_redis_capability",
    MetricType.GAUGE,
    "1 if Redis has a capability that the store needs, else 0: its version, scripts, their commands, keys and channels "
    "under the prefix, writes (not a replica), no eviction. Tested once, at start; absent if unknown.",
    (STORE, CAPABILITY),
    counted="capability",
    multiprocess_mode="livemin",
    optional=True,
)

METRICS = (REDIS_CAPABILITY,)

STARTED = LogEvent(
    "event_store.started",
    "info",
    "An application has started, with this store. Third-party stores have neither a prefix nor a worker name.",
    ("store", "version", "kind", "address", "key_prefix", "ttl_seconds", "worker"),
)
LIFESPAN_MISSING = LogEvent(
    "event_store.lifespan_missing",
    "warning",
    "A request arrived, and the application was not started: its lifespan is not run. Requests are answered with 503; "
    "logged once.",
    ("store", "fix"),
)
REDIS_TESTED = LogEvent(
    "event_store.redis_tested",
    "info",
    "Redis has every capability that the store needs, as far as it can be tested.",
    ("store", "capabilities"),
)
REDIS_LIMITED = LogEvent(
    "event_store.redis_limited",
    "warning",
    "Redis lacks capabilities that the store needs.",
    ("store", "missing", "commands", "fix"),
)
SETTING_UNKNOWN = LogEvent(
    "event_store.setting_unknown",
    "warning",
    "An environment variable resembles that of an option, and has no effect.",
    ("variable", "fix"),
)

LOG_EVENTS = (SETTING_UNKNOWN, STARTED, LIFESPAN_MISSING, REDIS_TESTED, REDIS_LIMITED)
