"""`RedisTaskStore` on Redis: layout, loss, rollback, outages, permissions, and Redis Cluster."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast
from unittest.mock import AsyncMock

import anyio
import pytest
from redis import asyncio as aioredis
from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from mcp_eventscope import (
    RedisEventStore,
    RedisTaskStore,
    StoreRejectedError,
    StoreUnavailableError,
)
from mcp_eventscope.redis.client import AnyRedis
from mcp_eventscope.store.events import FailureReason
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import NewTask, RunState, Settled
from support.servers import cluster_of_one
from support.stores import LEASE, PATIENCE, TTL, nothing_to_publish
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]


@dataclass
class Worker:
    """A worker with its stores."""

    events: RedisEventStore
    tasks: RedisTaskStore

    async def create(self) -> RunState:
        """Create a task."""
        return RunState(await self.tasks.create(NewTask("ada")))

    def key(self, run: RunState) -> str:
        """The key of a task."""
        return self.tasks._keys(run.task.task_id)[0]

    async def status(self, run: RunState) -> TaskStatus | None:
        """The status of a task."""
        task = await self.tasks.get(run.task.task_id, owner="ada")
        return None if task is None else task.status


@asynccontextmanager
async def worker_on(
    client: AnyRedis, key_prefix: str, *, lease: float = LEASE, **options: Any
) -> AsyncIterator[Worker]:
    """A worker whose start is long ago."""
    events = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
    workers = events.backend.workers
    async with workers.hold_lease(lease, lambda _: None, nothing_to_publish):
        await until(lambda: workers.leased)
        workers._began -= workers._renewal_limit
        yield Worker(events, RedisTaskStore(events.backend, **{"sync_interval": 0.02, **options}))


@pytest.fixture
async def pair(redis_client: aioredis.Redis, key_prefix: str) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers."""
    async with worker_on(redis_client, key_prefix) as first, worker_on(redis_client, key_prefix) as second:
        yield first, second


async def test_large_result_is_not_part_of_what_polls_read(
    redis_client: aioredis.Redis, pair: tuple[Worker, Worker]
) -> None:
    """The result has a key of its own, which expires with the task."""
    run = await pair[0].create()
    await pair[0].tasks.set_completed(run, {"text": "x" * (8 << 20 >> 1)})
    key, result = pair[0].tasks._keys(run.task.task_id)
    assert sum(map(len, (await redis_client.hgetall(key)).values())) < 1000
    assert await redis_client.strlen(result) > 4_000_000
    assert 0 <= await redis_client.pttl(result) - await redis_client.pttl(key) <= 1000


async def test_sync_of_many_tasks_is_few_calls(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """One for each 256 tasks, renewals included."""
    async with worker_on(redis_client, key_prefix) as worker:
        runs = [await worker.create() for _ in range(300)]
        for run in runs:
            await redis_client.expire(worker.key(run), 60)
        before = await calls(redis_client)
        await worker.tasks.sync(runs)
        assert await calls(redis_client) - before <= 4  # A renewal of the lease may be among them.
        assert min([await redis_client.ttl(worker.key(run)) for run in runs]) > 60


async def calls(client: aioredis.Redis) -> int:
    """The number of scripts that the server has run."""
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def test_record_that_is_lost_while_its_worker_lives_is_awaited(
    redis_client: aioredis.Redis, pair: tuple[Worker, Worker]
) -> None:
    """A poll does not answer "unknown" before the worker has had the time to create it again."""
    first, second = pair
    run = await first.create()
    await redis_client.delete(first.key(run))
    statuses: list[TaskStatus | None] = []

    async def poll() -> None:
        statuses.append(await second.status(run))

    async with anyio.create_task_group() as group:
        group.start_soon(poll)
        await anyio.lowlevel.checkpoint()
        assert not (await first.tasks.sync([run]))[0].fenced
    assert statuses == [TaskStatus.WORKING]


async def test_poll_after_redis_lost_everything_asks_to_be_repeated(
    redis_client: aioredis.Redis, pair: tuple[Worker, Worker]
) -> None:
    """Unknown is not "not found": for one lease, the worker may create the record again."""
    first, second = pair
    run = await first.create()
    keys = [key async for key in redis_client.scan_iter(f"{first.events.backend.keys.prefix}*", count=1000)]
    await redis_client.delete(*keys)
    with pytest.raises(StoreUnavailableError, match="may not be complete"):
        await second.status(run)


async def test_task_that_its_live_worker_no_longer_renews_fails(
    redis_client: aioredis.Redis, pair: tuple[Worker, Worker]
) -> None:
    """After a rollback, a task may be open whose end the worker has stored, and which it therefore no longer knows."""
    first, second = pair
    run = await first.create()
    first.tasks.release(run)
    second.tasks._ttl *= 10  # The options of the other worker decide.
    assert await second.status(run) is TaskStatus.WORKING
    await redis_client.pexpire(first.key(run), first.tasks._ttl - 3 * first.tasks._beat - 10_000)
    task = await second.tasks.get(run.task.task_id, owner="ada")
    assert task is not None
    assert (task.status, task.orphaned) == (TaskStatus.FAILED, True)


async def test_worker_that_was_frozen_for_longer_than_the_ttl_does_not_revive_a_task(
    redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """Its client may have read another end, whose record has expired since."""
    async with worker_on(redis_client, key_prefix, ttl=1) as worker:
        run = await worker.create()
        await redis_client.delete(worker.key(run))
        worker.tasks._known[run.task.task_id] -= 2_000_000
        assert (await worker.tasks.sync([run]))[0].fenced
        assert await worker.tasks.set_completed(run, {}) is Settled.FENCED
        assert not await redis_client.exists(worker.key(run))


async def test_change_by_another_attempt_is_refused(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """The number of the attempt is part of the fence."""
    async with worker_on(redis_client, key_prefix) as worker:
        run = await worker.create()
        other = f"{worker.events.backend.worker.name}:2"
        for verb in ("create", "keep", "ask", "end"):
            reply = await worker.tasks._put(run.task.task_id, other, verb, [], ["status", "failed"], b"")
            assert reply == b"fenced", verb
        assert await worker.status(run) is TaskStatus.WORKING


async def test_running_task_outlives_its_ttl(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """It is renewed, and the result is kept for the TTL after the end."""
    async with worker_on(redis_client, key_prefix, lease=1.0, ttl=1) as worker:
        run = await worker.create()
        for _ in range(15):
            await anyio.sleep(0.1)
            assert await redis_client.pttl(worker.key(run)) > 400  # Never created again.
            assert not (await worker.tasks.sync([run]))[0].fenced
        await worker.tasks.set_completed(run, {})
        task = await worker.tasks.get(run.task.task_id, owner="ada")
        assert task is not None
        assert task.ttl_ms is not None
        assert task.ttl_ms >= 2500
        await until(lambda: not_exists(redis_client, worker.key(run)))
        assert await worker.status(run) is None


async def not_exists(client: aioredis.Redis, key: str) -> bool:
    """Whether a key has expired."""
    return not await client.exists(key)


async def test_create_whose_reply_was_lost_makes_one_task(
    redis_client: aioredis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repeated call has the same id."""
    async with worker_on(redis_client, key_prefix) as worker:
        send: Any = redis_client.execute_command
        lost = 0

        async def lose_one_reply(*args: Any, **options: Any) -> Any:
            nonlocal lost
            reply = await send(*args, **options)
            if not lost and args[0] == "EVALSHA" and b"create" in args:
                lost += 1
                msg = "lost"
                raise RedisConnectionError(msg)
            return reply

        monkeypatch.setattr(redis_client, "execute_command", lose_one_reply)
        await worker.create()
        await worker.create()
        monkeypatch.undo()
        assert lost == 1
        assert len([key async for key in redis_client.scan_iter(f"{key_prefix}{{tasks:*", count=1000)]) == 2


async def test_worker_without_a_lease_creates_no_task(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """Other workers would declare it failed."""
    events = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    tasks = RedisTaskStore(events.backend)
    with pytest.raises(StoreUnavailableError, match="lease"):
        await tasks.create(NewTask(None))
    with pytest.raises(RuntimeError, match="lease must be held"):
        tasks.on_signal(lambda: None)


async def test_unreachable_redis_is_never_an_unknown_task(pair: tuple[Worker, Worker]) -> None:
    """All operations raise, immediately while the outage is known."""
    first, second = pair
    run = await first.create()
    for worker in pair:
        worker.events.backend.breaker.record_failure(FailureReason.CONNECTION, "cut")
    task_id = run.task.task_id
    for call in (
        second.tasks.get(task_id, owner="ada"),
        second.tasks.get(task_id, owner="eve"),
        second.tasks.request_cancel(task_id, owner="ada"),
        second.tasks.resolve_input_requests(task_id, {}, owner="ada"),
        first.tasks.create(NewTask("ada")),
        first.tasks.set_completed(run, {}),
        first.tasks.sync([run]),
        first.tasks.discard(run),
    ):
        with pytest.raises(StoreUnavailableError):
            await call
    await until(lambda: first.events.backend.breaker.reason is None and second.events.backend.breaker.reason is None)


async def test_refusal_that_ends_by_itself_asks_clients_to_repeat(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll during a failover must not make the client abandon its task."""
    first, second = pair
    task_id = (await first.create()).task.task_id
    temporary = [OutOfMemoryError("OOM"), ReadOnlyError("read only replica"), ClusterDownError("CLUSTERDOWN")]
    for refusal in (*temporary, NoPermissionError("NOPERM")):
        expected = StoreUnavailableError if refusal in temporary else StoreRejectedError
        for call in (
            partial(second.tasks.get, task_id, owner="ada"),
            partial(second.tasks.request_cancel, task_id, owner="ada"),
            partial(second.tasks._is_dead, first.events.worker),
        ):
            second.events.backend.breaker.reset()
            with monkeypatch.context() as patched:
                patched.setattr(second.events.backend.redis, "execute_command", AsyncMock(side_effect=refusal))
                with pytest.raises(expected):
                    await call()


async def test_user_without_channels_is_signalled_by_polling(
    redis_client: aioredis.Redis, valkey_url: str, key_prefix: str
) -> None:
    """The flag is in the hash; `PUBLISH` is refused."""
    name, administer = f"user-{key_prefix[5:-1]}", cast("Any", redis_client).execute_command
    await administer("ACL", "SETUSER", name, "on", "nopass", f"~{key_prefix}*", "+@all", "resetchannels")
    try:
        async with (
            aioredis.Redis.from_url(valkey_url, username=name, password="x", socket_timeout=CEILING) as client,
            worker_on(client, key_prefix) as worker,
        ):
            run = replace(await worker.create(), input_requests={"input-1": {"method": "roots/list"}})
            await worker.tasks.set_input_requests(run)
            assert await worker.tasks.request_cancel(run.task.task_id, owner="ada")
            assert await worker.tasks.resolve_input_requests(run.task.task_id, {"input-1": {"roots": []}}, owner="ada")
            (signals,) = await worker.tasks.sync([run])
            assert signals.cancel_age is not None
            assert signals.input_responses == {"input-1": {"roots": []}}
    finally:
        await administer("ACL", "DELUSER", name)


async def test_cancellation_of_an_ended_task_does_not_read_its_result(pair: tuple[Worker, Worker]) -> None:
    """It is no poll: the first one is still reported, and the result is not sent."""
    first, second = pair
    run = await first.create()
    await first.tasks.set_completed(run, {"done": True})
    assert await second.tasks.request_cancel(run.task.task_id, owner="ada")
    assert await second.tasks.resolve_input_requests(run.task.task_id, {}, owner="ada")
    task = await second.tasks.get(run.task.task_id, owner="ada")
    assert task is not None
    assert task.collected_after is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 1, "sync_interval": 1.0}, "sync_interval must be at most 0.5 seconds with ttl=1, got 1.0"),
        ({"ttl": 0}, "ttl must be between 1"),
        ({"max_result_bytes": 0}, "max_result_bytes must be between 1"),
    ],
)
async def test_store_with_an_option_out_of_range_names_it(
    redis_client: aioredis.Redis, options: dict[str, Any], message: str
) -> None:
    """With the fix."""
    with pytest.raises(ValueError, match=message):
        RedisTaskStore(RedisEventStore(redis_client).backend, **options)


async def test_ttl_does_not_depend_on_the_clocks_of_workers(pair: tuple[Worker, Worker]) -> None:
    """Redis's clock gives the ages: workers estimate its time, and their estimates differ."""
    first, second = pair
    run = await first.create()
    first.events.backend.clock._offset -= 1_000_000_000
    second.events.backend.clock._offset += 1_000_000_000
    ttls, ages = [], []
    for worker in (first, second, first):
        task = await worker.tasks.get(run.task.task_id, owner="ada")
        assert task is not None
        ttls.append(task.ttl_ms or 0)
    await second.tasks.request_cancel(run.task.task_id, owner="ada")
    (signals,) = await first.tasks.sync([run])
    await first.tasks.set_cancelled(run)
    for worker in (second, first):
        task = await worker.tasks.get(run.task.task_id, owner="ada")
        assert task is not None
        ttls.append(task.ttl_ms or 0)
        ages.append(task.collected_after)
    assert ttls == sorted(ttls)
    assert ttls[-1] - ttls[0] < CEILING * 1000
    assert signals.cancel_age is not None
    assert 0 <= signals.cancel_age < CEILING
    assert ages[0] is not None
    assert 0 <= ages[0] < CEILING
    assert ages[1] is None


async def test_signal_wakes_the_worker(pair: tuple[Worker, Worker]) -> None:
    """Pub/sub only wakes up, and no longer after it was removed."""
    first, second = pair
    woken: list[None] = []
    remove = first.tasks.on_signal(lambda: woken.append(None))
    channel = first.events.backend.keys.task_signals(first.events.backend.worker.name)
    await until(lambda: first.events.backend.pubsub.confirmed(channel))
    run = await first.create()
    before = len(woken)
    await second.tasks.request_cancel(run.task.task_id, owner="ada")
    await until(lambda: len(woken) > before)
    later: list[None] = []
    remove_later = first.tasks.on_signal(lambda: later.append(None))
    remove()
    before = len(woken)
    run = await first.create()
    await second.tasks.request_cancel(run.task.task_id, owner="ada")
    await until(lambda: later)
    assert len(woken) == before
    remove_later()


@pytest.fixture(scope="module")
def cluster_port() -> Iterator[int]:
    """The port of a cluster of one node, which has all slots and checks them as any node does."""
    with cluster_of_one() as port:
        yield port


@pytest.mark.slow
async def test_tasks_on_a_cluster_never_cross_slots(cluster_port: int) -> None:
    """Create, ask, answer, cancel, synchronize several together, end, and declare a dead worker's task failed."""
    async with AsyncExitStack() as stack:
        client = aioredis.RedisCluster(host="127.0.0.1", port=cluster_port)
        stack.push_async_callback(client.aclose)
        first = await stack.enter_async_context(worker_on(client, "mcp:"))
        second = await stack.enter_async_context(worker_on(client, "mcp:"))
        runs = [replace(await first.create(), input_requests={"input-1": {"method": "roots/list"}}) for _ in range(3)]
        for run in runs:
            await first.tasks.set_input_requests(run)
        await second.tasks.request_cancel(runs[0].task.task_id, owner="ada")
        await second.tasks.resolve_input_requests(runs[1].task.task_id, {"input-1": {"roots": []}}, owner="ada")
        signals = await first.tasks.sync(runs)
        assert signals[0].cancel_age is not None
        assert signals[1].input_responses == {"input-1": {"roots": []}}
        await first.tasks.set_completed(runs[1], {"done": True})
        assert await first.tasks.count_uncollected([run.task.task_id for run in runs]) == 1
        await first.tasks.discard(runs[2])
        assert [await second.status(run) for run in runs] == [TaskStatus.INPUT_REQUIRED, TaskStatus.COMPLETED, None]
        await client.delete(first.events.backend.keys.worker(first.events.backend.worker.name))
        assert await second.status(runs[0]) is TaskStatus.FAILED


async def test_key_of_another_type_affects_only_its_own_task(
    redis_client: aioredis.Redis, pair: tuple[Worker, Worker]
) -> None:
    """It is a lost record: the run creates it again, and other tasks do not notice."""
    one, other = pair
    runs = [await one.create() for _ in range(3)]
    spoilt, signalled, ended = runs
    for run in (spoilt, ended):
        await redis_client.delete(one.key(run))
        await redis_client.set(one.key(run), "no task", ex=60)
    await other.tasks.request_cancel(signalled.task.task_id, owner="ada")
    assert await one.tasks.count_uncollected([run.task.task_id for run in runs]) == 0
    assert await one.tasks.set_completed(ended, {"done": True}) is Settled.STORED
    signals = await one.tasks.sync([spoilt, signalled])
    assert [each.fenced for each in signals] == [False, False]
    assert signals[1].cancel_age is not None
    assert [await other.status(run) for run in runs] == [TaskStatus.WORKING, TaskStatus.WORKING, TaskStatus.COMPLETED]
    assert 0 < await redis_client.ttl(one.key(spoilt)) <= 3600


async def test_clients_of_a_key_of_another_type_find_no_task(
    redis_client: aioredis.Redis, pair: tuple[Worker, Worker]
) -> None:
    """Without a run that creates the record again. A result of another type is one that Redis has lost."""
    one, other = pair
    run, completed = await one.create(), await one.create()
    await redis_client.delete(one.key(run))
    await redis_client.set(one.key(run), "no task", ex=60)
    task_id = run.task.task_id
    assert await other.tasks.get(task_id, owner="ada") is None
    assert not await other.tasks.request_cancel(task_id, owner="ada")
    assert not await other.tasks.resolve_input_requests(task_id, {"input-1": {}}, owner="ada")
    await one.tasks.set_completed(completed, {"done": True})
    result = one.tasks._keys(completed.task.task_id)[1]
    await redis_client.delete(result)
    await redis_client.rpush(result, "no result")
    await redis_client.expire(result, 60)
    found = await other.tasks.get(completed.task.task_id, owner="ada")
    assert found is not None
    assert (found.result, found.error is not None) == (None, True)
