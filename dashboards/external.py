"""The metrics of others that are named here, with the labels that are used: a test holds the dashboards to these."""

PROCESS_START = "process_start_time_seconds"
"""Of any Prometheus client; not there where several workers answer as one."""

REDIS_EXPORTER: dict[str, frozenset[str]] = {
    "redis_up": frozenset(),
    "redis_memory_used_bytes": frozenset(),
    "redis_db_keys": frozenset({"db"}),
    "redis_evicted_keys_total": frozenset(),
    "redis_commands_duration_seconds_total": frozenset({"cmd"}),
    "redis_commands_total": frozenset({"cmd"}),
    "redis_connected_clients": frozenset(),
    "redis_blocked_clients": frozenset(),
    "redis_rejected_connections_total": frozenset(),
    "redis_mem_fragmentation_ratio": frozenset(),
    "redis_rdb_last_bgsave_status": frozenset(),
    "redis_aof_last_write_status": frozenset(),
    "redis_master_link_up": frozenset(),
}
"""Of oliver006/redis_exporter, each looked up in its source."""

ALL: dict[str, frozenset[str]] = {PROCESS_START: frozenset(), **REDIS_EXPORTER}
SCRAPED = frozenset({"job", "instance"})
