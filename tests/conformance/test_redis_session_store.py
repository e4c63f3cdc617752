"""The conformance suite on session stores: fakeredis, Valkey, instrumented, Redis 7."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import asyncio as aioredis

from mcp_eventscope.redis.client import connect
from mcp_eventscope.testing import Pair
from support.proxy import Proxy
from support.servers import Valkey
from support.session_suite import OnFake, OnRedis

pytestmark = pytest.mark.usefixtures("leaks")


class TestBareOnFake(OnFake):
    """On a fake, which can be disconnected."""


class TestInstrumentedOnFake(OnFake):
    """The same, decorated."""

    instrumented = True


class TestBareOnValkey(OnRedis):
    """On a real Valkey, behind a proxy."""

    @pytest.fixture
    async def proxy(self, valkey_server: Valkey) -> AsyncIterator[Proxy]:
        """The proxy, which refuses connections in an outage."""
        async with Proxy(valkey_server.socket).running() as proxy:
            self.between = proxy
            yield proxy

    @pytest.fixture
    def url(self, proxy: Proxy) -> str:
        """The proxy's."""
        return proxy.url

    @asynccontextmanager
    async def outage(self, pair: Pair) -> AsyncIterator[None]:
        """Break all connections, and refuse new ones."""
        self.between.refuse()
        self.between.reset()
        try:
            await self.notice_outage(pair)
            yield
        finally:
            await self.between.listen()


class TestInstrumentedOnValkey(TestBareOnValkey):
    """The same, decorated."""

    instrumented = True


class TestBareOnRedis(OnRedis):
    """On Redis 7."""

    @pytest.fixture
    async def redis_client(self, redis_url: str) -> AsyncIterator[aioredis.Redis]:
        """The leak checker's client of that server."""
        async with connect(redis_url) as client:
            yield client

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        """The server's."""
        return redis_url
