"""One outage of Redis raises one alert, in deployments of each size: all rules together, in `promtool`."""

import itertools
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from support.binaries import program
from support.boards import PROMETHEUS

LABELS = 'job="mcp", store="default"'
MINUTES = range(151)
"""Of a scene: an outage, and more than an hour after it."""
WORKERS = 4
REPLAYS = "eventscope_replay_duration_seconds"
OPERATIONS = "mcp_server_operation_duration_seconds_count"
UNTIL_RETRIED = {
    'eventscope_errors_total{operation="replay", error_type="unavailable"}',
    'eventscope_errors_total{operation="follow", error_type="unavailable"}',
    'eventscope_requests_refused_total{reason="unavailable"}',
    'eventscope_request_state_refused_total{reason="unavailable"}',
    'eventscope_subscriptions_publish_failures_total{reason="unreachable"}',
    f'{REPLAYS}_count{{outcome="unavailable"}}',
    f'{OPERATIONS}{{mcp_method_name="tasks/get", error_type="-32603"}}',
}
"""Counters of attempts that fail during an outage, and are repeated."""


@dataclass(frozen=True)
class Outage:
    """An outage that some of four workers of one target notice. Redis keeps its data.

    `rate` is the number of resumes per minute. In the outage each worker fails as many attempts per minute; after it,
    resumes and events that have waited end, slowly.
    """

    start: int
    length: int
    workers: int
    rate: float
    failed: str = "unavailable"
    """The outcome of the attempts."""

    def during(self, minute: int) -> bool:
        """Whether Redis is unavailable in that minute."""
        return self.start <= minute < self.start + self.length

    def counter(self, increase: Callable[[int], float]) -> str:
        """The values of a counter with this increase in each minute."""
        return " ".join(f"{value:.0f}" for value in itertools.accumulate(map(increase, MINUTES)))

    def gauge(self, value: Callable[[int], float]) -> str:
        """A gauge that has a value during the outage, by the minutes that it has lasted, and is 0 otherwise."""
        return " ".join(f"{value(minute - self.start) if self.during(minute) else 0:.0f}" for minute in MINUTES)

    def series(self) -> dict[str, str]:
        """Every series that an outage changes."""
        over = self.start + self.length
        delayed = self.rate * self.length * self.workers
        calm = self.counter(lambda minute: 0 if self.during(minute) else self.rate)
        caught_up = self.counter(
            lambda minute: 0 if self.during(minute) else self.rate + (delayed if minute == over else 0)
        )
        failing = self.counter(lambda minute: self.rate * self.workers if self.during(minute) else 0)
        found = {
            "eventscope_build_info{}": f"1x{len(MINUTES)}",
            "eventscope_ttl_seconds{}": f"3600x{len(MINUTES)}",
            'eventscope_store_duration_seconds_count{outcome="ok"}': caught_up,
            f'{OPERATIONS}{{mcp_method_name="tasks/get", error_type=""}}': calm,
            'eventscope_redis_stats_duration_seconds_count{outcome="ok"}': self.counter(
                lambda minute: 0 if self.during(minute) else 2
            ),
            'eventscope_redis_stats_duration_seconds_count{outcome="error"}': self.counter(
                lambda minute: 2 if self.during(minute) else 0
            ),
            'eventscope_degradations_total{reason="connection"}': self.counter(
                lambda minute: self.workers if minute == self.start else 0
            ),
            **dict.fromkeys(UNTIL_RETRIED, failing),
        }
        for name, label in (
            (REPLAYS, 'outcome="resumed", '),
            ("eventscope_commit_duration_seconds", ""),
            ("eventscope_follow_lag_seconds", ""),
        ):
            found[f'{name}_bucket{{{label}le="0.05"}}'] = calm
            found[f'{name}_bucket{{{label}le="30"}}'] = found[f'{name}_bucket{{{label}le="+Inf"}}'] = caught_up
            found[f"{name}_count{{{label.removesuffix(', ')}}}"] = caught_up
        for pid in range(WORKERS):
            noticed = int(pid < self.workers)
            found[f'eventscope_degraded{{pid="{pid}"}}'] = self.gauge(lambda _, noticed=noticed: noticed)  # type: ignore[misc]
            found[f'eventscope_backlog_length{{pid="{pid}"}}'] = self.gauge(
                lambda lasted, noticed=noticed: 900 * lasted * noticed  # type: ignore[misc]
            )
        found[f'{REPLAYS}_count{{outcome="{self.failed}"}}'] = failing
        return found

    def test(self) -> dict[str, object]:
        """The scene, as promtool reads it, and the alerts that fire in each minute."""
        fires = range(self.start + 1, self.start + self.length)  # `for: 1m`
        degraded = [{"labels": '{alertname="EventscopeStoreDegraded"}', "value": 1}]
        return {
            "name": str(self),
            "interval": "1m",
            "input_series": [
                {"series": f"{name.removesuffix('}')}, {LABELS}}}".replace("{, ", "{"), "values": values}
                for name, values in self.series().items()
            ],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{minute}m",
                    "exp_samples": degraded if minute in fires else [],
                }
                for minute in MINUTES
            ],
        }


def differences(scenes: list[Outage], folder: Path) -> str:
    """Return the differences that promtool finds; "" if there are none."""
    tests = {
        "rule_files": [str(path) for path in sorted(PROMETHEUS.glob("*.yaml"))],
        "evaluation_interval": "1m",
        "group_eval_order": ["eventscope-recording", "eventscope-alerts"],
        "tests": [scene.test() for scene in scenes],
    }
    file = folder / "outages.yaml"
    file.write_text(json.dumps(tests), encoding="utf-8")  # JSON is YAML.
    command = [program("promtool", "prometheus"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_outage_raises_degraded_and_nothing_else(tmp_path: Path) -> None:
    """Short or long, from the first minute or later, on one worker or all, with six resumes per hour or many."""
    few, many = 0.1, 20
    scenes = [  # Each pair of values occurs; all combinations take a minute.
        Outage(0, 1, WORKERS, few),
        Outage(0, 3, 1, many),
        Outage(0, 30, WORKERS, many),
        Outage(40, 1, 1, many),
        Outage(40, 3, WORKERS, few),
        Outage(40, 30, 1, few),
    ]
    assert not differences(scenes, tmp_path)


def test_resumes_that_fail_beside_an_outage_raise_their_alert(tmp_path: Path) -> None:
    """The outage silences its own failures only: others of the same time raise their alert."""
    scene = Outage(40, 30, WORKERS, 20)
    found = differences([replace(scene, failed="missed")], tmp_path)
    assert "EventscopeResumesFailing" in found
    assert "EventscopeStoreErrors" not in found
