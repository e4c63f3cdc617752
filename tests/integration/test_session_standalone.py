"""A session's standalone stream merges a run of each worker."""

import gc
import re
import weakref
from collections.abc import AsyncIterator

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.redis import session_store
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.redis.write import session_writer
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import FollowEnd, Miss
from support.messages import answer, note
from support.proxy import Proxy
from support.servers import Valkey
from support.session_producers import Received, elements, run_of
from support.stores import until_settled
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio

TTL = 600
A_LEASE = 11_000_000
"""Microseconds: longer than the lease of workers by default."""


@pytest.fixture
async def other(redis_client: aioredis.Redis, store: RedisEventStore) -> AsyncIterator[RedisEventStore]:
    """Another worker's store."""
    other = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    yield other
    await other.flush()
    await store.flush()


async def append_numbers(part: RedisSessionStore, *numbers: int) -> list[str]:
    """Append numbers to the standalone stream, and return their ids once they are stored."""
    appended = [await part.append(GET_STREAM_KEY, note(number)) for number in numbers]
    for each in appended:
        assert each.pending is not None
        await each.pending.acknowledged()
    return [each.event_id for each in appended]


async def replayed(part: RedisSessionStore, cursor: str) -> Received:
    """The events that a replay delivers; each id is a cursor for the rest."""
    received = Received()
    facts = await part.replay(cursor, received, stream_id=GET_STREAM_KEY)
    assert (facts.miss, facts.gap, facts.completed) == (None, False, False)
    return received


async def test_standalone_stream_begins_at_the_start_until_a_message_was_sent(
    store: RedisEventStore, other: RedisEventStore
) -> None:
    """The response to the first GET is lost: the worker is killed, or the connection is cut."""
    part, others = store.for_session("s"), other.for_session("s")
    await append_numbers(part, 1, 2)
    await append_numbers(others, 3)
    cursors = [await each.open_standalone() for each in (others, part, others)]
    for cursor in cursors:
        fresh = RedisEventStore(store._redis, key_prefix=store.key_prefix, ttl=TTL)
        assert sorted((await replayed(fresh.for_session("s"), cursor)).contents) == [1, 2, 3]
    assert sorted((await replayed(part, await part.open_standalone())).contents) == [1, 2, 3]


async def test_standalone_stream_begins_now_once_a_message_was_sent(
    store: RedisEventStore, other: RedisEventStore
) -> None:
    """On the worker that has sent it at once, on others when Redis knows."""
    part, others = store.for_session("s"), other.for_session("s")
    await append_numbers(part, 1, 2)
    first, received = await part.open_standalone(), Received()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: part.follow(GET_STREAM_KEY, first, received, limit=60))
        await received.has(2)
        later = await part.open_standalone()
        assert (await replayed(part, later)).contents == []
        await until(lambda: part._queue.sent_recorded)
        tasks.cancel_scope.cancel()
    later = await others.open_standalone()
    assert (await replayed(others, later)).contents == []
    await append_numbers(part, 4)
    assert (await replayed(others, later)).contents == [4]


async def test_standalone_stream_sent_in_an_outage_is_recorded_after_it(
    valkey_server: Valkey, store: RedisEventStore, other: RedisEventStore
) -> None:
    """Another worker then begins now."""
    async with Proxy(valkey_server.socket).running() as proxy, connect(proxy.url) as client:
        local = RedisEventStore(client, key_prefix=store.key_prefix, ttl=TTL)
        part, received = local.for_session("s"), Received()
        cursor = await part.open_standalone()
        proxy.refuse()
        proxy.reset()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: part.follow(GET_STREAM_KEY, cursor, received, limit=60))
            await part.append(GET_STREAM_KEY, note(0))
            await received.has(1, within=3)
            assert not part._queue.sent_recorded
            await proxy.listen()
            await until(lambda: part._queue.sent_recorded)
            tasks.cancel_scope.cancel()
        await until_settled(local)
        others = other.for_session("s")
        assert (await replayed(others, await others.open_standalone())).contents == []
        await local.flush()


async def test_standalone_stream_of_two_workers_delivers_each_message_once(
    store: RedisEventStore, other: RedisEventStore
) -> None:
    """Each worker's messages are in order, and every id resumes behind its event."""
    parts = store.for_session("s"), other.for_session("s")
    cursor = await parts[0].open_standalone()
    for number in range(8):
        await append_numbers(parts[number % 2], number)
    for part in parts:
        received = await replayed(part, cursor)
        assert sorted(received.contents) == list(range(8))
        for worker in (0, 1):
            assert [n for n in received.contents if n % 2 == worker] == list(range(worker, 8, 2))
        for place, event_id in enumerate(received.ids):
            assert event_id is not None
            for each in parts:
                rest = (await replayed(each, event_id)).contents  # The workers' messages may be interleaved otherwise.
                assert sorted(rest) == sorted(received.contents[place + 1 :])


async def test_standalone_follower_gets_messages_of_both_workers(
    store: RedisEventStore, other: RedisEventStore
) -> None:
    """Each message arrives once while it is sent, and none ends the following."""
    parts = store.for_session("s"), other.for_session("s")
    cursor, received = await parts[0].open_standalone(), Received()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: parts[0].follow(GET_STREAM_KEY, cursor, received, limit=60))
        for number in range(6):
            await append_numbers(parts[number % 2], number)
            await received.has(number + 1, within=3)
        await parts[0].append(GET_STREAM_KEY, answer())
        await received.has(7)
        await append_numbers(parts[1], 7)
        await received.has(8)
        tasks.cancel_scope.cancel()
    assert received.contents == [0, 1, 2, 3, 4, 5, "JSONRPCResponse", 7]


async def test_standalone_cursor_before_a_run_gets_all_of_it(store: RedisEventStore, other: RedisEventStore) -> None:
    """A cursor older than another worker's first message gets all of that worker's messages."""
    part, others = store.for_session("s"), other.for_session("s")
    (cursor,) = await append_numbers(part, 0)
    await append_numbers(others, 1, 2)
    await append_numbers(part, 3)
    assert sorted((await replayed(others, cursor)).contents) == [1, 2, 3]


async def test_standalone_cursor_with_invented_positions_hides_no_message(
    store: RedisEventStore, other: RedisEventStore
) -> None:
    """Positions ahead of a run and invented runs raise no error."""
    part, others = store.for_session("s"), other.for_session("s")
    (first,) = await append_numbers(part, 0)
    (second,) = await append_numbers(others, 1)
    time = first.split("-")[0]
    invented = "~".join(f"{number}-{number:012x}ff" for number in range(50))
    for cursor in (
        f"{time}-999999999999999-{run_of(first)}",
        f"{time}-1-{run_of(first)}~{invented}",
        f"{time}-0-{run_of(first)}~999999999999999-{run_of(second)}",
    ):
        received = Received()
        with in_time(5):
            for each in (part, others):
                facts = await each.replay(cursor, received, stream_id=GET_STREAM_KEY)
                assert facts.miss is None
                followed = await each.follow(GET_STREAM_KEY, cursor, received, limit=0.05)
                assert followed.end is FollowEnd.TIMEOUT
        assert set(received.contents) <= {0, 1}


async def test_standalone_cursor_of_a_recent_event_is_no_miss_before_it_is_stored(store: RedisEventStore) -> None:
    """Its worker may not have renewed a lease that has lapsed."""
    part = store.for_session("s")
    (first,) = await append_numbers(part, 0)
    recent = f"{first.split('-')[0]}-3-0123456789ab1"
    assert (await part.replay(recent, Received(), stream_id=GET_STREAM_KEY)).miss is None


async def test_standalone_cursor_forgets_runs_of_dead_workers_without_events(
    redis_client: aioredis.Redis, store: RedisEventStore, other: RedisEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session may outlive many workers, and its event ids must not exceed what proxies accept."""
    monkeypatch.setattr(session_store, "_FORGOTTEN_AT_ONCE", 1000)
    part, others = store.for_session("s"), other.for_session("s")
    (cursor,) = await append_numbers(part, 0)
    (second,) = await append_numbers(others, 1)
    dead = [f"{number:012x}1" for number in range(200)]
    requests = part._keys.requests
    await redis_client.hset(requests, mapping=dict.fromkeys(dead, "s 5"))
    retained = dead[7]
    await redis_client.rpush(part._keys.run(GET_STREAM_KEY, retained), b"5 1\n")
    await redis_client.expire(part._keys.run(GET_STREAM_KEY, retained), TTL)
    await redis_client.set(part._keys.worker(run_of(second)[:12]), 1, ex=TTL)
    positions = "".join(f"~5-{run}" for run in dead)
    received = Received()
    facts = await part.replay(f"{cursor}{positions}~1-{run_of(second)}", received, stream_id=GET_STREAM_KEY)
    assert (facts.miss, facts.missing, received.contents) == (None, 0, [])
    left = {run_of(cursor), run_of(second), retained}
    assert {each.decode() if isinstance(each, bytes) else each for each in await redis_client.hkeys(requests)} == left
    assert set(re.findall(r"-([0-9a-f]+)(?=~|$)", facts.last_event_id)) == left
    await append_numbers(others, 2)
    assert (await replayed(part, facts.last_event_id)).contents == [2]


async def test_standalone_cursor_of_a_lost_run_keeps_its_other_positions(
    store: RedisEventStore, other: RedisEventStore
) -> None:
    """The stream continues, after a miss, with every event that the client has not received."""
    part, others = store.for_session("s"), other.for_session("s")
    first, _ = await append_numbers(part, 0, 1)
    await append_numbers(others, 2)
    time = int(first.split("-")[0]) - A_LEASE
    lost = f"{time}-3-0123456789ab1~1-{run_of(first)}"
    facts = await part.replay(lost, Received(), stream_id=GET_STREAM_KEY)
    assert facts.miss is Miss.UNKNOWN
    received = await replayed(part, facts.last_event_id)
    assert sorted(received.contents) == [1, 2]
    await append_numbers(part, 3)
    last = received.ids[-1] or ""
    assert (await replayed(part, last)).contents == [3]
    assert "~3-0123456789ab1" in last, "its worker may store the run again"


async def test_standalone_run_that_its_worker_stores_again_is_not_delivered_twice(
    redis_client: aioredis.Redis, store: RedisEventStore, other: RedisEventStore
) -> None:
    """The worker was suspended for longer than its lease, while Redis lost all data."""
    part, others = store.for_session("s"), other.for_session("s")
    _, last = await append_numbers(others, 0, 1)
    time, rest = last.split("-", 1)
    await redis_client.delete(part._keys.requests, part._keys.run(GET_STREAM_KEY, run_of(last)))
    facts = await part.replay(f"{int(time) - A_LEASE}-{rest}", Received(), stream_id=GET_STREAM_KEY)
    assert facts.miss is Miss.UNKNOWN
    await append_numbers(others, 2)
    stored = await elements(redis_client, part._keys.run(GET_STREAM_KEY, run_of(last)))
    assert [each.number for each in stored] == [1, 2, 3]
    assert (await replayed(part, facts.last_event_id)).contents == [2]


async def test_standalone_cursor_that_names_only_a_lost_run_gets_all_retained_events(store: RedisEventStore) -> None:
    """A cursor proves nothing about events that it does not name."""
    part = store.for_session("s")
    (first,) = await append_numbers(part, 0)
    lost = f"{int(first.split('-')[0]) - A_LEASE}-3-0123456789ab1"
    facts = await part.replay(lost, Received(), stream_id=GET_STREAM_KEY)
    assert facts.miss is Miss.UNKNOWN
    await append_numbers(part, 1)
    assert (await replayed(part, facts.last_event_id)).contents == [0, 1]


async def test_standalone_messages_of_a_dead_worker_are_read(store: RedisEventStore, other: RedisEventStore) -> None:
    """`requests` names the run after the worker's end."""
    part, others = store.for_session("s"), other.for_session("s")
    cursor = await part.open_standalone()
    await append_numbers(others, 0, 1)
    await other.flush()
    assert (await replayed(part, cursor)).contents == [0, 1]


async def test_standalone_follower_in_an_outage_reads_from_memory(
    valkey_server: Valkey, store: RedisEventStore, other: RedisEventStore
) -> None:
    """It gets this worker's messages meanwhile, and the other worker's afterwards."""
    others = other.for_session("s")
    async with Proxy(valkey_server.socket).running() as proxy, connect(proxy.url) as client:
        local = RedisEventStore(client, key_prefix=store.key_prefix, ttl=TTL)
        part = local.for_session("s")
        cursor, received = await part.open_standalone(), Received()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: part.follow(GET_STREAM_KEY, cursor, received, limit=60))
            await append_numbers(part, 0)
            await received.has(1)
            proxy.refuse()
            proxy.reset()
            for number in (1, 2, 3):
                await part.append(GET_STREAM_KEY, note(number))
                await received.has(number + 1, within=3)
            await append_numbers(others, 10)
            await proxy.listen()
            await until_settled(local)
            await received.has(5)
            tasks.cancel_scope.cancel()
        assert received.contents == [0, 1, 2, 3, 10]
        await local.flush()


@pytest.mark.usefixtures("leaks")
async def test_standalone_stream_opened_in_an_outage_gets_this_workers_messages(
    valkey_server: Valkey, key_prefix: str
) -> None:
    """A client can open the stream while Redis is unreachable."""
    async with Proxy(valkey_server.socket).running() as proxy, connect(proxy.url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL)
        part = store.for_session("s")
        await append_numbers(part, 0)
        proxy.refuse()
        proxy.reset()
        with in_time(2):
            cursor = await part.open_standalone()
        received = Received()
        with in_time(3):
            await part.append(GET_STREAM_KEY, note(1))
            await part.follow(GET_STREAM_KEY, cursor, received, limit=0.5)
        assert received.contents == [0, 1]
        await proxy.listen()
        await until_settled(store)
        await store.flush()


# -- sessions that end ------------------------------------------------------------------------------------------------


async def test_closed_session_leaves_memory_and_expires(
    redis_client: aioredis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays in memory, and its keys are no longer renewed."""

    async def nothing() -> None:
        """Nothing is published."""

    monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)
    root = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=1)
    store = InstrumentedEventStore(root, registry=None)
    async with root.coordinator.hold_lease(0.3, lambda _: None, nothing):
        views = []
        for number in range(20):
            view = SessionView(store.for_session(f"s{number}"), follow_timeout=5)
            await view.open_standalone()
            await view.store_event(GET_STREAM_KEY, note(number))
            await until_settled(root)
            view.close()
            await view.give_up()
            views.append(weakref.ref(view))
            del view
        gc.collect()
        assert [view() for view in views if view() is not None] == []
        assert not root._session_writer.runs

        async def expired() -> bool:
            keys = [key async for key in redis_client.scan_iter(match=f"{key_prefix}{{s*", count=1000)]
            return not keys

        await until(expired, within=5)
    await root.flush()


@pytest.mark.usefixtures("leaks")
async def test_refused_run_leaves_no_memory(store: RedisEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of an ended session leaves nothing in memory after its response."""
    monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)
    part = store.for_session("s")
    part.begin("1", 1)
    await store.coordinator.end("s", ttl=TTL)
    appended = await part.append("1", note(0))
    assert appended.pending is not None
    await appended.pending.acknowledged()
    assert (await part.append("1", answer())).refused
    assert not store._session_writer.runs


async def test_rollback_of_a_closed_session_stores_its_run_again(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """Its run is stored again while it is in memory, and asks for no answer."""
    part = store.for_session("s")
    for number in (0, 1):
        await append_numbers(part, number)
    part.close()
    (run,) = store._session_writer._known()
    await redis_client.delete(run.key, f"{part.key_prefix}requests")
    store._session_writer.verify()
    store._session_writer._release_oldest()

    async def stored() -> bool:
        return bool(await redis_client.llen(run.key) == 2)

    await until(stored)
    reader = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL).for_session("s")
    received = Received()
    facts = await reader.replay(f"1795850405606317-0-{run.name}", received, stream_id=GET_STREAM_KEY)
    assert (facts.missing, received.contents) == (1, [1])
    await store.flush()
