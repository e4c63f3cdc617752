"""The overview: whether resumes work, what is wrong when they do not, and the rows in the order of diagnosis."""

from dashboards import links, promql
from dashboards.board import STACKED, Dashboard
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.objective import HEADROOM, OBJECTIVE
from dashboards.panels import (
    ASIDE,
    BAD,
    CALM,
    GOOD,
    HALVES,
    OUTCOMES,
    TROUBLE,
    WARN,
    Json,
    Link,
    Panel,
    Row,
    Target,
    coloured,
    counter,
    gauge,
    lines,
    quantiles,
    says,
    stat,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.declarations import Metric

_NONE_OR_SOME = ((None, CALM), (1, WARN))
_NONE_OR_BAD = ((None, CALM), (1, BAD))
_AWAY: Json = {
    "mappings": [
        {
            "type": "value",
            "options": {"0": {"text": "up", "index": 0}, "1": {"text": "away", "index": 1}},
        }
    ]
}


def _times(metric: Metric, part: str = "", **labels: promql.Values) -> str:
    """How many in the time that is shown; whole, for `increase` extrapolates."""
    return f"round({promql.count(metric, part, (), **labels)})"


def _cause(name: str, expr: str, link: Link) -> Target:
    return Target(expr, name, instant=True, link=link)


_FAILING = runbook("EventscopeResumesFailing")
_TTL = runbook("EventscopeTTLHeadroomLow")

_TRUTH = (
    stat(
        1,
        "Resumes succeeded",
        says(
            "Of the clients that came back with a Last-Event-ID in the time shown: the share that got all that was "
            "owed to it. One that had missed nothing counts as a success, one that left by itself does not count.",
            normal=f"green, at or above the objective of {OBJECTIVE:.0%}. No resumes: nobody has come back.",
            otherwise="look at the list beside: each cause that is not 0 leads to what to do about it. While Redis is "
            "away each new try of the same waiting client counts as a failure, so this looks worse than it is.",
        ),
        promql.success_shown(),
        (None, BAD),
        (OBJECTIVE, GOOD),
        unit="percentunit",
        width=5,
        defaults={"noValue": "no resumes", "decimals": 1, "max": 1},
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
    stat(
        2,
        "Of those owed",
        says(
            "The same without the clients that had missed nothing. Idle streams come back every few minutes and always "
            "succeed; where there are many, the share beside says little, and this one says it.",
            normal="as the share beside, or a little lower. Nothing owed: no client has missed anything.",
            otherwise="as beside. When this is low and the other is not, it is the few clients that really needed "
            "the store whom it fails.",
        ),
        promql.owed_shown(),
        (None, BAD),
        (0.5, CALM),
        unit="percentunit",
        defaults={"noValue": "nothing owed", "decimals": 1, "max": 1},
        links=(to("Resume drill-down", RESUME), runbook("EventscopeOwedEventsUndelivered")),
    ),
    stat(
        3,
        "Redis",
        says(
            "Whether any of the workers shown finds Redis away, or too slow, now. Messages go out live meanwhile, and "
            "wait in memory to be stored; resumes wait.",
            normal="up.",
            otherwise="is it one worker or all of them? Why, says the reason, on the Redis dashboard. It becomes "
            "urgent when events are lost, beside.",
        ),
        promql.highest(promql.series(catalog.DEGRADED)),
        (None, CALM),
        (1, BAD),
        unit="short",
        width=3,
        defaults=_AWAY,
        links=(to("Redis, as workers see it", REDIS), runbook("EventscopeStoreDegraded")),
    ),
    stat(
        4,
        "Events lost",
        says(
            "Events that were sent live and will never be stored, in the time shown: a resume of their streams cannot "
            "deliver them.",
            normal="0. An outage alone loses none, as long as the backlog has room.",
            otherwise="the reason is on 'Events lost, by reason', below: overflow is an outage that was too long for "
            "the backlog, rejected is a key that somebody else wrote, shutdown a worker that ended in an outage.",
        ),
        _times(catalog.LOST_EVENTS),
        *_NONE_OR_BAD,
        unit="short",
        links=(to("Events lost, by reason", links.OVERVIEW, 43), runbook("EventscopeEventsLost")),
    ),
    Panel(
        5,
        "What is wrong",
        "bargauge",
        says(
            "Everything that keeps a client from what is owed to it, as often as it happened in the time shown.",
            normal="all 0.",
            otherwise="begin with the topmost that is not 0: the causes stand above their effects. Click it for what "
            "it means, how to confirm it, and what to do.",
        ),
        (
            _cause("Redis went away", _times(catalog.DEGRADATIONS), runbook("EventscopeStoreDegraded")),
            _cause("Redis evicted keys", _times(catalog.REDIS_EVICTED), runbook("EventscopeRedisEvicting")),
            _cause("a store failed", _times(catalog.ERRORS, operation="store"), runbook("EventscopeStoreErrors")),
            _cause("an event was lost", _times(catalog.LOST_EVENTS), runbook("EventscopeEventsLost")),
            _cause("a worker left a request", _times(catalog.ORPHANED), runbook("EventscopeRequestsOrphaned")),
            _cause("back after the TTL", _times(catalog.REPLAY_MISSES, reason="expired"), _TTL),
            _cause("unknown event id", _times(catalog.REPLAY_MISSES, reason=("unknown", "malformed")), _FAILING),
            _cause("gap in a replay", _times(catalog.REPLAY_DURATION, "count", outcome="gap"), _FAILING),
            _cause("a replay failed", _times(catalog.REPLAY_DURATION, "count", outcome="error"), _FAILING),
            _cause("signal not recorded", _times(catalog.TELEMETRY_FAILURES), runbook("EventscopeTelemetryFailing")),
        ),
        "short",
        width=8,
        height=12,
        defaults={"min": 0, "max": 1000000000000},
        steps=_NONE_OR_SOME,
        links=(to("Resume drill-down", RESUME), to("Redis, as workers see it", REDIS)),
    ),
    lines(
        6,
        "Resumes, by how they ended",
        says(
            "Clients that came back, a second. Green: all that was owed was delivered, or nothing was. Yellow, orange "
            "and red: not all, nothing, or an error. Grey: the client left by itself.",
            normal="green, with a little grey.",
            otherwise="when did it begin, and was a worker started (blue line) or Redis away (red area) just then? "
            "The drill-down tells which workers, which reason, and how long the clients had been away.",
        ),
        Target(promql.rate(catalog.REPLAY_DURATION, "count", ("outcome",)), "{{outcome}}"),
        width=16,
        height=6,
        custom=STACKED,
        overrides=OUTCOMES,
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
)

_RESUMES = (
    lines(
        21,
        "Share of resumes that failed",
        says(
            "Gaps, misses and errors, of all resumes that are counted.",
            normal=f"below the line, the budget of {1 - OBJECTIVE:.0%}. Single peaks with few resumes mean little.",
            otherwise="compare with the panel above: which colour grew? Follow it on the drill-down.",
        ),
        Target(promql.failing(), "failed"),
        Target(promql.failing(promql.OWED), "of those owed events"),
        unit="percentunit",
        most=0.05,
        steps=((None, CALM), (round(1 - OBJECTIVE, 4), BAD)),
        custom={"thresholdsStyle": {"mode": "dashed"}},
        overrides=coloured({"failed": "orange", "of those owed events": "yellow"}),
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
    quantiles(
        22,
        "Seconds of a replay",
        catalog.REPLAY_DURATION,
        says(
            "How long a replay took, reading and sending; a client that left is not in it.",
            normal="half below 10 ms, 99 % below a second.",
            otherwise="large replays (drill-down, 'Events of a replay') or a slow Redis ('Seconds to store an event')? "
            "If neither: clients that take what is sent to them slowly. Its exemplars lead to traces.",
        ),
        labels={"outcome": ("resumed", "caught_up", "gap")},
        links=(to("Which replays are slow", RESUME, 31), runbook("EventscopeReplaySlow")),
    ),
    lines(
        23,
        "How much of the TTL clients were away for",
        says(
            "The time between the last event that a client had and its return, as a share of the TTL: beyond 100 % "
            "what it missed is gone. Read off buckets, so it says at most. Empty where nothing expires.",
            normal=f"near 0; always below the line, where {HEADROOM:.0%} are left.",
            otherwise="set a longer TTL, if Redis has the memory (Redis dashboard); a longer session_idle_timeout too, "
            "for a session that has ended cannot be resumed at all.",
        ),
        Target(promql.ttl_used(0.99), "99 %"),
        Target(promql.ttl_used(0.5), "half"),
        overrides=HALVES,
        unit="percentunit",
        steps=((None, CALM), (1 - HEADROOM, BAD)),
        custom={"thresholdsStyle": {"mode": "dashed"}},
        links=(to("Ages, one by one", RESUME, 32), runbook("EventscopeTTLHeadroomLow")),
    ),
    gauge(
        24,
        "Streams that are followed",
        catalog.FOLLOWERS,
        says(
            "Resumed streams that are open now and wait for what is stored next.",
            normal="about as many as clients are connected: each has its standalone stream, and what it resumed.",
            otherwise="growing without more clients: connections that a proxy keeps open after its client has gone, or "
            "requests that never end. 'Streams, by how they ended' says which.",
        ),
        links=(to("Streams, by how they ended", RESUME, 34), runbook("EventscopeFollowersGrowing")),
    ),
    counter(
        25,
        "Events to followed streams",
        catalog.FOLLOWED_EVENTS,
        says(
            "Events delivered to resumed streams as they were stored, a second.",
            normal="as busy as the tools are.",
            otherwise="none, while events are stored and streams are followed: look at errors of 'follow' in 'Errors'.",
        ),
        links=(to("By worker", RESUME, 16),),
    ),
    lines(
        26,
        "Events that were owed and gone",
        says(
            "Missing: the index named them, and they had expired or been evicted. Corrupt: they could not be read.",
            normal="none.",
            otherwise="missing: is Redis evicting ('Keys evicted', Redis dashboard), or the TTL too short? Corrupt: "
            "something else writes under this prefix; the log event_store.replay_incomplete names the ids.",
        ),
        Target(promql.rate(catalog.MISSING_EVENTS), "missing"),
        Target(promql.rate(catalog.CORRUPT_EVENTS), "corrupt"),
        overrides=coloured({"missing": WARN, "corrupt": BAD}),
        links=(to("Redis, as workers see it", REDIS), runbook("EventscopeResumesFailing")),
    ),
)

_STORE = (
    lines(
        31,
        "Stores, by how they ended",
        says(
            "Events, a second. Deferred: sent live while Redis is away, and stored later. Refused: the request had "
            "been answered already. Error: sent live, and cannot be resumed.",
            normal="ok only.",
            otherwise="deferred: 'Redis away, by worker', below. Error: 'Errors', beside, and the log "
            "event_store.store_failed. Refused: a worker was taken for dead and went on.",
        ),
        Target(promql.rate(catalog.STORE_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
        links=(runbook("EventscopeStoreErrors"),),
    ),
    quantiles(
        32,
        "Seconds to store an event",
        catalog.STORE_DURATION,
        says(
            "What a tool waits for each message that it sends: its place in the queue, and a round trip to Redis.",
            normal="half below 1 ms in one data centre, 99 % below 25 ms; never above a second, which is when a "
            "message goes out without waiting.",
            otherwise="compare with 'Seconds of a batch' on the Redis dashboard: when that is short the worker itself "
            "is busy, when it is as long Redis or the network is.",
        ),
        labels={"outcome": "ok"},
        links=(to("Redis, as workers see it", REDIS, 11), runbook("EventscopeStoreErrors")),
    ),
    counter(
        33,
        "Errors",
        catalog.ERRORS,
        says(
            "Operations on the store that failed, a second. Unavailable: Redis did not answer. Rejected: it refused.",
            normal="none.",
            otherwise="unavailable: 'Redis away'. Rejected: read the log, which has what Redis said (READONLY, OOM, "
            "NOPERM). A replay that waits for Redis counts each time that it tries.",
        ),
        "operation",
        "error_type",
        colour=TROUBLE,
        links=(to("Why Redis was away", REDIS, 14), runbook("EventscopeStoreErrors")),
    ),
    counter(
        34,
        "Events stored, by kind",
        catalog.STORED_EVENTS,
        says(
            "What is stored, a second. A call has one priming event and one response (or error); what a tool says in "
            "between are notifications.",
            normal="responses keep up with priming events.",
            otherwise="priming events without responses: calls that hang, or whose worker was killed ('Requests left "
            "by their worker'). Many errors: the tools fail, not the store.",
        ),
        "kind",
        overrides=coloured({"error": WARN, "response": "green", "notification": "blue", "priming": ASIDE}),
        links=(to("Requests left by their worker", links.OVERVIEW, 52),),
    ),
    counter(
        35,
        "Bytes stored",
        catalog.STORED_BYTES,
        says(
            "Payload, a second. Times the TTL, it is what Redis holds, with a third more for its index.",
            normal="as busy as the tools are.",
            otherwise="a tool has begun to say much more: is there memory for it (Redis dashboard)?",
        ),
        unit="Bps",
        links=(to("Memory of Redis", REDIS, 21),),
    ),
    counter(
        36,
        "Events stored, by worker",
        catalog.STORED_EVENTS,
        says(
            "How the load is spread.",
            normal="the workers are about equally busy.",
            otherwise="one has much more: sessions stay with the worker that began them, so this is few, busy clients "
            "or a balancer that prefers one. One has none: it is new, or is sent nothing.",
        ),
        "instance",
        links=(to("Resumes, by worker", RESUME, 11),),
    ),
)

_DURABILITY = (
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
        links=(to("Why Redis was away", REDIS, 14), runbook("EventscopeStoreDegraded")),
    ),
    gauge(
        42,
        "Events that wait for Redis",
        catalog.BACKLOG_EVENTS,
        says(
            "Events in the memory of workers, that were sent live and are stored when Redis is back.",
            normal="0; a peak in an outage, that is gone seconds after it.",
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
            "Sent live, and never to be stored, a second.",
            normal="none.",
            otherwise="overflow: the outage was too long for the backlog. Rejected: a key under the prefix is "
            "somebody else's. Shutdown: a worker ended before Redis was back; wait with deployments.",
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

_SESSIONS = (
    lines(
        52,
        "Requests left by their worker",
        says(
            "Requests that were answered with an error since the worker that ran them is gone, or was ending.",
            normal="none; a few with each deployment, unless it drains (drain=).",
            otherwise="without a deployment: workers crash or freeze. The blue lines are starts; look for the OOM "
            "killer, and for tools that block the event loop for longer than the lease.",
        ),
        Target(promql.rate(catalog.ORPHANED, "", ("instance",)), "answered by {{instance}}"),
        width=12,
        colour=TROUBLE,
        links=(runbook("EventscopeRequestsOrphaned"),),
    ),
    lines(
        53,
        "Streams, by how they ended",
        says(
            "Followed streams that ended, a second. Completed: the response was delivered. Limit: it was followed for "
            "five minutes, and the client comes back by itself. Grey: it left.",
            normal="completed, limit, and clients that left.",
            otherwise="error: 'Errors' says of which type.",
        ),
        Target(promql.rate(catalog.FOLLOW_DURATION, "count", ("outcome",)), "{{outcome}}"),
        width=12,
        custom=STACKED,
        overrides=OUTCOMES,
        links=(to("By worker", RESUME, 16),),
    ),
)

_HEALTH = (
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
)

OVERVIEW = Dashboard(
    links.OVERVIEW,
    "MCP resumability: overview",
    "Do clients that were cut off get what they missed? If not, why not: from the top down. Of mcp-eventscope.",
    (
        Row(10, "Do resumes work?", _TRUTH),
        Row(20, "Resumes: rate, errors, duration", _RESUMES),
        Row(30, "Store: rate, errors, duration", _STORE),
        Row(40, "Durability: Redis away, what waits, what is lost, how long it is kept", _DURABILITY),
        Row(50, "Sessions and requests", _SESSIONS),
        Row(60, "Health of the telemetry itself", _HEALTH),
    ),
)
