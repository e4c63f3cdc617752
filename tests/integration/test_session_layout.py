"""The keys of a session in Redis: lists, large payloads, `requests`; each with a TTL."""

import json
from itertools import pairwise

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import Gap, StoreOutcome
from mcp_eventscope.testing import on_the_wire
from support.leaks import LeakChecker
from support.messages import answer, failure, note
from support.session_producers import Received, SessionProducer, elements, list_key, run_of
from support.waiting import until

pytestmark = pytest.mark.anyio

TTL = 600
TRACEPARENT = f"00-{1:032x}-{2:016x}-01"
LARGE = 4096
"""Payload bytes above which a payload has its own key."""


def texts(values: object) -> list[str]:
    """The texts of a reply, whether the client decodes or not."""
    assert isinstance(values, list | dict | set)
    return [value.decode() if isinstance(value, bytes) else value for value in values]


async def entries(client: aioredis.Redis, producer: SessionProducer) -> dict[str, str]:
    """The session's `requests`."""
    found = await client.hgetall(f"{producer.part.key_prefix}requests")
    return dict(zip(texts(found), texts(list(found.values())), strict=True))


async def test_run_list_has_an_element_per_event(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """An element has the number, the time, the marks and the payload as it was sent."""
    producer = SessionProducer(store)
    await producer.append(None)
    await producer.append(note(1, "é"))
    traced = await producer.part.append("1", note(2), TRACEPARENT)
    last = await producer.append(answer())
    assert await producer.outcomes() == [StoreOutcome.STORED] * 3
    found = await elements(redis_client, producer.key)
    assert [each.number for each in found] == [1, 2, 3, 4]
    ids = [*producer.ids[:2], traced.event_id, last.event_id]
    assert [f"{each.time}-{each.number}-{run_of(last.event_id)}" for each in found] == ids
    assert [each.marks for each in found] == [(), (), (f"t{TRACEPARENT}",), ("f",)]
    payloads = [on_the_wire(message).encode() for message in (note(1, "é"), note(2), answer())]
    assert [each.payload for each in found] == [b"", *payloads]
    assert [each.payload_bytes for each in producer.appended] == [0, len(payloads[0]), len(payloads[2])]


async def test_large_payload_has_its_own_key(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """An element stays small whatever the payload: above 4 KiB it has the size only."""
    producer = SessionProducer(store)
    frame = len(on_the_wire(note(0)))
    for size in (LARGE - frame, LARGE - frame + 1, 100_000):
        await producer.append(note(0, "x" * size))
    await producer.outcomes()
    found = await elements(redis_client, producer.key)
    assert [each.marks for each in found] == [(), (f"g{LARGE + 1}",), (f"g{100_000 + frame}",)]
    assert [len(each.payload) for each in found] == [LARGE, 0, 0]
    run = run_of(producer.ids[0])
    large = [f"{producer.part.key_prefix}large:1:{run}:{number}" for number in (2, 3)]
    assert [key for key in await leaks.keys() if ":large:" in key] == large
    assert [await redis_client.strlen(key) for key in large] == [LARGE + 1, 100_000 + frame]


async def test_requests_hash_names_a_request_while_it_is_open(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """`requests` holds the request's id with its JSON type, from the first event to the response."""
    open_ones = [SessionProducer(store, request_id=request_id) for request_id in (7, "7", "é" * 20, "x" * 130)]
    for producer in open_ones:
        await producer.append(None)
        await producer.outcomes()
    found = await entries(redis_client, open_ones[0])
    for producer, request_id in zip(open_ones, (7, "7", "é" * 20, "x" * 130), strict=True):
        kind, stream, name = found[run_of(producer.ids[0])].split(" ", 2)
        assert (kind, stream, json.loads(name)) == ("r", producer.stream, request_id)
        await producer.append(answer())
        await producer.outcomes()
    assert await entries(redis_client, open_ones[0]) == {}


async def test_requests_hash_names_standalone_runs_with_their_last_number(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """`requests` names each process's run of the standalone stream, and how far it has got."""
    part, other = store.for_session("s"), RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    ids = []
    for each in (part, other.for_session("s")):
        for number in range(3):
            appended = await each.append(GET_STREAM_KEY, note(number))
        assert appended.pending is not None
        await appended.pending.acknowledged()
        ids.append(appended.event_id)
    found = await redis_client.hgetall(f"{part.key_prefix}requests")
    assert dict(zip(texts(found), texts(list(found.values())), strict=True)) == dict.fromkeys(map(run_of, ids), "s 3")
    assert {await redis_client.llen(list_key(part, GET_STREAM_KEY, event_id)) for event_id in ids} == {3}


async def test_reused_request_id_has_a_new_run(store: RedisEventStore, leaks: LeakChecker) -> None:
    """It meets neither the events nor the cursors of the earlier request."""
    first = SessionProducer(store)
    await first.append(None)
    await first.append_next(2)
    second = SessionProducer(store)
    await second.append(None)
    await second.append_next(2)
    await second.append(answer())
    await second.outcomes()
    await first.outcomes()
    assert run_of(first.ids[0]) != run_of(second.ids[0])
    assert len([key for key in await leaks.keys() if ":stream:1:" in key]) == 2
    received = Received()
    facts = await first.part.replay(first.ids[0], received, stream_id="1")
    # `begin` of the same stream has ended the first one with an error.
    assert (facts.completed, received.contents) == (True, [1, 2, "JSONRPCError"])
    received = Received()
    facts = await second.part.replay(second.ids[0], received, stream_id="1")
    assert (facts.completed, received.contents) == (True, [1, 2, "JSONRPCResponse"])


async def test_keys_of_sessions_are_under_their_own_prefixes(store: RedisEventStore, leaks: LeakChecker) -> None:
    """Every key of a session is under its own prefix, whatever its id is."""
    names = ["a", "b{x}", "c:{}", "d*", "é"]
    for name in names:
        producer = SessionProducer(store, session=name)
        await producer.append(note(0, "x" * 5000))
        await producer.outcomes()
    keys = await leaks.keys()
    prefixes = [store.for_session(name).key_prefix for name in names]
    assert sorted({prefix for key in keys for prefix in prefixes if key.startswith(prefix)}) == sorted(prefixes)
    kinds = {
        key.removeprefix(prefix).partition(":")[0] for key in keys for prefix in prefixes if key.startswith(prefix)
    }
    assert kinds == {"stream", "large", "requests", "index"}
    assert len(keys) == 4 * len(names)


@pytest.mark.usefixtures("leaks")
async def test_client_of_another_encoding_stores_utf8(valkey_url: str, key_prefix: str) -> None:
    """Payloads are UTF-8, whatever encoding the client uses."""
    async with aioredis.Redis.from_url(valkey_url, encoding="latin-1", decode_responses=True) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        producer = SessionProducer(store, request_id="é")
        await producer.append(None)
        await producer.append(note(1, "é漢"))
        await producer.append(note(2, "é漢" * 3000))
        await producer.outcomes()
        await producer.check(RedisEventStore(client, key_prefix=key_prefix, ttl=60))
        await store.flush()


async def test_concurrent_appends_are_listed_in_order(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """Concurrent events of several streams are in their lists in order, each once."""
    producers = [SessionProducer(store, request_id=number) for number in range(3)]
    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(producers[number % 3].append_next)
    for producer in producers:
        await producer.outcomes()
        assert [each.number for each in await elements(redis_client, producer.key)] == list(range(1, 21))
        await producer.check(RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL))


# -- TTL --------------------------------------------------------------------------------------------------------------


async def test_session_leaves_a_ttl_on_every_key(
    store: RedisEventStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """Lists, large payloads, `requests`, the record, the lease and the inbox expire."""
    producer = SessionProducer(store)
    await producer.append(None)
    await producer.append(note(1, "x" * 5000))
    await producer.append(failure())
    open_one = SessionProducer(store, request_id=2)
    await open_one.append_next()
    await producer.part.append(GET_STREAM_KEY, note(0))
    await producer.part._record_sent()
    await store.flush()

    async def nothing() -> None:
        """Nothing is published."""

    async with store.coordinator.hold_lease(5, lambda _: None, nothing):
        kinds = set()
        for key in await leaks.keys():
            kind = key.removeprefix(store.key_prefix).split("}:")[-1].partition(":")[0]
            kinds.add(kind)
            # The index outlives every key that it names, although it is renewed less often than rows are added.
            assert 0 < await redis_client.ttl(key) <= TTL + (TTL // 32 + 1 if kind == "index" else 0), key
    assert kinds == {"stream", "large", "requests", "index", "session", "worker", "inbox"}


async def test_answer_for_a_dead_worker_renews_the_ttl(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """The answer in place of a dead worker has the TTL of the request."""
    dead = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    producer = SessionProducer(dead)
    await producer.append(None)
    await producer.outcomes()
    requests = f"{producer.part.key_prefix}requests"
    for key in (producer.key, requests):
        await redis_client.expire(key, 5)
    followed = await store.for_session("s").follow("1", producer.ids[0], Received(), limit=10)
    assert followed.orphaned
    for key in (producer.key, requests):
        assert 5 < await redis_client.ttl(key) <= TTL


async def test_commit_renews_the_ttl_when_a_64th_has_passed(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """Not every event renews the TTLs."""
    producer = SessionProducer(store)
    await producer.append_next()
    await producer.outcomes()
    keys = (producer.key, f"{producer.part.key_prefix}requests")
    for key in keys:
        await redis_client.expire(key, 5)
    await producer.append_next()
    await producer.outcomes()
    assert {await redis_client.ttl(key) for key in keys} <= {4, 5}
    short = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=6)
    producer = SessionProducer(short, session="t")
    await producer.append_next()
    await producer.outcomes()
    for key in (producer.key, f"{producer.part.key_prefix}requests"):
        await redis_client.pexpire(key, 1000)
    await anyio.sleep(0.15)
    await producer.append_next()
    await producer.outcomes()
    for key in (producer.key, f"{producer.part.key_prefix}requests"):
        assert await redis_client.pttl(key) > 1000
    await short.flush()


async def test_response_renews_the_ttl(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """A response is kept for the whole TTL, however old the run is."""
    producer = SessionProducer(store)
    await producer.append_next()
    await producer.outcomes()
    await redis_client.expire(producer.key, 5)
    await producer.append(answer())
    await producer.outcomes()
    assert await redis_client.ttl(producer.key) > 5


async def test_silent_request_outlives_the_ttl(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """Its worker renews it, so that a client can resume it after a silence longer than the TTL."""

    async def nothing() -> None:
        """Nothing is published."""

    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    producer = SessionProducer(store)
    await producer.append(None)
    await producer.append(note(1, "x" * 5000))
    await producer.outcomes()
    other = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    async with store.coordinator.hold_lease(0.3, lambda _: None, nothing):
        await anyio.sleep(2)
        facts, received = await producer.replayed(other)
        assert (facts.miss, facts.gap, received.contents) == (None, False, [1])
        await producer.append(answer())
        await producer.outcomes()
        await producer.check(other)

    async def expired() -> bool:
        return not await leaks.keys()

    await until(expired)
    facts, _ = await producer.replayed(other)
    assert facts.miss is not None
    await store.flush()


async def test_session_without_ttl_never_expires(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """`ttl=None` leaves no TTL on any key of a session."""
    leaks.exempt()
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=None)
    producer = SessionProducer(store)
    await producer.append(None)
    await producer.append(note(1, "x" * 5000))
    await producer.outcomes()
    await producer.part._record_sent()
    keys = await leaks.keys()
    assert len(keys) == 5
    assert {await redis_client.ttl(key) for key in keys} == {-1}
    await producer.check(RedisEventStore(redis_client, key_prefix=key_prefix, ttl=None))


# -- trimming ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaks")
async def test_expired_elements_are_trimmed_from_the_head(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """A write drops elements older than the TTL; a client that has not read them gets the exact gap."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    producer = SessionProducer(store)
    await producer.append(None)
    await producer.append_next(5)
    await producer.outcomes()
    await redis_client.expire(producer.key, 60)  # As if the run had been written to ever since.
    await anyio.sleep(1.1)
    await producer.append_next(2)
    await producer.outcomes()
    numbers = [each.number for each in await elements(redis_client, producer.key)]
    assert numbers == [6, 7, 8], "the element that was the last one before the write stays"
    facts, received = await producer.replayed(RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1), after=2)
    assert (facts.gap, facts.missing, received.contents) == (True, 2, [5, 6, 7])
    assert facts.gaps == {Gap.TRIMMED: 2}
    await store.flush()


@pytest.mark.usefixtures("leaks")
async def test_write_trims_a_bounded_number_of_elements(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """A write drops at most 64 elements, and the next writes drop the others."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    producer = SessionProducer(store)
    for _ in range(3):
        await producer.append_next(50)
        await producer.outcomes()
    await redis_client.expire(producer.key, 60)
    lengths: list[int] = []
    for _ in range(4):
        await anyio.sleep(1.1 if not lengths else 0.05)
        await producer.append_next()
        await producer.outcomes()
        await redis_client.expire(producer.key, 60)
        lengths.append(await redis_client.llen(producer.key))
    assert lengths[0] == 150 - 64 + 1
    assert all(before - 64 < after for before, after in pairwise(lengths))
    assert lengths[-1] <= 5
    await store.flush()
