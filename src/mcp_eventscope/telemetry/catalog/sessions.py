"""Catalog: sessions, requests, and installed versions."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType

ORIGIN = Label("origin", ("opened", "adopted"))
SESSION_END_REASON = Label("reason", ("deleted", "other_worker", "idle", "failed", "shutdown"))
REFUSAL_REASON = Label("reason", ("limit", "unknown", "not_owner", "other_server", "unavailable", "resumes", "invalid"))
PROTOCOL_VERSION = Label(
    "mcp_protocol_version",
    ("none", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "other"),
    convention="mcp.protocol.version",
)
NEVER_RESUMES = ("2026-07-28", "other")
"""Protocol versions whose requests never reach an event store: the newer has no sessions, others are refused."""

OTHER = "_OTHER"
"""The value of the semantic conventions for anything outside of a closed set."""
METHOD = Label(
    "mcp_method_name",
    (
        "initialize",
        "ping",
        "tools/call",
        "tools/list",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "completion/complete",
        "logging/setLevel",
        "tasks/cancel",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        OTHER,
    ),
    convention="mcp.method.name",
)
"""The requests of a client that has a session. Clients choose the text, so anything else is `_OTHER`."""
TOOL_ERROR = "tool_error"
"""The convention's value for a tool that returned `isError`."""
CANCELLED = "-32800"
"""The SDK's answer to a request that its client cancelled."""
FAILED_OPERATION = (
    TOOL_ERROR,
    "-32600",
    "-32601",
    "-32602",
    "-32603",
    "-32001",
    "-32002",
    "-32010",
    "-32011",
    "-32042",
    OTHER,
)
"""The errors of operations that the error ratio counts."""
OPERATION_ERROR_TYPE = Label("error_type", ("", *FAILED_OPERATION, CANCELLED), convention="error.type")
TOOL_CALL_ERRORS = ("", TOOL_ERROR, "-32603", "-32010")
"""The error types of `tools/call` that are exposed from the start, so that a rate includes the first one."""
SESSION_ERROR_TYPE = Label("error_type", ("", "failed"), convention="error.type")
NEGOTIATED_VERSION = Label(
    "mcp_protocol_version",
    ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"),
    convention="mcp.protocol.version",
)

# The conventions also recommend the protocol version of operations, and the network protocol and transport. The former
# would multiply the series of the largest histogram, and the latter are constant. The name of a tool is chosen by the
# client until the server has looked it up, which is not known here.
LIFE_SECONDS = (1, 5, 15, 60, 300, 900, 1_800, 3_600, 14_400, 43_200, 86_400)
"""The buckets of what lasts as long as clients stay."""
DURATION_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""The buckets of the semantic conventions for MCP."""
OPERATION_DURATION = Metric(
    "mcp_server_operation_duration_seconds",
    MetricType.HISTOGRAM,
    "Duration of an MCP request within a session, from its arrival to its response, by method; error_type on failure "
    "only: a JSON-RPC error code, or tool_error. Counted once, by the worker that ran it.",
    (STORE, METHOD, OPERATION_ERROR_TYPE),
    DURATION_SECONDS,
    on_demand=True,
    convention="mcp.server.operation.duration",
)
SESSION_DURATION = Metric(
    "mcp_server_session_duration_seconds",
    MetricType.HISTOGRAM,
    "Time for which this worker served an MCP session, by protocol version; error_type only if it failed. A session "
    "that several workers serve counts once per worker.",
    (STORE, NEGOTIATED_VERSION, SESSION_ERROR_TYPE),
    DURATION_SECONDS,
    convention="mcp.server.session.duration",
)

SESSION_DURATION_BY_END = Metric(
    "eventscope_sessions_duration_seconds",
    MetricType.HISTOGRAM,
    "Time for which this worker served a session, by the reason of its end (eventscope_sessions_ended_total). Beyond "
    "the five minutes of mcp_server_session_duration_seconds.",
    (STORE, SESSION_END_REASON),
    LIFE_SECONDS,
)
SESSION_IDLE = Metric(
    "eventscope_sessions_idle_seconds",
    MetricType.HISTOGRAM,
    "Time for which a session had no request on this worker, observed at its next request or its end. Near "
    "session_idle_timeout, clients are about to lose their sessions.",
    (STORE,),
    LIFE_SECONDS,
)
SESSIONS_OLDEST_AGE = Metric(
    "eventscope_sessions_oldest_age_seconds",
    MetricType.GAUGE,
    "Time for which this worker has served the oldest of its sessions; 0 without sessions. Updated every 5 seconds.",
    (STORE,),
    multiprocess_mode="livemax",
    per_worker=True,
)
SESSIONS_LONGEST_IDLE = Metric(
    "eventscope_sessions_longest_idle_seconds",
    MetricType.GAUGE,
    "Time for which the session that has been idle for longest had no request on this worker; 0 if none is idle. "
    "Updated every 5 seconds.",
    (STORE,),
    multiprocess_mode="livemax",
    per_worker=True,
)
SESSIONS_ACTIVE = Metric(
    "eventscope_sessions_active",
    MetricType.GAUGE,
    "Sessions that this worker serves. A session that several workers serve counts once per worker.",
    (STORE,),
    counted="session",
    multiprocess_mode="livesum",
    per_worker=True,
)
SESSIONS_STARTED = Metric(
    "eventscope_sessions_started_total",
    MetricType.COUNTER,
    "Sessions that this worker started to serve, by origin: opened by a client, or adopted from another worker.",
    (STORE, ORIGIN),
    counted="session",
)
SESSIONS_ENDED = Metric(
    "eventscope_sessions_ended_total",
    MetricType.COUNTER,
    "Sessions that this worker no longer serves, by reason: deleted by the client here or on another worker "
    "(other_worker), idle for too long, failed, or shutdown of this worker, after which others can adopt them.",
    (STORE, SESSION_END_REASON),
    counted="session",
)
REQUESTS_REFUSED = Metric(
    "eventscope_requests_refused_total",
    MetricType.COUNTER,
    "Requests refused before a session served them, by reason: too many sessions (limit, 503), no such session "
    "(unknown, 404), the session of another principal (not_owner, 404) or of another server under the same key prefix "
    "(other_server, 404), store unavailable (unavailable, 503), too many waiting resumes of the session (resumes, "
    "503), or an invalid request to open a session (invalid, 4xx).",
    (STORE, REFUSAL_REASON),
    counted="request",
)
RESUME_WAIT = Metric(
    "eventscope_resume_wait_seconds",
    MetricType.HISTOGRAM,
    "Time for which a resume waited for other replays of its principal before its own began: a worker replays at most "
    "8 streams of one principal at the same time. Includes resumes whose clients disconnected while they waited. "
    "Resumes beyond 1,000 waiting ones of a session are refused (eventscope_requests_refused_total, resumes).",
    (STORE,),
    DURATION_SECONDS,
)
REQUESTS_RECEIVED = Metric(
    "eventscope_requests_received_total",
    MetricType.COUNTER,
    "HTTP requests by the protocol version in their header. 2026-07-28 and other cannot resume: they never reach the "
    "event store. none: initialize, and clients older than 2025-06-18, which send no header and can resume.",
    (STORE, PROTOCOL_VERSION),
    counted="request",
)
BUILD_INFO = Metric(
    "eventscope_build_info",
    MetricType.GAUGE,
    "1, labelled with the versions of mcp-eventscope, the MCP SDK, redis-py and Python.",
    (STORE, Label("eventscope", None), Label("mcp", None), Label("redis", None), Label("python", None)),
    counted="build",
    multiprocess_mode="livemax",  # 1 for each set of versions, however many workers run it.
)

METRICS = (
    SESSIONS_ACTIVE,
    SESSIONS_STARTED,
    SESSIONS_ENDED,
    SESSION_DURATION,
    SESSION_DURATION_BY_END,
    SESSION_IDLE,
    SESSIONS_OLDEST_AGE,
    SESSIONS_LONGEST_IDLE,
    OPERATION_DURATION,
    REQUESTS_REFUSED,
    RESUME_WAIT,
    REQUESTS_RECEIVED,
    BUILD_INFO,
)

SESSION_REFUSED = LogEvent(
    "event_store.session_refused",
    "warning",
    "A request was refused before a session served it, for a reason that an operator can act on.",
    ("store", "session_hash", "reason", "fix", "suppressed"),
)
TTL_SHORT = LogEvent(
    "event_store.ttl_short",
    "warning",
    "Events expire while a client can still resume.",
    ("store", "ttl_seconds", "setting", "setting_seconds", "fix"),
)

PREFIX_SHARED = LogEvent(
    "event_store.prefix_shared",
    "warning",
    "Another server uses the same Redis and key prefix. Their sessions stay apart, but not their keys and messages.",
    ("store", "server", "other_server", "fix"),
)

LOG_EVENTS = (SESSION_REFUSED, TTL_SHORT, PREFIX_SHARED)
