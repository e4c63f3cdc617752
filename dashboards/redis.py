"""Redis: what the workers see of it, what the sampler sees in it, and what redis_exporter adds where there is one."""

from dashboards import links, promql
from dashboards.board import STACKED, Dashboard
from dashboards.links import OVERVIEW, runbook, to
from dashboards.panels import (
    ASIDE,
    BAD,
    HALVES,
    OUTCOMES,
    PER_SECOND,
    TROUBLE,
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

_BACK = to("Do resumes work?", OVERVIEW)
_SAMPLED = "Known where Redis is sampled (sample_redis=), else empty."


def _exporter(name: str, legend: str, fold: str = "max", **labels: str) -> Target:
    """The same seen by redis_exporter; nothing where there is none."""
    return Target(f"{fold}({promql.foreign(name, labels)})", f"{legend} (redis_exporter)")


def _exported(number: int, title: str, description: str, unit: str, *targets: Target, width: int = 8) -> Panel:
    return lines(number, title, description, *targets, unit=unit, width=width, most=None)


_SEEN = (
    quantiles(
        11,
        "Seconds of a batch",
        catalog.COMMIT_DURATION,
        says(
            "Between sending a batch of events to Redis and its acknowledgement, as the workers see it: the network, "
            "and what Redis is busy with.",
            normal="half below 1 ms in one data centre, 99 % below 10 ms.",
            otherwise="Redis is busy (commands a second, below; a long script or KEYS of somebody else; SLOWLOG) or "
            "the network is. Is the machine of Redis swapping?",
        ),
        labels={},
        links=(to("Seconds to store an event", OVERVIEW, 32), runbook("EventscopeStoreErrors")),
    ),
    lines(
        12,
        "Events of a batch",
        says(
            "How many are stored together: half of the batches, and 99 of 100, have at most so many.",
            normal="few, when little is said; towards 64 under load, which is what makes it fast.",
            otherwise="always 63 or more: the workers send all that one connection takes. Start more of them.",
        ),
        Target(promql.quantile(0.99, catalog.COMMIT_EVENTS), "99 %"),
        Target(promql.quantile(0.5, catalog.COMMIT_EVENTS), "half"),
        overrides=HALVES,
        unit="short",
    ),
    counter(
        13,
        "Batches that were sent again, by reason",
        catalog.COMMIT_RETRIES,
        says(
            "Not acknowledged, and sent again, a second. Each event is stored once all the same.",
            normal="none; one of noscript after Redis was restarted.",
            otherwise="the reason is what is wrong: see 'Times that Redis went away'.",
        ),
        "reason",
        colour=TROUBLE,
        links=(runbook("EventscopeStoreDegraded"),),
    ),
    counter(
        14,
        "Times that Redis went away, by reason",
        catalog.DEGRADATIONS,
        says(
            "How often a worker found it away or too slow, a second.",
            normal="none.",
            otherwise="connection: it is down, or the network. Timeout: too slow. Loading: it was restarted. Readonly: "
            "a replica, after a failover. Oom: full. Pool: max_connections. Auth: its ACL. Busy: somebody's script.",
        ),
        "reason",
        colour=TROUBLE,
        links=(to("Redis away, by worker", OVERVIEW, 41), runbook("EventscopeStoreDegraded")),
    ),
    lines(
        15,
        "Seconds that it was away, by reason",
        says(
            "Added up over workers, and counted when Redis is back: a peak at the end of an outage, as high as that "
            "was long.",
            normal="none.",
            otherwise="the panel beside says what each reason means. An outage that goes on is not in it yet: 'Redis "
            "away, by worker' shows that.",
        ),
        Target(promql.counted(catalog.DEGRADED_SECONDS, ("reason",)), "{{reason}}"),
        unit="s",
        colour=TROUBLE,
        links=(runbook("EventscopeStoreDegraded"),),
    ),
    gauge(
        16,
        "Events that wait for it",
        catalog.BACKLOG_EVENTS,
        says(
            "In the memory of workers, until Redis is back.",
            normal="0.",
            otherwise="Redis is away, or refuses: the panels before say why.",
        ),
        "instance",
        colour=TROUBLE,
        links=(runbook("EventscopeBacklogGrowing"),),
    ),
)

_INSIDE = (
    lines(
        21,
        "Memory",
        says(
            f"What Redis uses, for everything, and may use. {_SAMPLED}",
            normal="used below 90 % of the limit; no line for the limit where there is none.",
            otherwise="near the limit it evicts, or refuses: give it more, set a shorter TTL, or find out who else is "
            "in it ('Keys').",
        ),
        Target(promql.highest(promql.series(catalog.REDIS_MEMORY)), "used"),
        Target(f"{promql.highest(promql.series(catalog.REDIS_MEMORY_LIMIT))} > 0", "limit"),
        _exporter("redis_memory_used_bytes", "used"),
        unit="bytes",
        overrides=coloured({"limit": BAD, "used (redis_exporter)": "super-light-blue"}),
        links=(runbook("EventscopeRedisMemoryNearLimit"),),
    ),
    lines(
        22,
        "Keys",
        says(
            f"Ours: under the prefix, when all had last been looked at. All: in the database, whoever's. {_SAMPLED}",
            normal="level: as many expire as are stored.",
            otherwise="ours grow without end: keys without TTL (beside). All grow and ours do not: somebody else's.",
        ),
        Target(promql.highest(promql.series(catalog.REDIS_KEYS), ("store",)), "ours, {{store}}"),
        Target(promql.highest(promql.series(catalog.REDIS_DB_KEYS)), "all"),
        _exporter("redis_db_keys", "all", "sum"),
        unit="short",
        overrides=coloured({"all": ASIDE, "all (redis_exporter)": "purple"}),
    ),
    lines(
        23,
        "Keys evicted",
        says(
            f"Keys that Redis threw away for want of memory, a second: a gap in a replay, each. {_SAMPLED}",
            normal="none. maxmemory-policy should be noeviction: a refused write is only an event that cannot be "
            "resumed.",
            otherwise="memory, or the policy. Whose keys they were Redis does not say.",
        ),
        Target(promql.rate(catalog.REDIS_EVICTED), "evicted"),
        Target(f"sum(rate({promql.foreign('redis_evicted_keys_total')}[{promql.RATE}]))", "evicted (redis_exporter)"),
        colour=TROUBLE,
        links=(runbook("EventscopeRedisEvicting"),),
    ),
    gauge(
        24,
        "Keys that will never expire",
        catalog.REDIS_KEYS_WITHOUT_TTL,
        says(
            f"Under the prefix, without a TTL. {_SAMPLED}",
            normal="0 where a TTL is set.",
            otherwise="another writer with this prefix, or of a time without TTL: they stay until they are deleted.",
        ),
        "store",
        colour=TROUBLE,
        links=(runbook("EventscopeKeysWithoutTTL"),),
    ),
    gauge(
        25,
        "Bytes of an event",
        catalog.REDIS_EVENT_BYTES,
        says(
            f"Memory that one event needs, on average of some that were weighed. {_SAMPLED}",
            normal="a few hundred bytes, steady.",
            otherwise="growing: tools say more at once. Times 'Events stored, by kind', times the TTL, it is what "
            "Redis has to hold.",
        ),
        "store",
        unit="bytes",
        links=(to("Events stored, by kind", OVERVIEW, 34),),
    ),
    lines(
        26,
        "Memory that the load needs",
        says(
            f"Events a second, times the TTL, times the bytes of an event: where memory is going to. {_SAMPLED}",
            normal="below what Redis may use, with room.",
            otherwise="more memory, a shorter TTL, or fewer events; it takes one TTL from a change of the load until "
            "memory is there.",
        ),
        Target(
            f"{promql.rate(catalog.STORED_EVENTS, '', ('store',))}"
            f" * on (store) {promql.highest(promql.series(catalog.TTL), ('store',))}"
            f" * on (store) {promql.highest(promql.series(catalog.REDIS_EVENT_BYTES), ('store',))}",
            "{{store}}",
        ),
        unit="bytes",
    ),
    heatmap(
        27,
        "Seconds of a sample",
        catalog.SAMPLE_DURATION,
        says(
            "What looking at Redis costs. One worker looks, the others ask whether it does.",
            normal="tens of milliseconds, and single ones.",
            otherwise="a quarter of a second: so many keys that one look sees a part of them; that is meant.",
        ),
        unit="s",
        width=12,
    ),
    lines(
        28,
        "Samples, by how they ended",
        says(
            "Looks at Redis, a second.",
            normal="ok and elsewhere.",
            otherwise="error: the panels of this row are as old as the last ok. The user needs INFO, DBSIZE, SCAN, "
            "PTTL and MEMORY USAGE.",
        ),
        Target(promql.rate(catalog.SAMPLE_DURATION, "count", ("outcome",)), "{{outcome}}"),
        width=12,
        custom=STACKED,
        overrides=OUTCOMES,
        links=(runbook("EventscopeRedisUnsampled"),),
    ),
)


def _rate_of(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({promql.foreign(name)}[{promql.RATE}]))"


_EXPORTED = (
    _exported(
        31,
        "Seconds of a command, as Redis sees it",
        says(
            "Mean of the five commands that take most of its time; without the network.",
            normal="tens of microseconds; a script of ours below 1 ms.",
            otherwise="long here and in 'Seconds of a batch': Redis is busy. Long there only: the network is.",
        ),
        "s",
        Target(
            f"topk(5, {_rate_of('redis_commands_duration_seconds_total', 'cmd')})"
            f" / ({_rate_of('redis_commands_total', 'cmd')} > 0)",
            "{{cmd}}",
        ),
    ),
    _exported(
        32,
        "Commands",
        says(
            "The five that are most frequent, a second.",
            normal="evalsha and eval are ours.",
            otherwise="something else leads: another application's load slows ours down.",
        ),
        PER_SECOND,
        Target(f"topk(5, {_rate_of('redis_commands_total', 'cmd')})", "{{cmd}}"),
    ),
    _exported(
        33,
        "Clients",
        says(
            "Connected, waiting in a blocking command, and refused a second.",
            normal="a few for each worker; nobody refused.",
            otherwise="refused: maxclients. Many more than workers: another application, or a leak.",
        ),
        "short",
        Target(f"sum({promql.foreign('redis_connected_clients')})", "connected"),
        Target(f"sum({promql.foreign('redis_blocked_clients')})", "blocked"),
        Target(f"sum(rate({promql.foreign('redis_rejected_connections_total')}[{promql.RATE}]))", "refused a second"),
    ),
    _exported(
        34,
        "Is it well?",
        says(
            "1: it is. Up: it answers. Snapshot, append-only file: the last one was written. Link: the replica has its "
            "primary.",
            normal="1 everywhere.",
            otherwise="up 0: it is down. Snapshot or file 0: the disk; after a restart, events would be gone.",
        ),
        "short",
        Target(f"min({promql.foreign('redis_up')})", "up"),
        Target(f"min({promql.foreign('redis_rdb_last_bgsave_status')})", "snapshot"),
        Target(f"min({promql.foreign('redis_aof_last_write_status')})", "append-only file"),
        Target(f"min({promql.foreign('redis_master_link_up')})", "link to the primary"),
        width=12,
    ),
    _exported(
        35,
        "Memory, fragmented",
        says(
            "What the operating system gives, over what Redis uses.",
            normal="1 to 1.5.",
            otherwise="below 1: it is swapped, and slow. Far above: activedefrag, or a restart.",
        ),
        "short",
        Target(f"max({promql.foreign('redis_mem_fragmentation_ratio')})", "ratio"),
        width=12,
    ),
)

REDIS = Dashboard(
    links.REDIS,
    "MCP resumability: Redis",
    "Redis as the workers see it, what the sampler sees in it, and redis_exporter's view beside it where there is one.",
    (
        Row(10, "As the workers see it", _SEEN),
        Row(20, "What is in it (sample_redis=)", _INSIDE),
        Row(30, "As it sees itself (redis_exporter, where there is one)", _EXPORTED, collapsed=True),
    ),
    redis_exporter=True,
)
