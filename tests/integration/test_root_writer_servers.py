"""Impaired servers under the root writer: full, loading, a replica, busy, locked or emptied."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import (
    BatchRetried,
    EventsLost,
    FailureReason,
    LossReason,
    StoreDegraded,
    StoreRecovered,
)
from support.messages import note
from support.root_producers import RootProducer, check_all
from support.stores import PATIENCE, until_settled
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STORE_TIMEOUT = 0.25


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[OwnValkey]:
    """A Valkey of this test alone, durable unless the test parametrises it."""
    with own_valkey(durable=getattr(request, "param", True)) as server:
        yield server


@pytest.fixture
async def client(server: OwnValkey) -> AsyncIterator[aioredis.Redis]:
    """A client of it."""
    async with connect(server.url) as client:
        yield client


class Load:
    """Concurrent producers on a store, and the store's events."""

    def __init__(self, redis: aioredis.Redis, **options: object) -> None:
        options = {"store_timeout": STORE_TIMEOUT, **options}
        self.store = RedisEventStore(redis, ttl=600, **options)  # type: ignore[arg-type]
        self.facts: list[object] = []
        self.store.observe(self.facts.append)
        self.producers = [RootProducer(self.store, f"s{n}", stream) for n in range(4) for stream in ("1", "2")]

    def reported(self, reason: FailureReason) -> bool:
        """Whether a reason was reported, of a batch or of Redis."""
        return any(isinstance(fact, BatchRetried | StoreDegraded) and fact.reason is reason for fact in self.facts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Append before, in and after the block; then wait until all of it is stored."""
        over = asyncio.Event()
        async with anyio.create_task_group() as tasks:
            for producer in self.producers:
                tasks.start_soon(producer.append_until, over)
            await self.more()
            self.facts.clear()
            yield
            await until_settled(self.store)
            await self.more()
            over.set()

    async def more(self) -> None:
        """Return when each producer has appended more."""
        before = [len(producer.calls) for producer in self.producers]
        await until(lambda: all(len(s.calls) > n + 3 for s, n in zip(self.producers, before, strict=True)))


async def test_root_appends_to_a_full_redis_are_stored_later(server: OwnValkey, client: aioredis.Redis) -> None:
    """At `maxmemory`, events wait until there is room."""
    load = Load(client)
    async with load.running():
        server.set(maxmemory=1)
        await until(lambda: load.reported(FailureReason.OOM))
        await load.more()
        server.set(maxmemory=0)
    await check_all(load.producers, client)


async def test_root_appends_to_a_loading_redis_are_stored_later(server: OwnValkey, client: aioredis.Redis) -> None:
    """A Redis that loads its data is unavailable until it has loaded them."""
    load = Load(client)
    async with load.running():
        await anyio.to_thread.run_sync(server.restart_loading)
        await until(lambda: load.reported(FailureReason.LOADING))
        await load.more()
    await check_all(load.producers, client)


async def test_root_appends_through_a_failover_are_stored_once(server: OwnValkey, client: aioredis.Redis) -> None:
    """A replica is not written to until it is primary again, with its data."""
    load = Load(client)
    with own_valkey() as other:
        async with load.running():
            await anyio.to_thread.run_sync(other.follow, server)
            server.set(min_replicas_to_write=2)  # Nothing is taken from now on that only one of the two has.
            await until(lambda: load.reported(FailureReason.OTHER))
            await settled_down(server, other)
            other.follow(None)
            await anyio.to_thread.run_sync(server.follow, other)
            await until(lambda: load.reported(FailureReason.READONLY))
            await load.more()
            server.set(min_replicas_to_write=0)
            server.follow(None)
    await check_all(load.producers, client)


async def settled_down(primary: OwnValkey, replica: OwnValkey) -> None:
    """Return when the replica has all that the primary has."""

    def same() -> bool:
        with primary.client() as one, replica.client() as two:
            return bool(one.info("replication")["master_repl_offset"] == two.info("replication")["slave_repl_offset"])

    await until(same)


async def test_root_appends_after_script_flush_are_not_deferred(client: aioredis.Redis) -> None:
    """The script is loaded again, and no caller waits."""
    load = Load(client, store_timeout=PATIENCE)
    async with load.running():
        for _ in range(5):
            await client.script_flush()
            await load.more()
        assert load.reported(FailureReason.NOSCRIPT)
        assert not any(isinstance(fact, StoreDegraded) for fact in load.facts)
    await check_all(load.producers, client)
    assert not any(call.deferred for producer in load.producers for call in producer.calls)


async def test_root_appends_to_a_busy_redis_are_stored_later(server: OwnValkey, client: aioredis.Redis) -> None:
    """A long script of another client makes Redis unavailable until it is killed."""
    server.set(busy_reply_threshold=10)
    load = Load(client)
    async with load.running(), connect(server.url) as other, anyio.create_task_group() as tasks:

        async def hog() -> None:
            with pytest.raises(ResponseError, match="killed"):
                await other.eval("while true do end", 0)

        tasks.start_soon(hog)
        await until(lambda: load.reported(FailureReason.BUSY))
        await load.more()
        await client.script_kill()
    await check_all(load.producers, client)


async def test_root_appends_while_a_password_is_set_are_stored_later(server: OwnValkey, client: aioredis.Redis) -> None:
    """An operator sets a password, and removes it."""
    load = Load(client)
    async with connect(server.url) as administrator:
        await administrator.ping()
        async with load.running():
            await administrator.config_set("requirepass", "x")
            await administrator.client_kill_filter(skipme=True, _type="normal")
            await until(lambda: load.reported(FailureReason.AUTH))
            await load.more()
            await administrator.config_set("requirepass", "")
    await check_all(load.producers, client)


@pytest.mark.parametrize("kind", [aioredis.ConnectionPool, aioredis.BlockingConnectionPool])
async def test_root_appends_with_an_exhausted_pool_are_stored_later(
    server: OwnValkey, client: aioredis.Redis, kind: type[aioredis.ConnectionPool]
) -> None:
    """The application holds all connections; events wait until it releases one."""
    options = {"timeout": 0.1} if kind is aioredis.BlockingConnectionPool else {}
    pool = kind.from_url(server.url, max_connections=2, retry=Retry(NoBackoff(), 0), **options)
    held = [await pool.get_connection() for _ in range(2)]  # type: ignore[no-untyped-call]
    async with aioredis.Redis.from_pool(pool) as small:
        load = Load(small)
        async with anyio.create_task_group() as tasks:
            for producer in load.producers:
                tasks.start_soon(producer.append_many, 5)
            await until(lambda: load.reported(FailureReason.POOL))
        assert all(call.seconds < STORE_TIMEOUT + 0.3 for producer in load.producers for call in producer.calls)
        await pool.release(held.pop())
        await until_settled(load.store)
        await check_all(load.producers, client)
        await pool.release(held.pop())


async def test_root_append_to_a_key_of_another_type_is_refused_alone(client: aioredis.Redis) -> None:
    """The other events of its batch and session are stored."""
    load = Load(client)
    victim = RootProducer(load.store, "s0", "taken")
    await client.set(victim.keys.stream(victim.stream), "a string", ex=60)
    async with load.running():
        for _ in range(3):
            with pytest.raises(StoreRejectedError, match="WRONGTYPE"):
                await victim.append_next()
            await load.more()
        assert not any(isinstance(fact, StoreDegraded | StoreRecovered) for fact in load.facts)
    await check_all(load.producers, client)


async def test_deferred_append_to_a_key_of_another_type_is_lost_alone(
    server: OwnValkey, client: aioredis.Redis
) -> None:
    """It is reported lost; events pending behind it are stored."""
    load = Load(client)
    victim = RootProducer(load.store, "s0", "taken")
    await client.set(victim.keys.stream(victim.stream), "a string", ex=60)
    async with load.running():
        server.kill()
        await until(lambda: load.store.backlog.failure)
        appended = await victim.append_next()
        assert appended.deferred
        await load.more()
        server.start()
        await until_settled(load.store)
    (lost,) = [fact for fact in load.facts if isinstance(fact, EventsLost)]
    assert (lost.reason, lost.events) == (LossReason.REJECTED, 1)
    await check_all(load.producers, client)


async def test_root_event_above_the_protocol_limit_is_lost_alone(server: OwnValkey, client: aioredis.Redis) -> None:
    """It breaks each connection that it is sent on; the others are stored."""
    server.set(proto_max_bulk_len=1 << 20)
    load = Load(client)
    async with load.running():
        too_large = await load.store.append("s0:1", note(0, "x" * (2 << 20)))
        assert too_large.deferred
        await until_settled(load.store)
    (lost,) = [fact for fact in load.facts if isinstance(fact, EventsLost)]
    assert (lost.reason, lost.events) == (LossReason.REJECTED, 1)
    await check_all(load.producers, client)


@pytest.mark.parametrize("server", [False], indirect=True, ids=["forgetful"])
@pytest.mark.parametrize("how", ["flushall", "restart"])
async def test_root_appends_to_an_emptied_redis_keep_increasing_ids(
    how: str, server: OwnValkey, client: aioredis.Redis
) -> None:
    """Events are stored as before, and their ids keep increasing."""
    load = Load(client)
    async with load.running():
        before = [await producer.append_next() for producer in load.producers]
        if how == "restart":
            server.kill()
            server.start()
        else:
            await client.flushall()
        await until_settled(load.store)
        await load.more()
    for producer, last in zip(load.producers, before, strict=True):
        stored = await producer.stored(client)
        numbers = [number for _, number in stored]
        # The later events are there; the ones in flight at that moment may be lost with the rest.
        assert numbers == list(range(numbers[0], len(producer.results)))
        assert min(int(event_id) for event_id, _ in stored) > int(last.event_id)
