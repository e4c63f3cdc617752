"""Rules: accepted by Prometheus; each alert fires when it should, and only then."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards import links
from dashboards.objective import COMMIT_SECONDS
from dashboards.rules import alert_file, alerts
from mcp_eventscope.redis.limits import STORE_TIMEOUT
from mcp_eventscope.telemetry import catalog
from support.alerting import ALERTS, Case, failures_of_promtool
from support.binaries import program
from support.boards import PROMETHEUS
from support.drill.site import EXPECTED

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text("utf-8")
REPLAYS = "eventscope_replay_duration_seconds_count"


def resumes(**outcomes: str) -> dict[str, str]:
    """Counters of resumes by outcome."""
    return {f'{REPLAYS}{{outcome="{outcome}"}}': values for outcome, values in outcomes.items()}


def histogram(name: str, buckets: dict[str, str], **labels: str) -> dict[str, str]:
    """A histogram by its buckets; the last one contains all."""
    own = "".join(f', {label}="{value}"' for label, value in labels.items())
    series = {f'{name}_bucket{{le="{le}"{own}}}': values for le, values in buckets.items()}
    return series | {f"{name}_count{{{own.removeprefix(', ')}}}": list(buckets.values())[-1]}


def _histogram(name: str, bounds: tuple[str, str], below: str, everything: str) -> dict[str, str]:
    """A histogram with two buckets."""
    low, high = bounds
    return {
        f'eventscope_{name}_bucket{{le="{low}"}}': below,
        f'eventscope_{name}_bucket{{le="{high}"}}': everything,
        f'eventscope_{name}_bucket{{le="+Inf"}}': everything,
        f"eventscope_{name}_count{{}}": everything,
    }


def _operations(*, tool_error: str, failed: str, ok: str) -> dict[str, str]:
    """Tool calls that ended."""
    name = "mcp_server_operation_duration_seconds_count"
    return {
        f'{name}{{mcp_method_name="tools/call", error_type="{error_type}"}}': values
        for error_type, values in (("tool_error", tool_error), ("-32603", failed), ("", ok))
    }


CASES = [
    # -- the objective ------------------------------------------------------------------------------------------------
    Case(
        "EventscopeResumesFailing",
        "a fifth of the resumes fails for an hour",
        resumes(resumed="0+4x70", missed="0+1x70"),
        "65m",
        [{}],
        "20%",
    ),
    Case(
        "EventscopeResumesFailing",
        "one in ten fails for six hours: too few for an hour's alarm, too many for six",
        resumes(resumed="0+270x30", gap="0+30x30"),
        "390m",
        [{}],
        "10%",
        every="15m",
    ),
    Case(
        "EventscopeResumesFailing",
        "it failed for a quarter of an hour, and it is over",
        resumes(resumed="0+1x70", error="0+1x15 15x55"),
        "65m",
    ),
    Case(
        "EventscopeResumesFailing",
        "all of them fail, and there are only a few: one client that slept",
        resumes(resumed="0x70", missed="0x50 1x5 2x5 3x5"),
        "65m",
    ),
    Case(
        "EventscopeResumesFailing",
        "two of the few resumes of six hours: clients that slept",
        resumes(resumed="0+1x23 23x6", missed="0x24 1 2x10"),
        "390m",
        every="15m",
    ),
    Case(
        "EventscopeResumesFailing",
        "Redis cannot be read: attempts that are repeated",
        resumes(resumed="0+4x70", unavailable="0+40x70"),
        "65m",
    ),
    Case(
        "EventscopeResumesFailingSlowly",
        "one of the few resumes of three days",
        resumes(resumed="0x100 0+1x70", missed="0x140 1x30"),
        "4400m",
        every="30m",
    ),
    Case(
        "EventscopeResumesFailing",
        "clients leave in the middle of replays: their own doing",
        resumes(resumed="0+4x70", client_disconnected="0+4x70", cancelled="0+4x70"),
        "65m",
    ),
    Case(
        "EventscopeResumesFailing",
        "one in two hundred fails: within the objective",
        resumes(resumed="0+199x70", missed="0+1x70"),
        "65m",
    ),
    Case(
        "EventscopeResumesFailingSlowly",
        "four in a hundred, for a day",
        resumes(resumed="0+96x70", missed="0+4x70"),
        "1500m",
        [{}],
        "4%",
        every="30m",
    ),
    Case(
        "EventscopeResumesFailingSlowly",
        "two in a hundred, for three days",
        resumes(resumed="0+98x170", missed="0+2x170"),
        "4400m",
        [{}],
        "2%",
        every="30m",
    ),
    Case(
        "EventscopeResumesFailingSlowly",
        "half of the budget is used, and no more",
        resumes(resumed="0+199x170", missed="0+1x170"),
        "4400m",
        every="30m",
    ),
    Case(
        "EventscopeDueEventsUndelivered",
        "idle clients succeed, and those that were owed something do not",
        resumes(caught_up="0+200x70", resumed="0x70", missed="0+1x70"),
        "65m",
        [{}],
        "100%",
    ),
    Case(
        "EventscopeDueEventsUndelivered",
        "a third of those owed something: the objective's business",
        resumes(caught_up="0+200x70", resumed="0+2x70", missed="0+1x70"),
        "65m",
    ),
    Case(
        "EventscopeDueEventsUndelivered",
        "all of too few",
        resumes(caught_up="0+200x70", resumed="0x70", missed="0x50 1+1x15"),
        "65m",
    ),
    # -- the store ----------------------------------------------------------------------------------------------------
    Case(
        "EventscopeStoreDegraded",
        "one worker of two",
        {'eventscope_degraded{instance="a"}': "0 0 1x10", 'eventscope_degraded{instance="b"}': "0x12"},
        "5m",
        [{}],
    ),
    Case(
        "EventscopeStoreDegraded",
        "one that has events to store",
        {'eventscope_degraded{pid="1"}': "0 0 1x10", 'eventscope_backlog_length{pid="1"}': "0 0 1000+1000x10"},
        "5m",
        [{}],
        rate=" (4k now)",
    ),
    Case("EventscopeStoreDegraded", "for seconds", {"eventscope_degraded{}": "0 0 1 0x10"}, "3m"),
    Case(
        "EventscopeStoreFlapping",
        "six times within a quarter of an hour",
        {'eventscope_degradations_total{reason="timeout"}': "0x5 0+1x6 6x10", "eventscope_degraded{}": "0x30"},
        "14m",
        [{}],
        "6",
    ),
    Case(
        "EventscopeStoreFlapping",
        "three times: not more than three",
        {'eventscope_degradations_total{reason="timeout"}': "0x3 1 2 3x15", "eventscope_degraded{}": "0x30"},
        "14m",
    ),
    Case(
        "EventscopeStoreFlapping",
        "once, on each of eight workers",
        {
            f'eventscope_degradations_total{{instance="{worker}", reason="connection"}}': "0x5 1x20"
            for worker in "abcdefgh"
        }
        | {f'eventscope_degraded{{instance="{worker}"}}': "0x30" for worker in "abcdefgh"},
        "14m",
    ),
    Case(
        "EventscopeStoreFlapping",
        "once, on each of four workers that share a target",
        {'eventscope_degradations_total{reason="connection"}': "0x5 4x20"}
        | {f'eventscope_degraded{{pid="{pid}"}}': "0x30" for pid in range(4)},
        "14m",
    ),
    Case(
        "EventscopeStoreFlapping",
        "six times, on each of four workers that share a target",
        {'eventscope_degradations_total{reason="connection"}': "0x5 0+4x6 24x10"}
        | {f'eventscope_degraded{{pid="{pid}"}}': "0x30" for pid in range(4)},
        "14m",
        [{}],
        "6",
    ),
    Case(
        "EventscopeStoreErrors",
        "one event per second is refused, of four",
        {
            'eventscope_errors_total{operation="store", error_type="rejected"}': "0+60x20",
            'eventscope_store_duration_seconds_count{outcome="ok"}': "0+180x20",
        },
        "12m",
        [{"operation": "store", "error_type": "rejected"}],
        "25%",
        rate="1",
    ),
    Case(
        "EventscopeStoreErrors",
        "one replay in a hundred fails",
        {
            'eventscope_errors_total{operation="replay", error_type="unavailable"}': "0+6x20",
            'eventscope_replay_duration_seconds_count{outcome="resumed"}': "0+500x20",
            'eventscope_replay_duration_seconds_count{outcome="caught_up"}': "0+94x20",
        },
        "12m",
        [{"operation": "replay", "error_type": "unavailable"}],
        "1%",
        rate="0.1",
    ),
    Case(
        "EventscopeStoreErrors",
        "reads of followed streams fail, and nothing is delivered",
        {
            'eventscope_errors_total{operation="follow", error_type="unavailable"}': "0+60x20",
            "eventscope_events_followed_total{}": "0x20",
        },
        "12m",
        [{"operation": "follow", "error_type": "unavailable"}],
        "100%",
        rate="1",
    ),
    Case(
        "EventscopeStoreErrors",
        "one error, once",
        {
            'eventscope_errors_total{operation="store", error_type="rejected"}': "0x3 1x20",
            'eventscope_store_duration_seconds_count{outcome="ok"}': "0+60x20",
        },
        "9m",
    ),
    Case(
        "EventscopeEventsLost",
        "the backlog was full",
        {'eventscope_events_lost_total{reason="overflow"}': "0x5 100x20"},
        "10m",
        [{"reason": "overflow"}],
        "100",
    ),
    Case("EventscopeEventsLost", "none", {'eventscope_events_lost_total{reason="overflow"}': "0x30"}, "25m"),
    Case(
        "EventscopeEventsLost",
        "half an hour ago",
        {'eventscope_events_lost_total{reason="overflow"}': "0x5 100x40"},
        "35m",
    ),
    Case(
        "EventscopeBacklogGrowing",
        "by two hundred a minute, in two workers",
        {
            'eventscope_backlog_length{instance="a"}': "0+200x15",
            'eventscope_backlog_length{instance="b"}': "0+200x15",
        },
        "10m",
        [{}],
        "4k",
    ),
    Case(
        "EventscopeBacklogGrowing",
        "during an outage, which has an alert, and until it is stored",
        {
            'eventscope_backlog_length{instance="a"}': "0+200x15",
            'eventscope_degraded{instance="a"}': "0x15",
            'eventscope_degraded{instance="b"}': "0 0 1x4 0x10",
        },
        "10m",
    ),
    Case("EventscopeBacklogGrowing", "it is being stored", {"eventscope_backlog_length{}": "9000-500x15"}, "10m"),
    Case("EventscopeBacklogGrowing", "a little", {"eventscope_backlog_length{}": "0+20x15"}, "10m"),
    # -- how long events are kept -------------------------------------------------------------------------------------
    Case(
        "EventscopeTTLHeadroomLow",
        "one of ten comes back at the last moment",
        histogram("eventscope_resume_ttl_ratio", {"0.9": "0+9x100", "0.95": "0+10x100", "+Inf": "0+10x100"}),
        "90m",
        [{}],
        "10%",
    ),
    Case(
        "EventscopeTTLHeadroomLow",
        "all come back with a fifth left",
        histogram("eventscope_resume_ttl_ratio", {"0.75": "0x100", "0.9": "0+9x100", "+Inf": "0+9x100"}),
        "90m",
    ),
    Case(
        "EventscopeTTLHeadroomLow",
        "all of too few",
        histogram("eventscope_resume_ttl_ratio", {"0.9": "0x100", "0.95": "0x60 9x40", "+Inf": "0x60 9x40"}),
        "80m",
    ),
    Case(
        "EventscopeTTLHeadroomLow",
        "no client resumes",
        histogram("eventscope_resume_ttl_ratio", {"0.9": "0x100", "+Inf": "0x100"}),
        "90m",
    ),
    Case("EventscopeTTLMissing", "no TTL", {"eventscope_degraded{}": "0x30"}, "15m", [{}]),
    Case(
        "EventscopeTTLMissing",
        "a TTL",
        {"eventscope_degraded{}": "0x30", "eventscope_ttl_seconds{}": "3600x30"},
        "15m",
    ),
    Case(
        "EventscopeKeysWithoutTTL",
        "keys of another application",
        {"eventscope_ttl_seconds{}": "3600x60", "eventscope_redis_keys_without_ttl{}": "3x60"},
        "40m",
        [{}],
        "3",
    ),
    Case(
        "EventscopeKeysWithoutTTL",
        "there is no TTL: another alert reports it",
        {"eventscope_redis_keys_without_ttl{}": "3x60"},
        "40m",
    ),
    Case(
        "EventscopeKeysWithoutTTL",
        "none",
        {"eventscope_ttl_seconds{}": "3600x60", "eventscope_redis_keys_without_ttl{}": "0x60"},
        "40m",
    ),
    # -- requests, replays, followers ---------------------------------------------------------------------------------
    Case("EventscopeRequestsOrphaned", "three", {"eventscope_requests_orphaned_total{}": "0x5 3x20"}, "10m", [{}], "3"),
    Case("EventscopeRequestsOrphaned", "three, long ago", {"eventscope_requests_orphaned_total{}": "0x5 3x40"}, "30m"),
    Case(
        "EventscopeReplaySlow",
        "all take between two and a half and five seconds",
        histogram(
            "eventscope_replay_duration_seconds", {"2.5": "0x40", "5": "0+5x40", "+Inf": "0+5x40"}, outcome="resumed"
        ),
        "30m",
        [{}],
        "4.975s",
    ),
    Case(
        "EventscopeReplaySlow",
        "fast ones",
        histogram("eventscope_replay_duration_seconds", {"0.01": "0+5x40", "+Inf": "0+5x40"}, outcome="resumed"),
        "30m",
    ),
    Case(
        "EventscopeReplaySlow",
        "one slow one among few",
        histogram(
            "eventscope_replay_duration_seconds", {"2.5": "0x40", "5": "0x15 1x25", "+Inf": "0x15 1x25"}, outcome="gap"
        ),
        "20m",
    ),
    Case(
        "EventscopeReplaySlow",
        "slow ones in an outage, which has an alert",
        histogram(
            "eventscope_replay_duration_seconds", {"2.5": "0x40", "5": "0+5x40", "+Inf": "0+5x40"}, outcome="resumed"
        )
        | {"eventscope_degraded{}": "0x5 1x20 0x15"},
        "34m",
    ),
    Case(
        "EventscopeFollowersGrowing",
        "five for each session",
        {"eventscope_streams_followed{}": "500x60", "eventscope_sessions_active{}": "100x60"},
        "40m",
        [{}],
        "500",
    ),
    Case(
        "EventscopeFollowersGrowing",
        "more clients: as many sessions",
        {"eventscope_streams_followed{}": "100+10x60", "eventscope_sessions_active{}": "90+10x60"},
        "50m",
    ),
    Case(
        "EventscopeFollowersGrowing",
        "few",
        {"eventscope_streams_followed{}": "90x60", "eventscope_sessions_active{}": "1x60"},
        "40m",
    ),
    # -- Redis --------------------------------------------------------------------------------------------------------
    Case("EventscopeRedisEvicting", "ten", {"eventscope_redis_keys_evicted_total{}": "0x5 10x20"}, "10m", [{}], "10"),
    Case("EventscopeRedisEvicting", "none", {"eventscope_redis_keys_evicted_total{}": "5x20"}, "10m"),
    Case(
        "EventscopeRedisMemoryNearLimit",
        "95 of 100",
        {"eventscope_redis_memory_used_bytes{}": "95x30", "eventscope_redis_memory_max_bytes{}": "100x30"},
        "15m",
        [{}],
        "95%",
    ),
    Case(
        "EventscopeRedisMemoryNearLimit",
        "half",
        {"eventscope_redis_memory_used_bytes{}": "50x30", "eventscope_redis_memory_max_bytes{}": "100x30"},
        "15m",
    ),
    Case(
        "EventscopeRedisMemoryNearLimit",
        "no limit",
        {"eventscope_redis_memory_used_bytes{}": "95x30", "eventscope_redis_memory_max_bytes{}": "0x30"},
        "15m",
    ),
    # -- the telemetry itself -----------------------------------------------------------------------------------------
    Case("EventscopeMetricsAbsent", "metrics were never scraped", {"up{}": "1x30"}, "10m", [{"job": ""}], labels={}),
    Case(
        "EventscopeMetricsAbsent",
        "one job of two is missing",
        {
            'eventscope_build_info{job="one", store="default"}': "1x100",
            'eventscope_build_info{job="two", store="default"}': "1x20 stale",
        },
        "70m",
        [{"job": "two"}],
        labels={},
    ),
    Case("EventscopeMetricsAbsent", "all is well", {"eventscope_build_info{}": "1x100"}, "90m"),
    Case(
        "EventscopeMetricsAbsent",
        "a worker is replaced by another",
        {
            'eventscope_build_info{instance="a"}': "1x20 stale",
            'eventscope_build_info{instance="b"}': "_x20 1x60",
        },
        "60m",
    ),
    Case(
        "EventscopeTelemetryFailing",
        "one span in a second",
        {'eventscope_telemetry_failures_total{sink="traces"}': "0+60x20"},
        "12m",
        [{"sink": "traces"}],
        "1",
    ),
    Case(
        "EventscopeTelemetryFailing",
        "one, once",
        {'eventscope_telemetry_failures_total{sink="traces"}': "0x3 1x20"},
        "9m",
    ),
    Case(
        "EventscopeRequestsRefused",
        "two requests per second hit the limit",
        {'eventscope_requests_refused_total{reason="limit"}': "0+120x20"},
        "12m",
        [{"reason": "limit"}],
        "2",
    ),
    Case(
        "EventscopeRequestsRefused",
        "a client resumes in a loop",
        {'eventscope_requests_refused_total{reason="resumes"}': "0+120x20"},
        "12m",
        [{"reason": "resumes"}],
        "2",
    ),
    Case(
        "EventscopeRequestsRefused",
        "clients of ended sessions",
        {'eventscope_requests_refused_total{reason="unknown"}': "0+120x20"},
        "12m",
    ),
    Case(
        "EventscopeRedisStatsStale",
        "every sample fails",
        {
            'eventscope_redis_stats_duration_seconds_count{outcome="error"}': "0+2x40",
            'eventscope_redis_stats_duration_seconds_count{outcome="ok"}': "7x40",
        },
        "30m",
        [{}],
    ),
    Case(
        "EventscopeRedisStatsStale",
        "every sample fails in an outage, which has an alert",
        {
            'eventscope_redis_stats_duration_seconds_count{outcome="error"}': "0+2x40",
            'eventscope_redis_stats_duration_seconds_count{outcome="ok"}': "7x40",
            "eventscope_degraded{}": "1x40",
        },
        "30m",
    ),
    Case(
        "EventscopeRedisStatsStale",
        "one did",
        {
            'eventscope_redis_stats_duration_seconds_count{outcome="error"}': "0x5 1x40",
            'eventscope_redis_stats_duration_seconds_count{outcome="ok"}': "0+2x40",
        },
        "15m",
    ),
    # -- revision 2026-07-28 ------------------------------------------------------------------------------------------
    Case("EventscopeTasksOrphaned", "three", {"eventscope_tasks_orphaned_total{}": "0x5 3x20"}, "10m", [{}], "3"),
    Case("EventscopeTasksOrphaned", "three, long ago", {"eventscope_tasks_orphaned_total{}": "0x5 3x40"}, "30m"),
    Case(
        "EventscopeTasksUncollected",
        "one of ten results",
        {"eventscope_tasks_uncollected_total{}": "0+1x100", "eventscope_tasks_poll_age_seconds_count{}": "0+9x100"},
        "90m",
        [{}],
        "10%",
    ),
    Case(
        "EventscopeTasksUncollected",
        "all results, and no client has ever polled",
        {"eventscope_tasks_uncollected_total{}": "0x30 5x60", "eventscope_tasks_poll_age_seconds_count{}": "0x90"},
        "60m",
        [{}],
        "100%",
    ),
    Case(
        "EventscopeTasksUncollected",
        "one of a hundred results",
        {"eventscope_tasks_uncollected_total{}": "0+1x100", "eventscope_tasks_poll_age_seconds_count{}": "0+99x100"},
        "90m",
    ),
    Case(
        "EventscopeTasksUncollected",
        "four results: one client that gave up",
        {"eventscope_tasks_uncollected_total{}": "0x30 4x60", "eventscope_tasks_poll_age_seconds_count{}": "0x90"},
        "60m",
    ),
    Case(
        "EventscopeChangesNotDelivered",
        "Redis lost the changes, and one worker stopped with changes",
        {
            'eventscope_subscriptions_gaps_total{instance="a", reason="lost"}': "0x5 1x20",
            'eventscope_subscriptions_gaps_total{instance="b", reason="lost"}': "0x5 1x20",
            'eventscope_subscriptions_publish_failures_total{reason="shutdown"}': "0x5 2x20",
        },
        "10m",
        [{"reason": "lost"}, {"reason": "shutdown"}],
        "2",
    ),
    Case(
        "EventscopeChangesNotDelivered",
        "an outage: changes are repeated, and a worker starts in it",
        {
            'eventscope_subscriptions_publish_failures_total{reason="unreachable"}': "0+60x20",
            'eventscope_subscriptions_gaps_total{reason="late"}': "0x5 1x20",
        },
        "10m",
    ),
    Case(
        "EventscopeChangesNotDelivered",
        "half an hour ago",
        {'eventscope_subscriptions_gaps_total{reason="trimmed"}': "0x5 1x40"},
        "35m",
    ),
    Case(
        "EventscopeAnswersRefused",
        "one in a second, of another key",
        {'eventscope_request_state_refused_total{reason="unknown_key"}': "0+60x20"},
        "12m",
        [{"reason": "unknown_key"}],
        "1",
    ),
    Case(
        "EventscopeAnswersRefused",
        "their state cannot be read in an outage, which has an alert",
        {
            'eventscope_request_state_refused_total{reason="unavailable"}': "0+60x20",
            "eventscope_degraded{}": "0x5 1x15",
        },
        "14m",
    ),
    Case(
        "EventscopeAnswersRefused",
        "users that answer late, and clients that change states",
        {
            f'eventscope_request_state_refused_total{{reason="{reason}"}}': "0+60x20"
            for reason in ("expired", "malformed", "binding", "principal", "other_answer")
        },
        "12m",
    ),
    Case(
        "EventscopeAnswersRefused",
        "one, once",
        {'eventscope_request_state_refused_total{reason="audience"}': "0x3 1x20"},
        "9m",
    ),
    Case(
        "EventscopeStoreErrors",
        "replays fail in an outage, which has an alert",
        {
            'eventscope_errors_total{operation="replay", error_type="unavailable"}': "0+60x20",
            'eventscope_replay_duration_seconds_count{outcome="error"}': "0+60x20",
            'eventscope_degraded{pid="1"}': "0x20",
            'eventscope_degraded{pid="2"}': "0x5 1x15",
        },
        "14m",
    ),
    Case(
        "EventscopeRequestsRefused",
        "the records of sessions cannot be read in an outage, which has an alert",
        {
            'eventscope_requests_refused_total{reason="unavailable"}': "0+60x20",
            "eventscope_degraded{}": "0x5 1x15",
        },
        "14m",
    ),
    Case(
        "EventscopeRequestsRefused",
        "the records of sessions cannot be read, and Redis is not to blame",
        {'eventscope_requests_refused_total{reason="unavailable"}': "0+60x20", "eventscope_degraded{}": "0x20"},
        "14m",
        [{"reason": "unavailable"}],
        "1",
    ),
    *(
        case
        for alert, metric, bounds, value in (
            ("EventscopeStoreSlow", "commit_duration_seconds", ("0.1", "0.25"), "235ms"),
            ("EventscopeFollowLagHigh", "follow_lag_seconds", ("2.5", "5"), "4.975s"),
        )
        for case in (
            Case(alert, "all take long", _histogram(metric, bounds, "0x40", "0+60x40"), "25m", [{}], value),
            Case(alert, "none does", _histogram(metric, bounds, "0+60x40", "0+60x40"), "25m"),
            Case(alert, "too few", _histogram(metric, bounds, "0x40", "0x20 1x20"), "25m"),
            Case(
                alert,
                "an outage, which has an alert",
                _histogram(metric, bounds, "0x40", "0+60x40") | {"eventscope_degraded{}": "0x10 1x10 0x20"},
                "25m",
            ),
        )
    ),
    Case(
        "EventscopeOperationsFailing",
        "one call in ten raises",
        _operations(tool_error="0+100x30", failed="0+100x30", ok="0+800x30"),
        "20m",
        [{"mcp_method_name": "tools/call"}],
        "10%",
    ),
    Case(
        "EventscopeOperationsFailing",
        "tools report errors, which are theirs",
        _operations(tool_error="0+500x30", failed="0+1x30", ok="0+400x30"),
        "20m",
    ),
    Case(
        "EventscopeOperationsFailing",
        "tasks cannot be read in an outage, which has an alert",
        _operations(tool_error="0x30", failed="0+100x30", ok="0+100x30") | {"eventscope_degraded{}": "1x20 0x10"},
        "29m",
    ),
    Case(
        "EventscopeOperationsFailing", "few calls", _operations(tool_error="0x30", failed="0x9 1x20", ok="0x30"), "20m"
    ),
    Case(
        "EventscopeVersionsDiffer",
        "for two hours, on the workers of one target",
        {f'eventscope_build_info{{eventscope="{version}", mcp="2.3.0"}}': "1x120" for version in ("1.0", "1.1")},
        "110m",
        [{}],
        "2",
    ),
    Case(
        "EventscopeVersionsDiffer",
        "during a deployment",
        {
            'eventscope_build_info{instance="a", eventscope="1.0"}': "1x50 _x70",
            'eventscope_build_info{instance="b", eventscope="1.1"}': "_x40 1x80",
        },
        "110m",
    ),
    Case(
        "EventscopeVersionsDiffer",
        "of Python only",
        {f'eventscope_build_info{{eventscope="1.0", python="{version}"}}': "1x120" for version in ("3.11", "3.12")},
        "110m",
    ),
]


def test_rules_pass_promtool_without_warnings() -> None:
    """`promtool check rules`."""
    promtool = program("promtool", "prometheus")
    files = sorted(str(path) for path in PROMETHEUS.glob("*.yaml"))
    command = [promtool, "check", "rules", "--lint=all", "--lint-fatal", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_and_do_not(tmp_path: Path) -> None:
    """In each case exactly the expected alerts and annotations."""
    assert not failures_of_promtool(CASES, tmp_path)


def test_promtool_reports_a_wrong_case(tmp_path: Path) -> None:
    """A wrong expectation fails: the test can fail."""
    for case in (CASES[0], CASES[2]):
        other = replace(case, fires=[] if case.fires else [{}])
        assert case.alert in failures_of_promtool([other], tmp_path)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_firing_and_a_silent_case(name: str) -> None:
    """Every alert has a case in which it fires, and one in which it does not."""
    assert {bool(case.fires) for case in CASES if case.alert == name} == {True, False}


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_links_to_a_complete_runbook_section(name: str) -> None:
    """Every alert has a section of the runbook with three parts, and links to it and to a dashboard."""
    assert name in links.SECTIONS
    section = RUNBOOK.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    for part in ("**Meaning.**", "**Diagnosis.**", "**Mitigation"):
        assert section.count(part) == 1, part
    assert ALERTS[name].dashboard in {links.OVERVIEW, links.RESUME, links.REDIS, links.MODERN}
    assert ALERTS[name].severity in {"critical", "warning"}


def test_alerts_and_sections_are_the_same() -> None:
    """Alerts and sections correspond, in the same order."""
    names = [alert.name for alert in alerts()]
    sections = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert set(names) ^ set(sections) == set(), "each alert has a section in docs/runbook.md"
    assert names == sections
    assert set(names) ^ set(links.SECTIONS) == set(), "each alert is in SECTIONS of dashboards/links.py"


def test_runbook_url_with_a_base_is_absolute() -> None:
    """A pager outside of Grafana leads to the section of a published page."""
    file = alert_file("https://wiki.example.com/runbook.html")
    urls = re.findall(r'runbook_url: "(.*)"', file)
    assert urls == [f"https://wiki.example.com/runbook.html#{alert.name.lower()}" for alert in alerts()]


def test_slow_writes_alert_before_they_count_as_an_outage() -> None:
    """With the default of `store_timeout` the alert could otherwise never fire: an outage silences it."""
    assert COMMIT_SECONDS < STORE_TIMEOUT
    assert COMMIT_SECONDS in catalog.store.COMMIT_DURATION.buckets, "a quantile is as exact as the buckets"


def test_every_alert_is_drilled() -> None:
    """Each alert is in EXPECTED of the drill, which provokes it with a real fault."""
    assert set().union(*EXPECTED.values()) ^ {alert.name for alert in alerts()} == set()
