"""Redis fails at each reply of batches in flight, and no event is lost."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import anyio
import pytest
from redis import asyncio as aioredis

from support.fault_plan import Cut, Error, FaultPlan, Freeze, Place, Reach, ReplyFault
from support.proxy import Proxy
from support.servers import Valkey
from support.store_driver import STORE_TIMEOUT, OpenDriver, StoreDriver, session_driver
from support.waiting import in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

IN_FLIGHT = 4
CONCURRENT = 8
"""Cases that run at the same time, each with a peer, a store and a prefix of its own."""
SECONDS_PER_CASE = 8.0

LOADING = "LOADING Redis is loading the dataset in memory"
"""At this one the client closes the connection by itself."""
OOM = "OOM command not allowed when used memory > 'maxmemory'."
ERRORS = [
    OOM,
    "READONLY You can't write against a read only replica.",
    LOADING,
    "NOSCRIPT No matching script.",
    "ERR max request size exceeded",
]
CUTS = [Cut(place, reach) for place in Place for reach in Reach if reach is not Reach.NONE or place is Place.BEFORE]
OOMS = [Error(OOM), Error(OOM, executed=True)]
SINGLE: dict[str, list[ReplyFault]] = {
    "error": [Error(text, executed) for text in ERRORS for executed in (False, True)],
    "cut": list(CUTS),
    "freeze": [Freeze(STORE_TIMEOUT * 1.5), Freeze(STORE_TIMEOUT * 1.5, cut=True)],
}

Faults: TypeAlias = tuple[tuple[int, ReplyFault], ...]
Run: TypeAlias = Callable[[int, Faults], Awaitable[list[str]]]


@pytest.fixture(params=[pytest.param(session_driver, id="session")])
def open_driver(request: pytest.FixtureRequest) -> OpenDriver:
    """Opens the store under test."""
    opens: OpenDriver = request.param
    return opens


@dataclass
class Bench:
    """Runs cases on one Valkey, each behind a peer of its own."""

    server: Valkey
    key_prefix: str
    open_driver: OpenDriver

    async def check(self, cases: Iterable[Faults], sessions: int = IN_FLIGHT, *, later: bool = True) -> None:
        """Run cases concurrently; fail with the problems of all.

        Args:
            cases: The faults of each.
            sessions: Each has one batch in flight.
            later: Whether the sessions have further events, behind the batch in flight and after the faults.
        """
        problems: list[str] = []
        run = partial(self._run, sessions=sessions, later=later)
        pending = enumerate(cases)
        with in_time(45):
            async with anyio.create_task_group() as tasks:
                for _ in range(CONCURRENT):
                    tasks.start_soon(self._work, pending, run, problems)
        assert not problems, "\n".join(problems)

    @asynccontextmanager
    async def peer(self, name: str) -> AsyncIterator[tuple[Proxy, StoreDriver]]:
        """A peer, and a store behind it, whose keys have this name after the prefix."""
        async with (
            Proxy(self.server.socket).running() as proxy,
            self.open_driver(proxy.url, self.server.url, self.key_prefix + name) as driver,
        ):
            yield proxy, driver

    async def _work(self, pending: Iterator[tuple[int, Faults]], run: Run, problems: list[str]) -> None:
        for number, faults in pending:
            named = "; ".join(f"{index}: {fault}" for index, fault in faults)
            problems += [f"[{named}] {problem}" for problem in await run(number, faults)]

    async def _run(self, number: int, faults: Faults, *, sessions: int, later: bool) -> list[str]:
        names = [f"s{session}" for session in range(sessions)]
        async with self.peer(f"{number}:") as (proxy, driver):
            try:
                with anyio.fail_after(SECONDS_PER_CASE):
                    for name in names:
                        driver.submit(name, 0)
                    await driver.settle()
                    plan = FaultPlan(self.key_prefix, faults)
                    proxy.follow(plan)
                    for count, name in enumerate(names, 1):  # Two events for each batch.
                        driver.submit(name, 1)
                        driver.submit(name, 2)
                        await until(lambda: plan.seen == count, every=0.001)  # noqa: B023 - awaited here
                    await until(lambda: plan.ready == sessions, every=0.001)
                    for name in names if later else ():  # Behind the batch in flight.
                        driver.submit(name, 3)
                    proxy.release()
                    await driver.settle()
                    for name in names if later else ():
                        driver.submit(name, 4)
                    await driver.settle()
            except (TimeoutError, AssertionError) as error:
                waiting = {name: driver.ledger.accepted.get(name) for name in names}
                return [f"did not settle: {error!r}; accepted {waiting}, acknowledged {driver.ledger.acknowledged}"]
            return driver.ledger.problems({name: await driver.stored(name) for name in names})


@pytest.fixture
async def bench(valkey_server: Valkey, key_prefix: str, open_driver: OpenDriver) -> AsyncIterator[Bench]:
    """The bench; its keys are deleted."""
    yield Bench(valkey_server, key_prefix, open_driver)
    async with aioredis.Redis.from_url(valkey_server.url) as direct:
        if keys := [key async for key in direct.scan_iter(match=f"{key_prefix}*", count=1000)]:
            await direct.delete(*keys)


def pairs(
    first: Sequence[ReplyFault], second: Sequence[ReplyFault], places: Iterable[tuple[int, int]]
) -> Iterator[Faults]:
    """Every combination of two faults at these pairs of replies."""
    for (i, j), one, other in itertools.product(places, first, second):
        yield (i, one), (j, other)


async def test_bench_without_faults_finds_no_problem(bench: Bench) -> None:
    """Four batches in flight, and no fault: the bench itself works."""
    await bench.check([()])


@pytest.mark.parametrize("reach", Reach)
async def test_error_then_cut_of_two_batches_gives_distinct_ids(bench: Bench, reach: Reach) -> None:
    """Redis answers one batch with OOM, then the connection closes: no id names two events."""
    await bench.check([((0, Error(OOM)), (1, Cut(Place.BEFORE, reach)))], sessions=2, later=False)


@pytest.mark.parametrize("kind", SINGLE)
async def test_one_fault_at_each_reply_loses_nothing(bench: Bench, kind: str) -> None:
    """Each fault at each reply."""
    await bench.check(((index, fault),) for index in range(IN_FLIGHT) for fault in SINGLE[kind])


@pytest.mark.parametrize("first", range(IN_FLIGHT))
async def test_error_then_cut_loses_nothing(bench: Bench, first: int) -> None:
    """An error at one reply, and each cut at the same or a later one."""
    await bench.check(pairs(OOMS, CUTS, ((first, j) for j in range(first, IN_FLIGHT))))


async def test_error_then_error_loses_nothing(bench: Bench) -> None:
    """An error at one reply, and a later one at which the client closes the connection."""
    later = [Error(text) for text in ERRORS if text != OOM]
    await bench.check(pairs(OOMS, later, itertools.combinations(range(IN_FLIGHT), 2)))


async def test_error_then_freeze_loses_nothing(bench: Bench) -> None:
    """An error at one reply, and silence at the same or a later one."""
    places = itertools.combinations_with_replacement(range(IN_FLIGHT), 2)
    await bench.check(pairs(OOMS[:1], SINGLE["freeze"], places))


async def test_second_fault_while_sending_again_loses_nothing(bench: Bench) -> None:
    """After a cut or an error, a second fault at each reply of the repeated batches."""
    places = [(i, j) for i in (0, IN_FLIGHT - 1) for j in range(IN_FLIGHT, 2 * IN_FLIGHT)]
    first: list[ReplyFault] = [Cut(Place.BEFORE), OOMS[0]]
    await bench.check(pairs(first, [Cut(Place.BEFORE), Cut(Place.AFTER, Reach.THIS), OOMS[1]], places))


async def test_large_event_while_loading_is_stored(bench: Bench) -> None:
    """A Redis that loads for longer than a broken connection is retried loses no large event."""
    async with bench.peer("large:") as (proxy, driver):
        driver.submit("s", 0)
        await driver.settle()
        plan = FaultPlan(bench.key_prefix, [(index, Error(LOADING)) for index in range(16)])
        proxy.follow(plan)
        proxy.release()
        driver.submit("s", 1, size=256 * 1024)
        await driver.settle()
        assert plan.seen > 16
        assert driver.ledger.problems({"s": await driver.stored("s")}) == []
