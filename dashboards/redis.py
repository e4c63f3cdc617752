"""The Redis dashboard: as workers measure it, its statistics, and redis_exporter's view where there is one."""

from dashboards import links, promql
from dashboards.board import STACKED, Dashboard
from dashboards.links import OVERVIEW, runbook, to
from dashboards.objective import MEMORY
from dashboards.panels import (
    ASIDE,
    BAD,
    CALM,
    OUTCOMES,
    PER_SECOND,
    PROBLEM,
    QUANTILES,
    REASONS,
    Panel,
    Row,
    Target,
    coloured,
    counter,
    describe,
    gauge,
    heatmap,
    lines,
    quantiles,
    stat,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.start import REDIS_CAPABILITY

_POLLED = "Needs Redis statistics (redis_stats_interval=)."


def _exporter(name: str, legend: str, fold: str = "max", **labels: str) -> Target:
    """The same measured by redis_exporter; empty without one."""
    return Target(f"{fold}({promql.foreign(name, labels)})", f"{legend} (redis_exporter)")


def _exported(number: int, title: str, description: str, unit: str, *targets: Target, width: int = 8) -> Panel:
    return lines(number, title, description, *targets, unit=unit, width=width, most=None)


_CAPABILITIES = promql.lowest(promql.series(REDIS_CAPABILITY), ("capability",))
_WORKERS = (
    quantiles(
        11,
        "Redis write latency",
        catalog.store.COMMIT_DURATION,
        describe(
            "From sending a batch of events to its acknowledgement, measured by the workers: network and Redis.",
            normal="p50 below 1 ms within one data centre, p99 below 10 ms.",
            otherwise="Redis is busy ('Command rate', below; long scripts or KEYS of other applications; SLOWLOG) or "
            "the network is slow. Does the host of Redis swap?",
        ),
        labels={},
        links=(to("Store latency", OVERVIEW, 32), runbook("EventscopeStoreSlow"), runbook("EventscopeStoreErrors")),
    ),
    lines(
        12,
        "Batch size",
        describe(
            "Events per batch.",
            normal="few at low load; up to 256 under load, which raises the throughput.",
            otherwise="p50 constantly at 128 or more: the connection of a worker is saturated. Add workers.",
        ),
        Target(promql.quantile(0.99, catalog.store.COMMIT_BATCH_SIZE), "p99"),
        Target(promql.quantile(0.5, catalog.store.COMMIT_BATCH_SIZE), "p50"),
        overrides=QUANTILES,
        unit="short",
    ),
    counter(
        13,
        "Retry rate by reason",
        catalog.store.COMMIT_RETRIES,
        describe(
            "Batches that were not acknowledged and sent again. A retry never stores an event twice.",
            normal="0; a noscript after Redis restarted.",
            otherwise="the reason names the cause: see 'Degradation rate by reason'.",
        ),
        "reason",
        links=(runbook("EventscopeStoreDegraded"),),
    ),
    counter(
        14,
        "Degradation rate by reason",
        catalog.store.DEGRADATIONS,
        describe(
            "How often workers found Redis unreachable, too slow, or refusing writes.",
            normal="0.",
            otherwise="connection: Redis is down, or the network. Timeout: too slow. Loading: it restarted. Readonly: "
            "a replica, after a failover. Oom: full. Pool: max_connections. Auth: its ACL. Busy: a long script.",
        ),
        "reason",
        links=(to("Redis state by worker", OVERVIEW, 41), runbook("EventscopeStoreDegraded")),
    ),
    lines(
        15,
        "Time unavailable by reason",
        describe(
            "Summed over workers and added at recovery: a peak at the end of an outage, as high as the outage was "
            "long.",
            normal="0.",
            otherwise="see 'Degradation rate by reason'. An outage in progress is not included: 'Redis state by "
            "worker' shows it.",
        ),
        Target(promql.counted(catalog.store.DEGRADATION_DURATION, ("reason",)), "{{reason}}"),
        unit="s",
        overrides=REASONS,
        links=(runbook("EventscopeStoreDegraded"),),
    ),
    gauge(
        16,
        "Pending events by store",
        catalog.store.BACKLOG_LENGTH,
        describe(
            "Events in the memory of the workers that Redis has not acknowledged.",
            normal="near 0.",
            otherwise="Redis is unavailable or rejects events: the panels above show the reason.",
        ),
        "store",
        links=(to("Pending events by worker", OVERVIEW, 42), runbook("EventscopeBacklogGrowing")),
    ),
    stat(
        17,
        "Redis capabilities",
        describe(
            "Whether Redis has the capabilities that the store needs, tested when a worker starts.",
            normal="yes throughout.",
            otherwise="the log event event_store.redis_limited has the fix, such as the ACL rule. Without publish or "
            "subscribe resumed streams are polled; without the others events are not stored, or are evicted.",
        ),
        _CAPABILITIES,
        (None, BAD),
        (1, CALM),
        unit="short",
        targets=(
            Target(promql.lowest(promql.series(REDIS_CAPABILITY), ("capability",)), "{{capability}}", instant=True),
        ),
        defaults={"mappings": [{"type": "value", "options": {"0": {"text": "no"}, "1": {"text": "yes"}}}]},
        options={"textMode": "value_and_name", "text": {"titleSize": 14, "valueSize": 24}},
        width=24,
    ),
)

_STATISTICS = (
    lines(
        21,
        "Memory",
        describe(
            f"Memory that Redis uses in total, and its limit. {_POLLED}",
            normal=f"below {MEMORY:.0%} of the limit. No limit line: Redis has none.",
            otherwise="near the limit Redis evicts keys or refuses writes: add memory, shorten the TTL, or find the "
            "other application ('Keys').",
        ),
        Target(promql.highest(promql.series(catalog.redis_stats.REDIS_MEMORY)), "used"),
        Target(f"{promql.highest(promql.series(catalog.redis_stats.REDIS_MEMORY_LIMIT))} > 0", "limit"),
        _exporter("redis_memory_used_bytes", "used"),
        unit="bytes",
        overrides=coloured({"used": "blue", "limit": BAD, "used (redis_exporter)": "super-light-blue"}),
        links=(runbook("EventscopeRedisMemoryNearLimit"),),
    ),
    lines(
        22,
        "Keys",
        describe(
            f"Keys under the prefix, as of the last full scan, and keys of the whole database. {_POLLED}",
            normal="constant: as many expire as are stored.",
            otherwise="keys under the prefix grow without bound: see 'Keys without TTL'. Only the whole database "
            "grows: another application.",
        ),
        Target(promql.highest(promql.series(catalog.redis_stats.REDIS_KEYS), ("store",)), "prefix, {{store}}"),
        Target(promql.highest(promql.series(catalog.redis_stats.REDIS_DB_KEYS)), "database"),
        _exporter("redis_db_keys", "database", "sum"),
        unit="short",
        overrides=coloured({"database": ASIDE, "database (redis_exporter)": "purple"}),
    ),
    lines(
        23,
        "Key eviction rate",
        describe(
            f"Keys that Redis evicted for lack of memory. An evicted event is a gap in a resume. {_POLLED}",
            normal="0. maxmemory-policy should be noeviction: events whose write is refused stay pending.",
            otherwise="add memory, or change the policy. Redis does not report whose keys it evicted.",
        ),
        Target(promql.rate(catalog.redis_stats.REDIS_KEYS_EVICTED), "evicted"),
        Target(f"sum(rate({promql.foreign('redis_evicted_keys_total')}[{promql.RATE}]))", "evicted (redis_exporter)"),
        links=(runbook("EventscopeRedisEvicting"),),
    ),
    gauge(
        24,
        "Keys without TTL by store",
        catalog.redis_stats.REDIS_KEYS_WITHOUT_TTL,
        describe(
            f"Keys under the prefix that never expire. {_POLLED}",
            normal="0 where a TTL is set.",
            otherwise="another application writes under this prefix, or they predate the TTL: they stay until deleted.",
        ),
        "store",
        colour=PROBLEM,
        links=(runbook("EventscopeKeysWithoutTTL"),),
    ),
    gauge(
        25,
        "Memory per event",
        catalog.redis_stats.REDIS_EVENT_SIZE,
        describe(
            f"Memory that one event takes up in Redis, averaged over a sample of events. {_POLLED}",
            normal="a few hundred bytes, constant.",
            otherwise="growing: tools send larger messages. Multiplied by 'Store rate by message type' and the TTL, it "
            "is the memory that Redis needs.",
        ),
        "store",
        unit="bytes",
        links=(to("Store rate by message type", OVERVIEW, 34),),
    ),
    lines(
        26,
        "Projected memory",
        describe(
            f"Store rate, times TTL, times memory per event: where memory usage converges. {_POLLED}",
            normal="well below the limit of 'Memory'.",
            otherwise="add memory, shorten the TTL, or store fewer events. Usage follows a change of load within one "
            "TTL.",
        ),
        Target(
            f"{promql.rate(catalog.store.EVENTS_STORED, '', ('store',))}"
            f" * on (store) {promql.highest(promql.series(catalog.store.TTL), ('store',))}"
            f" * on (store) {promql.highest(promql.series(catalog.redis_stats.REDIS_EVENT_SIZE), ('store',))}",
            "{{store}}",
        ),
        unit="bytes",
    ),
    heatmap(
        27,
        "Poll duration",
        catalog.redis_stats.REDIS_STATS_DURATION,
        describe(
            "Duration of a poll of Redis statistics. One worker polls, the others check whether it does.",
            normal="tens of milliseconds, and single ones for the check.",
            otherwise="0.25 s: a poll is limited to that, and scans a part of the keys.",
        ),
        unit="s",
        width=12,
    ),
    lines(
        28,
        "Poll rate by outcome",
        describe(
            "Polls of Redis statistics.",
            normal="ok and other_worker.",
            otherwise="error: the panels of this row are as old as the last ok. The Redis user needs INFO, DBSIZE, "
            "SCAN, PTTL and MEMORY USAGE.",
        ),
        Target(promql.rate(catalog.redis_stats.REDIS_STATS_DURATION, "count", ("outcome",)), "{{outcome}}"),
        width=12,
        custom=STACKED,
        overrides=OUTCOMES,
        links=(runbook("EventscopeRedisStatsStale"),),
    ),
)


def _rate_of(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({promql.foreign(name)}[{promql.RATE}]))"


_EXPORTED = (
    _exported(
        31,
        "Command latency",
        describe(
            "Mean execution time of the five most expensive commands, measured by Redis: without the network.",
            normal="tens of microseconds; scripts of this library below 1 ms.",
            otherwise="high, and 'Redis write latency' too: Redis is busy. Only the latter is high: the network.",
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
        "Command rate",
        describe(
            "The five most frequent commands.",
            normal="evalsha and eval, which this library uses.",
            otherwise="other commands dominate: another application slows Redis down.",
        ),
        PER_SECOND,
        Target(f"topk(5, {_rate_of('redis_commands_total', 'cmd')})", "{{cmd}}"),
    ),
    _exported(
        33,
        "Connections",
        describe(
            "Connected clients, clients blocked in a command, and connections refused per second.",
            normal="a few per worker; 0 refused.",
            otherwise="refused: maxclients is reached. Many more than workers: another application, or a leak.",
        ),
        "short",
        Target(f"sum({promql.foreign('redis_connected_clients')})", "connected"),
        Target(f"sum({promql.foreign('redis_blocked_clients')})", "blocked"),
        Target(f"sum(rate({promql.foreign('redis_rejected_connections_total')}[{promql.RATE}]))", "refused per second"),
    ),
    _exported(
        34,
        "Redis health",
        describe(
            "1 is healthy. Up: Redis answers. Snapshot, append-only file: the last write succeeded. Primary link: the "
            "replica is connected.",
            normal="1 throughout.",
            otherwise="up 0: Redis is down. Snapshot or append-only file 0: the disk; a restart would lose events.",
        ),
        "short",
        Target(f"min({promql.foreign('redis_up')})", "up"),
        Target(f"min({promql.foreign('redis_rdb_last_bgsave_status')})", "snapshot"),
        Target(f"min({promql.foreign('redis_aof_last_write_status')})", "append-only file"),
        Target(f"min({promql.foreign('redis_master_link_up')})", "primary link"),
        width=12,
    ),
    _exported(
        35,
        "Memory fragmentation ratio",
        describe(
            "Resident memory divided by the memory that Redis uses.",
            normal="1 to 1.5.",
            otherwise="below 1: Redis is swapped out, and slow. Far above: activedefrag, or a restart.",
        ),
        "short",
        Target(f"max({promql.foreign('redis_mem_fragmentation_ratio')})", "ratio"),
        width=12,
    ),
)

REDIS = Dashboard(
    links.REDIS,
    "MCP resumability: Redis",
    "Redis as measured by the workers, its statistics, and redis_exporter's view where there is one. Of "
    "mcp-eventscope.",
    (
        Row(10, "Measured by the workers", _WORKERS),
        Row(20, "Redis statistics (redis_stats_interval=)", _STATISTICS),
        Row(30, "redis_exporter, where there is one", _EXPORTED, collapsed=True),
    ),
    redis_exporter=True,
)
