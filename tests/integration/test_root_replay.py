"""`replay` of the root store: results, chunks, corrupt and missing rows, cursors."""

import json
import time
from typing import Any

import anyio
import pytest
from mcp.types import ErrorData, JSONRPCError
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.root.chunk_reader import CHUNK_BYTES, CHUNK_EVENTS
from mcp_eventscope.redis.root.scripts import Chunk
from mcp_eventscope.store.messages import GET_STREAM_KEY, EventMessage
from mcp_eventscope.store.results import Miss, ReplayResult
from mcp_eventscope.testing import Collected, on_the_wire
from support.events import change
from support.messages import answer, failure, note
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio

SECOND = 1_000_000


async def stored(store: RedisEventStore, count: int, stream: str = "1") -> list[str]:
    """The ids of a priming event and as many notes."""
    ids = [(await store.append(stream, None)).event_id]
    return ids + [(await store.append(stream, note(i))).event_id for i in range(count)]


def numbers(collected: Collected) -> list[str]:
    """The numbers of the delivered messages."""
    return [data.split('"n":')[1].split(",")[0] for data in collected.data]


# -- facts ------------------------------------------------------------------------------------------------------------


async def test_replay_returns_counts_position_and_age(store: RedisEventStore) -> None:
    """A replay returns its deliveries, their size, its position and the age of the cursor."""
    ids = await stored(store, 2)
    size = sum(len(on_the_wire(note(i)).encode()) for i in range(2))
    facts = await store.replay(ids[0], Collected(), stream_id="1")
    assert facts.age is not None
    assert 0 <= facts.age < 10
    assert facts == ReplayResult(stream_id="1", last_event_id=ids[-1], delivered=2, payload_bytes=size, age=facts.age)


async def test_replay_from_the_last_event_delivers_nothing(store: RedisEventStore) -> None:
    """A client that has missed nothing gets no miss and no gap."""
    ids = await stored(store, 1)
    facts = await store.replay(ids[-1], Collected(), stream_id="1")
    assert facts == ReplayResult(stream_id="1", last_event_id=ids[-1], age=facts.age)


async def test_replay_of_a_known_stream_ends_at_the_response(store: RedisEventStore) -> None:
    """The response completes a request's stream, also as the cursor; later events are not sent."""
    ids = [*await stored(store, 1), (await store.append("1", answer())).event_id]
    await store.append("1", note(2))
    collected = Collected()
    facts = await store.replay(ids[0], collected, stream_id="1")
    assert (facts.completed, facts.delivered, facts.last_event_id) == (True, 2, ids[-1])
    assert collected.ids == ids[1:]
    facts = await store.replay(ids[-1], collected, stream_id="1")
    assert (facts.completed, facts.delivered, facts.miss) == (True, 0, None)


async def test_replay_of_an_unknown_stream_goes_on_past_the_response(store: RedisEventStore) -> None:
    """Through the SDK's interface every stored event is replayed: the SDK decides when a stream ends."""
    ids = await stored(store, 0)
    for message in (answer(), note(1)):
        await store.append("1", message)
    assert (await store.replay(ids[0], Collected())).delivered == 2


@pytest.mark.parametrize("error", [failure(), failure(None)])
async def test_replay_up_to_an_error_is_complete(store: RedisEventStore, error: JSONRPCError) -> None:
    """An error is a response."""
    ids = await stored(store, 0)
    last = await store.append("1", error)
    assert (await store.replay(ids[0], Collected(), stream_id="1")).completed
    assert (await store.replay(last.event_id, Collected(), stream_id="1")).completed


async def test_replay_of_a_standalone_stream_is_never_complete(store: RedisEventStore) -> None:
    """An error on the standalone stream belongs to no request, and ends nothing."""
    ids = await stored(store, 0, GET_STREAM_KEY)
    error = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=-32700, message="no"))
    await store.append(GET_STREAM_KEY, error)
    await store.append(GET_STREAM_KEY, note(1))
    facts = await store.replay(ids[0], Collected(), stream_id=GET_STREAM_KEY)
    assert (facts.completed, facts.delivered) == (False, 2)


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [CHUNK_EVENTS - 1, CHUNK_EVENTS, CHUNK_EVENTS + 1, CHUNK_EVENTS * 2, 700])
async def test_replay_of_many_events_delivers_each_once(store: RedisEventStore, count: int) -> None:
    """Each event is delivered once and in order, wherever the chunks end."""
    ids = await stored(store, count)
    collected = Collected()
    facts = await store.replay(ids[0], collected, stream_id="1")
    assert collected.ids == ids[1:]
    assert (facts.delivered, facts.last_event_id) == (count, ids[-1])


async def test_replay_of_large_events_delivers_them_whole(store: RedisEventStore) -> None:
    """Events larger than a chunk arrive whole and in order."""
    first = await store.append("1", None)
    sizes = [CHUNK_BYTES // 3] * 7 + [CHUNK_BYTES * 2, 1, CHUNK_BYTES - 100, CHUNK_BYTES, CHUNK_BYTES * 3]
    sent = [note(i, "x" * size) for i, size in enumerate(sizes)]
    for message in sent:
        await store.append("1", message)
    collected = Collected()
    facts = await store.replay(first.event_id, collected, stream_id="1")
    assert numbers(collected) == [str(i) for i in range(len(sizes))]
    assert [len(data) for data in collected.data] == [len(on_the_wire(message)) for message in sent]
    assert facts.payload_bytes == sum(len(data) for data in collected.data)


async def test_replay_reads_bounded_chunks(store: RedisEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long replay is read in chunks bounded by number and size, so that Redis is never blocked for long."""
    read, calls = store._reader.read, 0

    async def counted(*arguments: Any) -> Chunk:
        nonlocal calls
        calls += 1
        return await read(*arguments)

    monkeypatch.setattr(store._reader, "read", counted)
    small = await stored(store, CHUNK_EVENTS * 3)
    await store.replay(small[0], Collected())
    assert calls == 4
    large = await stored(store, 0, "2")
    for i in range(6):
        await store.append("2", note(i, "x" * (CHUNK_BYTES // 2 - 1000)))
    await store.replay(large[0], Collected())
    assert calls == 4 + 3


async def test_replay_after_script_flush_continues(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """A replay continues when Redis loses the script between two chunks."""
    ids = await stored(store, CHUNK_EVENTS + 10)
    collected = Collected()

    async def flush(event: EventMessage) -> None:
        await redis_client.script_flush()
        await collected(event)

    await store.replay(ids[0], flush)
    assert collected.ids == ids[1:]


# -- rows that cannot be read -----------------------------------------------------------------------------------------

CORRUPT = {
    "not JSON": b"{not json",
    "not JSON-RPC": b'{"hello":"world"}',
    "not UTF-8": b"\xff\xfe\x00",
    "not UTF-8 within JSON": b'{"jsonrpc":"2.0","method":"\xff"}',
}


@pytest.mark.parametrize("payload", CORRUPT.values(), ids=CORRUPT.keys())
async def test_replay_of_a_corrupt_payload_skips_it(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, payload: bytes
) -> None:
    """A row that is no message is skipped and reported; the rows around it are delivered."""
    ids = await stored(store, 3)
    await change(redis_client, keys.event(ids[2]), payload=payload)
    collected = Collected()
    facts = await store.replay(ids[0], collected)
    assert collected.ids == [ids[1], ids[3]]
    assert (facts.corrupt, facts.missing, facts.gap, facts.miss) == ((ids[2],), 0, False, None)


async def test_replay_to_a_corrupt_last_row_moves_past_it(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Following starts after a corrupt row at the end."""
    ids = await stored(store, 2)
    await change(redis_client, keys.event(ids[2]), payload="{not json")
    assert (await store.replay(ids[0], Collected())).last_event_id == ids[2]


@pytest.mark.parametrize("damage", ["type", "stream", "no stream", "no payload"])
async def test_replay_of_a_corrupt_event_skips_it(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, damage: str
) -> None:
    """A key of another type, of another stream or without a field is skipped alike."""
    ids = await stored(store, 3)
    key = keys.event(ids[2])
    match damage:
        case "type":
            await redis_client.set(key, "text", ex=60)
        case "stream":
            await change(redis_client, key, stream_id="2")
        case "no stream":
            await change(redis_client, key, stream_id=None)
        case _:
            await change(redis_client, key, payload=None)
    collected = Collected()
    facts = await store.replay(ids[0], collected)
    assert collected.ids == [ids[1], ids[3]]
    assert facts.corrupt == (ids[2],)
    assert facts.missing == 0


@pytest.mark.parametrize("stream", ["1", "", "\n", "a\nb", "\n\n1", "final", "é"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "named by the cursor"])
async def test_replay_of_mixed_forms_delivers_each_as_stored(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, stream: str, *, known: bool
) -> None:
    """Small and large events, with and without producer, and foreign spellings are delivered unchanged."""
    producer = f"00-{1:032x}-{2:016x}-01"
    first = (await store.append(stream, None)).event_id
    messages = [note(0), note(1, "x" * 10_000), note(2, "two\nlines"), note(3)]
    ids = [
        (await store.append(stream, message, producer if message is messages[3] else "")).event_id
        for message in messages
    ]
    pretty = json.dumps(json.loads(on_the_wire(note(4))), indent=1)
    ids.append((await store.append(stream, note(0))).event_id)
    await redis_client.delete(keys.event(ids[4]))
    await redis_client.hset(keys.event(ids[4]), mapping={"stream_id": stream, "payload": pretty})
    await redis_client.expire(keys.event(ids[4]), 60)
    collected = Collected()
    facts = await store.replay(first, collected, stream_id=stream if known else None)
    assert collected.ids == ids
    assert collected.data == [on_the_wire(message) for message in (*messages, note(4))]
    assert (facts.corrupt, facts.missing, facts.producers, facts.stream_id) == ((), 0, (producer,), stream)


async def test_replay_of_a_multiline_payload_beside_a_missing_event_keeps_both_apart(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Lines of one payload are not read as another event."""
    ids = await stored(store, 3)
    await redis_client.delete(keys.event(ids[1]), keys.event(ids[2]))
    lines = '{"jsonrpc":"2.0","method":"note","params":{"n":[\n\n1\n]}}'
    await redis_client.hset(keys.event(ids[2]), mapping={"stream_id": "1", "payload": lines, "traceparent": "x\ny"})
    await redis_client.expire(keys.event(ids[2]), 60)
    collected = Collected()
    facts = await store.replay(ids[0], collected, stream_id="1")
    assert (facts.missing, facts.corrupt, collected.ids) == (1, (), ids[2:])
    assert collected.data[0] == lines.replace("\n", "")


async def test_replay_of_an_entry_of_another_stream_is_corrupt(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """An event that names another stream is corrupt, however alike the names are."""
    first = (await store.append("1", None)).event_id
    others = [(await store.append(stream, None)).event_id for stream in ("x1", "\n1", "", "1\n")]
    for event_id in others:
        await redis_client.zadd(keys.stream("1"), {event_id: int(event_id)})
    facts = await store.replay(first, Collected(), stream_id="1")
    assert facts.corrupt == tuple(others)


async def test_replay_from_a_cursor_with_invalid_stream_is_unknown(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A damaged cursor event is an id of no stream, not an error."""
    ids = await stored(store, 1)
    await change(redis_client, keys.event(ids[0]), stream_id=b"\xff\xfe")
    assert (await store.replay(ids[0], Collected(), stream_id="1")).miss is Miss.UNKNOWN


@pytest.mark.parametrize("member", [b"rubbish", b"", b"\xff\xfe", b"-1", b"1.5", b"007", b"9" * 30, b"5"])
@pytest.mark.parametrize("place", ["before", "middle", "end", "infinity"])
async def test_replay_of_an_invalid_index_member_skips_it(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, member: bytes, place: str
) -> None:
    """A member that is no id, or at a wrong place, is skipped, reported once, and no cursor."""
    ids = await stored(store, 3)
    scores = {"before": float(ids[1]) - 0.5, "middle": float(ids[2]) + 0.25, "end": float(ids[3]) + 7}
    await redis_client.zadd(keys.stream("1"), {member: scores.get(place, float("inf"))})
    collected = Collected()
    facts = await store.replay(ids[0], collected, stream_id="1")
    assert collected.ids == ids[1:]
    assert facts.corrupt == (member.decode("utf-8", "replace"),)
    assert facts.last_event_id == ids[-1]
    followed = await store.follow("1", facts.last_event_id, collected, limit=0)
    assert (followed.delivered, followed.last_event_id) == (0, ids[-1])


async def test_replay_of_a_chunk_of_invalid_members_continues(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """More invalid members than a chunk holds neither stop the replay nor make it loop."""
    ids = await stored(store, 1)
    invalid = {f"rubbish{i}": int(ids[-1]) + 1 + i for i in range(CHUNK_EVENTS + 10)}
    await redis_client.zadd(keys.stream("1"), invalid)
    await redis_client.set(keys.counter, int(ids[-1]) + 10**6, ex=60)
    ids.append((await store.append("1", note(2))).event_id)
    collected = Collected()
    with in_time(10):
        facts = await store.replay(ids[0], collected, stream_id="1")
    assert collected.ids == ids[1:]
    assert set(facts.corrupt) == set(invalid)


async def test_replay_of_an_index_of_another_type_is_rejected(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Redis's error is reported as such."""
    ids = await stored(store, 1)
    await redis_client.set(keys.stream("1"), "another's", ex=60)
    with pytest.raises(StoreRejectedError, match=r"could not read from Redis at .*WRONGTYPE"):
        await store.replay(ids[0], Collected())


# -- rows that are missing----------------------------------------------------------------------------------------------


async def test_replay_of_evicted_events_counts_them(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Evicted events count as missing and leave a gap; the others are delivered."""
    ids = await stored(store, 4)
    await redis_client.delete(keys.event(ids[2]), keys.event(ids[3]))
    collected = Collected()
    facts = await store.replay(ids[0], collected)
    assert collected.ids == [ids[1], ids[4]]
    assert (facts.missing, facts.gap, facts.corrupt) == (2, True, ())


@pytest.fixture
def brief(redis_client: aioredis.Redis, key_prefix: str) -> RedisEventStore:
    """The same with a TTL of one second."""
    return RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)


@pytest.mark.usefixtures("leaks")
async def test_replay_past_trimmed_events_has_a_gap(
    brief: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A client whose events expired and were trimmed gets a gap."""
    store = brief
    ids = await stored(store, 2)
    await redis_client.expire(keys.stream("1"), 60)  # as if the stream had been written to ever since

    async def expired() -> bool:
        return not await redis_client.exists(*(keys.event(event_id) for event_id in ids))

    await until(expired)
    kept = await store.append("1", note(3))
    facts = await store.replay(ids[0], Collected(), stream_id="1")
    assert (facts.gap, facts.miss, facts.delivered, facts.last_event_id) == (True, None, 1, kept.event_id)
    assert facts.age is not None
    assert facts.age >= 1
    facts = await store.replay(ids[2], Collected(), stream_id="1")
    assert (facts.gap, facts.miss, facts.delivered) == (False, None, 1)


@pytest.mark.usefixtures("leaks")
async def test_replay_of_an_expired_stream_is_an_expired_miss(
    brief: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """The miss has the age of the client's event."""
    store = brief
    ids = await stored(store, 1)

    async def expired() -> bool:
        return not await redis_client.exists(keys.counter, keys.stream("1"), *map(keys.event, ids))

    await until(expired)
    facts = await store.replay(ids[0], Collected(), stream_id="1")
    assert facts.age is not None
    assert facts == ReplayResult(miss=Miss.EXPIRED, age=facts.age)
    assert facts.age >= 1


async def test_replay_from_an_expired_cursor_of_a_live_stream_delivers_the_rest(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """Only the cursor's own event has expired, and the stream's name is known from elsewhere."""
    ids = await stored(store, 2)
    await redis_client.delete(keys.event(ids[0]))
    collected = Collected()
    facts = await store.replay(ids[0], collected, stream_id="1")
    assert collected.ids == ids[1:]
    assert (facts.gap, facts.missing, facts.miss) == (False, 0, None)
    assert (await store.replay(ids[0], collected)).miss is Miss.UNKNOWN


async def test_replay_from_a_damaged_cursor_needs_the_stream(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A damaged cursor names no stream; where the stream is given, the rest is delivered."""
    ids = await stored(store, 2)
    await redis_client.set(keys.event(ids[0]), "text", ex=60)
    collected = Collected()
    assert (await store.replay(ids[0], collected)).miss is Miss.UNKNOWN
    assert (await store.replay(ids[0], collected, stream_id="1")).miss is None
    assert collected.ids == ids[1:]


async def test_replay_from_a_cursor_older_than_the_ttl_has_a_gap(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """It delivers the stored events with a gap."""
    (fresh,) = await stored(store, 0)
    last = await store.append("1", note(0))
    old = int(fresh) - ((store.ttl or 0) + 60) * SECOND
    collected = Collected()
    facts = await store.replay(str(old), collected, stream_id="1")
    assert (facts.miss, facts.gap) == (None, True)
    assert collected.ids == [last.event_id]
    await redis_client.delete(keys.stream("1"))
    assert (await store.replay(str(old), collected, stream_id="1")).miss is Miss.EXPIRED


async def test_replay_after_the_index_was_evicted_has_a_gap(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A new index does not hide that events were lost."""
    ids = await stored(store, 2)
    await redis_client.delete(keys.stream("1"))
    last = await store.append("1", note(9))
    collected = Collected()
    facts = await store.replay(ids[0], collected)
    assert collected.ids == [last.event_id]
    assert facts.gap


async def test_replay_after_a_counter_rollback_finds_the_events(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """A stored event has been given out, whatever the counter shows since."""
    ids = await stored(store, 2)
    await redis_client.set(keys.counter, 5, ex=60)
    for stream_id in (None, "1"):
        collected = Collected()
        assert (await store.replay(ids[0], collected, stream_id=stream_id)).miss is None
        assert collected.ids == ids[1:]
    await redis_client.delete(keys.event(ids[0]))
    assert (await store.replay(ids[0], Collected(), stream_id="1")).delivered == 2


# -- ids from outside -------------------------------------------------------------------------------------------------

HOSTILE = [
    "",
    "0",
    "-1",
    "+1",
    "01",
    "1.0",
    "1e3",
    "NaN",
    "inf",
    "\u0661",
    "abc",
    "1\n",
    "1\x00",
    "%31",
    "%",
    "*",
    "9" * 19,
    "1" * 10_000,
    "x" * 10_000,
]


@pytest.mark.parametrize("stream_id", [None, "1", "2"])
async def test_replay_from_invalid_text_is_malformed(store: RedisEventStore, stream_id: str | None) -> None:
    """A text that is no id of this layout is malformed, and Redis is not asked."""
    await stored(store, 1)
    collected = Collected()
    for text in HOSTILE:
        assert await store.replay(text, collected, stream_id=stream_id) == ReplayResult(miss=Miss.MALFORMED), text[:20]
    assert collected.ids == []


@pytest.mark.parametrize("stream_id", [None, "1", "2"])
async def test_replay_from_an_id_never_given_out_is_unknown(store: RedisEventStore, stream_id: str | None) -> None:
    """An id between, before or beyond those of the store delivers nothing."""
    ids = await stored(store, 1)
    collected = Collected()
    for number in (1, int(ids[0]) - 1, int(ids[0]) + 1, int(ids[-1]) + 1, int(ids[-1]) + 3600 * SECOND, 10**18 - 1):
        if str(number) not in ids:
            facts = await store.replay(str(number), collected, stream_id=stream_id)
            assert facts == ReplayResult(miss=Miss.UNKNOWN), number
    assert collected.ids == []


async def test_replay_from_an_id_of_another_stream_is_unknown(store: RedisEventStore) -> None:
    """An id of another stream than the given one reads neither."""
    mine, other = await stored(store, 1, "1"), await stored(store, 1, "2")
    collected = Collected()
    assert (await store.replay(other[0], collected, stream_id="1")).miss is Miss.UNKNOWN
    assert (await store.replay(mine[0], collected, stream_id="2")).miss is Miss.UNKNOWN
    assert collected.ids == []


async def test_replay_of_a_stream_with_empty_name_works(store: RedisEventStore) -> None:
    """The empty string is a stream like any other."""
    ids = await stored(store, 2, "")
    for stream_id in (None, ""):
        collected = Collected()
        assert (await store.replay(ids[0], collected, stream_id=stream_id)).stream_id == ""
        assert collected.ids == ids[1:]
    assert (await store.replay(ids[0], Collected(), stream_id="1")).miss is Miss.UNKNOWN


# -- callbacks --------------------------------------------------------------------------------------------------------


async def test_replay_when_callback_raises_passes_it_on(store: RedisEventStore) -> None:
    """The exception is passed on unchanged, and the client stays usable."""
    ids = await stored(store, CHUNK_EVENTS + 5)
    collected = Collected()

    async def break_off(event: EventMessage) -> None:
        await collected(event)
        if len(collected.ids) == CHUNK_EVENTS + 1:
            raise anyio.BrokenResourceError

    with pytest.raises(anyio.BrokenResourceError):
        await store.replay(ids[0], break_off)
    assert collected.ids == ids[1 : CHUNK_EVENTS + 2]
    assert (await store.replay(ids[0], Collected())).delivered == CHUNK_EVENTS + 5


async def test_replay_age_follows_the_clock_of_redis(store: RedisEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with a wrong clock does not take its clients' events to be expired."""
    ids = await stored(store, 1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10**6)
    facts = await store.replay(ids[0], Collected())
    assert facts.age is not None
    assert facts.age < 60
