"""Outages and data loss of Redis under clients of real workers."""

from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest
from httpx2 import Response
from redis import asyncio as aioredis

from benchmarks import outage
from support.chaos import NewToolControl, check_session, content_of, on_worker, open_session, start_call
from support.http_client import Connect, HTTPClient, events
from support.processes import WorkerProcess, worker_processes
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_fifty_sessions_stream_through_an_outage() -> None:
    """In two seconds no session ends, no message is late, and clients cut meanwhile get everything."""
    verdict = await outage.measure(seconds=2, sessions=50)
    assert verdict.problems == []
    assert verdict.resumed == 10
    assert verdict.without_id == 0
    assert verdict.sent > 1000


World = tuple[OwnValkey, list[WorkerProcess]]


@pytest.fixture
def world(valkey_url: str) -> Iterator[World]:
    """A Redis without persistence, and two workers on it, controlled through another Redis."""
    with own_valkey() as server, worker_processes(2, server.url, valkey_url) as workers:
        yield server, workers


def _flush(server: OwnValkey) -> None:
    with server.client() as client:
        client.flushall()


def _restart(server: OwnValkey) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("there", [0, 1], ids=["there", "elsewhere"])
async def test_standalone_stream_opened_in_an_outage_gets_later_messages(
    world: World, connect: Connect, there: int
) -> None:
    """It stays open, and receives later messages of the session, from either worker."""
    server, workers = world
    client = await open_session(connect, workers[0].url)
    for worker in workers:
        await check_session(on_worker(client, worker))
    server.kill()
    for worker in workers:
        await check_session(on_worker(client, worker))
    async with on_worker(client, workers[0]).get() as response:
        assert response.status_code == 200
        server.start()
        speaker = on_worker(client, workers[there])
        with anyio.fail_after(CEILING):
            await until(lambda: _stores(speaker))
            async with speaker.call(5, "announce") as call:
                assert content_of([event async for event in events(call)][-1]) == "announced"
            methods = [event async for event in _first_with_data(response)]
        assert methods == ["notifications/tools/list_changed"]


async def _stores(client: HTTPClient) -> bool:
    """Whether events of that worker have ids again."""
    async with client.call(7, "echo", text="x") as response:
        return all([event.id async for event in events(response)])


async def _first_with_data(response: Response) -> AsyncIterator[str]:
    async for event in events(response):
        if event.data:
            yield event.message["method"]
            return


@pytest.mark.parametrize("forget", [_flush, _restart])
async def test_emptied_redis_is_filled_again_by_its_workers(
    world: World, connect: Connect, new_tool: NewToolControl, forget: Callable[[OwnValkey], None]
) -> None:
    """Workers publish their lease, sessions and requests again, and a call continues on the other one."""
    server, (a, b) = world
    client = await open_session(connect, a.url)
    tool = new_tool()
    received = await start_call(client, tool, "before")
    async with aioredis.Redis.from_url(server.url, decode_responses=True) as redis:
        before = await _published(redis, client.session)
        await anyio.to_thread.run_sync(forget, server)

        async def published_again() -> bool:
            try:
                return await _published(redis, client.session) == before
            except (aioredis.ConnectionError, AttributeError):
                return False

        await until(published_again)
    await tool.step("after")
    async with on_worker(client, b).get(received[-1].id) as response:
        stream = events(response)
        assert content_of(await anext(stream)) == "after"
        await tool.step("and on")
        assert content_of(await anext(stream)) == "and on"
        await tool.finish()
        assert content_of(await anext(stream)) == "3 steps"
        assert [event async for event in stream] == []
    for worker in (a, b):
        await check_session(on_worker(client, worker))


async def _published(redis: aioredis.Redis, session: str) -> dict[str, object]:
    """The leases, the session and the running request that workers have published."""
    running = await redis.hget(f"mcp:{{{session}}}:running", "1")
    return {
        "workers": sorted([key async for key in redis.scan_iter(match="mcp:{workers}:worker:*")]),
        "session": await redis.hmget(f"mcp:{{{session}}}:session", "owner", "handshake"),
        "running": str(running or "").partition(":")[0],
    }
