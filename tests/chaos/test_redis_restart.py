"""Redis is killed, and restarts with its data."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
from mcp.client import Client

from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.chaos import NewToolControl, check_session, content_of, on_worker, open_session, resumed_call
from support.http_client import Connect, HTTPClient, events
from support.processes import LEASE, Router, WorkerProcess, revive, worker_processes
from support.tool_control import WatchedCall
from support.valkeys import OwnValkey, own_valkey
from support.waiting import promptly, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

OUTAGE = LEASE * 1.5
"""Seconds: all leases have run out when Redis is back."""


World = tuple[OwnValkey, list[WorkerProcess]]


@pytest.fixture(scope="module")
def parts(valkey_url: str) -> Iterator[World]:
    """A Redis to be killed, and two workers on it, controlled through another Redis."""
    with own_valkey(durable=True) as server, worker_processes(2, server.url, valkey_url) as workers:
        yield server, workers


@pytest.fixture
async def world(parts: World, connect: Connect) -> World:
    """The same, once both workers run and store events: earlier events would have no ids."""
    workers = parts[1]
    await anyio.to_thread.run_sync(revive, workers)
    for worker in workers:
        client = await open_session(connect, worker.url)

        async def stores(client: HTTPClient = client) -> bool:
            async with client.call(1, "echo", text="x") as response:
                return all([event.id async for event in events(response)])

        await until(stores)
    return parts


@contextmanager
def outage(server: OwnValkey) -> Iterator[None]:
    """Redis is down in the block."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@pytest.mark.parametrize("there", [0, 1], ids=["same worker", "other worker"])
async def test_follower_through_a_restart_of_redis_continues(
    world: World, connect: Connect, new_tool: NewToolControl, there: int
) -> None:
    """It gets later events on either worker, and no worker is declared dead."""
    server, (a, b) = world
    follower = (a, b)[there]
    async with resumed_call(connect, new_tool, a, follower) as (client, tool, stream):
        await tool.step("before")
        assert content_of(await anext(stream)) == "before"
        with outage(server):
            await anyio.sleep(OUTAGE)
        for number in range(3):
            await tool.step(str(number))
            assert content_of(await anext(stream)) == str(number)
            await anyio.sleep(LEASE)  # Time enough to declare a worker dead.
        await tool.finish()
        assert content_of(await anext(stream)) == "4 steps"
    await check_session(on_worker(client, b))


async def test_sdk_call_through_a_restart_of_redis_succeeds(
    world: World, router: Router, new_tool: NewToolControl
) -> None:
    """A call that runs through a restart of Redis ends normally."""
    server, (a, b) = world
    router.to(a)
    async with Client(f"{router.url}/mcp", mode="legacy") as client, anyio.create_task_group() as tasks:
        call = WatchedCall(client, new_tool())
        call.start(tasks)
        await call.reported("a")
        router.move(b)
        await call.reported("b")
        with outage(server):
            await anyio.sleep(OUTAGE)
        await call.reported("c")
        await call.tool.finish()
        assert await call.over() == "3 steps"
        for worker in (a, b):
            router.move(worker)
            assert (await client.call_tool("echo", {"text": "x"})).structured_content == {"result": "x"}


async def test_session_that_cannot_be_looked_up_is_503(world: World, connect: Connect) -> None:
    """A 404 would make its client give the session up. Sessions with a large handshake are not announced to others."""
    server, (a, b) = world
    client = connect(a.url)
    await client.initialize(name="x" * 4096)
    with outage(server):
        async with on_worker(client, b).post({"jsonrpc": "2.0", "id": 7, "method": "ping"}) as response:
            assert response.status_code == 503
            assert response.headers["retry-after"]
        await check_session(client)

    async def served() -> bool:
        async with on_worker(client, b).post({"jsonrpc": "2.0", "id": 7, "method": "ping"}) as response:
            assert response.status_code in {200, 503}
            return response.status_code == 200

    await until(served)


async def test_delete_in_an_outage_ends_the_session_everywhere_afterwards(world: World, connect: Connect) -> None:
    """It ends immediately on the worker that receives the request, and soon on the others."""
    server, (a, b) = world
    client = await open_session(connect, a.url)
    await check_session(on_worker(client, b))
    with outage(server):
        assert await client.delete() == 200

    async def over() -> bool:
        async with on_worker(client, b).post({"jsonrpc": "2.0", "id": 7, "method": "ping"}) as response:
            return response.status_code == 404

    await until(over)


async def test_worker_that_dies_in_an_outage_is_found_afterwards(
    world: World, connect: Connect, new_tool: NewToolControl
) -> None:
    """Its call is answered with an error."""
    server, (a, b) = world
    async with resumed_call(connect, new_tool, a, b) as (client, tool, stream):
        await tool.step("a")
        assert content_of(await anext(stream)) == "a"
        with outage(server):
            a.kill()
            await anyio.sleep(OUTAGE)
        # For the length of a lease the others may only not have renewed theirs yet.
        with promptly(3 * LEASE):
            assert content_of(await anext(stream)) == str(REQUEST_ORPHANED)
    await check_session(on_worker(client, b))


async def test_worker_shut_down_in_an_outage_ends_in_time(
    world: World, connect: Connect, new_tool: NewToolControl
) -> None:
    """It has sessions, a call and a follower, and cannot publish its end."""
    server, (a, _) = world
    client = await open_session(connect, a.url)
    async with client.call(1, "steps", name=new_tool().name) as response:
        received = [await anext(events(response))]
        async with client.get(received[0].id):
            with outage(server):
                a.terminate()
                with promptly(10):
                    await anyio.to_thread.run_sync(a.wait)
                assert not a.alive
