"""Faults between sessions and Redis: immediate ids, and each event stored once."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import pytest
import redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.write import transport
from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    FailureReason,
    LossReason,
    StoreDegraded,
    StoreRecovered,
)
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import JSONRPCError
from mcp_eventscope.store.results import Gap
from support.connection_faults import FAULTS, RETRIED, STORE_TIMEOUT, MakeClient, retrying_client
from support.messages import answer, note
from support.proxy import Proxy
from support.servers import Valkey
from support.session_producers import Facts, SessionProducer, appending, elements, observed
from support.stores import patient_client, until_settled
from support.valkeys import OwnValkey, own_valkey
from support.waiting import cpu_aware_clock, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SLACK = 0.3
"""Seconds that a busy machine may add."""
TTL = 600


@dataclass
class World:
    """A store behind a proxy."""

    proxy: Proxy
    store: RedisEventStore
    reader: RedisEventStore
    direct: aioredis.Redis
    facts: Facts

    @property
    def token(self) -> str:
        """Every command of the store contains it."""
        return self.store.key_prefix

    def producers(self, sessions: int = 3) -> list[SessionProducer]:
        """Two streams of each session."""
        return [SessionProducer(self.store, f"s{number}", stream) for number in range(sessions) for stream in (1, 2)]

    def reasons(self) -> set[FailureReason]:
        """The reported reasons."""
        return {fact.reason for kind in (BatchRetried, StoreDegraded) for fact in self.facts.of(kind)}

    async def check(self, producers: list[SessionProducer]) -> None:
        """Every event has an id, is stored once and counted once, and no append took long."""
        await until_settled(self.store)
        for producer in producers:
            assert "" not in producer.ids
            assert not any(appended.deferred or appended.refused for appended in producer.appended)
            await producer.check(self.reader)
            stored = [each.number for each in await elements(self.direct, producer.key)]
            assert stored == list(range(1, len(producer.appended) + 1))
        total = sum(len(producer.appended) for producer in producers)
        assert sum(fact.events for fact in self.facts.of(BatchCommitted)) == total
        assert not self.facts.of(EventsLost)
        assert max(seconds for producer in producers for seconds in producer.seconds) < STORE_TIMEOUT + SLACK
        # One outage is one, whatever its reason changes to.
        kinds = [type(fact) for fact in self.facts.all if isinstance(fact, StoreDegraded | StoreRecovered)]
        assert kinds == [StoreDegraded, StoreRecovered] * (len(kinds) // 2)


@pytest.fixture
def make_client() -> MakeClient:
    """Makes the store's client."""
    return connect


@pytest.fixture
async def world(make_client: MakeClient, valkey_server: Valkey, key_prefix: str) -> AsyncIterator[World]:
    """A store behind a proxy."""
    async with (
        Proxy(valkey_server.socket).running() as proxy,
        make_client(proxy.url) as client,
        patient_client(valkey_server.url) as direct,
    ):
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=STORE_TIMEOUT)
        reader = RedisEventStore(direct, key_prefix=key_prefix, ttl=TTL)
        yield World(proxy, store, reader, direct, observed(store))
        proxy.clear()
        await store.flush(5)
        await reader.flush()
        if keys := [key async for key in direct.scan_iter(match=f"{key_prefix}*", count=1000)]:
            await direct.delete(*keys)


async def check_fault(world: World, fault: str) -> None:
    """Inject a fault while events are appended: all are stored once, and the reason is reported."""
    happen, reported = FAULTS[fault]
    producers = world.producers()
    with in_time(30):
        async with appending(world.store, producers):
            await happen(world)
    await world.check(producers)
    assert reported <= world.reasons()


@pytest.mark.parametrize("fault", FAULTS)
async def test_session_appends_through_a_fault_are_stored_once(world: World, fault: str) -> None:
    """All events have ids, none is lost or stored twice, and the reason is reported."""
    await check_fault(world, fault)


@pytest.mark.parametrize("make_client", [retrying_client], ids=["default"])
@pytest.mark.parametrize("fault", RETRIED)
async def test_session_appends_with_a_retrying_client_are_stored_once(world: World, fault: str) -> None:
    """A client that retries by itself stores nothing twice."""
    await check_fault(world, fault)


async def test_session_append_in_an_outage_returns_immediately(world: World) -> None:
    """Once Redis is known to be unreachable, `append` returns an id immediately."""
    for way in (world.proxy.hold, world.proxy.refuse):
        producer = SessionProducer(world.store, way.__name__)
        await producer.append_next()
        await producer.outcomes()
        way()
        world.proxy.reset()
        while not world.store.backlog.failure:
            await producer.append_next()
            await asyncio.sleep(0.01)
        first = len(producer.appended)
        began = cpu_aware_clock()
        await producer.append_next(500)
        assert cpu_aware_clock() - began < STORE_TIMEOUT + SLACK
        assert sum(seconds > 0.05 for seconds in producer.seconds[first:]) <= 5
        if way == world.proxy.refuse:
            await world.proxy.listen()
        world.proxy.clear()
        await until_settled(world.store)
        await producer.check(world.reader)
    assert [type(fact) for fact in world.facts.all if isinstance(fact, StoreDegraded | StoreRecovered)] == [
        StoreDegraded,
        StoreRecovered,
    ] * 2


async def test_session_append_with_slow_replies_is_not_delayed(world: World) -> None:
    """A reply later than usual but within `store_timeout` is no failure."""
    producers = world.producers(5)
    world.proxy.delay = STORE_TIMEOUT / 5
    began = cpu_aware_clock()
    for producer in producers:
        await producer.append_next(10)
    assert cpu_aware_clock() - began < STORE_TIMEOUT + SLACK
    await world.check(producers)
    assert world.reasons() <= {FailureReason.NOSCRIPT}


async def test_session_append_that_is_cancelled_leaves_no_hole(world: World) -> None:
    """Every accepted event is stored."""
    dice = random.Random(7)  # noqa: S311 - not secrets
    producer = SessionProducer(world.store)
    await producer.append(None)
    world.proxy.delay = 0.02
    for _ in range(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(producer.part.append, "1", note(0, "x" * 50_000))
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
    last = await producer.part.append("1", answer())
    await until_settled(world.store)
    numbers = [each.number for each in await elements(world.direct, producer.key)]
    assert numbers == list(range(1, int(last.event_id.split("-")[1]) + 1))


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_session_backlog_beyond_its_bound_drops_the_oldest_runs(valkey_server: Valkey, key_prefix: str) -> None:
    """Dropped runs are counted, a gap for their clients, and each has an end."""
    async with (
        Proxy(valkey_server.socket).running() as proxy,
        connect(proxy.url) as client,
        patient_client(valkey_server.url) as direct,
    ):
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60, backlog_events=60)
        reader = RedisEventStore(direct, key_prefix=key_prefix, ttl=60)
        facts = observed(store)
        producers = [SessionProducer(store, f"s{number % 3}", number) for number in range(12)]
        for producer in producers:
            await producer.append(None)
            await producer.outcomes()
        proxy.refuse()
        proxy.reset()
        finding_out = SessionProducer(store, "finds out")
        await finding_out.append_next()
        await until(lambda: store.backlog.failure)
        for producer in producers:
            await producer.append_next(8)
            await producer.append(answer(int(producer.stream)))
            assert "" not in producer.ids
            assert store.backlog.events <= 60 + len(producers)
        await proxy.listen()
        await until_settled(store)
        dropped = []
        for producer in producers:
            resumed, received = await producer.replayed(reader)
            assert (resumed.completed, resumed.miss) == (True, None)
            dropped.append(resumed.gap)
            if resumed.gap:
                (message,) = received.messages
                assert isinstance(message, JSONRPCError)
                assert (message.id, message.error.code) == (int(producer.stream), EVENTS_GONE)
                assert (resumed.missing, received.ids) == (8, producer.ids[-1:])
                assert resumed.gaps == {Gap.OVERFLOW: 8}
            else:
                assert received.ids == producer.ids[1:]
        assert dropped == sorted(dropped, reverse=True)
        assert 0 < sum(dropped) < len(producers)
        assert {fact.reason for fact in facts.of(EventsLost)} == {LossReason.OVERFLOW}
        assert sum(fact.events for fact in facts.of(EventsLost)) == 9 * sum(dropped)
        await store.flush()
        await direct.delete(*[key async for key in direct.scan_iter(match=f"{key_prefix}*", count=1000)])


async def test_session_flush_in_an_outage_returns_in_time(world: World) -> None:
    """It counts lost events, and the store can be used again."""
    producer = SessionProducer(world.store)
    await producer.append_next()
    await producer.outcomes()
    world.proxy.refuse()
    world.proxy.reset()
    await producer.append_next(10)
    began = cpu_aware_clock()
    assert await world.store.flush(0.3) == 10
    assert cpu_aware_clock() - began < 0.3 + 0.5
    assert [(fact.reason, fact.events) for fact in world.facts.of(EventsLost)] == [(LossReason.SHUTDOWN, 10)]
    assert not world.store.backlog.events
    await world.proxy.listen()
    other = SessionProducer(world.store, "t")
    await other.append_next(3)
    await other.outcomes()
    await other.check(world.reader)


# -- real servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["full", "loading", "replica", "password"])
async def test_session_appends_to_a_server_without_writes_are_stored_later(how: str) -> None:
    """A full, loading, replica or locked Redis stores the events afterwards."""
    reason = {
        "full": FailureReason.OOM,
        "loading": FailureReason.LOADING,
        "replica": FailureReason.READONLY,
        "password": FailureReason.AUTH,
    }
    with own_valkey(durable=True) as server, own_valkey() as second:
        async with connect(server.url) as client, patient_client(server.url) as direct:
            store = RedisEventStore(client, ttl=TTL, store_timeout=STORE_TIMEOUT)
            facts = observed(store)
            producers = [SessionProducer(store, f"s{number}") for number in range(4)]

            def reported() -> bool:
                found = [*facts.of(BatchRetried), *facts.of(StoreDegraded)]
                return any(fact.reason is reason[how] for fact in found)

            with in_time(40):
                async with appending(store, producers):
                    await anyio.to_thread.run_sync(_refuse_writes, how, server, second)
                    await until(reported)
                    await anyio.to_thread.run_sync(_accept_writes, how, server)
            reader = RedisEventStore(direct, ttl=TTL)
            for producer in producers:
                assert "" not in producer.ids
                await producer.check(reader)
            assert not facts.of(EventsLost)
            assert max(seconds for producer in producers for seconds in producer.seconds) < STORE_TIMEOUT + SLACK
            await store.flush()


def _refuse_writes(how: str, server: OwnValkey, second: OwnValkey) -> None:
    if how == "full":
        server.set(maxmemory=1)
    elif how == "loading":
        server.restart_loading()
    elif how == "replica":  # In step with its own former replica, so that nothing is lost.
        server.set(min_replicas_to_write=2)
        second.follow(server)
        with server.client() as one, second.client() as two:
            _until_same(one, two)
        second.follow(None)
        server.follow(second)
    else:
        with server.client() as client:
            client.config_set("requirepass", "x")
            client.client_kill_filter(_type="normal", skipme=True)


def _until_same(one: redis.Redis, two: redis.Redis) -> None:
    deadline = time.monotonic() + 10
    while one.info("replication")["master_repl_offset"] != two.info("replication")["slave_repl_offset"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _accept_writes(how: str, server: OwnValkey) -> None:
    if how == "full":
        server.set(maxmemory=0)
    elif how == "replica":
        server.follow(None)
        server.set(min_replicas_to_write=0)
    elif how == "password":
        with redis.Redis(unix_socket_path=str(server.socket), password="x") as client:
            client.config_set("requirepass", "")


@pytest.mark.parametrize("kind", [aioredis.ConnectionPool, aioredis.BlockingConnectionPool])
async def test_session_appends_with_an_exhausted_pool_are_stored_later(
    world: World, valkey_server: Valkey, kind: type[aioredis.ConnectionPool]
) -> None:
    """The application holds all connections; events are stored when it releases one."""
    options = {"timeout": 0.1} if kind is aioredis.BlockingConnectionPool else {}
    pool = kind.from_url(valkey_server.url, max_connections=2, retry=Retry(NoBackoff(), 0), **options)
    held = [await pool.get_connection() for _ in range(2)]  # type: ignore[no-untyped-call]
    async with aioredis.Redis.from_pool(pool) as small:
        store = RedisEventStore(small, key_prefix=world.token, ttl=TTL, store_timeout=STORE_TIMEOUT)
        facts = observed(store)
        producers = [SessionProducer(store, f"s{number}") for number in range(4)]
        for producer in producers:
            await producer.append_next(5)
        await until(lambda: any(fact.reason is FailureReason.POOL for fact in facts.of(StoreDegraded)))
        await pool.release(held.pop())
        await until_settled(store)
        for producer in producers:
            await producer.check(world.reader)
        await pool.release(held.pop())
        await store.flush()


async def test_session_append_on_a_silent_connection_times_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without replies is replaced after the time limit, and a timeout is reported."""
    monkeypatch.setattr(transport, "ANSWER_TIMEOUT", 0.4)
    producer = world.producers(1)[0]
    await producer.append_next()
    await producer.outcomes()
    world.proxy.mute()
    await producer.append_next()
    await until(lambda: {fact.reason for fact in world.facts.of(BatchRetried)} - {FailureReason.NOSCRIPT})
    world.proxy.clear()
    await producer.outcomes()
    assert world.reasons() - {FailureReason.NOSCRIPT} == {FailureReason.TIMEOUT}
    await world.check([producer])
