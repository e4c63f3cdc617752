"""Two workers behind a Sentinel, whose master is killed under load while its replica lacks the latest writes."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest

from support.callers import Caller, CutCall, expected
from support.chaos import NewToolControl, check_session, content_of, on_worker, open_session, start_call, until_stored
from support.http_client import NO_TLS, Connect, HTTPClient
from support.processes import WorkerProcess, worker_processes
from support.sentinels import Sentinel, watched_pair
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

APP = "support.sentinel_app:app"
LEASE = 10.0
"""Longer than the failover holds up its renewals."""
SESSIONS = 6
NUMBERS = 15
FLOOD, FLOOD_BYTES = 100, 60_000
"""Events that displace all others from the memory of a worker, which retains 4 MiB."""

Pair = tuple[WorkerProcess, WorkerProcess]


@pytest.fixture
def sentinel() -> Iterator[Sentinel]:
    """A master, its replica and their Sentinel, of this test's own."""
    with watched_pair() as sentinel:
        yield sentinel


@pytest.fixture
def pair(sentinel: Sentinel, valkey_url: str) -> Iterator[Pair]:
    """Two workers that find their Redis through the Sentinel; the tools are controlled through another Redis."""
    with worker_processes(2, sentinel.url, valkey_url, app=APP, worker_lease=LEASE) as (first, second):
        yield first, second


async def counted(pair: Pair, metric: str) -> float:
    """The sum of a counter with the reason `rollback` on both workers."""
    total = 0.0
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        for worker in pair:
            text = (await http.get(f"{worker.url}/scraped")).text
            total += sum(
                map(float, re.findall(rf'^{metric}{{[^}}]*reason="rollback"[^}}]*}} (\S+)$', text, re.MULTILINE))
            )
    return total


@asynccontextmanager
async def calling(callers: list[Caller]) -> AsyncIterator[None]:
    """Each makes call after call, until the block has ended and its last call, too."""
    over = asyncio.Event()

    async def call(caller: Caller) -> None:
        while not over.is_set():
            await caller.call(len(caller.calls) + 1, NUMBERS, pause=0.02)

    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(call(caller))
        try:
            yield
        finally:
            over.set()


async def more_calls(callers: list[Caller], count: int = 2) -> None:
    """Return when each has begun and ended so many further calls."""
    before = [len(caller.calls) for caller in callers]
    await until(lambda: all(len(each.calls) > n + count for each, n in zip(callers, before, strict=True)))


def lists_of(server: Sentinel, call: CutCall) -> list[tuple[bytes, bool, bool]]:
    """The lists of a call: the key, and whether master and replica have it."""
    run = call.first.partition(".")[0].split("-")[2]
    with server.master.client() as master, server.replica.client() as replica:
        keys = list(master.scan_iter(match=f"*:stream:*:{run}", count=1000))
        return [(key, True, bool(replica.exists(key))) for key in keys]


async def contents_after(client: HTTPClient, event_id: str) -> list[str]:
    """The contents of a finished call after one of its events."""
    return [content_of(event).rstrip("x").strip() for event in await client.resume(event_id) if event.data]


async def test_failover_under_load_without_the_tail_repairs_all_that_is_in_memory(
    sentinel: Sentinel, pair: Pair, connect: Connect
) -> None:
    """Calls that run and calls that ended in the lost tail: every number comes once, live and in a second resume."""
    callers = [Caller(await open_session(connect, pair[number % 2].url), pair) for number in range(SESSIONS)]
    async with calling(callers):
        await more_calls(callers, 1)
        await anyio.to_thread.run_sync(sentinel.cut_off)
        await more_calls(callers)
        tail = [caller.calls[-2] for caller in callers]
        for call in tail:
            await until_stored(sentinel.master.url, call.ids[-1])
            assert [found[1:] for found in lists_of(sentinel, call)] == [(True, False)]
        await anyio.to_thread.run_sync(sentinel.fail_over)
        await more_calls(callers)
    for caller, late in zip(callers, tail, strict=True):
        assert [call.contents for call in caller.calls] == [expected(NUMBERS)] * len(caller.calls)
        for worker in pair:
            client = on_worker(caller.client, worker)
            resumed = await contents_after(client, late.first)
            assert [*resumed[:-1], f"ended: {resumed[-1]}"] == expected(NUMBERS)
            await check_session(client, request_id=1000 + pair.index(worker))
    assert await counted(pair, "eventscope_events_lost_total") == 0
    assert await counted(pair, "eventscope_events_missing_total") == 0


async def test_failover_without_the_tail_counts_what_no_worker_remembers_as_a_gap(
    sentinel: Sentinel, pair: Pair, connect: Connect, new_tool: NewToolControl
) -> None:
    """Numbers displaced from memory before the master died are missing in a resume; none comes twice."""
    a, b = pair
    client, tool = await open_session(connect, a.url), new_tool()
    flooder = Caller(await open_session(connect, a.url), (a, a))
    (primed,) = await start_call(client, tool)
    await until_stored(sentinel.master.url, primed.id)
    await anyio.to_thread.run_sync(sentinel.cut_off)
    early = [f"early {number}" for number in range(5)]
    await tool.step(*early)
    await until(lambda: _length(sentinel, primed.id) == 1 + len(early))
    await flooder.call(1, FLOOD, pause=0.0, padding=FLOOD_BYTES)
    assert flooder.calls[0].contents == expected(FLOOD)
    await until_stored(sentinel.master.url, flooder.calls[0].ids[-1])
    await anyio.to_thread.run_sync(sentinel.fail_over)
    late = [f"late {number}" for number in range(3)]
    await tool.step(*late)
    await tool.finish()
    received = await contents_after(on_worker(client, b), primed.id)
    assert received == [*late, "8 steps"]
    assert await counted(pair, "eventscope_events_missing_total") == len(early)
    flooded = await contents_after(on_worker(flooder.client, b), flooder.calls[0].first)
    lost = FLOOD + 1 - len(flooded)
    assert flooded == [content.removeprefix("ended: ") for content in expected(FLOOD)[lost:]]
    assert 0 < lost < FLOOD
    # Nor was the priming event of the flood replicated, whose id the client has.
    assert await counted(pair, "eventscope_events_lost_total") == len(early) + 1 + lost
    for worker in pair:
        await check_session(on_worker(client, worker), request_id=1000 + pair.index(worker))


def _length(sentinel: Sentinel, event_id: str) -> int:
    run = event_id.partition(".")[0].split("-")[2]
    with sentinel.master.client() as master:
        return sum(int(master.llen(key)) for key in master.scan_iter(match=f"*:stream:*:{run}", count=1000))
