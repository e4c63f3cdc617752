"""Statistics of a real Valkey: bounded polls, by one of several workers."""

from collections.abc import AsyncIterator

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis import stats
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.stats import RedisStatsPoller
from support.leaks import LeakChecker
from support.messages import note

pytestmark = pytest.mark.anyio

EVERY = 30.0
DATABASE = 11


@pytest.fixture(params=[pytest.param(False, id="bytes"), pytest.param(True, id="decoding")])
async def redis_client(request: pytest.FixtureRequest, valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A database of this test alone, with `decode_responses` either way."""
    async with aioredis.Redis.from_url(valkey_url, db=DATABASE, decode_responses=request.param) as client:
        await client.flushdb()
        yield client
        await client.flushdb()


async def polled(poller: RedisStatsPoller) -> stats.RedisStats:
    """The statistics of one poll, which must be the turn of this poller."""
    found = await poller.poll(EVERY)
    assert found is not None
    return found


async def test_stats_poll_counts_keys_memory_and_event_size(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """It counts the keys of all sessions under the prefix, the others, memory, and bytes per event."""
    for session in ("a", "b{x}", "c*"):
        part = store.for_session(session)
        part.begin("1", 1)
        await part.append("1", note(1, "x" * 5000))
    await store.append("1", note(1))
    await store.flush()
    await redis_client.set("another's", "1")
    found = await polled(store.redis_stats_poller())
    keys = await leaks.keys()
    assert len(keys) > 3 * 3
    assert (found.keys, found.without_ttl, found.lasting) == (len(keys), 0, {})
    assert found.db_keys == len(keys) + 1
    assert found.event_bytes is not None
    assert 50 < found.event_bytes < 1000, "large payloads have keys of their own"
    assert found.memory_bytes > 100_000
    assert found.memory_limit == 0
    assert found.evicted == 0


async def test_stats_poll_without_events_has_no_event_size(store: RedisEventStore) -> None:
    """Without events there is no size of one."""
    assert (await polled(store.redis_stats_poller())).event_bytes is None


async def test_stats_poll_counts_keys_without_ttl_by_kind(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """Keys of other applications are not counted."""
    leaks.exempt()
    lasting = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=None)
    await lasting.append("1", note(1))
    part = lasting.for_session("s")
    part.begin("1", 1)
    await part.append("1", note(1, "x" * 5000))
    await lasting.flush()
    await redis_client.set(f"{store.key_prefix}surprise", "1")
    await redis_client.set("another's", "1")
    found = await polled(store.redis_stats_poller())
    # Of the store and of the session: all but the worker's last commit, and the turn of the poller.
    assert found.without_ttl == len(await leaks.keys()) - 2 == sum(found.lasting.values())
    assert found.lasting == {"counter": 1, "event": 1, "stream": 2, "large": 1, "requests": 1, "index": 1, "other": 1}


async def test_stats_poll_of_a_prefix_with_wildcards_matches_literally(redis_client: aioredis.Redis) -> None:
    """A prefix is literal text, and no pattern."""
    for name in ("m*p?[a]^\\:x", "mmp:x", "map?[a]:x"):
        await redis_client.set(name, "1")
    store = RedisEventStore(redis_client, key_prefix="m*p?[a]^\\:", ttl=60)
    found = await polled(store.redis_stats_poller())
    assert (found.keys, found.lasting) == (2, {"other": 1})


async def test_stats_poll_of_many_keys_continues_in_the_next_one(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll scans a bounded number of keys; totals appear once the scan is complete."""
    leaks.exempt()
    monkeypatch.setattr(stats, "SCANNED_PER_POLL", 500)
    async with redis_client.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.set(f"{store.key_prefix}event:{number + 1}", "x")
        await pipeline.execute()
    poller = store.redis_stats_poller()
    found = await polled(poller)
    assert (found.keys, found.without_ttl) == (None, None)
    assert 100 < found.lasting["event"] < 1500
    seen, polls = found.lasting["event"], 1
    while found.keys is None:
        found = await polled(poller)
        seen, polls = seen + found.lasting["event"], polls + 1
    assert polls > 2
    assert (found.keys, found.without_ttl) == (2001, 2000)
    assert seen == 2000
    assert found.db_keys == 2001
    assert (await polled(poller)).keys == 2001


async def test_stats_poll_that_runs_out_of_time_stops(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When time is up, the next poll continues."""
    leaks.exempt()
    monkeypatch.setattr(stats, "SCAN_SECONDS", 0.0)
    await redis_client.mset({f"{store.key_prefix}event:{number + 1}": "x" for number in range(1000)})
    assert (await polled(store.redis_stats_poller())).keys is None


async def test_stats_poll_is_taken_by_one_worker_at_a_time(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """A worker has the turn until it leaves or is late, and the key of the turn expires."""
    other = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=60).redis_stats_poller()
    poller = store.redis_stats_poller()
    await polled(poller)
    assert await other.poll(EVERY) is None
    await other.leave()
    await polled(poller)
    assert 0 < await redis_client.pttl(f"{store.key_prefix}poller") <= EVERY * stats.HELD_INTERVALS * 1000
    await poller.leave()
    await polled(other)
    assert await poller.poll(EVERY) is None


async def test_stats_poll_counts_evictions_since_the_last_one(
    store: RedisEventStore, redis_client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of Redis all evictions count."""
    counts = iter([100, 130, 130, 7])
    info = redis_client.info

    async def evicting(section: str) -> dict[str, object]:
        answer: dict[str, object] = await info(section)
        return answer | ({"evicted_keys": next(counts)} if section == "stats" else {"maxmemory": 1 << 20})

    monkeypatch.setattr(redis_client, "info", evicting)
    poller = store.redis_stats_poller()
    found = [await polled(poller) for _ in range(4)]
    assert [each.evicted for each in found] == [0, 30, 0, 7]
    assert found[0].memory_limit == 1 << 20


async def test_stats_poll_of_unreachable_redis_is_unavailable() -> None:
    """The error has the words of any other operation."""
    async with connect("redis://127.0.0.1:1") as client:
        with pytest.raises(StoreUnavailableError, match=r"could not read the statistics of Redis at 127\.0\.0\.1:1"):
            await RedisEventStore(client, ttl=60).redis_stats_poller().poll(EVERY)


async def test_stats_poll_without_permission_names_the_command(
    store: RedisEventStore, redis_client: aioredis.Redis, valkey_url: str
) -> None:
    """A user without the permission gets the name of the command."""
    await redis_client.acl_setuser("poller", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    try:
        async with aioredis.Redis.from_url(valkey_url, username="poller", password="x") as limited:
            with pytest.raises(StoreRejectedError, match="info"):
                await RedisEventStore(limited, key_prefix=store.key_prefix, ttl=60).redis_stats_poller().poll(EVERY)
            await limited.delete(f"{store.key_prefix}poller")
    finally:
        await redis_client.acl_deluser("poller")


async def test_stats_poll_of_redis_7_is_the_same(redis_url: str, key_prefix: str) -> None:
    """Redis 7 gives the same statistics."""
    async with connect(redis_url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        await store.append("1", note(1))
        found = await polled(store.redis_stats_poller())
        keys = LeakChecker(client, key_prefix)
        assert (found.keys, found.without_ttl) == (len(await keys.keys()), 0)
        assert found.event_bytes
        await keys.clean()
