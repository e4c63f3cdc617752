"""`replay` of a session: results, chunks, corrupt and missing elements, cursors."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.redis.read import elements as read_elements
from mcp_eventscope.redis.read.run_reader import CHUNK_BYTES, CHUNK_EVENTS, FIRST_EVENTS
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import FollowEnd, Gap, Miss, ReplayResult
from mcp_eventscope.testing import on_the_wire
from support.messages import answer, failure, note
from support.session_producers import Received, SessionProducer, elements, run_of
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio

TTL = 600
LEASE = 0.4
TWO_READS = FIRST_EVENTS + CHUNK_EVENTS
"""Small events that two reads return."""


async def nothing() -> None:
    """Nothing is published."""


@pytest.fixture
async def reader(redis_client: aioredis.Redis, store: RedisEventStore) -> AsyncIterator[RedisEventStore]:
    """Another worker's store: it has nothing of the first one's in memory. The first one has a lease."""
    other = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    async with store.coordinator.hold_lease(30, lambda _: None, nothing):
        yield other
        await store.flush()


async def stored_run(store: RedisEventStore, count: int, **options: object) -> SessionProducer:
    """A stream with a priming event and so many notes, all of them stored."""
    producer = SessionProducer(store, **options)  # type: ignore[arg-type]
    await producer.append(None)
    if count:
        await producer.append_next(count)
    await producer.outcomes()
    return producer


# -- facts ------------------------------------------------------------------------------------------------------------


async def test_replay_returns_counts_position_and_age(store: RedisEventStore, reader: RedisEventStore) -> None:
    """It returns counts, sizes, position and age of the cursor, from memory and from Redis."""
    producer = await stored_run(store, 2)
    size = sum(len(on_the_wire(note(number)).encode()) for number in (1, 2))
    for each in (store, reader):
        facts, received = await producer.replayed(each)
        assert facts.age is not None
        assert 0 <= facts.age < 10
        assert facts == ReplayResult(
            stream_id="1", last_event_id=producer.ids[-1], delivered=2, payload_bytes=size, age=facts.age
        )
        assert received.ids == producer.ids[1:]


async def test_replay_from_the_last_event_delivers_nothing(store: RedisEventStore, reader: RedisEventStore) -> None:
    """A client that has missed nothing gets neither a miss nor a gap."""
    producer = await stored_run(store, 1)
    for each in (store, reader):
        facts, _ = await producer.replayed(each, after=-1)
        assert facts == ReplayResult(stream_id="1", last_event_id=producer.ids[-1], age=facts.age)


@pytest.mark.parametrize("message", [answer(), failure(), failure(None)])
async def test_replay_up_to_the_response_is_complete(
    store: RedisEventStore, reader: RedisEventStore, message: object
) -> None:
    """The response completes the stream, whether it is delivered now or was the cursor."""
    producer = await stored_run(store, 1)
    await producer.append(message)  # type: ignore[arg-type]
    await producer.outcomes()
    for each in (store, reader):
        facts, received = await producer.replayed(each)
        assert (facts.completed, facts.delivered, received.ids) == (True, 2, producer.ids[1:])
        facts, _ = await producer.replayed(each, after=-1)
        assert (facts.completed, facts.delivered, facts.miss) == (True, 0, None)


async def test_replay_names_producers_once(store: RedisEventStore, reader: RedisEventStore) -> None:
    """A replay names the producers of the events that it delivered, each once."""
    producer = await stored_run(store, 0)
    spans = [f"00-{1:032x}-{span:016x}-01" for span in (1, 2)]
    for number, span in enumerate([spans[0], spans[0], "", spans[1]]):
        appended = await producer.part.append("1", note(number, "x" * 5000 * (number % 2)), span)
        assert appended.pending is not None
        await appended.pending.acknowledged()
    for each in (store, reader):
        facts, _ = await producer.replayed(each)
        assert facts.producers == tuple(spans)


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [FIRST_EVENTS - 1, FIRST_EVENTS, FIRST_EVENTS + 1, TWO_READS, TWO_READS + 1])
async def test_replay_of_many_events_delivers_each_once(
    store: RedisEventStore, reader: RedisEventStore, count: int
) -> None:
    """Each event is delivered once and in order, wherever the chunks end and wherever the cursor is."""
    producer = await stored_run(store, count)
    await producer.check(reader)
    for after in (1, count // 2, count - 1, count):
        for each in (store, reader):
            facts, received = await producer.replayed(each, after=after)
            assert (received.ids, facts.gap) == (producer.ids[after + 1 :], False)


async def test_replay_of_large_events_delivers_them_whole(store: RedisEventStore, reader: RedisEventStore) -> None:
    """Events larger than a chunk arrive whole and in order, between small ones."""
    producer = await stored_run(store, 0)
    sizes = [CHUNK_BYTES // 3] * 4 + [1, CHUNK_BYTES * 2, 1, CHUNK_BYTES - 100, CHUNK_BYTES, 5000, 1]
    for number, size in enumerate(sizes):
        await producer.append(note(number, "x" * size))
    await producer.outcomes()
    facts, received = await producer.replayed(reader)
    assert received.contents == list(range(len(sizes)))
    assert received.messages == [note(number, "x" * size) for number, size in enumerate(sizes)]
    assert facts.payload_bytes == sum(len(on_the_wire(message)) for message in received.messages)


async def test_replay_reads_bounded_chunks(
    store: RedisEventStore, reader: RedisEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long replay is read in chunks, so that Redis is not blocked for all of it."""
    producer = await stored_run(store, TWO_READS + CHUNK_EVENTS)
    await store.flush()
    reads = 0
    read = read_elements._read

    async def counted(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments)

    monkeypatch.setattr(read_elements, "_read", counted)
    await producer.replayed(reader)
    assert reads == 3


# -- elements that cannot be read -------------------------------------------------------------------------------------

CORRUPT = {
    "not JSON": b"{not json",
    "not JSON-RPC": b'{"hello":"world"}',
    "not UTF-8": b"\xff\xfe\x00",
    "lines": b"two\nlines\n\n",
}


@pytest.mark.parametrize("payload", CORRUPT.values(), ids=CORRUPT.keys())
@pytest.mark.parametrize("place", [1, 2, 4])
async def test_replay_of_a_corrupt_payload_skips_it(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis, payload: bytes, place: int
) -> None:
    """A payload that is no message is skipped and reported; the events around it are delivered."""
    producer = await stored_run(store, 4)
    found = (await elements(redis_client, producer.key))[place]
    await redis_client.lset(producer.key, place, b"%d %d\n%b" % (found.number, found.time, payload))  # type: ignore[arg-type]
    with in_time(5):
        facts, received = await producer.replayed(reader)
    assert received.ids == [each for each in producer.ids[1:] if each != producer.ids[place]]
    assert (facts.corrupt, facts.missing, facts.miss) == ((producer.ids[place],), 0, None)
    assert facts.last_event_id == producer.ids[-1]


HEADERS = {
    "a time that is none": b"%d x\n{}",
    "no time": b"%d",
    "no time, a payload": b"%d\n{}",
    "a range that is none": b"%d 1 lx\n",
    "a size that is none": b"%d 1 gx\n",
    "a size that is not there": b"%d 1 g\n",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("place", [1, 2, 4])
async def test_replay_of_a_corrupt_header_skips_it(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis, header: bytes, place: int
) -> None:
    """It is reported once; the others are delivered, and no reader loops."""
    producer = await stored_run(store, 4)
    await redis_client.lset(producer.key, place, header % (place + 1))  # type: ignore[arg-type]
    with in_time(5):
        facts, received = await producer.replayed(reader)
    assert received.ids == [each for each in producer.ids[1:] if each != producer.ids[place]]
    assert len(facts.corrupt) + facts.missing == 1
    with in_time(5):
        followed = await reader.for_session("s").follow("1", facts.last_event_id, received, limit=0.1)
    assert (followed.delivered, followed.end) == (0, FollowEnd.TIMEOUT)


@pytest.mark.parametrize("invalid", [b"", b"rubbish", b"\n", b"-1 1\n{}", b"\xff"])
async def test_replay_of_an_element_without_a_number_counts_it_missing(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis, invalid: bytes
) -> None:
    """The others are delivered."""
    producer = await stored_run(store, 4)
    await redis_client.lset(producer.key, 2, invalid)  # type: ignore[arg-type]
    with in_time(5):
        facts, received = await producer.replayed(reader)
    assert received.ids == [producer.ids[1], *producer.ids[3:]]
    assert (facts.missing, facts.gap, facts.corrupt) == (1, True, ())
    assert facts.gaps == {Gap.STORE_LOST: 1}, "it was not at the head of the list"


async def test_replay_to_a_corrupt_response_is_complete(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """A stream whose response cannot be read has ended."""
    producer = await stored_run(store, 1)
    await producer.append(answer())
    await producer.outcomes()
    await redis_client.lset(producer.key, 2, b"3 1 f\n{not json")  # type: ignore[arg-type]
    facts, received = await producer.replayed(reader)
    assert (received.ids, facts.completed, len(facts.corrupt)) == ([producer.ids[1]], True, 1)


@pytest.mark.parametrize("key", ["list", "requests"])
async def test_replay_of_a_key_of_another_type_is_rejected(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis, key: str
) -> None:
    """Redis's error is reported with its place."""
    producer = await stored_run(store, 1)
    name = producer.key if key == "list" else f"{producer.part.key_prefix}requests"
    await redis_client.set(name, "another's", ex=TTL)
    with pytest.raises(StoreRejectedError, match=r"could not read from Redis at .*WRONGTYPE"):
        await producer.replayed(reader)


# -- events that are lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [1, 2, 3])
async def test_replay_of_an_evicted_large_payload_has_a_gap(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis, place: int
) -> None:
    """A large payload that was evicted is a counted gap."""
    producer = await stored_run(store, 3, size=5000)
    await redis_client.delete(f"{producer.part.key_prefix}large:1:{run_of(producer.ids[0])}:{place + 1}")
    facts, received = await producer.replayed(reader)
    assert received.ids == [each for each in producer.ids[1:] if each != producer.ids[place]]
    assert (facts.missing, facts.gap, facts.corrupt) == (1, True, ())
    facts, received = await producer.replayed(reader, after=place)
    assert (facts.gap, received.ids) == (False, producer.ids[place + 1 :])
    facts, _ = await producer.replayed(store)
    assert not facts.gap, "this process has it in memory"


async def test_replay_of_a_large_payload_of_another_type_has_a_gap(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """A large payload's key of another type is a missing event, too."""
    producer = await stored_run(store, 2, size=5000)
    key = f"{producer.part.key_prefix}large:1:{run_of(producer.ids[0])}:2"
    await redis_client.delete(key)
    await redis_client.rpush(key, "another's")
    await redis_client.expire(key, TTL)
    facts, received = await producer.replayed(reader)
    assert (facts.missing, received.ids) == (1, producer.ids[2:])


async def test_replay_of_a_lost_list_waits_for_its_worker(
    store: RedisEventStore, reader: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """While the worker's lease lives, the cursor is no miss: the worker stores the list again."""
    producer = await stored_run(store, 3)
    await redis_client.delete(producer.key)
    facts, _ = await producer.replayed(reader)
    assert (facts.miss, facts.delivered) == (None, 0)
    received = Received()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: reader.for_session("s").follow("1", producer.ids[0], received, limit=10))
        await producer.append(answer())
    assert received.ids == producer.ids[1:]


# -- cursors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "1", "1-1", "1-1-", "1-1-xyz", "0-1-0123456789ab1", "1-01-0123456789ab1", "1--1-0123456789ab1",
     "1-1-0123456789ab", "1-1-0123456789AB1", "1-1-0123456789ab1~", "1-1-0123456789ab1~1", "1-1-0123456789ab1~1-x",
     "1-1-0123456789ab1~2-0123456789ab1", "1-1-0123456789ab" + "1" * 17, "1-" + "9" * 17 + "-0123456789ab1",
     "9" * 19 + "-1-0123456789ab1", "1-1-0123456789ab1\n", "\u0661-1-0123456789ab1", "\ud800", "1-1-0123456789ab1.x"],
)  # fmt: skip
@pytest.mark.parametrize("stream", ["1", GET_STREAM_KEY])
async def test_replay_from_text_that_is_no_cursor_is_malformed(
    store: RedisEventStore, reader: RedisEventStore, cursor: str, stream: str
) -> None:
    """A text that is no event id is a miss."""
    await stored_run(store, 1)
    for each in (store, reader):
        facts = await each.for_session("s").replay(cursor, Received(), stream_id=stream)
        assert facts == ReplayResult(miss=Miss.MALFORMED)


async def test_replay_from_a_number_beyond_the_run_is_unknown_on_its_worker(
    store: RedisEventStore, reader: RedisEventStore
) -> None:
    """On another worker it may not have been stored yet."""
    producer = await stored_run(store, 2)
    for number in (4, 999_999_999_999_999):
        forged = f"{producer.ids[0].split('-')[0]}-{number}-{run_of(producer.ids[0])}"
        received = Received()
        with in_time(5):
            assert (await store.for_session("s").replay(forged, received, stream_id="1")).miss is Miss.UNKNOWN
            facts = await reader.for_session("s").replay(forged, received, stream_id="1")
            assert (facts.miss, facts.delivered) == (None, 0)
            followed = await reader.for_session("s").follow("1", forged, received, limit=0.05)
        assert (followed.end, followed.last_event_id, received.ids) == (FollowEnd.TIMEOUT, forged, [])


@pytest.mark.parametrize("worker", ["0123456789ab", "own"])
@pytest.mark.parametrize("number", [1, 5])
async def test_replay_from_an_invented_run_is_unknown(
    store: RedisEventStore, reader: RedisEventStore, worker: str, number: int
) -> None:
    """It is unknown in the name of a dead worker or of this one."""
    await stored_run(store, 2)
    now = 1_700_000_000_000_000 + 10**15
    name = store._worker.name if worker == "own" else worker
    facts = await store.for_session("s").replay(f"{now}-{number}-{name}ffff", Received(), stream_id="1")
    assert facts.miss is Miss.UNKNOWN
    if worker != "own":
        facts = await reader.for_session("s").replay(f"{now}-{number}-{name}ffff", Received(), stream_id="1")
        assert facts.miss is Miss.UNKNOWN


async def test_replay_of_a_recent_event_is_no_miss_before_it_is_stored(
    store: RedisEventStore, reader: RedisEventStore
) -> None:
    """Its worker was suspended for longer than its lease, has served a request, and not renewed the lease yet."""
    producer = await stored_run(store, 1)
    time, run = producer.ids[0].split("-")[0], "0123456789abffff"
    part = reader.for_session("s")
    assert (await part.replay(f"{time}-1-{run}", Received(), stream_id="1")).miss is None
    assert (await part.follow("1", f"{time}-1-{run}", Received(), limit=1.2)).end is FollowEnd.TIMEOUT
    reader.coordinator.lease = 0.5
    assert (await part.replay(f"{time}-1-{run}", Received(), stream_id="1")).miss is Miss.UNKNOWN


async def test_follow_of_a_recent_event_that_this_worker_lost_ends_without_delay(store: RedisEventStore) -> None:
    """It is neither in memory nor in Redis, and will not be stored."""
    producer = await stored_run(store, 1)
    recent = f"{producer.ids[0].split('-')[0]}-1-{store._worker.name}ffff"
    with in_time(4):
        followed = await store.for_session("s").follow("1", recent, Received(), limit=20)
    assert followed.end is FollowEnd.WORKER_LOST


async def test_follow_of_an_invented_run_of_a_live_worker_ends_after_a_lease(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """Nothing is stored for it."""
    other = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    producer = await stored_run(store, 2)
    forged = f"{producer.ids[0].split('-')[0]}-5-{store._worker.name}ffff"
    async with (
        store.coordinator.hold_lease(LEASE, lambda _: None, nothing),
        other.coordinator.hold_lease(LEASE, lambda _: None, nothing),
    ):
        facts = await other.for_session("s").replay(forged, Received(), stream_id="1")
        assert facts.miss is None
        followed = await other.for_session("s").follow("1", forged, Received(), limit=20)
    assert (followed.end, followed.delivered) == (FollowEnd.WORKER_LOST, 0)
    entries = await redis_client.hkeys(f"{producer.part.key_prefix}requests")
    assert [each.decode() if isinstance(each, bytes) else each for each in entries] == [run_of(producer.ids[0])]


@pytest.mark.parametrize("here", [True, False])
async def test_replay_from_a_cursor_of_another_session_or_stream_delivers_nothing(
    store: RedisEventStore, reader: RedisEventStore, *, here: bool
) -> None:
    """It delivers no event of that run."""
    producer = await stored_run(store, 3)
    await stored_run(store, 3, session="t")
    await stored_run(store, 3, request_id=2)
    await producer.append(answer())
    await producer.outcomes()
    each = store if here else reader
    for session, stream in (("t", "1"), ("s", "2"), ("u", "1"), ("t", GET_STREAM_KEY), ("s", GET_STREAM_KEY)):
        received = Received()
        part = each.for_session(session)
        await part.replay(producer.ids[0], received, stream_id=stream)
        with in_time(5):
            await part.follow(stream, producer.ids[0], received, limit=0.05)
        assert received.contents == [], (session, stream)


async def test_replay_from_an_expired_cursor_is_an_expired_miss(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """A cursor older than the TTL, of an expired run, has an age."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    reader = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    producer = await stored_run(store, 1)
    await producer.append(answer())
    await producer.outcomes()

    async def expired() -> bool:
        return not await redis_client.exists(producer.key)

    await until(expired)
    await anyio.sleep(0.1)
    for each in (store, reader):
        facts, received = await producer.replayed(each)
        assert facts.miss is Miss.EXPIRED
        assert facts.age is not None
        assert 1 <= facts.age < 30
        assert received.ids == []
    await store.flush()


async def test_replay_age_follows_the_clock_of_redis(
    store: RedisEventStore, reader: RedisEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the process does not matter."""
    producer = await stored_run(store, 1)
    monkeypatch.setattr("time.time_ns", lambda: 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    facts, _ = await producer.replayed(reader)
    assert facts.age is not None
    assert facts.age < 60
