"""The conformance suite on the root store: fakeredis, Valkey, instrumented, Redis 7."""

from collections.abc import AsyncIterator

import pytest
from mcp.server.streamable_http import EventStore
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.testing import EventStoreConformance, SharedStoreConformance
from support.stores import PATIENCE, TTL, open_bare, open_instrumented

pytestmark = [
    pytest.mark.usefixtures("leaks"),
    pytest.mark.filterwarnings("ignore::mcp_eventscope.errors.SessionsNotIsolatedWarning"),
]


class TestBareOnFake(EventStoreConformance):
    """The root store, on fakeredis."""

    @pytest.fixture
    def redis_client(self, fake_client: aioredis.Redis) -> aioredis.Redis:
        """The fake, which the leak checker uses too."""
        return fake_client

    @pytest.fixture
    async def store(self, fake_client: aioredis.Redis, key_prefix: str) -> AsyncIterator[EventStore]:
        """The store under test."""
        store = RedisEventStore(fake_client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
        yield store
        await store.flush()


class TestBareOnValkey(SharedStoreConformance):
    """The root store, on a real Valkey."""

    open_store = staticmethod(open_bare)

    @pytest.fixture
    def url(self, valkey_url: str, key_prefix: str) -> str:
        """Where the store is, with the prefix of its keys."""
        return f"{valkey_url}#{key_prefix}"


@pytest.mark.slow
class TestInstrumentedOnValkey(TestBareOnValkey):
    """The same, decorated."""

    open_store = staticmethod(open_instrumented)


class TestDecodingOnValkey(EventStoreConformance):
    """A client that decodes responses, on a real Valkey."""

    @pytest.fixture
    async def store(self, valkey_url: str, key_prefix: str) -> AsyncIterator[EventStore]:
        """The store under test."""
        async with aioredis.Redis.from_url(valkey_url, decode_responses=True) as client:
            store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
            yield store
            await store.flush()


@pytest.mark.slow
class TestBareOnRedis(SharedStoreConformance):
    """The root store, on Redis 7."""

    open_store = staticmethod(open_bare)

    @pytest.fixture
    async def redis_client(self, redis_url: str) -> AsyncIterator[aioredis.Redis]:
        """The leak checker's client of that server."""
        async with connect(redis_url) as client:
            yield client

    @pytest.fixture
    def url(self, redis_url: str, key_prefix: str) -> str:
        """Where the store is, with the prefix of its keys."""
        return f"{redis_url}#{key_prefix}"
