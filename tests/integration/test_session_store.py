"""A session's store on a real Valkey: events are stored once, in order."""

from collections.abc import AsyncIterator

import anyio
import pytest
from mcp.types import JSONRPCMessage
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.element import LARGE_PAYLOAD
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.redis.write import session_writer
from mcp_eventscope.store.events import EventsLost, LossReason, StoreEvent
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import FollowEnd, Miss, StoreOutcome
from mcp_eventscope.testing import Collected, on_the_wire
from support.leaks import LeakChecker
from support.messages import answer, note
from support.valkeys import own_valkey
from support.waiting import in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]

TTL = 600
SESSION = "s"
STREAM = "1"


@pytest.fixture
async def stores(
    redis_client: aioredis.Redis, key_prefix: str
) -> AsyncIterator[tuple[RedisEventStore, RedisEventStore]]:
    """Two stores of two workers, on one Redis."""
    first, second = (RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL) for _ in range(2))
    yield first, second
    for each in (first, second):
        await each.flush()


@pytest.fixture
def facts(stores: tuple[RedisEventStore, RedisEventStore]) -> list[StoreEvent]:
    """The background events of the first store."""
    observed: list[StoreEvent] = []
    stores[0].observe(observed.append)
    return observed


@pytest.fixture
def part(stores: tuple[RedisEventStore, RedisEventStore]) -> RedisSessionStore:
    """The session's part of the first store, which runs a request."""
    part = stores[0].for_session(SESSION)
    part.begin(STREAM, 1)
    return part


@pytest.fixture
def other(stores: tuple[RedisEventStore, RedisEventStore]) -> RedisSessionStore:
    """The session's part of the second store."""
    return stores[1].for_session(SESSION)


@pytest.fixture
def keys(key_prefix: str) -> Keys:
    """The session's keys."""
    return Keys(key_prefix).for_session(SESSION)


async def append_all(part: RedisSessionStore, *messages: JSONRPCMessage | None, stream: str = STREAM) -> list[str]:
    """Append messages. Returns their ids."""
    return [(await part.append(stream, message)).event_id for message in messages]


async def only_list(client: aioredis.Redis, keys: Keys) -> str:
    """The key of the session's one list."""
    (key,) = await client.keys(keys.stream(STREAM) + ":*")
    return key if isinstance(key, str) else key.decode()


async def test_events_are_read_on_every_worker_once_in_order(
    stores: tuple[RedisEventStore, RedisEventStore], part: RedisSessionStore, other: RedisSessionStore
) -> None:
    """After each event the rest is read with its ids, by either worker, before and after storage."""
    messages = [None, *(note(n) for n in range(40)), note(40, "x" * (LARGE_PAYLOAD + 1)), answer()]
    ids = await append_all(part, *messages)
    assert [event_id.split("-")[1] for event_id in ids] == [str(n + 1) for n in range(len(ids))]
    for settled in (False, True):
        if settled:
            await stores[0].flush()
        for position in range(len(ids)):
            for reader in (part, other) if settled else (part,):
                collected = Collected()
                replayed = await reader.replay(ids[position], collected, stream_id=STREAM)
                assert collected.ids == ids[position + 1 :]
                assert collected.data == [on_the_wire(each) for each in messages[position + 1 :] if each is not None]
                assert (replayed.gap, replayed.miss, replayed.completed) == (False, None, True)


async def test_session_part_leaves_a_ttl_on_every_key(
    stores: tuple[RedisEventStore, RedisEventStore], part: RedisSessionStore, leaks: LeakChecker, keys: Keys
) -> None:
    """Lists, large payloads, running requests and the standalone stream expire."""
    await append_all(part, None, note(1, "x" * 10_000))
    await append_all(part, note(2), stream=GET_STREAM_KEY)
    await stores[0].flush()
    assert keys.requests in await leaks.keys()
    assert len(await leaks.keys()) == 5
    assert await leaks.leaked() == []
    await append_all(part, answer())
    await stores[0].flush()
    assert await leaks.leaked() == []


async def test_running_request_is_named_until_its_response(
    stores: tuple[RedisEventStore, RedisEventStore], part: RedisSessionStore, redis_client: aioredis.Redis, keys: Keys
) -> None:
    """The entry has the id as it was sent."""
    part.begin("~7", "7")
    await append_all(part, None, stream="~7")
    await stores[0].flush()
    (entry,) = await redis_client.hvals(keys.requests)
    assert (entry if isinstance(entry, str) else entry.decode()) == 'r ~7 "7"'
    await append_all(part, answer(), stream="~7")
    await stores[0].flush()
    assert not await redis_client.exists(keys.requests)


async def test_append_outside_an_open_request_is_refused(part: RedisSessionStore) -> None:
    """A request id that is used again has a new run."""
    (first, _) = await append_all(part, None, answer())
    late = await part.append(STREAM, note(1))
    assert (late.refused, late.event_id) == (True, "")
    part.begin(STREAM, 1)
    (again, _) = await append_all(part, None, note(2))
    collected = Collected()
    assert (await part.replay(first, collected, stream_id=STREAM)).completed
    assert len(collected.ids) == 1
    collected = Collected()
    assert not (await part.replay(again, collected, stream_id=STREAM)).completed
    assert collected.data == [on_the_wire(note(2))]


async def test_begin_of_a_running_request_id_ends_the_older_request(part: RedisSessionStore) -> None:
    """The older stream ends with an error that has its id."""
    (first,) = await append_all(part, None)
    part.begin(STREAM, 1)
    collected = Collected()
    assert (await part.replay(first, collected, stream_id=STREAM)).completed
    assert '"error"' in collected.data[0]


async def test_response_without_json_form_is_replaced_by_an_error(
    stores: tuple[RedisEventStore, RedisEventStore], part: RedisSessionStore, other: RedisSessionStore
) -> None:
    """The stream has an end, and the transport gets the same error."""
    (first,) = await append_all(part, None)
    response = answer()
    response.result["text"] = "\ud800"
    appended = await part.append(STREAM, response)
    assert appended.pending is not None
    assert b'"error"' in appended.pending.payload
    await stores[0].flush()
    collected = Collected()
    assert (await other.replay(first, collected, stream_id=STREAM)).completed
    assert '"error"' in collected.data[0]


async def test_append_after_script_flush_loses_nothing(
    stores: tuple[RedisEventStore, RedisEventStore],
    part: RedisSessionStore,
    other: RedisSessionStore,
    redis_client: aioredis.Redis,
) -> None:
    """A `SCRIPT FLUSH` between two commits loses nothing."""
    (first,) = await append_all(part, None)
    await stores[0].flush()
    await redis_client.script_flush()
    ids = await append_all(part, note(1), answer())
    await stores[0].flush()
    collected = Collected()
    await other.replay(first, collected, stream_id=STREAM)
    assert collected.ids == ids


async def test_lost_data_is_committed_again_from_memory(  # noqa: PLR0913, PLR0917 - fixtures
    stores: tuple[RedisEventStore, RedisEventStore],
    part: RedisSessionStore,
    other: RedisSessionStore,
    redis_client: aioredis.Redis,
    facts: list[StoreEvent],
    leaks: LeakChecker,
    keys: Keys,
) -> None:
    """Redis has lost everything: events in memory are stored again, also of finished requests."""
    part.begin("2", 2)
    running = await append_all(part, None, note(1))
    finished = await append_all(part, None, answer(), stream="2")
    await until(lambda: not stores[0].backlog.events)
    await redis_client.delete(*await leaks.keys())
    stores[0]._session_writer.verify()

    async def is_back() -> bool:
        return len(await redis_client.keys(keys.prefix + "stream:*")) == 2 and not stores[0].backlog.events

    await until(is_back)
    for stream, ids in ((STREAM, running), ("2", finished)):
        collected = Collected()
        replayed = await other.replay(ids[0], collected, stream_id=stream)
        assert (collected.ids, replayed.gap, replayed.miss) == (ids[1:], False, None)
        assert replayed.completed is (stream == "2")
    assert not [fact for fact in facts if isinstance(fact, EventsLost)]


async def test_lost_data_that_is_not_in_memory_is_a_gap(  # noqa: PLR0913, PLR0917 - fixtures
    stores: tuple[RedisEventStore, RedisEventStore],
    part: RedisSessionStore,
    other: RedisSessionStore,
    redis_client: aioredis.Redis,
    facts: list[StoreEvent],
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A placeholder keeps the numbers dense, the loss is reported, and a replay has a gap."""
    monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)
    first, _, _ = await append_all(part, None, note(1), note(2))
    await until(lambda: not stores[0].backlog.events)
    await redis_client.delete(await only_list(redis_client, keys))
    last = await append_all(part, note(3), answer())
    await until(lambda: not stores[0].backlog.events)
    (lost,) = [fact for fact in facts if isinstance(fact, EventsLost)]
    assert (lost.reason, lost.events) == (LossReason.ROLLBACK, 3)
    collected = Collected()
    replayed = await other.replay(first, collected, stream_id=STREAM)
    assert (replayed.gap, replayed.missing, replayed.completed) == (True, 2, True)
    assert collected.ids == last


async def test_key_of_another_type_loses_that_run_only(  # noqa: PLR0913, PLR0917 - fixtures
    stores: tuple[RedisEventStore, RedisEventStore],
    part: RedisSessionStore,
    other: RedisSessionStore,
    redis_client: aioredis.Redis,
    facts: list[StoreEvent],
    keys: Keys,
) -> None:
    """Its events are reported lost, and those of other requests are stored."""
    part.begin("2", 2)
    await append_all(part, None)
    await until(lambda: not stores[0].backlog.events)
    key = await only_list(redis_client, keys)
    await redis_client.delete(key)
    await redis_client.set(key, "x", ex=TTL)
    refused = await part.append(STREAM, note(1))
    (first, last) = await append_all(part, None, answer(), stream="2")
    assert refused.pending is not None
    assert await refused.pending.acknowledged() is StoreOutcome.LOST
    await stores[0].flush()
    assert [fact.reason for fact in facts if isinstance(fact, EventsLost)] == [LossReason.REJECTED]
    collected = Collected()
    await other.replay(first, collected, stream_id="2")
    assert collected.ids == [last]


async def test_expired_elements_are_trimmed_but_never_the_last(
    redis_client: aioredis.Redis, key_prefix: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long call's first events expire; a client that resumes from them gets the rest, and a gap."""
    monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    part = store.for_session(SESSION)
    part.begin(STREAM, 1)
    first, _ = await append_all(part, None, note(1))
    await until(lambda: not store.backlog.events)
    key = await only_list(redis_client, keys)
    await redis_client.persist(key)  # As a renewal would keep it.
    await anyio.sleep(1.1)
    assert await redis_client.llen(key) == 2
    (last,) = await append_all(part, note(2))
    await until(lambda: not store.backlog.events)
    assert await redis_client.llen(key) == 2, "the last element before the commit stays"
    collected = Collected()
    replayed = await part.replay(first, collected, stream_id=STREAM)
    assert collected.ids[-1] == last
    assert replayed.gap is (len(collected.ids) == 1)
    await store.flush()


async def test_replay_counts_missing_and_corrupt_payloads(
    stores: tuple[RedisEventStore, RedisEventStore],
    part: RedisSessionStore,
    other: RedisSessionStore,
    redis_client: aioredis.Redis,
    keys: Keys,
) -> None:
    """They are skipped, and the rest is delivered."""
    first, large, corrupt, last = await append_all(part, None, note(1, "x" * 10_000), note(2), answer())
    await stores[0].flush()
    await redis_client.delete(*await redis_client.keys(f"{keys.prefix}large:*"))
    await redis_client.lset(await only_list(redis_client, keys), 2, "3 1\n{")
    collected = Collected()
    replayed = await other.replay(first, collected, stream_id=STREAM)
    assert collected.ids == [last]
    assert (replayed.missing, len(replayed.corrupt), replayed.gap, replayed.completed) == (1, 1, True, True)
    assert {event.split("-")[1] for event in (large, corrupt)} == {"2", "3"}


@pytest.mark.parametrize("run", ["0123456789ab1", "nonsense", ""])
async def test_replay_from_a_cursor_of_no_run_is_a_miss(other: RedisSessionStore, run: str) -> None:
    """It writes nothing."""
    replayed = await other.replay(f"1795845548571888-7-{run}", Collected(), stream_id=STREAM)
    assert replayed.miss in {Miss.EXPIRED, Miss.MALFORMED}


async def test_standalone_stream_merges_the_messages_of_all_workers_once(
    part: RedisSessionStore, other: RedisSessionStore
) -> None:
    """The first reader reads from the start; a cursor names a position on each worker."""
    await append_all(part, note(0), stream=GET_STREAM_KEY)
    cursor = await other.open_standalone()
    collected = Collected()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: other.follow(GET_STREAM_KEY, cursor, collected, limit=30))
        await until(lambda: len(collected.ids) == 1)
        for number, writer in enumerate((other, part, other, part), 1):
            await append_all(writer, note(number), stream=GET_STREAM_KEY)
            await until(lambda: len(collected.ids) == number + 1)  # noqa: B023 - awaited here
        tasks.cancel_scope.cancel()
    assert collected.data == [on_the_wire(note(number)) for number in range(5)]
    for reader in (part, other):
        for position, event_id in enumerate(collected.ids):
            rest = Collected()
            await reader.replay(event_id or "", rest, stream_id=GET_STREAM_KEY)
            assert sorted(rest.data) == sorted(collected.data[position + 1 :])
    later = Collected()
    await other.replay(await other.open_standalone(), later, stream_id=GET_STREAM_KEY)
    assert later.data == [], "a later one reads from now"


async def test_request_of_an_expired_worker_is_answered_once_and_fenced(
    stores: tuple[RedisEventStore, RedisEventStore], part: RedisSessionStore, other: RedisSessionStore
) -> None:
    """The worker's own response is refused, and its stream is closed."""
    fenced: list[str] = []
    part.bind(ended=lambda: None, fenced=fenced.append)
    first, last = await append_all(part, None, note(1))
    await until(lambda: not stores[0].backlog.events)

    async def nothing() -> None:
        """Nothing to publish again."""

    async with stores[1].coordinator.hold_lease(0.3, lambda _: None, nothing):
        collected = Collected()
        with in_time(20):
            followed = await other.follow(STREAM, first, collected, limit=30)
    assert (followed.end, followed.orphaned) == (FollowEnd.COMPLETED, True)
    assert collected.ids == [last, None]
    assert '"id":1' in collected.data[1]
    late = await part.append(STREAM, answer())
    assert late.pending is not None
    assert await late.pending.acknowledged() is StoreOutcome.REFUSED
    assert fenced == [STREAM]
    again = Collected()
    assert (await other.replay(first, again, stream_id=STREAM)).completed
    assert again.data == collected.data


async def test_follower_on_the_same_worker_needs_no_redis(key_prefix: str) -> None:
    """It gets each event with its id in an outage; afterwards Redis has them, once."""
    with own_valkey() as server:
        async with connect(server.url) as client:
            store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL)
            part = store.for_session(SESSION)
            part.begin(STREAM, 1)
            (first,) = await append_all(part, None)
            await until(lambda: not store.backlog.events)
            server.kill()
            collected = Collected()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: part.follow(STREAM, first, collected, limit=30))
                ids = await append_all(part, *(note(n) for n in range(20)), answer())
                with in_time(5):
                    await until(lambda: len(collected.ids) == 21)
            assert collected.ids == ids
            await anyio.to_thread.run_sync(server.start)
            await until(lambda: not store.backlog.events and store.backlog.failure is None)
            reader = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL).for_session(SESSION)
            stored = Collected()
            assert (await reader.replay(first, stored, stream_id=STREAM)).completed
            assert stored.events == collected.events
            await store.flush()


async def test_dropped_events_are_a_gap_with_an_end(key_prefix: str) -> None:
    """Beyond the bound whole requests are dropped, oldest first, with an error as the response."""
    with own_valkey() as server:
        async with connect(server.url) as client:
            store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, backlog_bytes=40_000)
            observed: list[StoreEvent] = []
            store.observe(observed.append)
            part = store.for_session(SESSION)
            cursors = {}
            for name in ("1", "2"):
                part.begin(name, int(name))
                (cursors[name],) = await append_all(part, None, stream=name)
            await until(lambda: not store.backlog.events)
            server.kill()
            await until(lambda: store.backlog.failure is not None or part.append(GET_STREAM_KEY, note(0)))
            for name in ("1", "2"):
                await append_all(part, *(note(n, "x" * 1000) for n in range(20)), answer(), stream=name)
            lost = sum(fact.events for fact in observed if isinstance(fact, EventsLost))
            assert lost > 0
            await anyio.to_thread.run_sync(server.start)
            await until(lambda: not store.backlog.events and store.backlog.failure is None)
            reader = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL).for_session(SESSION)
            dropped, kept = Collected(), Collected()
            gap = await reader.replay(cursors["1"], dropped, stream_id="1")
            whole = await reader.replay(cursors["2"], kept, stream_id="2")
            assert (gap.gap, gap.completed) == (True, True)
            assert '"error"' in dropped.data[-1]
            assert (whole.gap, whole.completed, len(kept.ids)) == (False, True, 21)
            await store.flush()
