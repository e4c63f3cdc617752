"""The session conformance suite on `RedisEventStore`, also for stores with a fault."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import fakeredis
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import StoreError
from mcp_eventscope.redis.client import connect
from mcp_eventscope.testing import OpenSessionStore, Pair, SessionRoot, SessionStoreConformance
from support.stores import PATIENCE, living_store, store_of


class OnRedis(SessionStoreConformance):
    """The parts of a `RedisEventStore`, on the server at `url`."""

    instrumented = False

    @pytest.fixture
    def connected(self, url: str) -> Callable[[], AbstractAsyncContextManager[aioredis.Redis]]:
        """Makes a client that waits for Redis, however busy the machine is."""
        return lambda: connect(f"{url}{'&' if '?' in url else '?'}socket_timeout={PATIENCE}")

    @pytest.fixture
    def open_store(
        self, connected: Callable[[], AbstractAsyncContextManager[aioredis.Redis]], key_prefix: str
    ) -> OpenSessionStore:
        """Opens a store with a client of its own."""

        @asynccontextmanager
        async def open_store() -> AsyncIterator[SessionRoot]:
            async with (
                connected() as client,
                living_store(client, key_prefix, instrumented=self.instrumented) as store,
            ):
                yield store

        return open_store

    async def declare_dead(self, pair: Pair) -> None:
        """Delete the lease of the writing store, which it does not renew for longer than a test takes."""
        store = store_of(pair.writer)
        assert await store._redis.delete(store._keys.worker(store._worker.name)) == 1

    @staticmethod
    async def notice_outage(pair: Pair) -> None:
        """Return when both stores know that Redis is unreachable."""
        for root in (pair.writer, pair.reader):
            with contextlib.suppress(StoreError):
                await root.for_session("any").probe()
            assert store_of(root).backlog.failure


class OnFake(OnRedis):
    """On a fake, which can be disconnected."""

    @pytest.fixture
    def server(self) -> fakeredis.FakeServer:
        """The fake server of both stores."""
        self.fake = fakeredis.FakeServer()
        return self.fake

    @pytest.fixture
    def connected(self, server: fakeredis.FakeServer) -> Callable[[], AbstractAsyncContextManager[aioredis.Redis]]:
        """Makes a client of the fake."""
        return lambda: fakeredis.FakeAsyncRedis(server=server)

    @pytest.fixture
    async def redis_client(self, server: fakeredis.FakeServer) -> AsyncIterator[aioredis.Redis]:
        """The leak checker's client of the fake."""
        async with fakeredis.FakeAsyncRedis(server=server) as client:
            yield client

    @asynccontextmanager
    async def outage(self, pair: Pair) -> AsyncIterator[None]:
        """Disconnect the fake."""
        self.fake.connected = False
        try:
            await self.notice_outage(pair)
            yield
        finally:
            self.fake.connected = True
