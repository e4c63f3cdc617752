"""`append` of the root store: ids, fields, TTL, trimming and errors."""

import asyncio
import time

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.root.batch_codec import COMMIT_SECONDS
from mcp_eventscope.store.messages import JSONRPCMessage
from mcp_eventscope.testing import Collected, on_the_wire
from support.events import fields_of
from support.leaks import LeakChecker
from support.messages import answer, note
from support.waiting import until

pytestmark = pytest.mark.anyio

SECOND = 1_000_000
LOOKED_AT = 64
"""Index entries of a stream that one append checks for expiry."""


async def index_of(client: aioredis.Redis, keys: Keys, stream: str = "1") -> list[int]:
    """The ids that a stream's index holds."""
    return [int(_text(member)) for member in await client.zrange(keys.stream(stream), 0, -1)]


async def number_in(client: aioredis.Redis, key: str) -> int:
    """The number that a key holds."""
    return int(_text(await client.get(key)))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- ids --------------------------------------------------------------------------------------------------------------


async def test_append_id_is_redis_time_in_microseconds(store: RedisEventStore) -> None:
    """The id shows the age of its event."""
    before = time.time() * SECOND
    event_id = int((await store.append("1", None)).event_id)
    assert before - SECOND < event_id < time.time() * SECOND + SECOND


async def test_append_when_the_clock_is_behind_counts_on(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """After a failover to a server whose clock is slow, ids keep counting from the counter."""
    ahead = int(time.time() + 3600) * SECOND
    await redis_client.set(keys.counter, ahead, ex=60)
    ids = [int((await store.append("1", note(i))).event_id) for i in range(3)]
    assert ids == [ahead + 1, ahead + 2, ahead + 3]


@pytest.mark.parametrize("counter", [None, "5", "0", "-7", "", "rubbish", "nan", "inf", "1e400", str(2**53), "9" * 30])
async def test_append_when_the_counter_is_lost_keeps_ids_unique(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, counter: str | None
) -> None:
    """An evicted, rolled back or damaged counter makes no id repeat or go back."""
    ids = [int((await store.append("1", note(0))).event_id)]
    for i in range(1, 4):
        if counter is None:
            await redis_client.delete(keys.counter)
        else:
            await redis_client.set(keys.counter, counter, ex=60)
        ids.append(int((await store.append("1", note(i))).event_id))
    assert ids == sorted(set(ids))
    replayed = Collected()
    await store.replay(str(ids[0]), replayed)
    assert [int(event_id or "") for event_id in replayed.ids] == ids[1:]
    assert await number_in(redis_client, keys.counter) == ids[-1]


@pytest.mark.usefixtures("leaks")
async def test_concurrent_appends_keep_their_order(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Events appended concurrently have increasing ids in their order, over all their streams."""
    appended = await asyncio.gather(*(store.append(str(i % 3), note(i)) for i in range(50)))
    ids = [int(each.event_id) for each in appended]
    assert ids == sorted(set(ids))
    for i, event_id in enumerate(ids):
        fields = await fields_of(redis_client, keys.event(str(event_id)))
        assert fields == {"stream_id": b"%d" % (i % 3), "payload": on_the_wire(note(i)).encode()}
    assert await number_in(redis_client, keys.counter) == ids[-1]


# -- what is kept -----------------------------------------------------------------------------------------------------


async def test_append_stores_stream_payload_and_final_mark(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """An event has its stream and payload, and a mark when it ended its stream."""
    primed = await store.append("1", None)
    noted = await store.append("1", note(1, "é"))
    ended = await store.append("1", answer())
    assert await fields_of(redis_client, keys.event(primed.event_id)) == {"stream_id": b"1", "payload": b""}
    payload = '{"jsonrpc":"2.0","method":"note","params":{"n":1,"text":"é"}}'
    assert await fields_of(redis_client, keys.event(noted.event_id)) == {"stream_id": b"1", "payload": payload.encode()}
    assert (await fields_of(redis_client, keys.event(ended.event_id)))["final"] == b"1"
    assert (primed.payload_bytes, noted.payload_bytes) == (0, len(payload.encode()))


async def test_append_with_a_producer_stores_it(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Small or large, an event is a hash whose fields name its stream and its producer."""
    traceparent = f"00-{1:032x}-{2:016x}-01"
    messages: list[JSONRPCMessage] = [note(1), answer(), note(2, "x" * 50_000)]
    for message in messages:
        appended = await store.append("1\n2", message, traceparent)
        assert await fields_of(redis_client, keys.event(appended.event_id)) == {
            "stream_id": b"1\n2",
            "payload": on_the_wire(message).encode(),
            "traceparent": traceparent.encode(),
            **({"final": b"1"} if message is messages[1] else {}),
        }


@pytest.mark.usefixtures("leaks")
async def test_append_by_client_of_another_encoding_stores_utf8(valkey_url: str, key_prefix: str) -> None:
    """Payloads are UTF-8, whatever encoding the client uses."""
    async with aioredis.Redis.from_url(valkey_url, encoding="latin-1") as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        first = await store.append("1", None)
        await store.append("1", note(0, "é漢"))
        replayed = Collected()
        assert (await store.replay(first.event_id, replayed)).corrupt == ()
    assert replayed.data == ['{"jsonrpc":"2.0","method":"note","params":{"n":0,"text":"é漢"}}']


# -- TTL --------------------------------------------------------------------------------------------------------------


async def test_append_leaves_a_ttl_on_every_key(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """The counter, the index, the events and the record of trimmed events expire."""
    old = await _expired_entry(redis_client, Keys(store.key_prefix), age=store.ttl or 0)
    await store.append("1", note(0, "x" * 5000))
    await store.append("1", answer())
    assert old not in await index_of(redis_client, Keys(store.key_prefix))
    names = {key.removeprefix(store.key_prefix).split(":")[0] for key in await leaks.keys()}
    assert names == {"counter", "event", "stream", "trimmed", "commit"}
    for key in await leaks.keys():
        longest = COMMIT_SECONDS if ":commit:" in key else store.ttl or 0
        assert 0 < await redis_client.ttl(key) <= longest, key


async def test_append_renews_the_ttl(store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys) -> None:
    """The counter and the index live as long as the last event that they name."""
    await store.append("1", note(0))
    for key in (keys.counter, keys.stream("1")):
        await redis_client.expire(key, 5)
    await store.append("1", note(1))
    for key in (keys.counter, keys.stream("1")):
        assert await redis_client.ttl(key) > 5


async def test_append_without_ttl_removes_earlier_ttls(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """`ttl=None` leaves no TTL, and removes an earlier store's TTL from the keys it writes."""
    leaks.exempt()
    keys = Keys(key_prefix)
    before = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    await _expired_entry(redis_client, keys, age=60)
    first = await before.append("1", note(0))
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=None)
    last = await store.append("1", note(2))
    assert await redis_client.exists(keys.prefix + "trimmed:1")
    for key in (keys.counter, keys.stream("1"), keys.event(last.event_id), keys.prefix + "trimmed:1"):
        assert await redis_client.ttl(key) == -1, key
    assert await redis_client.ttl(keys.event(first.event_id)) > 0


# -- trimming ---------------------------------------------------------------------------------------------------------


async def _expired_entry(client: aioredis.Redis, keys: Keys, *, age: int, stream: str = "1", offset: int = 0) -> int:
    """Add an index entry of an expired event; return its id."""
    event_id = int(time.time() - age - 60) * SECOND + offset
    await client.zadd(keys.stream(stream), {str(event_id): event_id})
    return event_id


@pytest.mark.usefixtures("leaks")
async def test_append_after_expiry_trims_the_index(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """The first write after events expired removes them from the index, and records the last one."""
    keys = Keys(key_prefix)
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    old = [(await store.append("1", note(i))).event_id for i in range(3)]
    await redis_client.expire(keys.stream("1"), 60)  # as if the stream had been written to ever since

    async def expired() -> bool:
        return not await redis_client.exists(*(keys.event(event_id) for event_id in old))

    await until(expired)
    new = await store.append("1", note(3))
    assert await index_of(redis_client, keys) == [int(new.event_id)]
    assert await number_in(redis_client, f"{key_prefix}trimmed:1") == int(old[-1])


async def test_append_trims_a_bounded_number_of_entries(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A write checks a few expired entries, and the next writes the others."""
    ttl = store.ttl or 0
    old = [await _expired_entry(redis_client, keys, age=ttl, offset=offset) for offset in range(LOOKED_AT * 3)]
    left = []
    for i in range(4):
        await store.append("1", note(i))
        left.append(len(await index_of(redis_client, keys)) - i - 1)
        assert await number_in(redis_client, f"{keys.prefix}trimmed:1") == max(old)
    assert left == [LOOKED_AT * 2, LOOKED_AT, 0, 0]


async def test_append_sent_again_after_noscript_trims(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A batch that Redis did not execute, since it had lost the script, trims the second time."""
    old = await _expired_entry(redis_client, keys, age=store.ttl or 0)
    await redis_client.script_flush()
    await store.append("1", note(0))
    assert old not in await index_of(redis_client, keys)


async def test_append_trims_its_own_streams_only(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Other streams are left for their own writes, or for their TTL."""
    old = await _expired_entry(redis_client, keys, age=store.ttl or 0, stream="2")
    await redis_client.expire(keys.stream("2"), 60)
    await store.append("1", note(0))
    assert await index_of(redis_client, keys, "2") == [old]


async def test_append_keeps_entries_of_live_events(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A live event is never trimmed, however old its id looks."""
    old = await _expired_entry(redis_client, keys, age=store.ttl or 0)
    await redis_client.hset(keys.event(str(old)), mapping={"stream_id": "1", "payload": ""})
    await redis_client.expire(keys.event(str(old)), 60)
    await store.append("1", note(0))
    assert (await index_of(redis_client, keys))[0] == old


async def test_append_trims_expired_entries_behind_live_ones(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Many old live events, as a writer without TTL leaves them, do not stop trimming."""
    ttl = store.ttl or 0
    for event_id in range(1, LOOKED_AT * 2):
        await redis_client.zadd(keys.stream("1"), {str(event_id): event_id})
        await redis_client.hset(keys.event(str(event_id)), mapping={"stream_id": "1", "payload": ""})
        await redis_client.expire(keys.event(str(event_id)), 60)
    for offset in range(LOOKED_AT):
        await _expired_entry(redis_client, keys, age=ttl, offset=offset)
    for i in range(2):
        await store.append("1", note(i))
    assert len(await index_of(redis_client, keys)) == LOOKED_AT * 2 - 1 + 2


async def test_append_without_ttl_trims_nothing(
    redis_client: aioredis.Redis, key_prefix: str, keys: Keys, leaks: LeakChecker
) -> None:
    """A store without TTL trims no event."""
    leaks.exempt()
    store = RedisEventStore(redis_client, key_prefix=key_prefix)
    old = await _expired_entry(redis_client, keys, age=3600)
    await store.append("1", note(0))
    assert old in await index_of(redis_client, keys)


# -- failing ----------------------------------------------------------------------------------------------------------


async def test_append_to_a_key_of_another_type_leaves_nothing(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, leaks: LeakChecker
) -> None:
    """The error is reported, and no event remains that no index names."""
    await redis_client.set(keys.stream("1"), "another's", ex=60)
    with pytest.raises(StoreRejectedError, match=r"could not append to Redis at .*WRONGTYPE"):
        await store.append("1", note(0, "a secret"))
    assert await leaks.keys() == [keys.stream("1")]


async def test_append_after_script_flush_loads_the_script(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """The script is loaded again, without an error and without a lost event."""
    first = await store.append("1", None)
    for i in range(2):
        await redis_client.script_flush()
        await store.append("1", note(i))
    await redis_client.script_flush()
    assert (await store.replay(first.event_id, Collected())).delivered == 2


async def test_concurrent_appends_after_script_flush_store_each_once(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """Many appends that find the script missing store each event once."""
    first = await store.append("1", None)
    await redis_client.script_flush()
    async with anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(store.append, "1", note(i))
    assert (await store.replay(first.event_id, Collected())).delivered == 20


async def test_append_takes_one_command(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """An append is one command, whatever it writes, trims and expires."""
    await store.append("1", note(0))

    async def commands() -> int:
        # What scripts call is counted too; only EVALSHA is sent by the store.
        stats = await redis_client.info("commandstats")
        return int(stats["cmdstat_evalsha"]["calls"])

    counts = []
    for _ in range(3):  # A store of an earlier test may still send a command to the same server.
        before = await commands()
        for i in range(5):
            await store.append("1", note(i))
        counts.append(await commands() - before)
    assert min(counts) == 5


async def test_append_with_a_counter_of_another_type_is_refused(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """The key of another application stays as it was."""
    await redis_client.hset(keys.counter, "a", "1")
    await redis_client.expire(keys.counter, 60)
    with pytest.raises(StoreRejectedError):
        await store.append("1", note(0))
    assert _text(await redis_client.hget(keys.counter, "a")) == "1"


async def test_append_to_a_stream_that_cannot_be_encoded_fails_its_caller_only(store: RedisEventStore) -> None:
    """A lone surrogate in a stream's name is an error of that call; the others are stored."""
    results = await asyncio.gather(
        *(store.append(stream, note(0)) for stream in ("1", "\ud800", "2")), return_exceptions=True
    )
    assert [isinstance(result, ValueError) for result in results] == [False, True, False]
