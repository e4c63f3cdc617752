"""Subscriptions over HTTP: three workers that are killed, frozen or stopped, and a Redis that restarts empty."""

import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.subscriptions import ResourceUpdated, ServerEvent, SubscriptionLost, ToolsListChanged

from support.http_client import NO_TLS
from support.processes import WorkerProcess, revive
from support.servers import free_port
from support.subscription_app import KINDS
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, promptly, until
from support.worker_trees import worker_tree

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

APP = "support.subscription_app:app"


@pytest.fixture(scope="module")
def own_redis() -> Iterator[OwnValkey]:
    """The Redis of the workers, which restarts empty."""
    with own_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def started(own_redis: OwnValkey) -> Iterator[list[WorkerProcess]]:
    """A worker of each kind, without a time limit for its streams at shutdown."""
    workers = [WorkerProcess(own_redis.url, own_redis.url, graceful=None, app=APP, kind=kind) for kind in KINDS]
    try:
        revive(workers)
        yield workers
    finally:
        for worker in workers:
            worker.close()


@pytest.fixture
async def workers(started: list[WorkerProcess]) -> AsyncIterator[list[WorkerProcess]]:
    """The workers, running and healthy, whatever an earlier test did to them."""
    await anyio.to_thread.run_sync(revive, started)
    yield started
    for worker in started:
        worker.thaw()


@dataclass
class Listening:
    """The events that the SDK's client receives on one stream."""

    received: list[ServerEvent] = field(default_factory=list)
    ended: str = ""
    """`graceful` or `lost`, once the stream has ended."""


@asynccontextmanager
async def listening(url: str, *uris: str) -> AsyncIterator[Listening]:
    """An SDK client that listens to these resources, and to the tools without any."""
    stream = Listening()

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with (
            Client(f"{url}/mcp") as client,
            client.listen(tools_list_changed=not uris, resource_subscriptions=uris) as subscription,
        ):
            task_status.started()
            try:
                async for event in subscription:
                    stream.received.append(event)
                stream.ended = "graceful"
            except SubscriptionLost:
                stream.ended = "lost"

    async with anyio.create_task_group() as tasks:
        await tasks.start(run)
        yield stream
        tasks.cancel_scope.cancel()


async def change(worker: WorkerProcess, *uris: str) -> None:
    """Have a tool of a worker publish changes."""
    async with Client(f"{worker.url}/mcp") as client:
        result = await client.call_tool("change", {"uris": list(uris)})
        assert not result.is_error


async def metric(worker: WorkerProcess, name: str) -> float:
    """A metric of a worker, by its name with labels."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        text = (await http.get(f"{worker.url}/scraped")).text
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def test_change_on_one_worker_reaches_streams_on_all(workers: list[WorkerProcess]) -> None:
    """With the SDK's default client, and each way of serving."""
    async with AsyncExitStack() as stack:
        lists = [await stack.enter_async_context(listening(worker.url)) for worker in workers]
        resources = [await stack.enter_async_context(listening(worker.url, "x:a", "x:b")) for worker in workers]
        for number, worker in enumerate(workers):
            await change(worker, "x:a", "x:other")
            await until(partial(_have, (*lists, *resources), number + 1))
    assert all(stream.received == [ToolsListChanged()] * 3 for stream in lists)
    assert all(stream.received == [ResourceUpdated("x:a")] * 3 for stream in resources)


def _have(streams: Iterable[Listening], signals: int) -> bool:
    return all(len(stream.received) == signals for stream in streams)


async def test_stream_of_a_killed_client_is_forgotten(workers: list[WorkerProcess]) -> None:
    """Its worker notices the broken connection; the other streams are signalled as before."""
    gauge = 'eventscope_subscriptions_open{store="default"}'
    async with listening(workers[0].url, "x:a") as stream:
        async with listening(workers[0].url, "x:b"):
            await until(lambda: _equals(workers[0], gauge, 2))
        await until(lambda: _equals(workers[0], gauge, 1))
        await change(workers[1], "x:a", "x:b")
        await until(lambda: stream.received == [ResourceUpdated("x:a")])


async def _equals(worker: WorkerProcess, name: str, value: float) -> bool:
    return await metric(worker, name) == value


async def test_frozen_worker_signals_its_streams_when_it_wakes_up(workers: list[WorkerProcess]) -> None:
    """Changes that other workers published in the meantime are not lost, and nothing is repaired."""
    frozen, *others = workers
    async with listening(frozen.url, "x:a", "x:b") as stream:
        frozen.freeze()
        for number, worker in enumerate(others):
            await change(worker, f"x:{'ab'[number]}")
        frozen.thaw()
        await until(lambda: set(stream.received) == {ResourceUpdated("x:a"), ResourceUpdated("x:b")})
    assert len(stream.received) == 2


async def test_redis_that_restarts_empty_is_repaired_on_all_workers(
    workers: list[WorkerProcess], own_redis: OwnValkey
) -> None:
    """Changes that were published during the outage arrive, and each stream is signalled everything once."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(worker.url, "x:a", "x:b")) for worker in workers]
        own_redis.kill()
        with promptly(5):  # Neither the tool nor its local streams wait for Redis.
            await change(workers[0], "x:a")
            await until(lambda: streams[0].received == [ResourceUpdated("x:a")])
        await anyio.to_thread.run_sync(own_redis.start)
        both = {ResourceUpdated("x:a"), ResourceUpdated("x:b")}
        await until(lambda: all(set(stream.received) == both for stream in streams))
        for worker in workers:
            assert await metric(worker, 'eventscope_subscriptions_gaps_total{reason="lost",store="default"}') == 1
        for stream in streams:
            stream.received.clear()
        await change(workers[1], "x:b")
        await until(lambda: all(ResourceUpdated("x:b") in stream.received for stream in streams))


async def test_client_of_a_killed_worker_listens_on_another_one(workers: list[WorkerProcess]) -> None:
    """Its stream is lost, not ended; the new one is signalled each change after its acknowledgement."""
    async with listening(workers[0].url, "x:a") as stream:
        workers[0].kill()
        await until(lambda: stream.ended)
        assert stream.ended == "lost"
    async with listening(workers[1].url, "x:a") as again:
        await change(workers[2], "x:a")
        await until(lambda: again.received == [ResourceUpdated("x:a")])


@pytest.mark.parametrize("kind", KINDS)
async def test_worker_with_open_streams_stops_within_a_second(workers: list[WorkerProcess], kind: str) -> None:
    """Each stream ends with a result, and its last signal is not lost."""
    worker = workers[KINDS.index(kind)]
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(worker.url)) for _ in range(3)]
        await change(worker)
        with promptly(1):
            worker.terminate()
            await until(lambda: not worker.alive)
        assert worker.wait() in {0, -signal.SIGTERM}, worker.log  # uvicorn passes the signal on at its end.
        await until(lambda: all(stream.ended for stream in streams))
        assert [stream.ended for stream in streams] == ["graceful"] * 3
        assert all(stream.received == [ToolsListChanged()] for stream in streams)


@pytest.mark.parametrize("kind", ["http_app", "middleware"])
async def test_workers_of_one_supervisor_stop_within_seconds(own_redis: OwnValkey, kind: str) -> None:
    """`uvicorn --workers 2`, which itself needs a while to stop its workers."""
    port = free_port()
    command = ["-m", "uvicorn", APP, "--factory", "--port", str(port), "--workers", "2", "--log-level", "warning"]
    with worker_tree(command, port, own_redis.url, own_redis.url, {"kind": kind}) as tree:
        await until(lambda: len(tree.workers()) == 2)
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(listening(tree.url)) for _ in range(6)]
            with promptly(5):
                assert await anyio.to_thread.run_sync(tree.terminate) == 0
            await until(lambda: all(stream.ended for stream in streams))
            assert {stream.ended for stream in streams} == {"graceful"}
