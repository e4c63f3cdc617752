"""Fixtures that every test may ask for."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import fakeredis
import pytest
from redis import asyncio as aioredis

from mcp_eventscope.redis.connection import connect
from support.leaks import LeakChecker
from support.servers import Valkey, redis_server, redis_server_binary, valkey


@pytest.fixture
def anyio_backend() -> str:
    """The event loop: the SDK's servers run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """A real Valkey for the whole run. Whoever stops it starts it again."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey_server: Valkey) -> str:
    """Where the real Valkey is."""
    return valkey_server.url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Redis 7: the server at EVENTSCOPE_TEST_REDIS_URL, or Debian's binary; skipped where there is neither."""
    if url := os.environ.get("EVENTSCOPE_TEST_REDIS_URL"):
        yield url
        return
    binary = redis_server_binary()
    if binary is None:
        pytest.skip("no Redis: set EVENTSCOPE_TEST_REDIS_URL, or install redis-server")
    with redis_server(binary) as url:
        yield url


@pytest.fixture
def key_prefix() -> str:
    """A prefix that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}:"


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the real Valkey."""
    async with connect(valkey_url) as client:
        yield client


@pytest.fixture
async def fake_client() -> AsyncIterator[aioredis.Redis]:
    """A client of a fake server of its own."""
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as client:
        yield client


@pytest.fixture
async def leaks(redis_client: aioredis.Redis, key_prefix: str) -> AsyncIterator[LeakChecker]:
    """Fails the test that leaves keys without TTL under its prefix, and deletes all of them."""
    checker = LeakChecker(redis_client, key_prefix)
    yield checker
    leaked = await checker.leaked()
    await checker.clean()
    assert not leaked, f"keys were left without TTL: {leaked}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What serves over sockets, or starts processes, is slow: left out of `make test-fast`."""
    for item in items:
        if {"e2e", "chaos"} & set(item.path.parts) or "OnRedis" in item.nodeid or "OnValkey" in item.nodeid:
            item.add_marker(pytest.mark.slow)
