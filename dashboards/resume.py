"""The drill-down: which resumes fail or are slow, by worker, reason, age and size, down to their traces."""

from dashboards import links, promql
from dashboards.board import STACKED, Dashboard
from dashboards.links import OVERVIEW, REDIS, runbook, to
from dashboards.objective import BUDGET
from dashboards.panels import (
    ASIDE,
    BAD,
    CALM,
    OUTCOMES,
    WARN,
    Panel,
    Row,
    Target,
    coloured,
    column,
    counter,
    describe,
    gauge,
    heatmap,
    lines,
    quantiles,
    redis_state,
    steps_of,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.resumes import REPLAY_SEND_DURATION, REPLAY_TIME_TO_FIRST_EVENT
from mcp_eventscope.telemetry.catalog.store import REPLAY_DURATION

_WORKER = ("instance",)
_TRACES = (
    "Dots are exemplars: each links to its trace, where Prometheus stores them (--enable-feature=exemplar-storage) and "
    "the data source is linked to a tracing backend."
)
_BACK = to("Overview", OVERVIEW)
_COLOURED_TEXT = {"custom.cellOptions": {"type": "color-text"}}

_EACH = Panel(
    11,
    "Workers",
    "table",
    describe(
        "One row per scraped target. Workers that share a directory are one target.",
        normal="similar numbers in each row; no error ratio above the budget of 1 %.",
        otherwise="one row differs: see that worker's log, and its connection to Redis. All differ: Redis, the TTL or "
        "the clients; the next row of panels distinguishes them.",
    ),
    (
        Target(
            promql.count(REPLAY_DURATION, "count", _WORKER, outcome=(*promql.SUCCEEDED, *promql.FAILED)),
            instant=True,
            format="table",
        ),
        Target(
            f"{promql.count(REPLAY_DURATION, 'count', _WORKER, outcome=promql.FAILED)} / "
            f"({promql.count(REPLAY_DURATION, 'count', _WORKER, outcome=(*promql.SUCCEEDED, *promql.FAILED))} > 0)",
            instant=True,
            format="table",
        ),
        Target(
            f"histogram_quantile(0.99, {promql.count(REPLAY_DURATION, 'bucket', ('le', 'instance'))}) >= 0",
            instant=True,
            format="table",
        ),
        Target(promql.total(promql.series(catalog.store.STREAMS_FOLLOWED), _WORKER), instant=True, format="table"),
        Target(promql.count(catalog.store.EVENTS_MISSING, "", _WORKER), instant=True, format="table"),
        Target(promql.highest(promql.series(catalog.store.DEGRADED), _WORKER), instant=True, format="table"),
    ),
    "short",
    width=24,
    height=6,
    transformations=(
        {"id": "joinByField", "options": {"byField": "instance", "mode": "outer"}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True} | {f"Time {number}": True for number in range(1, 7)},
                "indexByName": {},
                "renameByName": {},
            },
        },
    ),
    overrides=(
        column("instance", "Worker", "string"),
        column("Value #A", "Resumes", "short", decimals=0),
        column(
            "Value #B",
            "Error ratio",
            "percentunit",
            decimals=1,
            thresholds=steps_of((None, CALM), (round(BUDGET, 4), BAD)),
            **_COLOURED_TEXT,
        ),
        column("Value #C", "Latency p99", "s", decimals=3),
        column("Value #D", "Followed streams", "short", decimals=0),
        column(
            "Value #E",
            "Events missing",
            "short",
            decimals=0,
            thresholds=steps_of((None, CALM), (0.5, WARN)),
            **_COLOURED_TEXT,
        ),
        column("Value #F", "Redis", "short", mappings=redis_state(coloured_text=True), **_COLOURED_TEXT),
    ),
    links=(_BACK,),
)

_WORKERS = (
    _EACH,
    lines(
        12,
        "Resume rate by worker",
        describe(
            "Resumes by the worker that the client reached.",
            normal="evenly distributed: any worker can serve any client.",
            otherwise="one worker has many more: the load balancer is sticky, or that worker cuts its clients again "
            "and again. A step: all clients of a worker that ended reconnected.",
        ),
        Target(promql.rate(REPLAY_DURATION, "count", _WORKER), "{{instance}}"),
        links=(to("Store rate by worker", OVERVIEW, 36),),
    ),
    lines(
        13,
        "Resume errors by worker",
        describe(
            "Gaps, misses and errors.",
            normal="0.",
            otherwise="on one worker: its connection to Redis ('Redis state by worker'). On all: the next row.",
        ),
        Target(
            promql.rate(REPLAY_DURATION, "count", ("instance", "outcome"), outcome=promql.FAILED),
            "{{instance}} {{outcome}}",
        ),
        links=(to("Redis state by worker", OVERVIEW, 41), runbook("EventscopeResumesFailing")),
    ),
    gauge(
        16,
        "Followed streams by worker",
        catalog.store.STREAMS_FOLLOWED,
        describe(
            "Resumed streams that are open.",
            normal="evenly distributed and constant.",
            otherwise="growing on one worker: it cannot deliver, or its connections outlive their clients.",
        ),
        "instance",
        links=(runbook("EventscopeFollowersGrowing"),),
    ),
)

_REASONS = (
    lines(
        21,
        "Resumes by outcome",
        describe(
            "As on the overview. Gap: some events due were lost. Missed: nothing to resume from. Error: the replay "
            "broke off; the first one that finds Redis unavailable counts, and waits.",
            normal="green, with a little grey.",
            otherwise="gap or missed: see 'Miss rate by reason' and 'Undeliverable events by worker'. Error: see 'Read "
            "error rate'.",
        ),
        Target(promql.rate(REPLAY_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
        links=(_BACK, runbook("EventscopeResumesFailing")),
    ),
    counter(
        22,
        "Miss rate by reason",
        catalog.store.REPLAY_MISSES,
        describe(
            "Resumes that found nothing to resume from. Expired: the client was disconnected for longer than the TTL. "
            "Unknown: no such event. Malformed: not an event id of this store.",
            normal="0, or a few expired where clients are laptops.",
            otherwise="expired: raise the TTL. Unknown: Redis lost its data (restart without persistence, flush, "
            "failover), or workers use different prefixes. Malformed: a faulty client.",
        ),
        "reason",
        overrides=coloured({"expired": WARN, "unknown": BAD, "malformed": ASIDE}),
        links=(to("Resume age distribution", links.RESUME, 32), runbook("EventscopeResumesFailing")),
    ),
    lines(
        23,
        "Undeliverable events by worker",
        describe(
            "Missing events by reason, and corrupt ones, which could not be decoded.",
            normal="0.",
            otherwise="trimmed: raise the TTL. Evicted: raise max_session_bytes. Overflow: a long outage. Rejected: "
            "too large for Redis. Rollback: Redis lost data. Store_lost: it lost or evicted keys unnoticed. Corrupt: a "
            "second writer. The log event_store.replay_incomplete has the fix.",
        ),
        Target(promql.rate(catalog.store.EVENTS_MISSING, "", ("reason", *_WORKER)), "{{reason}}, {{instance}}"),
        Target(promql.rate(catalog.store.EVENTS_CORRUPT, "", _WORKER), "corrupt, {{instance}}"),
        links=(to("Key eviction rate", REDIS, 23), runbook("EventscopeRedisEvicting")),
    ),
    lines(
        24,
        "Read error rate",
        describe(
            "Errors of replays and of followed streams. Unavailable: Redis did not answer, and the client waits. "
            "Rejected: Redis refused, and the stream ended.",
            normal="0.",
            otherwise="unavailable: is Redis available and fast (overview)? Rejected: the log "
            "event_store.replay_failed has the reply of Redis. Other: a bug of this library; please report it with "
            "that log.",
        ),
        Target(
            promql.rate(catalog.store.ERRORS, "", ("operation", "error_type"), operation=("replay", "follow")),
            "{{operation}} {{error_type}}",
        ),
        links=(to("Degradation rate by reason", REDIS, 14), runbook("EventscopeStoreErrors")),
    ),
    lines(
        34,
        "Follow rate by outcome",
        describe(
            "Followed streams that ended. Completed: the response was delivered. Timeout: the client reconnects by "
            "itself. Worker_lost: the worker is dead, and Redis has nothing of the request.",
            normal="completed, timeout, and client_disconnected.",
            otherwise="error: see 'Read error rate'. Worker_lost: workers are killed, or clients invent cursors. "
            "Mostly client_disconnected: a proxy cuts connections.",
        ),
        Target(promql.rate(catalog.store.FOLLOW_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
    ),
    quantiles(
        36,
        "Follow duration",
        catalog.store.FOLLOW_DURATION,
        describe(
            "From the end of the replay to the end of the stream.",
            normal="as long as tools run, and five minutes for idle streams.",
            otherwise="very short: clients are cut again and again. Set the timeouts of proxies to more than a minute.",
        ),
        labels={},
    ),
    quantiles(
        39,
        "Follow lag",
        catalog.store.FOLLOW_LAG,
        describe(
            "From the acceptance of an event on one worker to its delivery to a client on another one.",
            normal="milliseconds: a commit and a read.",
            otherwise="half a second: followers poll, since the Redis user lacks a channel, or Redis its pub/sub. "
            "More: Redis is slow ('Redis write latency'), or a worker is busy.",
        ),
        labels={},
        links=(to("Redis write latency", REDIS, 11), runbook("EventscopeFollowLagHigh")),
    ),
)

_SHAPES = (
    quantiles(
        37,
        "Time to first event",
        REPLAY_TIME_TO_FIRST_EVENT,
        describe(
            "From the start of a replay to the delivery of its first event: the latency that a client perceives.",
            normal="milliseconds: a round trip to Redis and one to the client.",
            otherwise="compare with 'Send duration': Redis is slow ('Redis write latency'), or the client is.",
        ),
        labels={},
        width=12,
        links=(to("Redis write latency", REDIS, 11), runbook("EventscopeReplaySlow")),
    ),
    quantiles(
        38,
        "Send duration",
        REPLAY_SEND_DURATION,
        describe(
            "The part of a replay that is spent sending to the client. The rest is spent in the store.",
            normal="milliseconds.",
            otherwise="as high as 'Resume latency distribution': clients or a proxy read slowly, and Redis is fine.",
        ),
        labels={},
        width=12,
        links=(runbook("EventscopeReplaySlow"),),
    ),
    heatmap(
        31,
        "Resume latency distribution",
        REPLAY_DURATION,
        describe(
            f"Replays by latency. {_TRACES}",
            normal="dark at the bottom: milliseconds.",
            otherwise="a second band above: large replays ('Events per replay' has a band too) or slow clients? The "
            "trace distinguishes them.",
        ),
        unit="s",
        width=12,
        links=(runbook("EventscopeReplaySlow"),),
    ),
    heatmap(
        32,
        "Resume age distribution",
        catalog.store.RESUME_AGE,
        describe(
            f"Resumes by the age of the last event that the client had. {_TRACES}",
            normal="seconds for cut connections; minutes for idle streams; well below the TTL.",
            otherwise="a band at the TTL: clients above it lose events. Raise the TTL.",
        ),
        unit="s",
        width=12,
        links=(runbook("EventscopeTTLHeadroomLow"),),
    ),
    heatmap(
        33,
        "Events per replay",
        catalog.store.REPLAY_EVENTS,
        describe(
            f"Replays by the number of events that they delivered. {_TRACES}",
            normal="few: the messages that the client missed.",
            otherwise="thousands: a tool reports progress very often. Replays read in chunks, so this costs time, not "
            "memory.",
        ),
        unit="short",
        width=12,
    ),
    heatmap(
        35,
        "Bytes per replay",
        catalog.store.REPLAY_SIZE,
        describe(
            f"Replays by the payload bytes that they delivered. {_TRACES}",
            normal="kilobytes.",
            otherwise="megabytes: large results are sent again. Are the clients cut because of their size?",
        ),
        unit="bytes",
        width=12,
    ),
)

RESUME = Dashboard(
    links.RESUME,
    "MCP resumability: resumes in detail",
    "Which resumes fail or are slow: by worker, reason, age and size, down to their traces. Of mcp-eventscope.",
    (
        Row(10, "By worker", _WORKERS),
        Row(20, "By reason", _REASONS),
        Row(30, "Latency, age and size", _SHAPES),
    ),
)
