"""Leases of workers: when a worker counts as expired."""

import asyncio
import time

import fakeredis
import pytest

from mcp_eventscope import RedisEventStore
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.client import ANSWER_TIMEOUT
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE
from mcp_eventscope.store.events import FailureReason, StoreRecovered
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio


class Clock:
    """A monotonic clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time, as it was set."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be disconnected."""
    return fakeredis.FakeServer()


def worker(server: fakeredis.FakeServer) -> Workers:
    """One more worker."""
    return RedisEventStore(fakeredis.FakeAsyncRedis(server=server), ttl=60).coordinator


async def test_worker_without_a_lease_is_expired(server: fakeredis.FakeServer) -> None:
    """A worker with a lease is alive; all others are expired."""
    one, other = worker(server), worker(server)
    await other._renew()
    assert await one.expired({other._worker.name, "third"}) == {"third"}
    await other._leave()
    assert await one.expired({other._worker.name, "third"}) == {other._worker.name, "third"}


async def test_no_worker_is_expired_just_after_an_outage(server: fakeredis.FakeServer, clock: Clock) -> None:
    """Leases expire during an outage, so the other workers get time to renew theirs."""
    workers = worker(server)
    assert await workers.expired({"other"}) == {"other"}
    server.connected = False
    with pytest.raises(StoreError):
        await workers.expired({"other"})
    server.connected = True
    assert await workers.expired({"other"}) == set()
    clock.now += DEFAULT_WORKER_LEASE - 1
    assert await workers.expired({"other"}) == set()
    clock.now += 2
    assert await workers.expired({"other"}) == {"other"}


async def test_worker_of_a_cluster_gets_longer_to_renew_after_an_outage(
    server: fakeredis.FakeServer, clock: Clock
) -> None:
    """Its client may find the new master later than ours, by the time of a call."""
    workers = worker(server)
    workers._breaker.cluster = True
    workers._observed(StoreRecovered(reason=FailureReason.CONNECTION, seconds=1.0))
    clock.now += DEFAULT_WORKER_LEASE + ANSWER_TIMEOUT - 1
    assert await workers.expired({"other"}) == set()
    clock.now += 2
    assert await workers.expired({"other"}) == {"other"}


async def test_no_worker_is_expired_just_after_a_slow_reply(
    server: fakeredis.FakeServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that was slow has not let the others renew either."""
    workers = worker(server)
    ask = workers._redis.exists

    async def slow(*names: str) -> object:
        clock.now += DEFAULT_WORKER_LEASE / 2
        return await ask(*names)

    monkeypatch.setattr(workers._redis, "exists", slow)
    assert await workers.expired({"other"}) == set()
    monkeypatch.setattr(workers._redis, "exists", ask)
    clock.now += DEFAULT_WORKER_LEASE + 1
    assert await workers.expired({"other"}) == {"other"}


async def test_no_worker_is_expired_when_redis_lost_all_leases(server: fakeredis.FakeServer) -> None:
    """A Redis that restarted empty has lost the lease of the asking worker, too."""
    one, other = worker(server), worker(server)
    async with (
        one.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing),
        other.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing),
    ):
        assert await one.expired({other._worker.name}) == set()
        await fakeredis.FakeAsyncRedis(server=server).flushall()
        assert await one.expired({other._worker.name}) == set()


async def test_no_worker_is_expired_when_redis_has_an_older_lease_of_the_asking_one(
    server: fakeredis.FakeServer,
) -> None:
    """A replica that was cut off and promoted may have that one still, and not those that expire earlier."""
    one, other = worker(server), worker(server)
    async with (
        one.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing),
        other.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing),
    ):
        redis = fakeredis.FakeAsyncRedis(server=server)
        await redis.set(one._keys.worker(one._worker.name), one._written - 1, ex=60)
        await redis.delete(one._keys.worker(other._worker.name))
        assert await one.expired({other._worker.name}) == set()


async def test_lease_of_several_holders_ends_with_the_last(server: fakeredis.FakeServer) -> None:
    """A scope and a session manager hold it together, and leave in any order."""
    one = worker(server)
    lease = one._keys.worker(one._worker.name)
    outer = one.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing)
    inner = one.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing)
    await outer.__aenter__()
    await inner.__aenter__()
    tasks = tuple(one._tasks)
    await outer.__aexit__(None, None, None)
    assert await one._redis.exists(lease)
    assert not any(task.done() for task in tasks), "one loop renews it"
    await inner.__aexit__(None, None, None)
    assert not await one._redis.exists(lease)
    assert all(task.done() for task in tasks)


async def test_lease_is_kept_for_a_second_holder_whose_first_was_cancelled(server: fakeredis.FakeServer) -> None:
    """The second one acquires it, once the first one has given up."""
    one = worker(server)
    renewing = asyncio.Event()
    renew = one._renew

    async def hang() -> bool:
        renewing.set()
        return await asyncio.Future()

    one._renew = hang  # type: ignore[method-assign]
    first, second = Holding(one), Holding(one)
    await renewing.wait()
    one._renew = renew  # type: ignore[method-assign]
    first.task.cancel()
    await second.entered.wait()
    assert await one._redis.exists(one._keys.worker(one._worker.name))
    await second.end()
    assert not await one._redis.exists(one._keys.worker(one._worker.name))


async def test_lease_of_a_holder_that_begins_during_the_release_is_kept(server: fakeredis.FakeServer) -> None:
    """As in a hot restart in one process: the last block still ends when the next one begins."""
    one = worker(server)
    leaving, continued = asyncio.Event(), asyncio.Event()
    leave = one._leave

    async def slow() -> None:
        leaving.set()
        await continued.wait()
        await leave()

    one._leave = slow  # type: ignore[method-assign]
    first = Holding(one)
    await first.entered.wait()
    first.leave.set()
    await leaving.wait()
    second = Holding(one)
    for _ in range(100):  # It begins as far as it can.
        await asyncio.sleep(0)
    continued.set()
    await first.task
    await second.entered.wait()
    name = one._worker.name
    assert await one._redis.exists(one._keys.worker(name))
    assert await one._redis.exists(one._keys.inbox(name))
    assert one._tasks
    assert not any(task.done() for task in one._tasks)
    await second.end()
    assert not await one._redis.exists(one._keys.worker(name))


async def test_deletion_that_redis_carries_out_late_keeps_the_renewed_lease(server: fakeredis.FakeServer) -> None:
    """A frozen Redis takes the deletion when the process holds its lease again."""
    one = worker(server)
    lease = one._keys.worker(one._worker.name)
    async with one.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing):
        late = one._attempted
        await one._renew()
        newest, one._attempted = one._attempted, late
        await one._leave()
        one._attempted = newest
        assert await one._redis.exists(lease)
    assert not await one._redis.exists(lease)


class Holding:
    """A task that holds a lease until the test lets it leave."""

    def __init__(self, workers: Workers) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self._workers = workers
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._workers.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, nothing):
            self.entered.set()
            await self.leave.wait()

    async def end(self) -> None:
        """Leave, and wait until it has."""
        self.leave.set()
        await self.task


async def test_lease_that_fails_at_the_start_is_retried_soon(server: fakeredis.FakeServer) -> None:
    """Other workers declare one without a lease dead, so it does not wait for a third of the lease."""
    one = worker(server)
    server.connected = False
    async with one.hold_lease(30 * DEFAULT_WORKER_LEASE, lambda _: None, nothing):
        server.connected = True
        with in_time(5):
            await until(lambda: one._leased)
        assert await one._redis.exists(one._keys.worker(one._worker.name))


async def test_failed_renewal_opens_the_circuit(server: fakeredis.FakeServer) -> None:
    """A worker without requests makes no other call that would notice an outage."""
    one = worker(server)
    async with one.hold_lease(1, lambda _: None, nothing):
        server.connected = False
        await until(lambda: one._breaker.unreachable)
        server.connected = True
        await until(lambda: not one._breaker.unreachable)


async def nothing() -> None:
    """Publish nothing."""
