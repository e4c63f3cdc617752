"""The drill: real failures of real workers, and the dashboards and alerts they cause."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Iterator

import anyio
import httpx2
import pytest

from dashboards.external import REDIS_EXPORTER
from dashboards.links import OVERVIEW, REDIS, RESUME
from mcp_eventscope.redis.client import connect
from mcp_eventscope.settings import DEFAULT_TTL
from mcp_eventscope.telemetry import catalog
from support.boards import BOARDS
from support.drill import fleet, modern, others
from support.drill.asking import Labels, Target, targets
from support.drill.customer import Customer
from support.drill.four import Drill
from support.drill.site import EXPECTED, FLEET, FOREVER, FOUR, SHORT, Site, address, site
from support.http_client import LIMITS, NO_TLS, VERSION, HTTPClient
from support.task_client import MODERN
from support.tool_control import ToolControl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LOG = logging.getLogger("drill")
SLOW = {"EventscopeResumesFailingSlowly", "EventscopeMetricsAbsent", "EventscopeVersionsDiffer"}
"""What no stage waits for: it takes half a minute, however much time is shrunk."""
ON_DEMAND = tuple(metric.name for metric in catalog.METRICS if metric.on_demand)
WRONG = {
    FLEET: {
        "degradations_total",
        "requests_orphaned_total",
        "replay_misses_total",
        "tasks_orphaned_total",
        "subscriptions_gaps_total",
        "request_state_refused_total",
    },
    SHORT: {"redis_keys_evicted_total", "replay_misses_total", "tasks_uncollected_total"},
    FOREVER: {"events_lost_total", "replay_misses_total"},
}
"""Of which counters the list of what is wrong is to show something."""
TASKS_ONLY = {"Gaps in subscriptions", "Answers refused"}
"""The problems of parts that `short` does not have."""


async def drill(where: Site, control_url: str) -> None:
    """The whole drill: first without failures, then with one after another, in all deployments concurrently."""
    async with (
        connect(control_url) as control,
        httpx2.AsyncClient(verify=NO_TLS, limits=LIMITS, timeout=1200, trust_env=False) as http,
        anyio.create_task_group() as watching,
    ):

        def new(job: str) -> Customer:
            return Customer(HTTPClient(http, ""), where.ledgers[job], lambda: ToolControl(control, uuid.uuid4().hex))

        async def timed(name: str, stage: Awaitable[None]) -> None:
            began = time.monotonic()
            await stage
            LOG.info("%5.1f s: %s took %.1f s", time.time() - where.began, name, time.monotonic() - began)

        async def workers_and_redis() -> None:
            await timed("crash", fleet.crash(where, new))
            await timed("outage", fleet.outage(where, new))
            async with anyio.create_task_group() as wrong:
                wrong.start_soon(timed, "wrong ids", fleet.wrong_ids(where, new))
                wrong.start_soon(timed, "lost changes", modern.changes_are_lost(where))
                wrong.start_soon(timed, "wrong answers", modern.answers_are_refused(where, new))
            await timed("flapping", fleet.flapping(where, new))

        async def ttl_and_memory() -> None:
            async with anyio.create_task_group() as both:
                both.start_soon(timed, "too short a TTL", others.too_short(where, new))
                both.start_soon(timed, "no TTL", others.for_ever(where, new))
            await timed("full Redis", others.full(where))

        watching.start_soon(where.watch)
        await where.begin()
        calm, go_on = anyio.Event(), anyio.Event()
        four = Drill(where, http, lambda: ToolControl(control, uuid.uuid4().hex))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(timed, "four workers", four.run(calm, go_on))
            async with anyio.create_task_group() as both:
                both.start_soon(timed, "calm", fleet.calm(where, new))
                both.start_soon(timed, "calm of tasks and subscriptions", modern.calm(where, new))
            await calm.wait()
            pending = {alert["metric"]["alertname"] for alert in where.prometheus.query("ALERTS")}
            assert pending <= where.tolerated, "nothing is wrong, and nothing is about to be"
            go_on.set()
            tasks.start_soon(workers_and_redis)
            tasks.start_soon(ttl_and_memory)
        for job, names in EXPECTED.items():
            await timed(f"slow alerts of {job}", where.has_fired(job, *(names & SLOW)))
        await where.scraped(where.a, where.b, where.short)
        where.end()
        watching.cancel_scope.cancel()


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Site]:
    """The finished drill, with its Prometheus."""
    with site(tmp_path_factory.mktemp("drill"), valkey_url) as drilled:
        anyio.run(drill, drilled, valkey_url)
        yield drilled


def test_drill_fires_exactly_the_expected_alerts(after: Site) -> None:
    """Exactly the expected alerts have fired for the expected jobs; on a busy machine also those about latencies."""
    expected = {(job, name) for job, names in EXPECTED.items() for name in names}
    assert expected <= after.fired()
    assert {(job, name) for job, name in after.fired() - expected if name not in after.tolerated} == set()


def test_every_query_is_answered(after: Site) -> None:
    """Every query returns data, except those of redis_exporter."""
    view = after.view()
    empty = [str(target) for target in targets() if not view.ask(target) and not _exported(target)]
    assert empty == []


def _exported(target: Target) -> bool:
    return any(re.search(rf"\b{name}\b", target.expr) for name in REDIS_EXPORTER)


def test_variables_of_the_dashboards_offer_the_drill(after: Site) -> None:
    """The variables offer the jobs, the targets and the store of the drill."""
    targets = (after.a, after.b, after.short, after.forever, after.four, after.four.next)
    workers = {address(target) for target in targets}
    offered = {"job": {FLEET, SHORT, FOREVER, FOUR}, "instance": workers, "store": {"chaos"}}
    view = after.view()
    asked = 0
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["name"] in offered:
                selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
                times = {"start": f"{after.began}", "end": f"{after.ended}"}
                values = after.prometheus.ask(f"label/{label}/values", **{"match[]": view.query(selector)}, **times)
                assert set(values) == offered[variable["name"]], board["uid"]
                asked += 1
    assert asked == 4 * 3


def test_lines_are_where_something_happened(after: Site) -> None:
    """A line of summed rates leaves zero if, and only if, its counters moved; on demand: only if."""
    view = after.view()
    plain = re.compile(rf"sum(?: by \(([^)]*)\) )?\(rate\((\w+\{{[^}}]*\}})\[{view.rate_interval}\]\)\)")
    compared = 0
    for target in targets():
        found = plain.fullmatch(view.query(target.expr))
        if found is None or "le" in (found[1] or ""):
            continue
        by = set((found[1] or "").split(", "))
        moved = {_only(series, by) for series, count in view.counted(found[2]).items() if count}
        above = {series for series, most in view.greatest(target).items() if most}
        # A rate misses the first observation of a series that begins with it.
        assert above <= moved if found[2].startswith(ON_DEMAND) else above == moved, target
        compared += 1
    assert compared > 20


def _only(series: Labels, by: set[str]) -> Labels:
    return frozenset((name, value) for name, value in series if name in by)


@pytest.mark.parametrize("job", [FLEET, SHORT, FOREVER])
def test_counters_after_the_drill_are_exact(after: Site, job: str) -> None:
    """Counters are exact, over a crash, outages, and a worker that never returned."""
    view, ledger = after.view(job), after.ledgers[job]
    outcomes = view.increases("eventscope_replay_duration_seconds_count", "outcome")
    rejected, unavailable = outcomes.pop("error", 0), outcomes.pop("unavailable", 0)
    assert (outcomes, rejected) == (ledger.resumes, ledger.rejected)
    # A resume that finds Redis unreachable counts as such once, and ends well; one that knows so waits.
    assert unavailable <= ledger.waited
    failures = {"unavailable": unavailable, "rejected": ledger.rejected}
    assert view.increases("eventscope_errors_total", "error_type") == _some(failures)
    assert view.increases("eventscope_replay_misses_total", "reason") == ledger.misses
    assert view.increases("eventscope_requests_orphaned_total", "job") == _some({job: ledger.orphaned})
    assert view.increases("eventscope_events_stored_total", "message_type") == ledger.stored
    assert view.increases("eventscope_events_lost_total", "reason") == ledger.lost
    accepted = ledger.stored.total() + ledger.lost.total()
    assert view.increases("eventscope_events_accepted_total", "job") == _some({job: accepted})
    assert view.increases("eventscope_telemetry_failures_total", "sink") == {}
    assert view.increases("eventscope_events_missing_total", "job") == {}
    assert view.increases("eventscope_events_corrupt_total", "job") == {}
    received = view.increases("eventscope_requests_received_total", "mcp_protocol_version")
    received.pop(MODERN, None)
    assert received == {VERSION: ledger.requests}
    assert view.increases("eventscope_sessions_started_total", "origin") == ledger.begun
    assert view.increases("eventscope_sessions_ended_total", "reason") == ledger.ended
    assert view.increases("eventscope_requests_refused_total", "reason") == {}
    assert view.increases("eventscope_redis_keys_evicted_total", "job") == _some({job: after.evicted * (job == SHORT)})


@pytest.mark.parametrize("job", [FLEET, SHORT, FOREVER])
def test_counters_of_tasks_answers_and_signals(after: Site, job: str) -> None:
    """Counters of revision 2026-07-28 are exact, too."""
    view, ledger = after.view(job), after.ledgers[job]
    assert view.increases("eventscope_tasks_ended_total", "outcome") == ledger.tasks
    assert view.increases("eventscope_tasks_orphaned_total", "job") == _some({job: ledger.tasks_orphaned})
    assert view.increases("eventscope_tasks_uncollected_total", "job") == _some({job: ledger.tasks_uncollected})
    assert view.increases("eventscope_request_state_answers_total", "outcome") == ledger.answers
    assert view.increases("eventscope_request_state_answers_repeated_total", "job") == _some({job: ledger.repeated})
    assert view.increases("eventscope_request_state_refused_total", "reason") == ledger.answers_refused
    assert view.increases("eventscope_subscriptions_signals_delivered_total", "path") == ledger.signals
    assert view.increases("eventscope_subscriptions_gaps_total", "reason") == ledger.gaps


def _some(counts: dict[str, float]) -> dict[str, float]:
    """The entries that are not 0."""
    return {name: count for name, count in counts.items() if count}


def test_outages_of_the_drill_count_with_duration_and_retries(after: Site) -> None:
    """The number and duration of outages, and their retries."""
    view, ledger = after.view(FLEET), after.ledgers[FLEET]
    a = address(after.a)
    times = view.increases("eventscope_degradations_total", "instance")
    # No tool reports on the other worker: its reader of changes may miss an outage of a moment.
    assert times.pop(a) == len(ledger.outages) >= times.pop(address(after.b)) >= 1
    seconds = view.increases("eventscope_degradation_duration_seconds_total", "instance")[a]
    # It is noticed by the next message, and over with the first that is stored: within an interval, each.
    assert abs(seconds - sum(ledger.outages)) < len(ledger.outages) * view.interval
    # Events of an outage are stored like others, later.
    assert view.increases("eventscope_store_duration_seconds_count", "outcome") == {"ok": ledger.stored.total()}
    # No commit meets an outage that another part of the worker has noticed before.
    assert view.increases("eventscope_commit_retries_total", "reason").keys() - {"connection"} == {"noscript"}


@pytest.mark.parametrize("job", [FLEET, SHORT])
def test_first_row_of_the_overview_sums_the_whole_drill(after: Site, job: str) -> None:
    """The first numbers of the overview, over the whole drill."""
    view = after.view(job)
    counted = view.increases("eventscope_replay_duration_seconds_count", "outcome")
    # On a busy machine all of what is resumed shortly before its TTL has expired.
    resumed, missed, errors, caught_up = (counted.get(name, 0) for name in ("resumed", "missed", "error", "caught_up"))
    # `increase` extrapolates to the ends of the range, by an interval at most: all numbers of a target that was up
    # throughout by the same factor.
    share = pytest.approx((resumed + caught_up) / (resumed + caught_up + missed + errors), rel=0.01)
    assert _number(after, job, 1) == share
    assert _number(after, job, 2) == pytest.approx(resumed / (resumed + missed + errors), rel=0.01)
    assert _number(after, job, 3) == 0
    assert _number(after, job, 4) == 0


@pytest.mark.parametrize("job", [FLEET, SHORT, FOREVER])
def test_problem_table_lists_what_the_drill_caused(after: Site, job: str) -> None:
    """The table of problems: each as often as it was counted, and those that the drill caused."""
    view = after.view(job)
    (target,) = _panel(OVERVIEW, 5)
    shown = {dict(series)["problem"]: value for series, value in view.last(target).items()}
    problems = view.query(target.expr).split("\nor\n")
    assert len(shown) == len(problems) - (len(TASKS_ONLY) if job == SHORT else 0)
    moved = set()
    for problem in problems:
        (selector,) = re.findall(r"\w+\{.*\}", problem)
        (name,) = re.findall(r'"problem", "([^"]+)"', problem)
        if job == SHORT and name in TASKS_ONLY:
            assert name not in shown
            continue
        count = sum(view.counted(selector).values())
        assert count <= shown[name] <= count * (1 + 2 * view.interval / view.seconds) + 0.5, problem
        moved |= {selector.partition("{")[0]} if count else set()
    # The number of replay errors depends on timing.
    causes = moved - {"eventscope_replay_duration_seconds_count"}
    reasons = view.increases("eventscope_degradations_total", "reason")
    assert causes == {f"eventscope_{name}" for name in WRONG[job]}, reasons


def _panel(board: str, panel: int) -> list[Target]:
    return [target for target in targets() if (target.board, target.panel) == (board, panel)]


def _number(after: Site, job: str, panel: int) -> float:
    (target,) = _panel(OVERVIEW, panel)
    (value,) = after.view(job).last(target).values()
    return value


def test_worker_table_has_resumes_error_ratio_and_gauges(after: Site) -> None:
    """The table of workers: resumes, error ratio, and gauges."""
    view = after.view(FLEET)
    columns = {target.ref: target for target in _panel(RESUME, 11)}
    total, failed = _by_worker(after, columns["A"]), _by_worker(after, columns["B"])
    for worker in (after.a, after.b):
        selector = f'eventscope_replay_duration_seconds_count{{job=~"$job", instance="{address(worker)}"}}'
        counted = {dict(series)["outcome"]: count for series, count in view.counted(selector).items()}
        bad = counted["missed"] + counted["error"]
        count = bad + counted["resumed"] + counted["caught_up"]
        assert count <= total[address(worker)] <= count * (1 + 2 * view.interval / view.seconds)
        assert failed[address(worker)] == pytest.approx(bad / count, rel=0.01)
    assert set(_by_worker(after, columns["D"]).values()) == {0}, "no stream is followed any more"
    assert set(_by_worker(after, columns["E"]).values()) == {0}, "nothing is missing"
    assert set(_by_worker(after, columns["F"]).values()) == {0}, "Redis is there"


def _by_worker(after: Site, target: Target, *, greatest: bool = False) -> dict[str, float]:
    view = after.view(FLEET)
    values = view.greatest(target) if greatest else view.last(target)
    return {dict(series).get("instance", ""): value for series, value in values.items()}


def test_gauges_of_the_drill_have_current_and_maximum_values(after: Site) -> None:
    """Current values and maxima of gauges."""
    a, b = address(after.a), address(after.b)

    def peak(panel: int) -> dict[str, float]:
        return _by_worker(after, _panel(OVERVIEW, panel)[0], greatest=True)

    def now(panel: int) -> dict[str, float]:
        return _by_worker(after, _panel(OVERVIEW, panel)[0])

    assert (peak(24)[""] >= 4, now(24)[""]) == (True, 0), "streams that are followed"
    assert (peak(41), now(41)) == ({a: 1, b: 1}, {a: 0, b: 0}), "Redis away"
    assert (peak(42)[a] > 1000, now(42)) == (True, {a: 0, b: 0}), "events that wait"
    assert (peak(44)[a] > 100_000, now(44)) == (True, {a: 0, b: 0}), "bytes that wait"
    assert now(45) == {a: DEFAULT_TTL, b: DEFAULT_TTL}, "TTL"
    serving = after.ledgers[FLEET].serving
    assert now(51) == {a: len(serving[after.a.url]), b: len(serving[after.b.url])}, "sessions"


def test_panels_without_a_selection_show_all_jobs(after: Site) -> None:
    """Panels without a selection."""
    view = after.view()
    (targets_seen,), (ttl,) = _panel(OVERVIEW, 62), _panel(OVERVIEW, 45)
    assert list(view.greatest(targets_seen).values()) == [6]
    assert list(view.last(targets_seen).values()) == [5], "one is gone"
    kept = {dict(series)["instance"]: seconds for series, seconds in view.last(ttl).items()}
    assert kept[address(after.short)] == after.ttl
    assert address(after.forever) not in kept, "no TTL, no series"
    (versions,) = _panel(OVERVIEW, 64)
    assert sorted(view.last(versions).values()) == [1, 4], "one target has a newer version"
    (keys,) = _panel(REDIS, 24)
    assert max(view.greatest(keys).values()) > 0, "keys that will never expire"


def test_ratios_over_time_follow_the_drill(after: Site) -> None:
    """Ratios over time: resume errors, and TTL used at resume."""
    for target in _panel(OVERVIEW, 21):
        assert max(after.view(FOREVER).greatest(target).values()) == 1, "nothing but failures there"
        (fleet_series,) = after.view(FLEET).ask(target)
        points = fleet_series["points"]
        assert (points[0], max(points)) == (0, 1), "first all was calm, and then all ids were wrong"
    for target in _panel(OVERVIEW, 23):
        (most,) = after.view(SHORT).greatest(target).values()
        assert 0.9 < most <= 1, "back when the TTL was nearly over, or was over: a bucket's bound"
