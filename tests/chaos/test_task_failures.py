"""Workers that run tasks are killed, frozen and stopped, and Redis is cut off, emptied and rolled back."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import anyio
import httpx2
import pytest
from redis import asyncio as aioredis

from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.http_client import NO_TLS
from support.processes import LEASE, WorkerProcess, revive, worker_processes
from support.stores import patient_client
from support.task_client import RawTasks
from support.tool_control import ToolControl
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


@contextmanager
def fleet(redis_url: str, control_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers with tasks."""
    tasks = {"poll_interval": 0.05, "sync_interval": 0.1}
    with worker_processes(
        2, redis_url, control_url, app="support.task_server:app", tasks=tasks, shutdown_timeout=1
    ) as workers:
        yield workers


@pytest.fixture(scope="module")
def workers(valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers on the Valkey of the run."""
    with fleet(valkey_url, valkey_url) as workers:
        yield workers


@pytest.fixture(scope="module")
def own() -> Iterator[OwnValkey]:
    """A Valkey to kill, which keeps the data of its snapshots."""
    with own_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def own_workers(own: OwnValkey, valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers on the Valkey to kill."""
    with fleet(own.url, valkey_url) as workers:
        yield workers


@pytest.fixture
async def pair(workers: list[WorkerProcess]) -> tuple[WorkerProcess, WorkerProcess]:
    """Both workers, running and healthy."""
    await anyio.to_thread.run_sync(revive, workers)
    return workers[0], workers[1]


@pytest.fixture
async def own_pair(own_workers: list[WorkerProcess]) -> tuple[WorkerProcess, WorkerProcess]:
    """Both workers on the Valkey to kill."""
    await anyio.to_thread.run_sync(revive, own_workers)
    return own_workers[0], own_workers[1]


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """Plain HTTP."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        yield http


@pytest.fixture
async def control(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the Redis that controls the tools."""
    async with patient_client(valkey_url) as client:
        yield client


@pytest.fixture
def on(http: httpx2.AsyncClient) -> Callable[[WorkerProcess], RawTasks]:
    """Makes clients."""
    return lambda worker: RawTasks(http, f"{worker.url}/mcp")


@pytest.fixture
def tool(control: aioredis.Redis) -> ToolControl:
    """The control of one run of `work`."""
    return ToolControl(control, uuid.uuid4().hex)


async def runs_of(control: aioredis.Redis, tool: ToolControl) -> int:
    """How often a tool was run."""
    return int(await control.get(f"count:{tool.name}") or 0)


On = Callable[[WorkerProcess], RawTasks]
Pair = tuple[WorkerProcess, WorkerProcess]


async def test_task_of_a_killed_worker_fails_with_an_honest_error(
    pair: Pair, on: On, tool: ToolControl, control: aioredis.Redis
) -> None:
    """Within a lease and a poll, on the other worker; the tool is not run again."""
    first, second = pair
    task_id = await on(first).start("work", name=tool.name)
    await tool.started()
    await anyio.to_thread.run_sync(first.kill)
    task = await on(second).final(task_id)
    assert (task["status"], task["error"]["code"]) == ("failed", REQUEST_ORPHANED)
    assert "may have taken effect" in task["error"]["message"]
    await anyio.to_thread.run_sync(revive, list(pair))
    again = await on(first).final(task_id)
    assert (again["status"], again["error"]) == ("failed", task["error"])
    assert await runs_of(control, tool) == 1


async def test_frozen_worker_that_wakes_up_is_fenced(
    pair: Pair, on: On, tool: ToolControl, control: aioredis.Redis
) -> None:
    """Its late result is refused, and its tool is cancelled."""
    first, second = pair
    task_id = await on(first).start("work", name=tool.name)
    await tool.started()
    first.freeze()
    try:
        task = await on(second).final(task_id)
        assert task["error"]["code"] == REQUEST_ORPHANED
    finally:
        first.thaw()
    await tool.ended()
    await tool.finish()
    for worker in pair:
        assert (await on(worker).final(task_id))["error"] == task["error"]
    assert await runs_of(control, tool) == 1


async def test_stopped_worker_fails_its_tasks_before_it_gives_up_its_lease(
    pair: Pair, on: On, tool: ToolControl, control: aioredis.Redis
) -> None:
    """A task that ends within `shutdown_timeout` keeps its result; the other one fails, before a poll declares it."""
    first, second = pair
    quick = ToolControl(control, uuid.uuid4().hex)
    failed = await on(first).start("work", name=tool.name)
    completed = await on(first).start("work", name=quick.name)
    await tool.started()
    await quick.started()
    first.terminate()
    await quick.finish()
    await anyio.to_thread.run_sync(first.wait)
    assert (await on(second).get(failed))["result"]["error"]["code"] == REQUEST_ORPHANED
    assert (await on(second).get(completed))["result"]["status"] == "completed"


async def test_outage_longer_than_the_lease_ends_no_task(
    own_pair: Pair, own: OwnValkey, on: On, tool: ToolControl, control: aioredis.Redis
) -> None:
    """All leases have lapsed, and no worker is dead. Polls meanwhile ask to be repeated."""
    first, second = own_pair
    task_id = await on(first).start("work", name=tool.name)
    await tool.started()
    own.save()
    await anyio.to_thread.run_sync(own.kill)
    try:
        assert (await on(second).get(task_id))["error"]["data"] == {"retryable": True}
        refused = (await on(second).call("work", name=tool.name))["error"]
        assert (refused["data"], "retry" in refused["message"]) == ({"retryable": True}, True)
        await anyio.sleep(1.5 * LEASE)
    finally:
        await anyio.to_thread.run_sync(own.revive)
    task = await on(second).until(task_id, lambda task: task["status"])
    assert task["status"] == "working"
    await tool.finish()
    assert (await on(second).final(task_id))["status"] == "completed"
    assert await runs_of(control, tool) == 1


async def test_result_that_arises_in_an_outage_is_stored_afterwards(
    own_pair: Pair, own: OwnValkey, on: On, tool: ToolControl
) -> None:
    """The worker keeps the result until Redis takes it."""
    first, second = own_pair
    task_id = await on(first).start("work", name=tool.name)
    await tool.started()
    own.save()
    await anyio.to_thread.run_sync(own.kill)
    await tool.finish()
    await tool.ended()
    await anyio.to_thread.run_sync(own.revive)
    assert (await on(second).final(task_id))["status"] == "completed"


async def test_redis_that_comes_back_empty_gets_the_running_tasks_again(
    own_pair: Pair, own: OwnValkey, on: On, tool: ToolControl, control: aioredis.Redis
) -> None:
    """With progress, owner and TTL. Until then, polls ask to be repeated. Cancellation works as before."""
    first, second = own_pair
    task_id = await on(first).start("work", name=tool.name)
    await tool.step("before")
    await on(second).until(task_id, lambda task: task.get("statusMessage") == "before")
    asking = await on(first).start("ask")
    await on(second).until(asking, lambda task: task["status"] == "input_required")
    await anyio.to_thread.run_sync(own.kill)
    own.drop_snapshot()
    await anyio.to_thread.run_sync(own.revive)
    task = await on(second).until(task_id, lambda task: task["status"])
    assert (task["status"], task["statusMessage"]) == ("working", "before")
    task = await on(second).until(asking, lambda task: task["status"])
    ((key, _),) = task["inputRequests"].items()
    await on(second).update(asking, **{key: {"action": "accept", "content": {"name": "Ada"}}})
    assert (await on(second).final(asking))["result"]["content"][0]["text"] == "Ada"
    async with aioredis.Redis(unix_socket_path=str(own.socket)) as redis:
        found = [key async for key in redis.scan_iter("mcp:{tasks:*")]
        assert len(found) >= 2
        assert all([await redis.ttl(key) > 0 for key in found])
    await on(second).cancel(task_id)
    assert (await on(second).final(task_id))["status"] == "cancelled"
    assert await runs_of(control, tool) == 1
    await until(lambda: control.exists(f"ended:{tool.name}"))


async def test_redis_that_is_rolled_back_loses_no_running_task(
    own_pair: Pair, own: OwnValkey, on: On, tool: ToolControl, control: aioredis.Redis
) -> None:
    """From an older snapshot: a newer task is created again, and an end that was lost becomes an honest one."""
    first, second = own_pair
    ended, newer = (ToolControl(control, uuid.uuid4().hex) for _ in range(2))
    task_id = await on(first).start("work", name=tool.name)
    ended_id = await on(first).start("work", name=ended.name)
    await tool.started()
    own.save()
    await ended.finish()
    assert (await on(second).final(ended_id))["status"] == "completed"
    newer_id = await on(first).start("work", name=newer.name)
    await newer.started()
    await anyio.to_thread.run_sync(own.kill)
    await anyio.to_thread.run_sync(own.revive)
    for control_of, identifier in ((tool, task_id), (newer, newer_id)):
        assert (await on(second).until(identifier, lambda task: task["status"]))["status"] == "working"
        await control_of.finish()
        assert (await on(second).final(identifier))["status"] == "completed"
    assert (await on(second).final(ended_id))["error"]["code"] == REQUEST_ORPHANED
    assert [await runs_of(control, each) for each in (tool, ended, newer)] == [1, 1, 1]
