"""Two workers of each ASGI server resume each other's calls, end in good order, and share their metrics."""

import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace

import anyio
import httpx2
import pytest
from redis import asyncio as aioredis

from mcp_eventscope.demo.figures import Figures
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from servers.commands import SERVERS, ASGIServer
from support.chaos import check_session, content_of, start_call
from support.http_client import NO_TLS, HTTPClient, events
from support.servers import free_port
from support.tool_control import ToolControl
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, promptly, until
from support.worker_trees import WorkerTree, worker_tree

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LEASE = 4
"""Seconds. Two workers that start on a busy machine renew it late."""
Start = Callable[[], AbstractContextManager[WorkerTree]]
STORED = "eventscope_events_stored_total"


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def server(request: pytest.FixtureRequest) -> ASGIServer:
    """Each server in turn."""
    assert isinstance(request.param, ASGIServer)
    return request.param


@pytest.fixture
def redis() -> Iterator[OwnValkey]:
    """A Valkey of this test alone."""
    with own_valkey() as running:
        yield running


@pytest.fixture
def start(server: ASGIServer, redis: OwnValkey) -> Start:
    """Starts two workers of the server."""

    def start() -> AbstractContextManager[WorkerTree]:
        port = free_port()
        return worker_tree(server.command(port), port, redis.url, f"{redis.url}?db=1", {"worker_lease": LEASE})

    return start


@pytest.fixture
def tree(start: Start) -> Iterator[WorkerTree]:
    """Two workers, started."""
    with start() as running:
        yield running


@pytest.fixture
async def tool(redis: OwnValkey) -> AsyncIterator[ToolControl]:
    """The control of one call."""
    async with aioredis.Redis.from_url(f"{redis.url}?db=1") as control:
        yield ToolControl(control, uuid.uuid4().hex)


@pytest.fixture
async def client(tree: WorkerTree) -> AsyncIterator[HTTPClient]:
    """A session, opened on any worker."""
    async with _http() as http:
        opened = HTTPClient(http, f"{tree.url}/mcp")
        await opened.initialize()
        yield opened


def _http() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING)


@asynccontextmanager
async def on_another_worker(tree: WorkerTree, client: HTTPClient, *pids: int) -> AsyncIterator[tuple[int, HTTPClient]]:
    """The same session on a connection to a worker with another pid, which the next request uses."""
    async with AsyncExitStack() as stack:
        with anyio.fail_after(CEILING):
            # The connections stay open: a worker with fewer of them is likelier to accept the next one.
            while True:
                http = await stack.enter_async_context(_http())
                if (pid := await _pid(tree, http)) and pid not in pids:
                    break
        yield pid, replace(client, http=http, url=f"{tree.url}/mcp")


async def _pid(tree: WorkerTree, http: httpx2.AsyncClient) -> int:
    try:
        return int((await http.get(f"{tree.url}/pid")).text)
    except httpx2.TransportError:  # Its worker has just been killed.
        return 0


async def _runs_on(tool: ToolControl) -> int:
    return int(await tool._redis.get(f"runs:{tool.name}") or 0)


async def _leases(redis: OwnValkey) -> int:
    async with aioredis.Redis.from_url(redis.url) as client:
        return len([key async for key in client.scan_iter(match="*worker:*")])


async def test_call_cut_on_one_worker_resumes_on_the_other(
    tree: WorkerTree, client: HTTPClient, tool: ToolControl
) -> None:
    """The tool runs on while the client receives the rest from the other worker, once and in order."""
    received = await start_call(client, tool, "a", "b")
    async with (
        on_another_worker(tree, client, await _runs_on(tool)) as (_, other),
        other.get(received[1].id) as resumed,
    ):
        stream = events(resumed)
        assert content_of(await anext(stream)) == "b"
        await tool.step("c")
        assert content_of(await anext(stream)) == "c"
        await tool.finish()
        assert [content_of(event) async for event in stream] == ["3 steps"]


async def test_call_of_a_killed_worker_is_answered(
    server: ASGIServer, start: Start, tree: WorkerTree, client: HTTPClient, tool: ToolControl
) -> None:
    """By the other worker, which serves on, or by the next server where that one ends, too."""
    received = await start_call(client, tool, "a")
    victim = await _runs_on(tool)
    os.kill(victim, signal.SIGKILL)
    if not server.survives:
        await until(lambda: tree.process.poll() is not None)
    with nullcontext(tree) if server.survives else start() as serving:
        async with on_another_worker(serving, client, victim) as (pid, other):
            assert [content_of(event) for event in await other.resume(received[-1].id)] == [str(REQUEST_ORPHANED)]
        async with on_another_worker(serving, client, victim, pid) as (_, other):
            await check_session(other)


async def test_scrape_of_either_worker_sums_both(tree: WorkerTree, client: HTTPClient) -> None:
    """Each worker stores some responses, and each answers for all of them."""
    async with (
        on_another_worker(tree, client) as (first, on_first),
        on_another_worker(tree, client, first) as (second, on_second),
    ):
        for number, on in enumerate((on_first, on_second, on_second), start=1):
            await check_session(on, number)
        for pid, on in ((first, on_first), (second, on_second)):

            async def summed(on: HTTPClient = on) -> bool:
                scrape = Figures.of((await on.http.get(f"{tree.url}/metrics")).raise_for_status().text)
                return scrape.total(STORED, message_type="response") == 4  # One of them to initialize.

            await until(summed)
            scrape = (await on.http.get(f"{tree.url}/metrics")).raise_for_status().text
            workers = set(re.findall(r'^eventscope_degraded{pid="(\d+)"', scrape, re.MULTILINE))
            assert workers == {str(first), str(second)}, "alerts count the series as workers"
            assert await _pid(tree, on.http) == pid, "the connection had moved"


async def test_server_on_sigterm_gives_up_its_leases(tree: WorkerTree, client: HTTPClient, redis: OwnValkey) -> None:
    """Without open streams each server runs the application's shutdown, and leaves no process."""
    await _both_started(tree, client)
    assert await _leases(redis) == 2
    await client.http.aclose()
    assert await anyio.to_thread.run_sync(tree.terminate) == 0
    assert await _leases(redis) == 0
    await until(lambda: not tree.processes())


async def test_server_on_sigterm_ends_open_streams(  # noqa: PLR0913, PLR0917 - fixtures
    server: ASGIServer, start: Start, tree: WorkerTree, client: HTTPClient, tool: ToolControl, redis: OwnValkey
) -> None:
    """It ends in time, and the next server answers the call: immediately, or when the lease has expired."""
    await _both_started(tree, client)
    async with client.call(1, "steps", name=tool.name) as response:
        stream = events(response)
        await anext(stream)
        await tool.step("a")
        cursor = (await anext(stream)).id
        with promptly(10):
            assert await anyio.to_thread.run_sync(tree.terminate) == 0
    # A difference that docs/servers.md names: whether the worker of the stream had time to give up its lease.
    assert (await _leases(redis) == 0) is server.ends_streams
    await until(lambda: not tree.processes())
    with start() as following:
        (answer,) = await replace(client, url=f"{following.url}/mcp").resume(cursor)
    assert answer.message["id"] == 1
    assert "error" in answer.message


async def _both_started(tree: WorkerTree, client: HTTPClient) -> None:
    """Return once both workers serve."""
    async with on_another_worker(tree, client) as (pid, _), on_another_worker(tree, client, pid):
        pass
