"""Followers of sessions: wake-ups, polling, memory, and requests of dead workers."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.read import followers as followers_module
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from mcp_eventscope.store.messages import JSONRPCError
from mcp_eventscope.store.results import FollowEnd, FollowResult, StoreOutcome
from support.messages import answer, note
from support.proxy import Proxy
from support.servers import Valkey
from support.session_producers import Received, SessionProducer, elements, observed, run_of
from support.stores import until_settled
from support.valkeys import own_valkey
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio

TTL = 600
LONG = 30.0


async def nothing() -> None:
    """Nothing is published."""


class Follower:
    """Follows a producer's stream in a task."""

    def __init__(
        self, store: RedisEventStore, producer: SessionProducer, *, after: int = 0, limit: float = LONG
    ) -> None:
        self.received = Received()
        self.facts: FollowResult | None = None
        self._store, self._producer, self._after, self._limit = store, producer, producer.ids[after], limit

    async def __call__(self) -> None:
        """Follow until it ends."""
        part = self._store.for_session(self._producer.session)
        self.facts = await part.follow(self._producer.stream, self._after, self.received, limit=self._limit)


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers are woken or sleep: the process does not poll for them."""
    monkeypatch.setattr(followers_module, "POLL_SECONDS", LONG)


@pytest.fixture
async def other(redis_client: aioredis.Redis, store: RedisEventStore) -> AsyncIterator[RedisEventStore]:
    """Another worker's store. The first one has a lease."""
    other = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    async with store.coordinator.hold_lease(LONG, lambda _: None, nothing):
        yield other
        await other.flush()
        await store.flush()


async def primed(store: RedisEventStore, **options: object) -> SessionProducer:
    """A stream with its priming event, stored."""
    producer = SessionProducer(store, **options)  # type: ignore[arg-type]
    await producer.append(None)
    await producer.outcomes()
    return producer


@pytest.mark.usefixtures("no_polling")
@pytest.mark.parametrize("here", [True, False])
async def test_follower_is_woken_without_polling(store: RedisEventStore, other: RedisEventStore, *, here: bool) -> None:
    """An event reaches a follower in the same or another process, and the response ends it."""
    producer = await primed(store)
    follower = Follower(store if here else other, producer)
    with in_time(15):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower)
            for number in range(5):
                await producer.append_next()
                await follower.received.has(number + 1, within=3)
            await producer.append(answer())
    assert follower.received.ids == producer.ids[1:]
    assert follower.facts == FollowResult(
        last_event_id=producer.ids[-1],
        end=FollowEnd.COMPLETED,
        delivered=6,
        payload_bytes=sum(each.payload_bytes for each in producer.appended),
    )


async def test_follower_without_channel_permission_polls(
    valkey_server: Valkey, key_prefix: str, redis_client: aioredis.Redis
) -> None:
    """A user who may neither publish nor subscribe causes no error."""
    await redis_client.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "mute", "reset", "on", "nopass", "~*", "+@all", "resetchannels"
    )
    try:
        async with (
            aioredis.Redis(unix_socket_path=str(valkey_server.socket), username="mute", password="x") as one,
            aioredis.Redis(unix_socket_path=str(valkey_server.socket), username="mute", password="x") as two,
        ):
            store = RedisEventStore(one, key_prefix=key_prefix, ttl=60)
            other = RedisEventStore(two, key_prefix=key_prefix, ttl=60)
            facts = observed(store)
            async with store.coordinator.hold_lease(LONG, lambda _: None, nothing):
                producer = await primed(store)
                follower = Follower(other, producer)
                with in_time(15):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(follower)
                        await producer.append_next(2)
                        await follower.received.has(2, within=3)
                        await producer.append(answer())
                assert follower.received.ids == producer.ids[1:]
                assert {type(fact).__name__ for fact in facts.all} <= {"BatchCommitted", "BatchRetried"}
                await store.flush()
            keys = [key async for key in redis_client.scan_iter(match=f"{key_prefix}*", count=1000)]
            await redis_client.delete(*keys)
    finally:
        await redis_client.acl_deluser("mute")


async def test_follow_after_replay_misses_no_event(store: RedisEventStore, other: RedisEventStore) -> None:
    """An event stored between the end of a replay and the start of following is delivered once."""
    producer = await primed(store)
    await producer.append_next()
    await producer.outcomes()
    for each in (store, other):
        facts, received = await producer.replayed(each)
        await producer.append_next()
        await producer.outcomes()
        followed = await each.for_session("s").follow("1", facts.last_event_id, received, limit=0)
        assert followed.delivered == 1
        assert received.ids == producer.ids[1:]


async def test_follow_without_events_ends_at_its_limit(store: RedisEventStore, other: RedisEventStore) -> None:
    """It ends at its position."""
    producer = await primed(store)
    for each in (store, other):
        for limit in (0, 0.1):
            follower = Follower(each, producer, limit=limit)
            with in_time(3):
                await follower()
            assert follower.facts == FollowResult(last_event_id=producer.ids[0], end=FollowEnd.TIMEOUT)


async def test_followers_of_one_stream_each_get_every_event(store: RedisEventStore, other: RedisEventStore) -> None:
    """Each follower gets all of it, on either worker."""
    producer = await primed(store)
    followers = [Follower(each, producer) for each in (store, other) for _ in range(10)]
    with in_time(20):
        async with anyio.create_task_group() as tasks:
            for follower in followers:
                tasks.start_soon(follower)
            await producer.append_next(40)
            await producer.append(answer())
    assert [follower.received.ids for follower in followers] == [producer.ids[1:]] * 20


@pytest.mark.parametrize("here", [True, False])
async def test_follow_when_callback_raises_ends(store: RedisEventStore, other: RedisEventStore, *, here: bool) -> None:
    """An exception of the callback ends the following, and leaves nothing."""
    producer = await primed(store)
    await producer.append_next()
    await producer.outcomes()
    each = store if here else other

    async def broken(_: object) -> None:
        raise anyio.BrokenResourceError

    with pytest.raises(anyio.BrokenResourceError):
        await each.for_session("s").follow("1", producer.ids[0], broken, limit=LONG)
    assert not each._sessions.followers._followers
    assert not store._session_writer.runs[run_of(producer.ids[0])].watchers


@pytest.mark.parametrize("here", [True, False])
async def test_follow_that_is_cancelled_leaves_nothing(
    store: RedisEventStore, other: RedisEventStore, *, here: bool
) -> None:
    """The stream can be followed again."""
    producer = await primed(store)
    each = store if here else other
    follower = Follower(each, producer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower)
        await producer.append_next()
        await follower.received.has(1)
        tasks.cancel_scope.cancel()
    assert not each._sessions.followers._followers
    assert not store._session_writer.runs[run_of(producer.ids[0])].watchers
    again = Follower(each, producer, limit=0)
    await again()
    assert again.received.contents == [1]
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "eventscope-followers"])


async def test_follow_by_a_slow_client_delivers_every_event(store: RedisEventStore, other: RedisEventStore) -> None:
    """A2: a client that does not read meanwhile gets every event, from memory and from Redis."""
    producer = await primed(store)
    for each in (store, other):
        received, resumed = Received(), anyio.Event()

        async def slow(event: object, received: Received = received, resumed: anyio.Event = resumed) -> None:
            await received(event)  # type: ignore[arg-type]
            await resumed.wait()

        position = len(producer.ids) - 1
        async with anyio.create_task_group() as tasks:
            part = each.for_session("s")
            tasks.start_soon(lambda: part.follow("1", producer.ids[position], slow, limit=LONG))  # noqa: B023
            await producer.append_next()
            await received.has(1)
            await producer.append_next(40)
            await producer.outcomes()
            resumed.set()
            await received.has(41)
            tasks.cancel_scope.cancel()
        assert received.ids == producer.ids[position + 1 :]


async def test_follower_on_the_running_worker_needs_no_redis(valkey_server: Valkey, key_prefix: str) -> None:
    """A client of the same worker is replayed and followed in an outage, up to the response."""
    async with Proxy(valkey_server.socket).running() as proxy, connect(proxy.url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL)
        producer = await primed(store)
        await producer.append_next(2)
        await producer.outcomes()
        proxy.refuse()
        proxy.reset()
        await producer.append_next(2)
        facts, received = await producer.replayed(store)
        assert (facts.miss, facts.gap, received.ids) == (None, False, producer.ids[1:])
        follower = Follower(store, producer)
        with in_time(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follower)
                await producer.append_next()
                await follower.received.has(5)
                await producer.append(answer())
        assert follower.received.ids == producer.ids[1:]
        assert follower.facts is not None
        assert (follower.facts.end, follower.facts.failures) == (FollowEnd.COMPLETED, 0)
        await proxy.listen()
        await until_settled(store)
        await store.flush()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "freeze"])
async def test_follower_on_another_worker_survives_an_outage(way: str) -> None:
    """The follower stays while Redis is down, and then gets the rest, each event once."""
    with own_valkey(durable=True) as server:
        async with connect(server.url) as one, connect(server.url) as two:
            store, other = RedisEventStore(one, ttl=TTL), RedisEventStore(two, ttl=TTL)
            async with store.coordinator.hold_lease(LONG, lambda _: None, nothing):
                producer = await primed(store)
                follower = Follower(other, producer)
                with in_time(40):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(follower)
                        await producer.append_next(2)
                        await follower.received.has(2)
                        getattr(server, way)()
                        await producer.append_next(2)
                        await until(lambda: store.backlog.failure)
                        await producer.append_next(2)
                        await anyio.to_thread.run_sync(server.revive)
                        await producer.append_next()
                        await producer.append(answer())
                assert follower.received.ids == producer.ids[1:]
                assert follower.facts is not None
                assert follower.facts.end is FollowEnd.COMPLETED
                await store.flush()
                await other.flush()


# -- dead workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [1, "1", "é" * 20, "x" * 130])
async def test_request_of_a_dead_worker_is_answered_once(
    store: RedisEventStore, redis_client: aioredis.Redis, request_id: int | str
) -> None:
    """One of several followers stores the answer; each delivers it last, without an id."""
    dead = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    third = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    producer = await primed(dead, request_id=request_id)
    await producer.append_next(2)
    await producer.outcomes()
    followers = [Follower(each, producer) for each in (store, third, store, third, store)]
    with in_time(20):
        async with anyio.create_task_group() as tasks:
            for follower in followers:
                tasks.start_soon(follower)
    for follower in followers:
        assert follower.received.ids == [*producer.ids[1:], None]
        message = follower.received.messages[-1]
        assert isinstance(message, JSONRPCError)
        assert (message.id, message.error.code) == (request_id, REQUEST_ORPHANED)
        assert follower.facts is not None
        assert (follower.facts.end, follower.facts.last_event_id) == (FollowEnd.COMPLETED, producer.ids[-1])
    assert sum(bool(follower.facts and follower.facts.orphaned) for follower in followers) == 1
    # A later resume gets the same answer, from each position.
    for after in range(3):
        facts, received = await producer.replayed(store, after=after)
        assert (facts.completed, facts.miss) == (True, None)
        assert received.ids == [*producer.ids[after + 1 :], None]
        assert received.messages[-1] == message


async def test_worker_declared_dead_is_fenced(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """It stores nothing more of that request; its other requests are stored."""
    late = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    producer, same, elsewhere = [
        await primed(late, **options) for options in ({}, {"request_id": 2}, {"session": "t", "request_id": 1})
    ]
    fenced: list[str] = []
    producer.part.bind(ended=lambda: None, fenced=fenced.append)
    follower = Follower(store, producer)
    with in_time(20):
        await follower()
    assert follower.facts is not None
    assert follower.facts.orphaned
    before = await elements(redis_client, producer.key)
    own = Follower(late, producer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(own)
        await producer.append_next(2)
        assert (await producer.outcomes())[1:] == [StoreOutcome.REFUSED] * 2
        assert (await producer.append(answer())).refused
    # Its own client may have read events before Redis refused them; it gets the answer that all others got.
    assert own.received.ids[-1] is None
    assert own.received.messages[-1] == follower.received.messages[-1]
    assert fenced == ["1"]
    assert await elements(redis_client, producer.key) == before
    assert (await producer.append(note(9))).refused
    for each in (same, elsewhere):
        await each.append(answer())
        assert set(await each.outcomes()) == {StoreOutcome.STORED}
        await each.check(store)


async def test_response_before_the_worker_died_is_kept(store: RedisEventStore, redis_client: aioredis.Redis) -> None:
    """Nothing is stored in its place."""
    store.coordinator.lease = 1.0
    dead = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    producer = await primed(dead)
    await producer.append(answer())
    await producer.outcomes()
    for after in (0, 1):
        follower = Follower(store, producer, after=after)
        with in_time(5):
            await follower()
        assert follower.facts is not None
        assert (follower.facts.end, follower.facts.orphaned) == (FollowEnd.COMPLETED, False)
        assert follower.received.ids == producer.ids[after + 1 :]


async def test_lost_request_of_a_dead_worker_ends_without_an_answer(
    store: RedisEventStore, redis_client: aioredis.Redis
) -> None:
    """Nothing is stored in its place."""
    store.coordinator.lease = 1.0
    dead = RedisEventStore(redis_client, key_prefix=store.key_prefix, ttl=TTL)
    producer = await primed(dead)
    await redis_client.delete(producer.key, f"{producer.part.key_prefix}requests")
    follower = Follower(store, producer)
    with in_time(20):
        await follower()
    assert follower.facts is not None
    assert (follower.facts.end, follower.facts.orphaned, follower.received.ids) == (FollowEnd.WORKER_LOST, False, [])
    assert not await redis_client.exists(f"{producer.part.key_prefix}requests")
