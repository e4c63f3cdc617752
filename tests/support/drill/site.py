"""Where the drill takes place: four deployments, the Valkeys below them, and the Prometheus that watches."""

import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx2

from support.drill.asking import ALL, View
from support.drill.deployment import APP, PATIENT, Four, Target, four_workers
from support.drill.ledger import Ledger
from support.drill.shrunk import shrink
from support.http_client import NO_TLS
from support.processes import WorkerProcess, revive
from support.prometheus import Prometheus, prometheus
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, pace, slowness, until

RULES = Path(__file__).parents[3] / "dashboards" / "prometheus"
FLEET, SHORT, FOREVER, FOUR = "mcp", "short", "forever", "four"
"""The jobs: two workers; one that keeps events for too short a time; one that keeps them for ever; four that share a
target, as the documentation recommends."""
RESUMES_FAIL = {"EventscopeResumesFailing", "EventscopeResumesFailingSlowly", "EventscopeDueEventsUndelivered"}
EXPECTED = {
    FLEET: {
        *RESUMES_FAIL,
        "EventscopeRequestsOrphaned",
        "EventscopeStoreDegraded",
        "EventscopeStoreFlapping",
        "EventscopeTasksOrphaned",
        "EventscopeChangesNotDelivered",
        "EventscopeAnswersRefused",
    },
    SHORT: {
        *RESUMES_FAIL,
        "EventscopeTTLHeadroomLow",
        "EventscopeKeysWithoutTTL",
        "EventscopeRedisEvicting",
        "EventscopeRedisMemoryNearLimit",
        "EventscopeRedisStatsStale",
        "EventscopeTasksUncollected",
    },
    FOREVER: {
        *RESUMES_FAIL,
        "EventscopeStoreErrors",
        "EventscopeEventsLost",
        "EventscopeTTLMissing",
        "EventscopeMetricsAbsent",
    },
    FOUR: {
        "EventscopeStoreDegraded",
        "EventscopeStoreSlow",
        "EventscopeFollowLagHigh",
        "EventscopeReplaySlow",
        "EventscopeBacklogGrowing",
        "EventscopeRequestsRefused",
        "EventscopeOperationsFailing",
        "EventscopeFollowersGrowing",
        "EventscopeTelemetryFailing",
        "EventscopeVersionsDiffer",
    },
}
"""The alerts that the drill causes, by job; it causes no others."""
LATENCIES = {"EventscopeStoreSlow", "EventscopeFollowLagHigh", "EventscopeReplaySlow"}
"""The alerts that a busy machine fires, too."""
QUIET = 2.0
"""The slowness of a machine that runs the drill and little else."""
TTL = 8
"""Intervals for which `short` keeps events and tasks."""


def has_stored(redis: OwnValkey, key: str, events: int) -> bool:
    """Whether a list has this many events: messages do not wait until theirs are stored."""
    with redis.client() as client:
        return bool(client.llen(key) == events)


@dataclass
class Site:
    """All of it. Each worker is a target of its own, so that `instance` means one."""

    prometheus: Prometheus
    fleet_redis: OwnValkey
    """Of `mcp`. It keeps its data when it is killed."""
    other_redis: OwnValkey
    """Of the other two, which share its prefix too, as after a change of the configuration."""
    a: WorkerProcess
    b: WorkerProcess
    short: WorkerProcess
    forever: WorkerProcess
    four: Four
    interval: int
    """Seconds between two scrapes. All durations are multiples of it: a busy machine does less in a second."""
    ledgers: dict[str, Ledger] = field(default_factory=lambda: {job: Ledger() for job in (FLEET, SHORT, FOREVER)})
    evicted: int = 0
    """Keys, of the other two."""
    began: float = 0.0
    ended: float = 0.0
    busy: bool = False
    """Whether the machine was busy with something else for so long that latencies are not those of the drill."""

    @property
    def ttl(self) -> int:
        """Seconds for which `short` keeps events."""
        return TTL * self.interval

    @property
    def patience(self) -> float:
        """Seconds after which an alert will not fire any more: the slowest takes an hour of the rules."""
        return CEILING * self.interval

    @property
    def tolerated(self) -> set[str]:
        """The alerts that may fire for any job, because the machine is slow: none on a quiet one."""
        return LATENCIES if self.busy else set()

    async def watch(self) -> None:
        """Notice when the machine is busy, until cancelled."""
        seen: deque[float] = deque(maxlen=5)
        while True:
            seen.append(await anyio.to_thread.run_sync(slowness))
            self.busy |= statistics.median(seen) > QUIET
            await anyio.sleep(self.interval)

    async def begin(self) -> None:
        """Return when the first workers have been seen, and that from now on what is shown is the drill.

        Before its first scrape Prometheus finds metrics absent, which raises an alert.
        """
        await self.scraped(self.a, self.b, self.four)
        self.began = time.time()
        await self.scraped(self.a, self.b, self.four)

    async def scraped(self, *workers: WorkerProcess | Target) -> None:
        """Return when Prometheus has seen what is true of these workers now."""
        now = time.time()
        # A scrape has the time at which it began. Not `timestamp(up == 1)`: that is the time of the query.
        ups = [f'up{{instance="{address(worker)}"}}' for worker in workers]
        seen = [f"timestamp({up}) and {up} == 1" for up in ups]

        def all_seen() -> bool:
            return all((self.prometheus.value(query) or 0) > now for query in seen)

        await until(all_seen, every=0.1)

    async def is_degraded(self, worker: WorkerProcess) -> bool:
        """Whether a worker reports now that its Redis is unreachable or slow."""
        async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
            answer = await http.get(f"{worker.url}/metrics")
        return 'eventscope_degraded{store="chaos"} 1.0' in answer.raise_for_status().text

    async def shows(self, expression: str) -> None:
        """Return when an expression has a value that is not 0."""
        await until(lambda: self.prometheus.value(expression), within=self.patience, every=0.1)

    async def fires(self, job: str, *names: str) -> None:
        """Return when all of these alerts fire for a job."""
        try:
            await until(lambda: set(names) <= self.firing(job), within=self.patience, every=0.1)
        except AssertionError:
            missing = set(names) - self.firing(job)
            msg = f"{missing} should fire for {job}, and did not within {self.patience} seconds"
            raise AssertionError(msg) from None

    async def has_fired(self, job: str, *names: str) -> None:
        """Return when all of these alerts have fired for a job; they may have ceased to."""

        def fired() -> bool:
            self.end()
            return {(job, name) for name in names} <= self.fired()

        try:
            await until(fired, within=self.patience, every=0.5)
        except AssertionError:
            msg = f"{set(names)} should have fired for {job} in {self.patience} seconds, and of all have {self.fired()}"
            raise AssertionError(msg) from None

    def firing(self, job: str | None = None) -> set[str]:
        """The alerts that fire now, for a job or at all."""
        return {
            alert["labels"]["alertname"]
            for alert in self.prometheus.ask("alerts")["alerts"]
            if alert["state"] == "firing" and job in {None, alert["labels"].get("job")}
        }

    def end(self) -> None:
        """Report the end."""
        self.ended = time.time()

    def view(self, job: str = ALL) -> View:
        """All of the drill, as it is seen at its end; of all jobs, or one."""
        # Not rounded: the scrape that all is counted from must not be left out, nor what was before the drill be in it.
        return View(self.prometheus, self.ended - self.began, self.ended, self.interval, job)

    def fired(self, seconds: float | None = None) -> set[tuple[str, str]]:
        """Every alert that has fired in the last seconds, with its job; None: ever."""
        window = self.view().range if seconds is None else f"{round(1000 * seconds)}ms"
        series = self.prometheus.query(f'last_over_time(ALERTS{{alertstate="firing"}}[{window}])')
        return {(one["metric"].get("job", ""), one["metric"]["alertname"]) for one in series}


def address(worker: WorkerProcess | Target) -> str:
    """What its `instance` label is."""
    return urlsplit(worker.metrics_url if isinstance(worker, Target) else worker.url).netloc


@contextmanager
def site(directory: Path, control_url: str) -> Iterator[Site]:
    """Two workers, four that share a target, and a Prometheus; the others are not started yet.

    Args:
        directory: For what Prometheus reads, and for the files of the four workers.
        control_url: The Redis that steers the tools, which nothing happens to.
    """
    with ExitStack() as stack:
        fleet_redis, other_redis = (stack.enter_context(own_valkey(durable=keeps)) for keeps in (True, False))

        def worker(redis: OwnValkey, **options: object) -> WorkerProcess:
            # A busy machine may take longer than the default for a reply, and no fault of the drill is a slow Redis.
            made = WorkerProcess(f"{redis.url}{PATIENT}", control_url, app=APP, store_timeout=CEILING, **options)  # type: ignore[arg-type]
            stack.callback(made.close)
            return made

        with ThreadPoolExecutor(1) as starting:
            started = starting.submit(stack.enter_context, four_workers(directory, control_url))
            a, b = worker(fleet_redis), worker(fleet_redis)
            revive([a, b])
            four = started.result()
        interval = pace()
        short = worker(other_redis, ttl=TTL * interval, task_ttl=TTL * interval, redis_stats_interval=interval / 2)
        forever = worker(other_redis, ttl=None)
        shrink(RULES, directory / "rules", interval)
        jobs: dict[str, list[WorkerProcess | Target]] = {
            FLEET: [a, b],
            SHORT: [short],
            FOREVER: [forever],
            FOUR: [four, four.next],
        }
        config = {
            "global": dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{interval}s"),
            "rule_files": ["rules/*.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [address(worker) for worker in workers]}]}
                for job, workers in jobs.items()
            ],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config), "utf-8")
        server = stack.enter_context(prometheus(directory / "prometheus.yml"))
        yield Site(server, fleet_redis, other_redis, a, b, short, forever, four, interval)
