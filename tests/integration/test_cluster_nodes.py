"""Redis Cluster with three masters: the conformance suites, keys of all slots, and slots that are moved."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from mcp.server.subscriptions import SubscriptionBus
from redis import asyncio as aioredis
from redis.crc import key_slot

from mcp_eventscope import RedisEventStore, RedisRequestState, RedisSubscriptionBus, RedisTaskStore, StoreError
from mcp_eventscope.redis.limits import STORE_TIMEOUT
from mcp_eventscope.store.events import BatchRetried, EventsLost, StoreRecovered
from mcp_eventscope.store.results import StoreOutcome
from mcp_eventscope.testing import (
    OpenBus,
    SharedSubscriptionBusConformance,
    TaskStoreConformance,
    TaskStores,
)
from mcp_eventscope.testing.request_state import OpenWorkers, SingleUseConformance, StateUnderTest, principal_of
from support.clusters import Cluster, Node, sessions_by_master, valkey_cluster
from support.session_producers import Received, SessionProducer, appending, observed
from support.session_suite import OnRedis
from support.stores import LEASE, PATIENCE, TTL, nothing_to_publish, until_settled
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three masters without replicas: no test of this file loses one."""
    with valkey_cluster(replicas=False) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[aioredis.RedisCluster]:
    """A client that waits for the cluster, however busy the machine is."""
    async with cluster.client(socket_timeout=CEILING) as client:
        yield client


class TestSessionsOnCluster(OnRedis):
    """Session stores. The contents of messages do not depend on nodes."""

    test_any_conversation = None  # type: ignore[assignment]
    test_any_message_is_kept = None  # type: ignore[assignment]
    test_any_text_as_id = None  # type: ignore[assignment]
    test_message_is_kept = None  # type: ignore[assignment]
    test_sessions_of_any_names = None  # type: ignore[assignment]

    @pytest.fixture
    def connected(self, cluster: Cluster) -> Callable[[], AbstractAsyncContextManager[aioredis.RedisCluster]]:
        """Makes a client of the cluster."""
        return lambda: cluster.client(socket_timeout=PATIENCE)


class TestBusOnCluster(SharedSubscriptionBusConformance):
    """The subscription bus."""

    @pytest.fixture
    def open_bus(self, cluster: Cluster, key_prefix: str) -> OpenBus:
        """Open a bus with a client of its own."""

        @asynccontextmanager
        async def open_bus() -> AsyncIterator[SubscriptionBus]:
            async with cluster.client() as client:
                bus = RedisSubscriptionBus(RedisEventStore(client, key_prefix=key_prefix, ttl=TTL).backend)
                async with bus.running():
                    yield bus

        return open_bus


class TestStatesOnCluster(SingleUseConformance):
    """Request states with generated keys. Refusals are made without Redis."""

    test_changed_state_is_refused = None  # type: ignore[assignment]

    @pytest.fixture
    def open_workers(self, client: aioredis.RedisCluster, key_prefix: str) -> OpenWorkers:
        """Two workers."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            first, second = (
                RedisRequestState(
                    RedisEventStore(client, key_prefix=key_prefix, store_timeout=10).backend,
                    bind_principal=principal_of,
                )
                for _ in range(2)
            )
            async with first.running(), second.running():
                yield first, second

        return open_pair


class TestTasksOnCluster(TaskStoreConformance):
    """Task stores of two workers."""

    max_result_bytes = 1 << 20

    @pytest.fixture
    async def stores(self, client: aioredis.RedisCluster, key_prefix: str) -> AsyncIterator[TaskStores]:
        """Two stores."""
        async with leased(client, key_prefix) as first, leased(client, key_prefix) as second:
            self.backend = first.backend
            yield TaskStores(
                *(
                    RedisTaskStore(each.backend, sync_interval=0.02, max_result_bytes=self.max_result_bytes)
                    for each in (first, second)
                )
            )

    async def declare_dead(self, stores: TaskStores) -> None:
        """Delete the lease of the first worker, as if it had expired."""
        await self.backend.redis.delete(self.backend.keys.worker(self.backend.worker.name))

    async def lose_data(self, stores: TaskStores) -> None:
        """Delete the keys of all tasks."""
        redis = self.backend.redis
        keys = [key async for key in redis.scan_iter(f"{self.backend.keys.prefix}{{tasks:*", count=1000)]
        assert keys
        for key in keys:
            await redis.delete(key)


@asynccontextmanager
async def leased(
    client: aioredis.RedisCluster, key_prefix: str, *, store_timeout: float = PATIENCE
) -> AsyncIterator[RedisEventStore]:
    """A store whose worker holds a lease, and whose start is long ago."""
    events = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=store_timeout)
    workers = events.backend.workers
    async with workers.hold_lease(LEASE, lambda _: None, nothing_to_publish):
        await until(lambda: workers.leased)
        workers._began -= workers._renewal_limit
        yield events


# -- one node fails ---------------------------------------------------------------------------------------------------


class Spread:
    """A store with sessions on all masters.

    Args:
        store: The store.
        cluster: The cluster.
        each: Sessions on each master.
    """

    def __init__(self, store: RedisEventStore, cluster: Cluster, each: int) -> None:
        self.store = store
        keys = store.backend.keys
        names = sessions_by_master(cluster, lambda name: keys.for_session(name).session, each)
        self.producers = {node: [SessionProducer(store, name) for name in found] for node, found in names.items()}

    @property
    def all(self) -> list[SessionProducer]:
        """The producers of all masters."""
        return [producer for producers in self.producers.values() for producer in producers]

    def without(self, node: Node) -> list[SessionProducer]:
        """The producers of the other masters."""
        return [each for name, producers in self.producers.items() if name != node.name for each in producers]

    async def check(self, reader: RedisEventStore) -> None:
        """Another store has exactly the accepted events."""
        await until_settled(self.store)
        for producer in self.all:
            await producer.check(reader)


@pytest.fixture
async def spread(client: aioredis.RedisCluster, cluster: Cluster, key_prefix: str) -> AsyncIterator[Spread]:
    """A store whose worker holds a lease, and sessions on all masters with an event each."""
    async with leased(client, key_prefix, store_timeout=STORE_TIMEOUT) as store:
        spread = Spread(store, cluster, 3)
        for producer in spread.all:
            await producer.append(None)
        await until_settled(store)
        yield spread
        await store.flush()


@pytest.fixture
async def reader(cluster: Cluster, key_prefix: str) -> AsyncIterator[RedisEventStore]:
    """Another worker."""
    async with cluster.client() as client, leased(client, key_prefix, store_timeout=STORE_TIMEOUT) as store:
        yield store


@asynccontextmanager
async def frozen(cluster: Cluster, node: Node) -> AsyncIterator[None]:
    """Freeze a node until the block ends."""
    node.server.freeze()
    try:
        yield
    finally:
        node.server.thaw()
        await anyio.to_thread.run_sync(cluster.until_whole)


async def test_frozen_node_degrades_once_and_leaves_the_sessions_of_others_alone(
    spread: Spread, cluster: Cluster, reader: RedisEventStore
) -> None:
    """Redis counts as degraded, not as unreachable, until all nodes answer; events of the other nodes are stored."""
    store, victim = spread.store, cluster.masters[0]
    facts = observed(store)
    async with frozen(cluster, victim):
        for producer in spread.all:
            await producer.append_next()
        await until(lambda: store.backlog.failure)
        await until(lambda: not store.backend.breaker.unreachable)
        await stored(spread.without(victim))  # From here on a reply from before the freeze has been read.
        facts.all.clear()
        for _ in range(10):
            await asyncio.gather(*(producer.append_next() for producer in spread.without(victim)))
            await stored(spread.without(victim))
        assert not facts.of(StoreRecovered)
        assert store.backlog.events
    await spread.check(reader)
    assert facts.of(StoreRecovered)
    assert not facts.of(EventsLost)


async def stored(producers: list[SessionProducer]) -> None:
    """Return when all events of some producers are stored."""
    with anyio.fail_after(CEILING):
        for producer in producers:
            assert set(await producer.outcomes()) == {StoreOutcome.STORED}


async def test_followers_are_woken_while_the_node_of_another_session_is_frozen(
    spread: Spread, cluster: Cluster, reader: RedisEventStore
) -> None:
    """Neither a session on a frozen node, nor the leases there, hold up the followers of the other sessions."""
    leases = await anyio.to_thread.run_sync(cluster.master_of, spread.store.backend.keys.worker(spread.store.worker))
    received = {producer: Received() for producer in spread.all}
    async with anyio.create_task_group() as tasks:
        for producer, callback in received.items():
            tasks.start_soon(follow, reader, producer, callback)
        for producer in spread.all:
            await producer.append_next()
            await received[producer].has(1)
        async with frozen(cluster, leases):
            await asyncio.gather(*(producer.append_next() for producer in spread.all))
            for producer in spread.without(leases):
                await received[producer].has(2)
        for producer in spread.all:
            await received[producer].has(2)
            assert received[producer].contents == [1, 2]
        tasks.cancel_scope.cancel()


async def follow(reader: RedisEventStore, producer: SessionProducer, callback: Received) -> None:
    """Follow the stream of a producer, and ignore failures of its node."""
    part = reader.for_session(producer.session)
    while True:
        with contextlib.suppress(StoreError):
            after = callback.ids[-1] if callback.ids else producer.ids[0]
            await part.follow(producer.stream, after or "", callback, limit=CEILING)


# -- slots are moved --------------------------------------------------------------------------------------------------


async def test_slots_moved_under_load_lose_nothing_and_degrade_nothing(
    spread: Spread, cluster: Cluster, reader: RedisEventStore
) -> None:
    """While a session's keys are on two nodes its commits are repeated, and those of other sessions continue."""
    facts = observed(spread.store)
    moved = [producers[0] for producers in spread.producers.values()]
    others = [producers[1] for producers in spread.producers.values()]
    async with appending(spread.store, spread.all):
        for producer in moved:
            key = producer.part.key_prefix + "session"
            slot = key_slot(key.encode())
            source = await anyio.to_thread.run_sync(cluster.master_of, key)
            to = next(node for node in cluster.masters if node is not source)
            await anyio.to_thread.run_sync(cluster.begin_move, slot, to)
            assert await anyio.to_thread.run_sync(cluster.move_keys, slot, source, to, 1)
            facts.all.clear()
            await until(lambda: facts.of(BatchRetried))
            for other in others:
                await stored_again(other)
            await anyio.to_thread.run_sync(cluster.end_move, slot, source, to)
    await spread.check(reader)
    assert not facts.of(EventsLost)


async def stored_again(producer: SessionProducer) -> None:
    """Return when an event is stored that a producer appends from now on."""
    before = len(producer.appended)
    await until(lambda: len(producer.appended) > before)
    pending = producer.appended[before].pending
    assert pending is not None
    with anyio.fail_after(CEILING):
        assert await pending.acknowledged() is StoreOutcome.STORED


# -- statistics -------------------------------------------------------------------------------------------------------


async def test_stats_of_a_cluster_are_those_of_all_masters(
    spread: Spread, cluster: Cluster, client: aioredis.RedisCluster
) -> None:
    """Keys of all masters are counted; the memory and its limit are those of the fullest one."""
    fullest = cluster.masters[1]
    fullest.server.set(maxmemory="200mb", maxmemory_policy="noeviction")
    try:
        await client.set(f"{spread.store.key_prefix}counter", "1")
        poller = spread.store.redis_stats_poller()
        found = None
        while found is None or found.keys is None:  # Suites of this file leave keys to scan.
            found = await poller.poll(60)
            assert found is not None
        assert found.without_ttl == 1
        prefix = spread.store.key_prefix
        counted = [key for node in cluster.masters for key in node.run("KEYS", "*") if key.startswith(prefix.encode())]
        assert len(spread.all) * 3 < found.keys <= len(counted) + 1  # A poll itself has a key.
        assert found.db_keys >= found.keys
        assert found.event_bytes
        assert found.memory_limit == 200 << 20
        await poller.leave()
    finally:
        fullest.server.set(maxmemory=0)
