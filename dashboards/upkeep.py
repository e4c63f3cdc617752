"""The rows of the overview below: what waits, is lost, or is kept too long; sessions; the telemetry itself."""

from dashboards import links, promql
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.panels import (
    ASIDE,
    BAD,
    OUTCOMES,
    TROUBLE,
    Panel,
    Target,
    coloured,
    counter,
    gauge,
    lines,
    says,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog_sessions import (
    BUILD_INFO,
    REQUESTS,
    SESSIONS,
    SESSIONS_BEGUN,
    SESSIONS_ENDED,
    SESSIONS_REFUSED,
)

_VERSIONS = {"eventscope": "mcp-eventscope", "mcp": "MCP SDK", "redis": "redis-py", "python": "Python"}

DURABILITY = (
    gauge(
        41,
        "Redis away, by worker",
        catalog.DEGRADED,
        says(
            "1 while a worker finds Redis away or too slow.",
            normal="0 everywhere.",
            otherwise="all workers: Redis itself; one: its network, or its pool. The reason is on the Redis dashboard.",
        ),
        "instance",
        defaults={"max": 1, "decimals": 0},
        custom={"lineInterpolation": "stepAfter", "fillOpacity": 20},
        colour={"mode": "fixed", "fixedColor": BAD},
        links=(to("Times that Redis went away, by reason", REDIS, 14), runbook("EventscopeStoreDegraded")),
    ),
    gauge(
        42,
        "Events that wait for Redis",
        catalog.BACKLOG_EVENTS,
        says(
            "Events that were sent, and that Redis has not acknowledged: they are in the memory of workers.",
            normal="near 0, since events are stored some milliseconds after they are sent; a peak in an outage, which "
            "ends seconds after it.",
            otherwise="growing: bring Redis back before the backlog is full (100,000 events or 16 MiB of a worker, "
            "unless it was built with others), for then events are lost. Not falling after it: Redis refuses them.",
        ),
        "instance",
        colour=TROUBLE,
        links=(runbook("EventscopeBacklogGrowing"),),
    ),
    counter(
        43,
        "Events lost, by reason",
        catalog.LOST_EVENTS,
        says(
            "Sent, and never to be stored, lost by Redis, or evicted, a second.",
            normal="none.",
            otherwise="overflow: the outage was too long for the backlog. Rejected: Redis refused an event, mostly for "
            "its size. Shutdown: a worker ended before Redis had recovered; wait with deployments. Rollback: Redis "
            "came back without events that it had acknowledged. Session limit: a session exceeded max_session_bytes.",
        ),
        "reason",
        colour=TROUBLE,
        links=(runbook("EventscopeEventsLost"),),
    ),
    gauge(
        44,
        "Memory of what waits",
        catalog.BACKLOG_BYTES,
        says(
            "What the events that wait take up in workers.",
            normal="0.",
            otherwise="as 'Events that wait for Redis'. It is bounded; a worker does not run out of memory of it.",
        ),
        "instance",
        unit="bytes",
        colour=TROUBLE,
        links=(runbook("EventscopeBacklogGrowing"),),
    ),
    gauge(
        45,
        "TTL",
        catalog.TTL,
        says(
            "Seconds that events are kept. 0: they never expire, or the store, which is somebody else's, does not say.",
            normal="the same on all workers, and longer than clients are away.",
            otherwise="0: pass ttl= to the store, or Redis fills up until it evicts or refuses. Two values: workers of "
            "two configurations; the shorter one is what a client can rely on.",
        ),
        "instance",
        unit="s",
        links=(runbook("EventscopeTTLMissing"),),
    ),
    gauge(
        46,
        "Keys that will never expire",
        catalog.REDIS_KEYS_WITHOUT_TTL,
        says(
            "Keys under the prefix without a TTL. It is known where Redis is sampled (sample_redis=), else empty.",
            normal="0 where a TTL is set.",
            otherwise="the log event_store.ttl_missing_keys says of which kind. They are of another writer with the "
            "same prefix, or were stored before a TTL was set: they stay until somebody deletes them.",
        ),
        colour=TROUBLE,
        links=(to("Keys", REDIS, 22), runbook("EventscopeKeysWithoutTTL")),
    ),
)

SESSIONS_ROW = (
    gauge(
        51,
        "Sessions, by worker",
        SESSIONS,
        says(
            "Sessions that are served now. One that several workers serve counts for each of them.",
            normal="about as many as clients are connected, evenly spread.",
            otherwise="growing without more clients: clients that do not end theirs; they end after "
            "session_idle_timeout. All gone at once: a worker ended, and others adopt them as clients come back.",
        ),
        "instance",
        links=(to("Sessions that ended, by reason", links.OVERVIEW, 55),),
    ),
    counter(
        54,
        "Sessions that began",
        SESSIONS_BEGUN,
        says(
            "Opened by a client here, or adopted from another worker.",
            normal="opened as clients come; adopted where several workers share the load without being sticky.",
            otherwise="many opened and few calls: clients that begin anew instead of resuming. Many adopted at once: "
            "a worker ended.",
        ),
        "origin",
        overrides=coloured({"opened": "blue", "adopted": "super-light-blue"}),
        links=(to("Sessions, by worker", links.OVERVIEW, 51),),
    ),
    counter(
        55,
        "Sessions that ended, by reason",
        SESSIONS_ENDED,
        says(
            "No longer served here. Deleted: by the client. Elsewhere: on another worker. Idle: for too long. "
            "Shutdown: this worker ended, and others go on with them.",
            normal="deleted, elsewhere, idle; shutdown with deployments.",
            otherwise="failed: the session broke; the application's log has the error. Mostly idle: clients do not end "
            "their sessions, or session_idle_timeout is shorter than they are away.",
        ),
        "reason",
        overrides=coloured({"failed": BAD}),
        links=(to("Resume drill-down", RESUME),),
    ),
    counter(
        56,
        "Requests without a session, by reason",
        SESSIONS_REFUSED,
        says(
            "Limit: too many are open (503). Unknown: there is none of that id (404). Owner: it is another principal's "
            "(404). Unavailable: Redis could not be asked (503). Invalid: it should have opened one, and could not.",
            normal="a few unknown: clients of sessions that have ended; they begin anew.",
            otherwise="limit: more workers, or a higher limit. Unavailable: 'Redis away, by worker'. Unknown, many: "
            "Redis lost its data. Owner: somebody tries ids that are not his; the log is event_store.session_refused.",
        ),
        "reason",
        colour=TROUBLE,
        links=(to("Redis away, by worker", links.OVERVIEW, 41), runbook("EventscopeStoreDegraded")),
    ),
    counter(
        57,
        "Requests, by protocol revision",
        REQUESTS,
        says(
            "HTTP requests by the revision that they name. Resuming belongs to those up to 2025-11-25; 2026-07-28 has "
            "removed it. None: initialize, and old clients that name none.",
            normal="mostly one revision; older ones fade over months.",
            otherwise="2026-07-28 leads: fewer clients need this store each month. Other: clients of revisions that "
            "the server refuses.",
        ),
        "revision",
        overrides=coloured({"2025-11-25": "blue", "none": ASIDE, "2026-07-28": "purple"}),
        links=(to("Do resumes work?", links.OVERVIEW),),
    ),
    lines(
        52,
        "Requests left by their worker",
        says(
            "Requests that were answered with an error since the worker that ran them is gone, or was ending.",
            normal="none; a few with each deployment, unless it drains (shutdown_timeout=).",
            otherwise="without a deployment: workers crash or freeze. The blue lines are starts; look for the OOM "
            "killer, and for tools that block the event loop for longer than the lease.",
        ),
        Target(promql.rate(catalog.ORPHANED, "", ("instance",)), "answered by {{instance}}"),
        colour=TROUBLE,
        links=(runbook("EventscopeRequestsOrphaned"),),
    ),
)

HEALTH = (
    counter(
        61,
        "Signals that were not recorded",
        catalog.TELEMETRY_FAILURES,
        says(
            "Metrics, spans and log events that could not be recorded, by sink. The operations were not affected.",
            normal="none.",
            otherwise="what is on this page is too low. The log event_store.telemetry_failed has the error: an "
            "exporter, a registry or a logger of the application raises.",
        ),
        "sink",
        colour=TROUBLE,
        links=(runbook("EventscopeTelemetryFailing"),),
    ),
    lines(
        62,
        "Workers that are scraped",
        says(
            "Targets that show this library's metrics. Several workers that share a directory are one.",
            normal="as many as there should be.",
            otherwise="fewer: is the target up, does /metrics need a token, was PROMETHEUS_MULTIPROC_DIR emptied?",
        ),
        Target(f"count(group by (job, instance) ({promql.series(catalog.TTL)}))", "targets"),
        unit="short",
        defaults={"min": 0, "decimals": 0},
        links=(runbook("EventscopeMetricsAbsent"),),
    ),
    lines(
        63,
        "Samples of Redis",
        says(
            "Looks at Redis, a second. One worker looks, the others find that it does (elsewhere). Empty where "
            "nothing is sampled.",
            normal="ok and elsewhere.",
            otherwise="error: the gauges on the Redis dashboard are old. The user needs INFO, DBSIZE, SCAN, PTTL and "
            "MEMORY USAGE; the log is event_store.sample_failed.",
        ),
        Target(promql.rate(catalog.SAMPLE_DURATION, "count", ("outcome",)), "{{outcome}}"),
        overrides=OUTCOMES,
        links=(to("Seconds of a sample", REDIS, 27), runbook("EventscopeRedisUnsampled")),
    ),
    Panel(
        64,
        "Versions that run",
        "table",
        says(
            "Of this library, the MCP SDK, redis-py and Python, and in how many targets.",
            normal="one line; two during a deployment.",
            otherwise="two for longer: a deployment that did not end. Workers of two versions share one Redis well.",
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
        transformations=(
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: place for place, name in enumerate((*_VERSIONS, "Value"))},
                    "renameByName": _VERSIONS | {"Value": "Targets"},
                },
            },
        ),
    ),
)
