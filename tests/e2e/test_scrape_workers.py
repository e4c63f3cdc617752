"""A scrape of any of four uvicorn workers covers all of them, dead ones included."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from mcp_eventscope.demo.figures import Figures
from support.binaries import promtool_problems
from support.http_client import NO_TLS, HTTPClient, events
from support.servers import HOST, free_port
from support.waiting import CEILING, until
from support.worker_trees import WorkerTree, uvicorn_workers

pytestmark = pytest.mark.anyio

TOKEN = "s3cret"
BEARER = {"authorization": f"Bearer {TOKEN}"}
FOLLOWERS = "eventscope_streams_followed"
STORED = "eventscope_events_stored_total"
SAMPLES = "eventscope_redis_stats_duration_seconds_count"
PORT = free_port()
SCRAPE = f"http://{HOST}:{PORT}/metrics"


@pytest.fixture(scope="module")
def workers(valkey_url: str) -> Iterator[WorkerTree]:
    """Four workers, on a database of their own, with the metrics on a port of their own."""
    options: dict[str, Any] = {
        "metrics_port": PORT,
        "metrics_token": TOKEN,
        "redis_stats_interval": 0.1,
        "worker_lease": 5,
    }
    with uvicorn_workers(4, f"{valkey_url}?db=7", f"{valkey_url}?db=8", **options) as running:
        yield running


async def scrape(url: str = SCRAPE, **headers: str) -> str:
    """A scrape, on a connection of its own, so that any worker may get it."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, headers=BEARER | headers) as http:
        return (await http.get(url)).raise_for_status().text


async def figures(url: str = SCRAPE) -> Figures:
    """The same, read."""
    return Figures.of(await scrape(url))


@asynccontextmanager
async def client(server: WorkerTree) -> AsyncIterator[HTTPClient]:
    """A session, on connections of its own."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        raw = HTTPClient(http, f"{server.url}/mcp")
        await raw.initialize()
        yield raw


async def test_scrape_of_any_worker_sums_all_workers(workers: WorkerTree) -> None:
    """The counters of every worker add up exactly, on the port and in the application."""
    before = await figures()

    async def call() -> None:
        async with client(workers) as raw, raw.call(1, "echo", text="x") as response:
            assert [event async for event in events(response)]

    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(call)

    async def stored() -> bool:
        return (await figures()).since(before).total(STORED, message_type="response") >= 24

    await until(stored)  # In the background.
    for url in (SCRAPE, *[f"{workers.url}/scraped"] * 8):
        after = await figures(url)
        assert after.since(before).total(STORED, message_type="response") == 24
        assert after.total("eventscope_ttl_seconds", store="chaos") == 3600
    counted = [file for file in workers.metrics.glob("counter_*.db") if file.stat().st_size]
    assert len(counted) >= 4


@pytest.mark.usefixtures("workers")
async def test_scrape_serves_openmetrics_where_accepted() -> None:
    """Otherwise it serves the text format, in which promtool finds no problem."""
    openmetrics = await scrape(accept="application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert openmetrics.endswith("# EOF\n")
    assert not promtool_problems((await scrape()).encode())


async def test_metrics_on_their_own_port_need_the_token(workers: WorkerTree) -> None:
    """The application does not serve them, and their port serves them only with the token."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        assert (await http.get(f"{workers.url}/metrics", headers=BEARER)).status_code == 404
        assert (await http.get(SCRAPE)).status_code == 401


@pytest.mark.usefixtures("workers")
async def test_redis_statistics_are_polled_by_one_worker_for_all() -> None:
    """The scrape shows its statistics, whichever worker answers."""

    async def sampled() -> bool:
        seen = await figures()
        by = seen.by(SAMPLES, "outcome")
        return by.get("ok", 0) > 1 and by.get("other_worker", 0) > 1 and seen.total("eventscope_redis_keys") > 0

    await until(sampled)
    seen = await figures()
    assert seen.total("eventscope_redis_keys_without_ttl") == 0
    assert seen.total("eventscope_redis_memory_used_bytes") > 100_000
    assert "error" not in seen.by(SAMPLES, "outcome")


async def test_scrape_after_a_kill_keeps_counters_and_drops_gauges(workers: WorkerTree) -> None:
    """A worker that had the port is replaced, and new workers add to the same sums."""
    async with AsyncExitStack() as open_streams:
        followed = 0

        async def follow() -> None:
            nonlocal followed
            raw = await open_streams.enter_async_context(client(workers))
            assert (await open_streams.enter_async_context(raw.get())).status_code == 200
            followed += 1

        def followers() -> dict[int, int]:
            return {pid: int(workers.gauge(pid, FOLLOWERS)) for pid in workers.workers()}

        def to_be_killed() -> set[int]:
            owner = workers.port_owner(PORT)
            return {pid for pid, number in followers().items() if number and pid != owner}

        while followed < 60 and not (followed >= 8 and to_be_killed() and followers()[workers.port_owner(PORT)]):
            await follow()
        await until(lambda: sum(followers().values()) == followed)
        stored = (await figures()).total(STORED)
        assert (await figures()).total(FOLLOWERS) == followed

        victim, owner = to_be_killed().pop(), workers.port_owner(PORT)
        left = followed - followers()[victim]
        os.kill(victim, signal.SIGKILL)

        async def forgotten() -> bool:
            return (await figures()).total(FOLLOWERS) == left and victim not in workers.workers()

        await until(forgotten)
        left -= followers()[owner]
        os.kill(owner, signal.SIGKILL)

        async def taken_over() -> bool:
            try:
                return (await figures()).total(FOLLOWERS) == left and workers.port_owner(PORT) != owner
            except httpx2.TransportError:
                return False

        await until(taken_over)
        assert (await figures()).total(STORED) == stored
        await until(lambda: len(workers.workers()) == 4)
        async with client(workers):
            pass

        async def counted_again() -> bool:
            return (await figures()).total(STORED) > stored

        await until(counted_again)
