"""The conformance suites of buses: the SDK's in-memory bus, and the bus on Redis, each bare and instrumented."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mcp.server.subscriptions import InMemorySubscriptionBus, SubscriptionBus
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedSubscriptionBus, RedisEventStore, RedisSubscriptionBus
from mcp_eventscope.redis.client import connect
from mcp_eventscope.testing import OpenBus, SharedSubscriptionBusConformance, SubscriptionBusConformance
from support.proxy import Proxy
from support.servers import Valkey
from support.stores import TTL


class TestInMemory(SubscriptionBusConformance):
    """The SDK's bus."""

    @pytest.fixture
    def bus(self) -> SubscriptionBus:
        """The bus under test."""
        return InMemorySubscriptionBus()


class TestInMemoryInstrumented(SubscriptionBusConformance):
    """The SDK's bus, decorated."""

    @pytest.fixture
    async def bus(self) -> AsyncIterator[SubscriptionBus]:
        """The bus under test."""
        bus = InstrumentedSubscriptionBus(InMemorySubscriptionBus(), registry=CollectorRegistry())
        async with bus.running():
            yield bus


class TestRedisBusThatDoesNotRun(SubscriptionBusConformance):
    """The bus on Redis outside of `running()`: as the SDK's. There is no Redis."""

    @pytest.fixture
    async def bus(self) -> AsyncIterator[SubscriptionBus]:
        """The bus under test."""
        async with connect("redis://127.0.0.1:1") as client:
            yield RedisSubscriptionBus(RedisEventStore(client, ttl=TTL).backend)


class TestRedisBusOnValkey(SharedSubscriptionBusConformance):
    """The bus on a real Valkey, behind a proxy that can be cut."""

    proxied: Proxy

    @pytest.fixture
    async def proxy(self, valkey_server: Valkey) -> AsyncIterator[Proxy]:
        """A proxy before the Valkey."""
        async with Proxy(valkey_server.socket).running() as proxy:
            yield proxy

    @pytest.fixture
    def open_bus(self, proxy: Proxy, key_prefix: str) -> OpenBus:
        """Open a bus with a client of its own."""
        type(self).proxied = proxy

        @asynccontextmanager
        async def open_bus() -> AsyncIterator[SubscriptionBus]:
            async with connect(proxy.url) as client:
                bus = RedisSubscriptionBus(RedisEventStore(client, key_prefix=key_prefix, ttl=TTL).backend)
                async with bus.running():
                    yield bus

        return open_bus

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:  # type: ignore[override]
        """Refuse and reset all connections to Redis."""
        proxy = type(self).proxied
        proxy.refuse()
        proxy.reset()
        try:
            yield
        finally:
            await proxy.listen()


class TestDecodingInstrumentedOnValkey(TestRedisBusOnValkey):
    """The same on a client that decodes responses, decorated."""

    @pytest.fixture
    def open_bus(self, proxy: Proxy, key_prefix: str) -> OpenBus:
        """Open a bus with a client of its own."""
        type(self).proxied = proxy

        @asynccontextmanager
        async def open_bus() -> AsyncIterator[SubscriptionBus]:
            async with aioredis.Redis.from_url(proxy.url, decode_responses=True) as client:
                bare = RedisSubscriptionBus(RedisEventStore(client, key_prefix=key_prefix, ttl=TTL).backend)
                bus = InstrumentedSubscriptionBus(bare, registry=CollectorRegistry())
                async with bus.running():
                    yield bus

        return open_bus
