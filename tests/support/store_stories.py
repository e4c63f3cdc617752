"""Some of what a store seldom does: its root, the limit of a session, and events older than their TTL."""

import anyio
from mcp.types import JSONRPCResponse
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.root.follow import POLL_SECONDS
from mcp_eventscope.store.events import EventsLost
from mcp_eventscope.testing import Collected
from support.messages import note
from support.waiting import until


async def root_story(client: aioredis.Redis, key_prefix: str) -> None:
    """Append to the root store, replay, follow, and trim expired events."""
    store = RedisEventStore(client, key_prefix=key_prefix, ttl=1)
    first = await store.append("1", None)
    await store.append("1", note(1))
    assert (await store.replay(first.event_id, Collected(), stream_id="1")).delivered == 1
    assert (await store.follow("1", first.event_id, Collected(), limit=0.05)).delivered == 1
    for number in range(3):
        await anyio.sleep(0.7)  # The TTL is the subject.
        await store.append("1", note(number))
    await store.replay(first.event_id, Collected())
    last = await store.append("2", None)
    await store.follow("2", last.event_id, Collected(), limit=3 * POLL_SECONDS)
    await RedisEventStore(client, key_prefix=key_prefix, ttl=None).append("2", None)


async def eviction_story(client: aioredis.Redis, key_prefix: str) -> None:
    """Exceed the limit of a session."""
    store = RedisEventStore(client, key_prefix=key_prefix, ttl=60, max_session_bytes=1 << 20)
    session = store.for_session("large")
    lost = 0

    def count(fact: object) -> None:
        nonlocal lost
        lost += isinstance(fact, EventsLost)

    store.observe(count)
    for number in range(500):
        stream = str(number)
        session.begin(stream, number)
        await session.append(stream, note(1, "x" * (60_000 if number < 10 else 10)))
        await session.append(stream, JSONRPCResponse(jsonrpc="2.0", id=number, result={"text": "x" * 3000}))
    await until(lambda: lost)
    await store.flush()


async def expiry_story(client: aioredis.Redis, key_prefix: str) -> None:
    """Append to a list whose first elements are older than the TTL."""
    store = RedisEventStore(client, key_prefix=key_prefix, ttl=1)
    session = store.for_session("old")
    session.begin("1", 1)
    for number in range(4):
        await session.append("1", note(number))
        await store.flush()
        await anyio.sleep(0.5)  # The TTL is the subject.
