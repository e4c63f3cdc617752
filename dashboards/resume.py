"""The drill-down: which resumes fail or are slow, by worker, reason, age and size, down to their traces."""

from typing import Any

from dashboards import links, promql
from dashboards.board import STACKED, Dashboard
from dashboards.links import OVERVIEW, REDIS, runbook, to
from dashboards.panels import (
    BAD,
    CALM,
    OUTCOMES,
    TROUBLE,
    WARN,
    Json,
    Panel,
    Row,
    Target,
    coloured,
    counter,
    gauge,
    heatmap,
    lines,
    quantiles,
    says,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog import REPLAY_DURATION
from mcp_eventscope.telemetry.catalog_resumes import FIRST_EVENT, SEND

_WORKER = ("instance",)
_TRACES = (
    "The dots are exemplars: each leads to its trace, where Prometheus stores them (--enable-feature=exemplar-storage) "
    "and the data source names where traces are."
)
_BACK = to("Do resumes work?", OVERVIEW)


def _column(name: str, title: str, unit: str, **more: Any) -> Json:
    properties: list[Json] = [{"id": "displayName", "value": title}, {"id": "unit", "value": unit}]
    properties += [{"id": key, "value": value} for key, value in more.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


_EACH = Panel(
    11,
    "Each worker, in the time shown",
    "table",
    says(
        "A line for each target that is scraped. Several workers that share a directory are one of them.",
        normal="about the same in each line; no failed share above the objective's 1 %.",
        otherwise="one line stands out: look at that worker's log, and at its way to Redis. All do: it is Redis, the "
        "TTL or the clients, which the next row tells apart.",
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
        Target(promql.total(promql.series(catalog.FOLLOWERS), _WORKER), instant=True, format="table"),
        Target(promql.count(catalog.MISSING_EVENTS, "", _WORKER), instant=True, format="table"),
        Target(promql.highest(promql.series(catalog.DEGRADED), _WORKER), instant=True, format="table"),
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
        _column("instance", "Worker", "string"),
        _column("Value #A", "Resumes", "short", decimals=0),
        _column(
            "Value #B",
            "Failed",
            "percentunit",
            decimals=1,
            thresholds={"mode": "absolute", "steps": [{"value": None, "color": CALM}, {"value": 0.01, "color": BAD}]},
            **{"custom.cellOptions": {"type": "color-text"}},
        ),
        _column("Value #C", "99 % within", "s", decimals=3),
        _column("Value #D", "Followed streams", "short", decimals=0),
        _column(
            "Value #E",
            "Events missing",
            "short",
            decimals=0,
            thresholds={"mode": "absolute", "steps": [{"value": None, "color": CALM}, {"value": 0.5, "color": WARN}]},
            **{"custom.cellOptions": {"type": "color-text"}},
        ),
        _column(
            "Value #F",
            "Redis",
            "short",
            mappings=[
                {
                    "type": "value",
                    "options": {
                        "0": {"text": "up", "color": CALM, "index": 0},
                        "1": {"text": "away", "color": BAD, "index": 1},
                    },
                }
            ],
            **{"custom.cellOptions": {"type": "color-text"}},
        ),
    ),
    links=(_BACK,),
)

_WORKERS = (
    _EACH,
    lines(
        12,
        "Resumes, by worker",
        says(
            "Clients that came back, a second, by the worker that they came to.",
            normal="evenly spread: it does not matter which worker a client reaches.",
            otherwise="one has many more: a balancer that sticks, or clients that are cut by one worker again and "
            "again. A step: all clients of a worker that ended came back at once.",
        ),
        Target(promql.rate(REPLAY_DURATION, "count", _WORKER), "{{instance}}"),
        links=(to("Events stored, by worker", OVERVIEW, 36),),
    ),
    lines(
        13,
        "Failed resumes, by worker",
        says(
            "Gaps, misses and errors, a second.",
            normal="none.",
            otherwise="on one worker: its way to Redis ('Redis away, by worker'). On all: the next row.",
        ),
        Target(
            promql.rate(REPLAY_DURATION, "count", ("instance", "outcome"), outcome=promql.FAILED),
            "{{instance}} {{outcome}}",
        ),
        colour=TROUBLE,
        links=(to("Redis away, by worker", OVERVIEW, 41), runbook("EventscopeResumesFailing")),
    ),
    gauge(
        16,
        "Streams that are followed, by worker",
        catalog.FOLLOWERS,
        says(
            "Resumed streams that are open now.",
            normal="evenly spread, and steady.",
            otherwise="growing on one: what it cannot deliver, or connections whose client is gone.",
        ),
        "instance",
        links=(runbook("EventscopeFollowersGrowing"),),
    ),
)

_REASONS = (
    lines(
        21,
        "Resumes, by how they ended",
        says(
            "As on the overview. Gap: some of what was owed was gone. Missed: there was nothing to resume from. "
            "Error: the replay broke off; the one that finds out that Redis is away is kept waiting.",
            normal="green, with a little grey.",
            otherwise="gap or missed: the two panels beside. Error: 'Errors of replays'.",
        ),
        Target(promql.rate(REPLAY_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
        links=(_BACK, runbook("EventscopeResumesFailing")),
    ),
    counter(
        22,
        "Missed, by reason",
        catalog.REPLAY_MISSES,
        says(
            "Why there was nothing to resume from, a second. Expired: the client was away for longer than the TTL. "
            "Unknown: no such event is there. Malformed: the id is none of ours.",
            normal="none, or a little expired where clients are laptops.",
            otherwise="expired: a longer TTL. Unknown: Redis has lost its data (restarted without persistence, or "
            "flushed, or a failover), or the workers have different prefixes. Malformed: a client's fault.",
        ),
        "reason",
        overrides=coloured({"expired": WARN, "unknown": BAD, "malformed": "#8e8e8e"}),
        links=(to("How long clients had been away", links.RESUME, 32), runbook("EventscopeResumesFailing")),
    ),
    lines(
        23,
        "Events that were owed and gone, by worker",
        says(
            "Missing: expired or evicted under a stream that still is. Corrupt: there, and not to be read.",
            normal="none.",
            otherwise="missing: evictions ('Keys evicted', Redis dashboard), or streams that live for longer than the "
            "TTL. Corrupt: a second writer; the log event_store.replay_incomplete has the ids.",
        ),
        Target(promql.rate(catalog.MISSING_EVENTS, "", _WORKER), "missing, {{instance}}"),
        Target(promql.rate(catalog.CORRUPT_EVENTS, "", _WORKER), "corrupt, {{instance}}"),
        colour=TROUBLE,
        links=(to("Keys evicted", REDIS, 23), runbook("EventscopeRedisEvicting")),
    ),
    lines(
        24,
        "Errors of replays and followers",
        says(
            "Unavailable: Redis did not answer, and the client waits. Rejected: Redis refused, and the stream ended.",
            normal="none.",
            otherwise="unavailable: is Redis away (overview), or slow? Rejected: the log event_store.replay_failed has "
            "what Redis said. Other: a fault of ours; please report it with that log.",
        ),
        Target(
            promql.rate(catalog.ERRORS, "", ("operation", "error_type"), operation=("replay", "follow")),
            "{{operation}} {{error_type}}",
        ),
        colour=TROUBLE,
        links=(to("Times that Redis went away, by reason", REDIS, 14), runbook("EventscopeStoreErrors")),
    ),
    lines(
        34,
        "Streams, by how they ended",
        says(
            "Followed streams that ended, a second. Completed: the response was delivered. Limit: five minutes have "
            "passed, and the client comes back by itself. Gone: the worker is dead, and Redis has nothing of the call.",
            normal="completed, limit, and clients that left.",
            otherwise="error: beside. Gone: workers are killed, or clients invent cursors. Many client_gone and few "
            "completed: something between cuts connections.",
        ),
        Target(promql.rate(catalog.FOLLOW_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
    ),
    quantiles(
        36,
        "Seconds for which streams are followed",
        catalog.FOLLOW_DURATION,
        says(
            "From the end of the replay to the end of the stream.",
            normal="as long as tools take, and five minutes for the streams that nothing is said on.",
            otherwise="very short: clients are cut again at once; look at the timeouts of proxies, which should be "
            "longer than a minute.",
        ),
        labels={},
    ),
)

_SHAPES = (
    quantiles(
        37,
        "Seconds to the first event",
        FIRST_EVENT,
        says(
            "From the start of a replay until its first event was delivered: what a client waits.",
            normal="milliseconds: a round trip to Redis, and the way to the client.",
            otherwise="long: compare with the panel beside. Redis is slow ('Seconds of a batch'), or the client is.",
        ),
        labels={},
        width=12,
        links=(to("Seconds of a batch", REDIS, 11), runbook("EventscopeReplaySlow")),
    ),
    quantiles(
        38,
        "Seconds of a replay that were spent sending",
        SEND,
        says(
            "What of a replay was the client's and the network's. The rest of it is the store's.",
            normal="milliseconds.",
            otherwise="as long as 'Seconds of a replay': clients, or a proxy, take what is sent slowly; Redis is well.",
        ),
        labels={},
        width=12,
        links=(runbook("EventscopeReplaySlow"),),
    ),
    heatmap(
        31,
        "Seconds of a replay",
        REPLAY_DURATION,
        says(
            f"How many replays took how long. {_TRACES}",
            normal="dark at the bottom: milliseconds.",
            otherwise="a second band above: is it the large replays ('Events of a replay' has a band too) or the "
            "clients that are slow? The trace tells the two apart.",
        ),
        unit="s",
        width=12,
        links=(runbook("EventscopeReplaySlow"),),
    ),
    heatmap(
        32,
        "How long clients had been away",
        catalog.RESUME_AGE,
        says(
            f"How many came back after how long. {_TRACES}",
            normal="seconds, for cut connections; minutes, for idle streams; well below the TTL.",
            otherwise="a band that reaches the TTL: those above it are lost. Set a longer one.",
        ),
        unit="s",
        width=12,
        links=(runbook("EventscopeTTLHeadroomLow"),),
    ),
    heatmap(
        33,
        "Events of a replay",
        catalog.REPLAY_EVENTS,
        says(
            f"How many events one replay delivered. {_TRACES}",
            normal="few: what was said while the client was away.",
            otherwise="thousands: a tool that reports progress very often. A replay reads in chunks, so this costs "
            "time and not memory.",
        ),
        unit="short",
        width=12,
    ),
    heatmap(
        35,
        "Bytes of a replay",
        catalog.REPLAY_BYTES,
        says(
            f"How many bytes one replay delivered. {_TRACES}",
            normal="kilobytes.",
            otherwise="megabytes: large results are sent again to clients that come back; are they cut because of "
            "their size?",
        ),
        unit="bytes",
        width=12,
    ),
)

RESUME = Dashboard(
    links.RESUME,
    "MCP resumability: resumes in detail",
    "Which resumes fail or are slow: by worker, by reason, by age and size, down to their traces. Of mcp-eventscope.",
    (
        Row(10, "Is it one worker?", _WORKERS),
        Row(20, "For which reason?", _REASONS),
        Row(30, "Which ones? Duration, age and size", _SHAPES),
    ),
)
