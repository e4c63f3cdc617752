"""Redis Cluster with three masters: the conformance suites, keys of all slots, and slots that are moved."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from mcp.server.subscriptions import SubscriptionBus
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, RedisRequestState, RedisSubscriptionBus, RedisTaskStore
from mcp_eventscope.testing import (
    OpenBus,
    SharedSubscriptionBusConformance,
    TaskStoreConformance,
    TaskStores,
)
from mcp_eventscope.testing.request_state import OpenWorkers, SingleUseConformance, StateUnderTest, principal_of
from support.clusters import Cluster, valkey_cluster
from support.session_suite import OnRedis
from support.stores import LEASE, PATIENCE, TTL, nothing_to_publish
from support.waiting import CEILING, until


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
    """Session stores."""

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
    """Request states with generated keys."""

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
async def leased(client: aioredis.RedisCluster, key_prefix: str) -> AsyncIterator[RedisEventStore]:
    """A store whose worker holds a lease, and whose start is long ago."""
    events = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
    workers = events.backend.workers
    async with workers.hold_lease(LEASE, lambda _: None, nothing_to_publish):
        await until(lambda: workers.leased)
        workers._began -= LEASE
        yield events
