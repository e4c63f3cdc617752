"""The conformance suite on task stores: in memory, fakeredis, Valkey, Redis 7, each also instrumented."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import InMemoryTaskStore, InstrumentedTaskStore, RedisEventStore, RedisTaskStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.tasks.protocol import TaskStore
from mcp_eventscope.testing import TaskStoreConformance, TaskStores
from support.stores import LEASE, PATIENCE, TTL, nothing_to_publish
from support.waiting import until

LIMIT = 1 << 20


def instrumented(store: TaskStore) -> InstrumentedTaskStore:
    """A decorated store, with a registry of its own."""
    return InstrumentedTaskStore(store, registry=CollectorRegistry())


class TestInMemory(TaskStoreConformance):
    """The reference."""

    max_result_bytes = LIMIT

    @pytest.fixture
    def stores(self) -> TaskStores:
        """One store, twice."""
        store = InMemoryTaskStore(max_result_bytes=LIMIT)
        return TaskStores(store, store)


class TestInstrumentedInMemory(TestInMemory):
    """The same, decorated."""

    @pytest.fixture
    def stores(self) -> TaskStores:
        """One store, twice."""
        store = instrumented(InMemoryTaskStore(max_result_bytes=LIMIT))
        return TaskStores(store, store)


class OnRedis(TaskStoreConformance):
    """Two stores with a worker each."""

    max_result_bytes = LIMIT
    decorated = False

    @pytest.fixture
    async def client_of_both(self, redis_client: aioredis.Redis) -> aioredis.Redis:
        """The client of both stores."""
        return redis_client

    @pytest.fixture
    async def stores(self, client_of_both: aioredis.Redis, key_prefix: str) -> AsyncIterator[TaskStores]:
        """Two stores."""
        client = self.client = client_of_both
        async with AsyncExitStack() as stack:
            self.events = [await stack.enter_async_context(leased(client, key_prefix)) for _ in range(2)]
            tasks: list[TaskStore] = [
                RedisTaskStore(events.backend, sync_interval=0.02, max_result_bytes=LIMIT) for events in self.events
            ]
            runs, asks = map(instrumented, tasks) if self.decorated else tasks
            yield TaskStores(runs, asks)

    async def declare_dead(self, stores: TaskStores) -> None:
        """Delete the lease of the first worker, as if it had expired."""
        backend = self.events[0].backend
        await self.client.delete(backend.keys.worker(backend.worker.name))

    async def lose_data(self, stores: TaskStores) -> None:
        """Delete the keys of all tasks."""
        prefix = self.events[0].backend.keys.prefix
        keys = [key async for key in self.client.scan_iter(f"{prefix}{{tasks:*", count=1000)]
        assert keys
        await self.client.delete(*keys)


@asynccontextmanager
async def leased(client: aioredis.Redis, key_prefix: str) -> AsyncIterator[RedisEventStore]:
    """A store whose worker holds a lease, and whose start is long ago."""
    events = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
    workers = events.backend.workers
    async with workers.hold_lease(LEASE, lambda _: None, nothing_to_publish):
        await until(lambda: workers.leased)
        workers._began -= workers._renewal_limit
        yield events


@pytest.mark.usefixtures("leaks")
class TestOnFake(OnRedis):
    """On fakeredis."""

    @pytest.fixture
    def redis_client(self, fake_client: aioredis.Redis) -> aioredis.Redis:
        """The fake, which the leak checker uses too."""
        return fake_client


@pytest.mark.usefixtures("leaks")
class TestInstrumentedOnValkey(OnRedis):
    """On a real Valkey, decorated."""

    decorated = True


@pytest.mark.usefixtures("leaks")
class TestDecodingOnValkey(OnRedis):
    """With a client that decodes responses."""

    @pytest.fixture
    async def client_of_both(self, valkey_url: str) -> AsyncIterator[aioredis.Redis]:
        """The client of both stores."""
        async with aioredis.Redis.from_url(valkey_url, decode_responses=True) as client:
            yield client


@pytest.mark.usefixtures("leaks")
@pytest.mark.slow
class TestOnRedis(OnRedis):
    """On Redis 7."""

    @pytest.fixture
    async def redis_client(self, redis_url: str) -> AsyncIterator[aioredis.Redis]:
        """The leak checker's client of that server."""
        async with connect(redis_url) as client:
            yield client
