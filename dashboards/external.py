"""Third-party metrics that the dashboards use, with the labels; a test checks the dashboards against this."""

PROCESS_START = "process_start_time_seconds"
"""Exposed by every Prometheus client, but not in multiprocess mode."""

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
"""Metrics of oliver006/redis_exporter, each verified in its source."""

ALL: dict[str, frozenset[str]] = {PROCESS_START: frozenset(), **REDIS_EXPORTER}
SCRAPED = frozenset({"job", "instance"})
