"""The part of the catalog that is about sessions, requests, and what is installed."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType

ORIGIN = Label("origin", ("opened", "adopted"))
END = Label("reason", ("deleted", "elsewhere", "idle", "failed", "shutdown"))
REFUSAL = Label("reason", ("limit", "unknown", "owner", "unavailable", "invalid"))
REVISION = Label("revision", ("none", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "other"))
NEVER_RESUMES = ("2026-07-28", "other")
"""The revisions whose requests never reach an event store: the newer one has no sessions, the others are refused."""

SESSIONS = Metric(
    "eventscope_sessions",
    MetricType.GAUGE,
    "Sessions that are served now. One that several workers serve counts for each of them.",
    (STORE,),
    together="livesum",
    otel="eventscope.sessions.served",
)
SESSIONS_BEGUN = Metric(
    "eventscope_sessions_begun_total",
    MetricType.COUNTER,
    "Sessions that began to be served: opened by a client here, or adopted from another worker.",
    (STORE, ORIGIN),
)
SESSIONS_ENDED = Metric(
    "eventscope_sessions_ended_total",
    MetricType.COUNTER,
    "Sessions that are no longer served here: deleted by the client, deleted on another worker (elsewhere), idle for "
    "too long, failed, or at the shutdown of this worker, which others may go on with.",
    (STORE, END),
)
SESSIONS_REFUSED = Metric(
    "eventscope_sessions_refused_total",
    MetricType.COUNTER,
    "Requests that got no session: too many are open (limit, 503), there is none of that id (unknown, 404), it is "
    "another principal's (owner, 404), the store could not be asked (unavailable, 503), or what should have opened one "
    "was refused (invalid, 4xx).",
    (STORE, REFUSAL),
)
REQUESTS = Metric(
    "eventscope_requests_total",
    MetricType.COUNTER,
    "HTTP requests by the protocol revision that they name. 2026-07-28 and other cannot resume: they never reach the "
    "event store. none: initialize, and clients from before 2025-06-18, which name none, and can.",
    (STORE, REVISION),
)
BUILD_INFO = Metric(
    "eventscope_build_info",
    MetricType.GAUGE,
    "1, with the versions of mcp-eventscope, of the MCP SDK, of redis-py and of Python.",
    (STORE, Label("eventscope", None), Label("mcp", None), Label("redis", None), Label("python", None)),
    together="livemax",  # 1 for each set of versions that runs, however many workers have it.
)

METRICS = (SESSIONS, SESSIONS_BEGUN, SESSIONS_ENDED, SESSIONS_REFUSED, REQUESTS, BUILD_INFO)

SESSION_REFUSED = LogEvent(
    "event_store.session_refused",
    "warning",
    "A request got no session, for a reason that an operator can do something about.",
    ("store", "session", "reason", "fix", "suppressed"),
)
TTL_SHORT = LogEvent(
    "event_store.ttl_short",
    "warning",
    "Events expire while a client may still come back for them.",
    ("store", "ttl", "limit", "seconds", "fix"),
)

LOG_EVENTS = (SESSION_REFUSED, TTL_SHORT)
