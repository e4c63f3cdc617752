"""Panels of the overview about durability, sessions and requests, and the telemetry itself."""

from dashboards import links, promql
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.objective import BACKLOG
from dashboards.panels import (
    ASIDE,
    BAD,
    CALM,
    DASHED,
    LEGEND,
    OUTCOMES,
    PROBLEM,
    WARN,
    Panel,
    Target,
    coloured,
    column,
    counter,
    describe,
    gauge,
    lines,
    quantiles,
    redis_state,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.sessions import (
    BUILD_INFO,
    CANCELLED,
    FAILED_OPERATION,
    OPERATION_DURATION,
    REQUESTS_RECEIVED,
    REQUESTS_REFUSED,
    RESUME_WAIT,
    SESSION_DURATION,
    SESSION_DURATION_BY_END,
    SESSION_IDLE,
    SESSIONS_ACTIVE,
    SESSIONS_ENDED,
    SESSIONS_LONGEST_IDLE,
    SESSIONS_OLDEST_AGE,
    SESSIONS_STARTED,
    TOOL_ERROR,
)

_VERSIONS = {"eventscope": "mcp-eventscope", "mcp": "MCP SDK", "redis": "redis-py", "python": "Python"}

REDIS_STATE = gauge(
    41,
    "Redis state by worker",
    catalog.store.DEGRADED,
    describe(
        "Whether a worker finds Redis unreachable, too slow, or refusing writes.",
        normal="available on all workers.",
        otherwise="unavailable on all workers: Redis itself. On one: its network, or its connection pool. The Redis "
        "dashboard shows the reason.",
    ),
    "instance",
    defaults={"max": 1, "decimals": 0, "mappings": redis_state(coloured_text=False)},
    custom={"lineInterpolation": "stepAfter", "fillOpacity": 20},
    options={"legend": LEGEND | {"calcs": ["lastNotNull"]}},  # Two words beside a worker are too long.
    links=(to("Degradation rate by reason", REDIS, 14), runbook("EventscopeStoreDegraded")),
)

PENDING_EVENTS = gauge(
    42,
    "Pending events by worker",
    catalog.store.BACKLOG_LENGTH,
    describe(
        "The lag of the store: events that are sent but not yet acknowledged by Redis, in the memory of the workers.",
        normal="near 0, since events are stored within milliseconds; a peak in an outage, which ends seconds after it.",
        otherwise="growing: restore Redis before the backlog is full (100,000 events or 16 MiB per worker by default); "
        "beyond that events are lost. Not falling after an outage: Redis rejects the events.",
    ),
    "instance",
    steps=((None, CALM), (BACKLOG, WARN)),
    custom=DASHED,
    links=(runbook("EventscopeBacklogGrowing"),),
)

ACTIVE_SESSIONS = gauge(
    51,
    "Active sessions by worker",
    SESSIONS_ACTIVE,
    describe(
        "Sessions that a worker serves. A session that several workers serve counts once per worker.",
        normal="about the number of connected clients, evenly distributed.",
        otherwise="growing without more clients: clients do not end their sessions, which end after "
        "session_idle_timeout. A sudden drop to 0: the worker ended, and others adopt its sessions.",
    ),
    "instance",
    links=(to("Sessions ended by reason", links.OVERVIEW, 55),),
)

DURABILITY = (
    counter(
        43,
        "Events lost by reason",
        catalog.store.EVENTS_LOST_TOTAL,
        describe(
            "Events that were sent, but will never be stored, were lost by Redis, or were evicted.",
            normal="0.",
            otherwise="overflow: the outage outlasted the backlog. Rejected: Redis refused an event, usually for its "
            "size. Shutdown: a worker ended before Redis recovered; postpone deployments. Rollback: Redis restarted "
            "without acknowledged events. Session limit: a session exceeded max_session_bytes.",
        ),
        "reason",
        links=(runbook("EventscopeEventsLost"),),
    ),
    gauge(
        44,
        "Backlog memory by worker",
        catalog.store.BACKLOG_SIZE,
        describe(
            "Memory that pending events take up.",
            normal="near 0.",
            otherwise="as for 'Pending events by worker'. It is bounded, so a worker does not run out of memory.",
        ),
        "instance",
        unit="bytes",
        links=(runbook("EventscopeBacklogGrowing"),),
    ),
    gauge(
        45,
        "TTL by worker",
        catalog.store.TTL,
        describe(
            "TTL of events. A worker without a TTL, or with a third-party store, has no line.",
            normal="the same on all workers, and longer than clients stay disconnected.",
            otherwise="a line is absent: pass ttl= to the store, or Redis fills up until it evicts or refuses writes. "
            "Two values: workers differ in configuration; clients can rely on the shorter one.",
        ),
        "instance",
        unit="s",
        links=(runbook("EventscopeTTLMissing"),),
    ),
    gauge(
        46,
        "Keys without TTL",
        catalog.redis_stats.REDIS_KEYS_WITHOUT_TTL,
        describe(
            "Keys under the prefix that never expire. Needs Redis statistics (redis_stats_interval=).",
            normal="0 where a TTL is set.",
            otherwise="the log event_store.keys_without_ttl has their types. Another application writes under the "
            "prefix, or they were stored before a TTL was set: they stay until they are deleted.",
        ),
        colour=PROBLEM,
        links=(to("Keys", REDIS, 22), runbook("EventscopeKeysWithoutTTL")),
    ),
    counter(
        47,
        "Dropped worker messages by reason",
        catalog.store.WORKER_MESSAGES_DROPPED,
        describe(
            "Messages between workers that were not delivered: answers and cancellations of clients, ends of streams.",
            normal="0.",
            otherwise="expired, overflow: Redis was unreachable for more than a minute, a worker did not read, or a "
            "client sent too many. Refused: the user may not write an inbox, see event_store.messages_dropped. "
            "Malformed: another program writes under the prefix. Lost: Redis lost messages before they were read. "
            "too_large: a client sent a notification above 16 KiB.",
        ),
        "reason",
        links=(to("Redis state by worker", links.OVERVIEW, 41),),
    ),
)

SESSIONS_ROW = (
    counter(
        54,
        "Sessions started by origin",
        SESSIONS_STARTED,
        describe(
            "Opened by a client, or adopted from another worker.",
            normal="opened as clients connect; adopted where requests are not sticky.",
            otherwise="many opened and few calls: clients open new sessions instead of resuming. Many adopted in a "
            "short time: a worker ended.",
        ),
        "origin",
        overrides=coloured({"opened": "blue", "adopted": "super-light-blue"}),
        links=(to("Active sessions by worker", links.OVERVIEW, 51),),
    ),
    counter(
        55,
        "Sessions ended by reason",
        SESSIONS_ENDED,
        describe(
            "Sessions that a worker no longer serves. Deleted: by the client. Other_worker: by the client, on another "
            "worker. Idle: for too long. Shutdown: the worker ended, and others can adopt them.",
            normal="deleted, other_worker, idle; shutdown during deployments.",
            otherwise="failed: the session crashed; the log of the application has the error. Mostly idle: clients do "
            "not end their sessions, or session_idle_timeout is shorter than their pauses.",
        ),
        "reason",
        links=(to("Resume drill-down", RESUME),),
    ),
    counter(
        56,
        "Requests refused by reason",
        REQUESTS_REFUSED,
        describe(
            "Requests that no session served. Limit: too many sessions (503). Unknown: no such session (404). "
            "Not_owner: the session of another principal (404). Unavailable: Redis unavailable (503). Resumes: too "
            "many resumes of one session wait (503). Invalid: not a valid request to open a session.",
            normal="a few unknown: clients whose session has ended open a new one.",
            otherwise="limit: more workers, or a higher limit. Unavailable: see 'Redis state by worker'. Many unknown: "
            "Redis lost its data. Resumes: a client resumes in a loop. Not_owner: a client tries session ids of "
            "others; the log is event_store.session_refused.",
        ),
        "reason",
        links=(to("Redis state by worker", links.OVERVIEW, 41), runbook("EventscopeRequestsRefused")),
    ),
    quantiles(
        94,
        "Resume queue wait",
        RESUME_WAIT,
        describe(
            "Time for which resumes waited before their replay, since a worker replays at most 8 streams of one "
            "principal at the same time.",
            normal="milliseconds; seconds while a gateway with one credential for many sessions reconnects.",
            otherwise="seconds for long: a client resumes in a loop, and delays the others of its principal. 'Requests "
            "refused by reason' counts those beyond the queue.",
        ),
        labels={},
        links=(to("Requests refused by reason", links.OVERVIEW, 56), runbook("EventscopeRequestsRefused")),
    ),
    counter(
        57,
        "Request rate by protocol version",
        REQUESTS_RECEIVED,
        describe(
            "HTTP requests by the protocol version in their header. Versions up to 2025-11-25 can resume; 2026-07-28 "
            "cannot. None: initialize, and old clients without the header.",
            normal="mostly one version; older ones fade over months.",
            otherwise="2026-07-28 dominates: fewer clients need resumption. Other: versions that the server refuses.",
        ),
        "mcp_protocol_version",
        overrides=coloured({"2025-11-25": "blue", "none": ASIDE, "2026-07-28": "purple"}),
        links=(to("Resume rate by outcome", links.OVERVIEW, 6),),
    ),
    quantiles(
        58,
        "Session lifetime",
        SESSION_DURATION_BY_END,
        describe(
            "Time for which a worker served a session, up to days, recorded when it ends.",
            normal="as long as clients stay.",
            otherwise="seconds: clients open a session per call. See 'Sessions ended by reason'.",
        ),
        labels={},
        links=(to("Sessions ended by reason", links.OVERVIEW, 55),),
    ),
    quantiles(
        59,
        "Idle time of sessions",
        SESSION_IDLE,
        describe(
            "Pauses of sessions between two requests, and before their end.",
            normal="well below session_idle_timeout.",
            otherwise="near it: clients lose their sessions in pauses; raise session_idle_timeout.",
        ),
        labels={},
    ),
    gauge(
        91,
        "Oldest session by worker",
        SESSIONS_OLDEST_AGE,
        describe(
            "Time for which a worker has served the oldest of its sessions.",
            normal="up to the time since its start.",
            otherwise="growing with 'Longest pause by worker': a client has left its session behind; set "
            "session_idle_timeout.",
        ),
        "instance",
        unit="s",
    ),
    gauge(
        92,
        "Longest pause by worker",
        SESSIONS_LONGEST_IDLE,
        describe(
            "Time for which the session that has been idle for longest had no request.",
            normal="below session_idle_timeout.",
            otherwise="growing: sessions never end, and use memory; set session_idle_timeout.",
        ),
        "instance",
        unit="s",
    ),
    quantiles(
        93,
        "Session size of its limit",
        catalog.store.SESSION_SIZE_RATIO,
        describe(
            "Bytes of a session in Redis, divided by max_session_bytes, as workers add to them.",
            normal="a few percent.",
            otherwise="1: the oldest events of large sessions are evicted ('Events lost by reason', session_limit), "
            "and a late resume reports a gap. Raise max_session_bytes, or lower the TTL.",
        ),
        labels={},
        unit="percentunit",
        links=(to("Events lost by reason", links.OVERVIEW, 43),),
    ),
    lines(
        52,
        "Orphaned request rate",
        describe(
            "Requests answered with an error because the worker that ran them died or was stopping, by the worker that "
            "answered.",
            normal="0; a few per deployment, unless workers drain (shutdown_timeout=).",
            otherwise="without a deployment: workers crash or freeze. Blue lines mark starts; look for the OOM killer, "
            "and for tools that block the event loop for longer than the lease.",
        ),
        Target(promql.rate(catalog.store.REQUESTS_ORPHANED, "", ("instance",)), "{{instance}}"),
        links=(runbook("EventscopeRequestsOrphaned"),),
    ),
)

_METHOD = ("mcp_method_name",)
_ANSWERED = ("", TOOL_ERROR)
"""Requests that their handler answered."""

OPERATIONS = (
    lines(
        71,
        "Operation rate by method",
        describe(
            "MCP requests within sessions that ended, by method. Each counts once, on the worker that ran it, however "
            "often its client resumed.",
            normal="follows the number of clients; mostly tools/call.",
            otherwise="initialize as often as tools/call: clients open a session per call. _OTHER: methods that are "
            "not in the protocol.",
        ),
        Target(promql.rate(OPERATION_DURATION, "count", _METHOD), "{{mcp_method_name}}"),
        links=(to("Request rate by protocol version", links.OVERVIEW, 57),),
    ),
    lines(
        72,
        "Operation latency p99 by method",
        describe(
            "From the arrival of a request to its response; without requests that ended in a JSON-RPC error. Tools "
            "may run for minutes: the bound of the largest bucket is five.",
            normal="tools/call as long as the slowest tools run; other methods below 100 ms.",
            otherwise="all methods: the worker is busy, or its event loop is blocked. Only tools/call: the tools. "
            "'Store wait' shows whether messages wait for Redis.",
        ),
        Target(
            promql.quantile(0.99, OPERATION_DURATION, _METHOD, error_type=_ANSWERED),
            "{{mcp_method_name}}",
            exemplar=True,
        ),
        unit="s",
        most=None,
        links=(to("Store wait", links.OVERVIEW, 37),),
    ),
    lines(
        73,
        "Operation latency p50 by method",
        describe(
            "As 'Operation latency p99 by method': the median.",
            normal="constant for each method.",
            otherwise="p99 grows and p50 does not: a few slow tools or arguments. Both grow: the server is saturated.",
        ),
        Target(
            promql.quantile(0.5, OPERATION_DURATION, _METHOD, error_type=_ANSWERED),
            "{{mcp_method_name}}",
            exemplar=True,
        ),
        unit="s",
        most=None,
        links=(to("Operation latency p99 by method", links.OVERVIEW, 72),),
    ),
    lines(
        74,
        "Operation error ratio by method",
        describe(
            "Requests that ended in a JSON-RPC error or a tool error, as a share of all requests of the method. "
            "Requests that their client cancelled do not count as errors.",
            normal="near 0; as often as tools report an error for tools/call.",
            otherwise="see 'Operation error rate by type'.",
        ),
        Target(
            f"{promql.rate(OPERATION_DURATION, 'count', _METHOD, error_type=FAILED_OPERATION)} / "
            f"({promql.rate(OPERATION_DURATION, 'count', _METHOD)} > 0)",
            "{{mcp_method_name}}",
        ),
        unit="percentunit",
        most=0.05,
        links=(to("Operation error rate by type", links.OVERVIEW, 75), runbook("EventscopeOperationsFailing")),
    ),
    lines(
        75,
        "Operation error rate by type",
        describe(
            "tool_error: the tool reported it. -32800: the client cancelled. -32010: the session or the worker ended, "
            "or the worker was fenced. -32011: the client reused the request's id. -32602 and -32601: invalid "
            "arguments, unknown methods. -32603: an exception in the server.",
            normal="a few tool_error and -32800.",
            otherwise="-32010: see 'Orphaned request rate'. -32603: the log of the application has the exception. "
            "Other negative codes: clients and server disagree about tools or arguments.",
        ),
        Target(
            promql.rate(OPERATION_DURATION, "count", ("error_type",), error_type=(*FAILED_OPERATION, CANCELLED)),
            "{{error_type}}",
        ),
        overrides=coloured({TOOL_ERROR: WARN, "-32603": BAD, "-32010": "purple", CANCELLED: ASIDE}),
        links=(runbook("EventscopeRequestsOrphaned"),),
    ),
    quantiles(
        76,
        "Session duration",
        SESSION_DURATION,
        describe(
            "Time for which a worker served a session, recorded when it ends. A session that several workers serve "
            "counts once per worker. The bound of the largest bucket is five minutes.",
            normal="as long as clients stay.",
            otherwise="seconds: clients open a session per call, or sessions fail ('Sessions ended by reason').",
        ),
        labels={},
        links=(to("Sessions ended by reason", links.OVERVIEW, 55),),
    ),
)

HEALTH = (
    counter(
        61,
        "Telemetry failure rate",
        catalog.store.TELEMETRY_FAILURES,
        describe(
            "Metrics, spans and log events that could not be recorded, by sink. The operations were not affected.",
            normal="0.",
            otherwise="other panels show too little. The log event_store.telemetry_failed has the error: an exporter, "
            "a registry or a logger of the application raises.",
        ),
        "sink",
        links=(runbook("EventscopeTelemetryFailing"),),
    ),
    lines(
        62,
        "Scraped targets",
        describe(
            "Targets that expose the metrics of this library. Workers that share a directory are one target.",
            normal="the configured number.",
            otherwise="fewer: is the target up, does /metrics need a token, was PROMETHEUS_MULTIPROC_DIR emptied?",
        ),
        Target(f"count(group by (job, instance) ({promql.series(BUILD_INFO)}))", "targets"),
        unit="short",
        defaults={"min": 0, "decimals": 0},
        links=(runbook("EventscopeMetricsAbsent"),),
    ),
    lines(
        63,
        "Redis statistics polls by outcome",
        describe(
            "One worker polls, the others skip (other_worker). Empty where Redis statistics are off.",
            normal="ok and other_worker.",
            otherwise="error: the gauges on the Redis dashboard are stale. The Redis user needs INFO, DBSIZE, SCAN, "
            "PTTL and MEMORY USAGE; the log is event_store.redis_stats_failed.",
        ),
        Target(promql.rate(catalog.redis_stats.REDIS_STATS_DURATION, "count", ("outcome",)), "{{outcome}}"),
        overrides=OUTCOMES,
        links=(to("Poll duration", REDIS, 27), runbook("EventscopeRedisStatsStale")),
    ),
    Panel(
        64,
        "Versions",
        "table",
        describe(
            "Versions of this library, the MCP SDK, redis-py and Python, and the number of targets that run them.",
            normal="one row; two during a deployment.",
            otherwise="two rows for longer: a deployment is incomplete. Two versions can share one Redis.",
        ),
        (
            Target(
                f"count by ({', '.join(_VERSIONS)}) ({promql.series(BUILD_INFO)})",
                instant=True,
                format="table",
            ),
        ),
        "short",
        width=24,
        height=4,
        links=(runbook("EventscopeVersionsDiffer"),),
        overrides=tuple(column(name, title, "string") for name, title in (_VERSIONS | {"Value": "Targets"}).items()),
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: place for place, name in enumerate((*_VERSIONS, "Value"))},
                    "renameByName": {},
                },
            },
        ),
    ),
)
