"""The root store reads and writes the layout of mcp-persist 0.1.1."""

import pytest
from mcp.types import JSONRPCMessage
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.testing import Collected, on_the_wire
from support import legacy
from support.leaks import LeakChecker
from support.messages import answer, failure, note

pytestmark = pytest.mark.anyio

MESSAGES: list[JSONRPCMessage] = [note(0), note(1, "é"), failure("a"), answer()]


@pytest.mark.parametrize("stream_id", [None, "a:b"])
async def test_replay_of_mcp_persist_rows_delivers_them(
    store: RedisEventStore, redis_client: aioredis.Redis, stream_id: str | None
) -> None:
    """Rows that mcp-persist has stored are replayed after whichever event, with their small ids."""
    first = await legacy.write(redis_client, store.key_prefix, "a:b", None, ttl=60)
    ids = [await legacy.write(redis_client, store.key_prefix, "a:b", message, ttl=60) for message in MESSAGES[:2]]
    collected = Collected()
    facts = await store.replay(first, collected, stream_id=stream_id)
    assert first == "1"
    assert collected.ids == ids
    assert collected.data == [on_the_wire(message) for message in MESSAGES[:2]]
    assert (facts.stream_id, facts.gap, facts.age, facts.miss) == ("a:b", False, None, None)


async def test_rows_of_the_store_are_read_by_mcp_persist(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """A reader that knows only the documented layout finds our rows."""
    first = (await store.append("a:b", None)).event_id
    ids = [(await store.append("a:b", message)).event_id for message in MESSAGES]
    stream, found = await legacy.read(redis_client, store.key_prefix, first)
    assert stream == "a:b"
    assert [event_id for event_id, _ in found] == ids
    assert [on_the_wire(message) for _, message in found] == [on_the_wire(message) for message in MESSAGES]


async def test_stream_of_both_writers_has_increasing_ids(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """While workers of both write, ids increase and both read everything, so a rollout can be gradual."""
    prefix = store.key_prefix
    ids = [await legacy.write(redis_client, prefix, "1", None, ttl=60)]
    for i in range(5):
        ids.append((await store.append("1", note(2 * i))).event_id)
        ids.append(await legacy.write(redis_client, prefix, "1", note(2 * i + 1), ttl=60))
    assert [int(event_id) for event_id in ids] == sorted({int(event_id) for event_id in ids})
    for position, event_id in enumerate(ids):
        collected = Collected()
        facts = await store.replay(event_id, collected, stream_id="1")
        assert (collected.ids, facts.gap) == (ids[position + 1 :], False)
        assert [found for found, _ in (await legacy.read(redis_client, prefix, event_id))[1]] == ids[position + 1 :]


async def test_append_keeps_live_rows_of_mcp_persist(
    redis_client: aioredis.Redis, key_prefix: str, keys: Keys, leaks: LeakChecker
) -> None:
    """A small id looks as old as 1970, but stays in the index while its event lives."""
    leaks.exempt()  # mcp-persist without ttl
    first = await legacy.write(redis_client, key_prefix, "1", None)
    ids = [await legacy.write(redis_client, key_prefix, "1", note(i)) for i in range(3)]
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    await store.append("1", note(3))
    await store.append("1", note(4))
    collected = Collected()
    assert (await store.replay(first, collected)).delivered == 5
    assert collected.ids[:3] == ids
    assert await redis_client.zcard(keys.stream("1")) == 6


async def test_append_trims_expired_rows_of_mcp_persist(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """They are removed once expired, and a client that held one of them gets a gap."""
    first = await legacy.write(redis_client, store.key_prefix, "1", None, ttl=60)
    await legacy.write(redis_client, store.key_prefix, "1", note(0), ttl=60)
    await redis_client.delete(keys.event("1"), keys.event("2"))
    last = await store.append("1", note(1))
    assert await redis_client.zcard(keys.stream("1")) == 1
    collected = Collected()
    facts = await store.replay(first, collected, stream_id="1")
    assert (facts.gap, facts.miss) == (True, None)
    assert collected.ids == [last.event_id]


async def test_replay_of_a_row_without_its_null_skips_it(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """mcp-persist drops an error's null id, so that the row is no message; the others are delivered."""
    first = await legacy.write(redis_client, store.key_prefix, "1", None, ttl=60)
    lost = await legacy.write(redis_client, store.key_prefix, "1", failure(None), ttl=60)
    kept = await legacy.write(redis_client, store.key_prefix, "1", note(1), ttl=60)
    collected = Collected()
    assert (await store.replay(first, collected)).corrupt == (lost,)
    assert collected.ids == [kept]


async def test_replay_after_mcp_persist_reset_the_counter_finds_our_events(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """An expired counter makes mcp-persist count from 1 again."""
    first = (await store.append("1", None)).event_id
    last = (await store.append("1", note(1))).event_id
    await redis_client.delete(keys.counter)
    await legacy.write(redis_client, store.key_prefix, "2", None, ttl=60)
    collected = Collected()
    assert (await store.replay(first, collected, stream_id="1")).miss is None
    assert collected.ids == [last]
