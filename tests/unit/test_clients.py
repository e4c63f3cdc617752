"""Clients: what is wrong with Redis is told as ours, in time and with the place."""

import asyncio
import socket
from collections.abc import AsyncIterator

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreUnavailableError
from mcp_eventscope.redis import client as client_module
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import FollowEnd
from support.waiting import CEILING

pytestmark = pytest.mark.anyio


async def nobody(_: EventMessage) -> None:
    """A client that is sent nothing."""
    pytest.fail("there is nothing to send")


@pytest.fixture
async def no_cluster() -> AsyncIterator[aioredis.RedisCluster]:
    """A client of a cluster that is not there: what redis-py raises then is no `RedisError`."""
    client = aioredis.RedisCluster(host="127.0.0.1", port=1)
    yield client
    await client.aclose()


async def test_cluster_that_is_not_there(no_cluster: aioredis.RedisCluster) -> None:
    """It is unavailable like any Redis: told, and asked again by a follower."""
    store = RedisEventStore(no_cluster, ttl=60).for_session("s")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        await store.ping()
    store.begin("1", 1)
    assert (await store.append("1", None)).event_id
    assert await store.flush(0) == 1
    followed = await store.follow("1", "1-1-0123456789ab1", nobody, limit=0.01)
    assert followed.end is FollowEnd.TIMEOUT
    assert followed.failures >= 1


async def test_client_that_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that takes a connection and says nothing is given up on, however patient the client is."""
    monkeypatch.setattr(client_module, "ANSWER_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = aioredis.Redis(host="127.0.0.1", port=silent.getsockname()[1], socket_timeout=None)
        store = RedisEventStore(client, ttl=60).for_session("s")
        with anyio.fail_after(CEILING):
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                await store.ping()
            store.begin("1", 1)
            assert (await store.append("1", None)).event_id
            assert await store.flush(0) == 1
        await client.aclose()


@pytest.mark.parametrize(
    "option", ["foo=hunter2", "retry=3", "connection_class=x", "protocol=9", "max_connections=-1", "socket_timeout=x"]
)
def test_options_of_a_url(option: str) -> None:
    """An option that redis-py does not take is refused when the client is made, not when it is first used."""
    with pytest.raises(ValueError, match="only options that redis-py knows") as refused:
        connect(f"redis://me:hunter2@127.0.0.1:1/0?{option}")
    assert "hunter2" not in str(refused.value)


async def test_more_callers_than_connections(valkey_url: str, key_prefix: str) -> None:
    """Who finds all connections in use waits for one."""
    async with connect(f"{valkey_url}?max_connections=1") as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        appended = await asyncio.gather(*(store.append("1", None) for _ in range(20)))
    assert len({each.event_id for each in appended}) == 20


def test_address_behind_sentinel() -> None:
    """A client that asks Sentinels for its address has none of its own, and is not said to be on localhost."""
    sentinel = aioredis.Sentinel([("127.0.0.1", 1)])  # type: ignore[no-untyped-call]
    store = RedisEventStore(sentinel.master_for("mymaster", password="hunter2"), ttl=60)
    assert store.address == "the master 'mymaster' of Sentinel"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
async def test_encoding_of_the_client(valkey_url: str, key_prefix: str, encoding: str) -> None:
    """Names are UTF-8 in Redis, whatever the client encodes text in."""
    async with aioredis.Redis.from_url(valkey_url, encoding=encoding) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        first = await store.append("ü€", None)
        facts = await store.replay(first.event_id, nobody, stream_id="ü€")
    assert (facts.stream_id, facts.miss) == ("ü€", None)
