"""A store on a real Valkey, with clients that decode responses or do not."""

from collections.abc import AsyncIterator

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.keys import Keys
from support.leaks import LeakChecker
from support.servers import Valkey

TTL = 600


@pytest.fixture(params=[pytest.param(False, id="bytes"), pytest.param(True, id="decoding", marks=pytest.mark.slow)])
async def redis_client(request: pytest.FixtureRequest, valkey_server: Valkey) -> AsyncIterator[aioredis.Redis]:
    """A client of the real Valkey, with `decode_responses` either way."""
    async with aioredis.Redis.from_url(valkey_server.url, decode_responses=request.param) as client:
        yield client


@pytest.fixture
async def store(redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker) -> RedisEventStore:
    """A store with a TTL; the test fails that leaves a key without."""
    assert await leaks.keys() == []
    return RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)


@pytest.fixture
def keys(key_prefix: str) -> Keys:
    """The keys of that store."""
    return Keys(key_prefix)
