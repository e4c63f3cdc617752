"""Damaged and foreign elements of a list: a replay counts them, and ends."""

import asyncio

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.read.cursor import parse
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.store.events import EventsLost, ForeignElementsRemoved, StoreEvent
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import FollowEnd, Gap, Miss, ReplayResult
from mcp_eventscope.testing import Collected
from support.leaks import LeakChecker
from support.messages import answer, note
from support.waiting import CEILING, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]

TTL = 60
DAMAGED = {
    "no JSON": b"3 1\n{",
    "not UTF-8": b'3 1\n{"jsonrpc":"2.0","method":"\xff"}',
    "no JSON-RPC": b'3 1\n{"hello":"world"}',
    "no time": b"3\n",
    "time that is no number": b"3 x\n",
    "first number that is no number": b"3 1 lx\n",
    "size that is no number": b"3 1 gx\n",
    "mark without a number": b"3 1 l g\n",
}


@pytest.fixture
def reader(redis_client: aioredis.Redis, key_prefix: str) -> RedisSessionStore:
    """The session's part of another worker's store."""
    return RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL).for_session("s")


async def stored(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, *, final: bool
) -> tuple[list[str], str]:
    """The ids of a run of five events, and the key of its list."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    part = store.for_session("s")
    part.begin("1", 1)
    messages = [None, note(2), note(3), note(4), answer() if final else note(5)]
    ids = [(await part.append("1", message)).event_id for message in messages]
    assert await store.flush(5) == 0
    (key,) = [key for key in await leaks.keys() if ":stream:1:" in key]
    return ids, key


async def replayed(reader: RedisSessionStore, cursor: str, collected: Collected) -> ReplayResult:
    """A replay, which must end."""
    with in_time(5):
        return await reader.replay(cursor, collected, stream_id="1")


@pytest.mark.parametrize("damage", DAMAGED)
async def test_replay_of_a_damaged_element_counts_it(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, damage: str
) -> None:
    """It is skipped; the events before and after it are delivered."""
    ids, key = await stored(redis_client, key_prefix, leaks, final=True)
    await redis_client.lset(key, 2, DAMAGED[damage])  # type: ignore[arg-type]
    collected = Collected()
    facts = await replayed(reader, ids[0], collected)
    assert collected.ids == [ids[1], *ids[3:]]
    assert facts.missing + len(facts.corrupt) == 1
    assert (facts.miss, facts.completed) == (None, True)


@pytest.mark.parametrize("damage", DAMAGED)
async def test_replay_to_a_damaged_last_element_ends(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, damage: str
) -> None:
    """It is not read again and again, and following ends at its limit."""
    ids, key = await stored(redis_client, key_prefix, leaks, final=False)
    await redis_client.lset(key, 4, DAMAGED[damage].replace(b"3", b"5", 1))  # type: ignore[arg-type]
    collected = Collected()
    facts = await replayed(reader, ids[0], collected)
    assert collected.ids == ids[1:4]
    assert facts.missing + len(facts.corrupt) == 1
    with in_time(5):
        followed = await reader.follow("1", facts.last_event_id, collected, limit=0.1)
    assert followed.delivered == 0


@pytest.mark.parametrize("invalid", [b"", b"\n", b"rubbish", b"-1 1\n", b"\xff\xfe", b"99999999999999999999 1\n"])
@pytest.mark.parametrize("place", [0, 2, 4])
async def test_replay_of_an_element_without_a_number_ends(  # noqa: PLR0913, PLR0917 - fixtures
    redis_client: aioredis.Redis,
    key_prefix: str,
    leaks: LeakChecker,
    reader: RedisSessionStore,
    invalid: bytes,
    place: int,
) -> None:
    """It is no event, and no event is delivered twice."""
    ids, key = await stored(redis_client, key_prefix, leaks, final=True)
    await redis_client.lset(key, place, invalid)  # type: ignore[arg-type]
    collected = Collected()
    await replayed(reader, ids[0], collected)
    assert len(set(collected.ids)) == len(collected.ids)
    assert set(collected.ids) <= set(ids)


async def test_replay_of_more_invalid_elements_than_a_chunk_ends(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore
) -> None:
    """All elements of a chunk are invalid, and more follow."""
    ids, key = await stored(redis_client, key_prefix, leaks, final=False)
    await redis_client.rpush(key, *[b"rubbish"] * 600, b"6 1\n{}")
    collected = Collected()
    await replayed(reader, ids[0], collected)
    assert collected.ids == ids[1:]


@pytest.mark.parametrize("size", [1, 4097])
async def test_replay_of_a_missing_large_payload_counts_it(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, size: int
) -> None:
    """It was evicted, or its key has another type: a gap of one event."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    part = store.for_session("s")
    part.begin("1", 1)
    messages = [None, note(1, "x" * 5000), note(2, "x" * 5000), note(3), answer()]
    ids = [(await part.append("1", message)).event_id for message in messages]
    assert await store.flush(5) == 0
    first, second = sorted(key for key in await leaks.keys() if ":large:" in key)
    await redis_client.delete(first, second)
    await redis_client.hset(second, "x", "x" * size)
    await redis_client.expire(second, TTL)
    collected = Collected()
    facts = await replayed(reader, ids[0], collected)
    assert collected.ids == ids[3:]
    assert (facts.missing, facts.gap, facts.completed) == (2, True, True)
    assert facts.gaps == {Gap.STORE_LOST: 2}


@pytest.mark.parametrize("foreign", [b"6 1\n{}", b"9 1 f\n{}", b"rubbish"])
async def test_events_after_an_element_of_another_program_are_stored(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, foreign: bytes
) -> None:
    """The worker removes the element, reports it, and loses nothing."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    facts: list[StoreEvent] = []
    store.observe(facts.append)
    part = store.for_session("s")
    part.begin("1", 1)
    ids = [(await part.append("1", message)).event_id for message in (None, note(2), note(3))]
    assert await store.flush(5) == 0
    (key,) = [key for key in await leaks.keys() if ":stream:1:" in key]
    await redis_client.rpush(key, foreign)
    ids += [(await part.append("1", message)).event_id for message in (note(4), note(5), answer())]
    assert await store.flush(5) == 0
    assert [fact.elements for fact in facts if isinstance(fact, ForeignElementsRemoved)] == [1]
    assert not [fact for fact in facts if isinstance(fact, EventsLost)]
    collected = Collected()
    replay = await replayed(reader, ids[0], collected)
    assert collected.ids == ids[1:]
    assert (replay.missing, replay.corrupt, replay.completed) == (0, (), True)


HOSTILE = [
    "",
    "0",
    "1-1",
    "1-1-",
    "-1-1-0123456789ab1",
    "1-0x1-0123456789ab1",
    "01-1-0123456789ab1",
    "1-01-0123456789ab1",
    "1-1-0123456789AB1",
    "1-1-0123456789ab1~",
    "1-1-0123456789ab1~1-0123456789ab1",
    "1-1-0123456789ab1~2-x",
    "1-1-0123456789ab" + "1" * 17,
    "9" * 19 + "-1-0123456789ab1",
    "1-" + "9" * 17 + "-0123456789ab1",
    "1-1-0123456789ab1\n",
    "1-1-0123456789ab1 ",
    "\u0661-1-0123456789ab1",
    "*-*-*",
    "x" * 100_000,
]


@pytest.mark.parametrize("stream_id", [None, "1", "2", "_GET_stream", "", "*", "1:0123456789ab1"])
async def test_replay_from_invalid_text_is_malformed(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, stream_id: str | None
) -> None:
    """It reads nothing, and writes nothing."""
    await stored(redis_client, key_prefix, leaks, final=True)
    before = await leaks.keys()
    for text in HOSTILE:
        collected = Collected()
        assert (await reader.replay(text, collected, stream_id=stream_id)).miss is Miss.MALFORMED, text[:40]
        followed = await reader.follow(stream_id or "1", text, collected, limit=0)
        assert (followed.delivered, followed.failures, collected.ids) == (0, 0, [])
    assert await leaks.keys() == before


async def test_replay_from_a_cursor_never_given_out_reads_nothing(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore
) -> None:
    """Other streams, other sessions and later numbers are not read; nothing is written."""
    ids, _ = await stored(redis_client, key_prefix, leaks, final=True)
    run = ids[0].split("-")[2]
    other = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL).for_session("t")
    before = await leaks.keys()
    collected = Collected()
    for part, stream, cursor in (
        (reader, "2", ids[0]),
        (reader, "2", ids[-1]),
        (other, "1", ids[0]),
        (reader, "1", f"1-1-{'0' * 12}1"),
        (reader, "1", f"1-{2**52}-{run}"),
    ):
        facts = await part.replay(cursor, collected, stream_id=stream)
        assert facts.miss in {Miss.UNKNOWN, Miss.EXPIRED} or facts.delivered == 0
        assert collected.ids == []
    assert await leaks.keys() == before


@pytest.mark.parametrize("entry", [b"r 1", b"r 1 {", b"r 1 [1]", b"r 1 true", b"r 1 null", b"r "])
async def test_follow_of_a_dead_workers_damaged_request_ends(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, entry: bytes
) -> None:
    """Its request id is unknown: the client is answered as if nothing were left of the request."""
    ids, _ = await stored(redis_client, key_prefix, leaks, final=False)
    await redis_client.hset(f"{key_prefix}{{s}}:requests", ids[0].split("-")[2], entry)
    with in_time(10):
        followed = await reader.follow("1", ids[-1], Collected(), limit=CEILING)
    assert followed.end is FollowEnd.WORKER_LOST


@pytest.mark.parametrize("entry", [b"a ", b"a 5", b"a 5 ", b"a 5 {", b"a x {}"])
async def test_replay_of_a_damaged_answer_ends(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, entry: bytes
) -> None:
    """The answer counts as a missing event, and the stream is complete: no event will follow."""
    ids, _ = await stored(redis_client, key_prefix, leaks, final=False)
    await redis_client.hset(f"{key_prefix}{{s}}:requests", ids[0].split("-")[2], entry)
    facts = await replayed(reader, ids[-1], Collected())
    assert (facts.completed, facts.gaps) == (True, {Gap.STORE_LOST: 1})


@pytest.mark.parametrize(
    ("run", "entry"),
    [("a b", b"s 5"), ("x", b"s 5"), ("", b"s 5"), ("0123456789ab1", b"s " + b"9" * 5000), ("\u00e9", b"s 1")],
)
async def test_standalone_stream_beside_a_foreign_entry_is_read(
    redis_client: aioredis.Redis, key_prefix: str, reader: RedisSessionStore, run: str, entry: bytes
) -> None:
    """An entry of another program is no run: the stream is opened, replayed and followed without it."""
    part = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    session = part.for_session("s")
    first = (await session.append(GET_STREAM_KEY, note(1))).event_id
    last = (await session.append(GET_STREAM_KEY, note(2))).event_id
    assert await part.flush(5) == 0
    await redis_client.hset(f"{key_prefix}{{s}}:requests", run, entry)
    collected = Collected()
    facts = await reader.replay(first, collected, stream_id=GET_STREAM_KEY)
    assert (collected.ids, facts.missing) == ([last], 0)
    assert parse(await reader.open_standalone()) is not None


async def test_followers_beside_a_damaged_session_are_answered(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """One script polls all followers: keys of another type in one session must not fail it for the others."""
    ids, _ = await stored(redis_client, key_prefix, leaks, final=False)
    dead = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    request = dead.for_session("t")
    request.begin("1", 1)
    cursor = (await request.append("1", None)).event_id
    assert await dead.flush(5) == 0
    root = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL)
    async with asyncio.TaskGroup() as tasks:
        damaged = tasks.create_task(root.for_session("s").follow("1", ids[-1], Collected(), limit=CEILING))
        await until(lambda: root._sessions.followers._followers)
        for key in (f"{key_prefix}{{s}}:requests", next(key for key in await leaks.keys() if "{s}:stream:1:" in key)):
            await redis_client.delete(key)
            await redis_client.set(key, "of another program", ex=TTL)
        followed = await root.for_session("t").follow("1", cursor, Collected(), limit=CEILING)
        damaged.cancel()
        with in_time(10):
            await asyncio.wait({damaged})
    assert (followed.end, followed.orphaned) == (FollowEnd.COMPLETED, True)


@pytest.mark.parametrize("time", [b"0", b"-1", b"007", b"9" * 19, b"9" * 5000])
async def test_event_with_a_damaged_time_has_an_id_that_resumes(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, reader: RedisSessionStore, time: bytes
) -> None:
    """A client that received it can continue after it."""
    ids, key = await stored(redis_client, key_prefix, leaks, final=True)
    payload = b'{"jsonrpc":"2.0","method":"note","params":{"n":3,"text":""}}'
    await redis_client.lset(key, 2, b"3 " + time + b"\n" + payload)  # type: ignore[arg-type]
    collected = Collected()
    await replayed(reader, ids[0], collected)
    assert all(parse(event_id or "") is not None for event_id in collected.ids)
    assert collected.ids[0] == ids[1]
    assert collected.ids[-2:] == ids[3:]
