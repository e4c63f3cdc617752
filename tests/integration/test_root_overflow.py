"""The root store's backlog is bounded, and drops whole streams, oldest first, with a report."""

import asyncio
import gc
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import EventsLost, LossReason, StoreRecovered
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import EventMessage, JSONRPCError, JSONRPCMessage
from mcp_eventscope.store.results import ReplayResult
from mcp_eventscope.testing import Collected
from support.messages import answer, note
from support.proxy import Proxy
from support.root_producers import RootProducer, check_all
from support.servers import Valkey
from support.stores import patient_client, until_settled
from support.waiting import cpu_aware_clock, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STORE_TIMEOUT = 0.25


@pytest.fixture
async def proxy(valkey_server: Valkey) -> AsyncIterator[Proxy]:
    """The proxy between the store and Redis."""
    async with Proxy(valkey_server.socket).running() as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy, key_prefix: str, valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """The store's client; its keys are deleted at the end."""
    async with connect(proxy.url) as client:
        yield client
        async with patient_client(valkey_url) as direct:
            if keys := [key async for key in direct.scan_iter(match=f"{key_prefix}*", count=1000)]:
                await direct.delete(*keys)


class BoundedStore:
    """A store with a small backlog, and its events."""

    def __init__(self, client: aioredis.Redis, prefix: str, **options: int) -> None:
        self.store = RedisEventStore(client, key_prefix=prefix, ttl=60, store_timeout=STORE_TIMEOUT, **options)
        self.facts: list[object] = []
        self.store.observe(self.facts.append)

    @property
    def lost(self) -> list[EventsLost]:
        """The reports of lost events."""
        return [fact for fact in self.facts if isinstance(fact, EventsLost)]

    @asynccontextmanager
    async def outage(self, proxy: Proxy) -> AsyncIterator[None]:
        """Redis refuses connections in the block, and the store knows; afterwards it has recovered."""
        proxy.refuse()
        proxy.reset()
        # Events in flight when the outage is found are retried, whatever else is dropped.
        doomed = self.store
        await until(lambda: self.store.backlog.failure or doomed.append("first in the outage", note(0)))
        yield
        await proxy.listen()
        await until_settled(self.store)


async def resumed(producer: RootProducer, cursor: str) -> tuple[ReplayResult, Collected]:
    """The result and the events of a resume."""
    collected = Collected()
    return await producer.root.replay(cursor, collected, stream_id=producer.stream), collected


async def test_backlog_beyond_its_event_bound_drops_the_oldest_streams(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str
) -> None:
    """Whole streams are lost, counted, and a gap for their clients; the others have everything."""
    bounded = BoundedStore(client, key_prefix, backlog_events=30)
    producers = [RootProducer(bounded.store, f"s{number % 3}", str(number)) for number in range(8)]
    cursors = [(await producer.root.append(producer.stream, None)).event_id for producer in producers]
    async with bounded.outage(proxy):
        for producer in producers:
            await producer.append_many(9)
            assert bounded.store.backlog.events <= 30
    dropped = [not await producer.stored(client) for producer in producers]
    assert dropped == sorted(dropped, reverse=True)
    assert 0 < sum(dropped) < len(producers)
    assert {fact.reason for fact in bounded.lost} == {LossReason.OVERFLOW}
    assert sum(fact.events for fact in bounded.lost) == 9 * sum(dropped)
    for producer, cursor, is_dropped in zip(producers, cursors, dropped, strict=True):
        facts, collected = await resumed(producer, cursor)
        assert facts.gap is is_dropped
        assert facts.miss is None
        assert len(collected.ids) == (0 if is_dropped else 9)
        await producer.append_next()
        facts, collected = await resumed(producer, cursor)
        assert facts.gap is is_dropped
        assert len(collected.ids) == (1 if is_dropped else 10)
        later, _ = await resumed(producer, (await producer.append_next()).event_id)
        assert not later.gap


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_backlog_that_drops_a_response_stores_an_error_once(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str, count: int
) -> None:
    """An error takes its place, so that a client that resumes gets an answer."""
    bounded = BoundedStore(client, key_prefix, backlog_events=20)
    victim = RootProducer(bounded.store, "a")
    cursor = (await bounded.store.append(victim.stream, None)).event_id
    async with bounded.outage(proxy):
        await victim.append_many(count)
        assert (await bounded.store.append(victim.stream, answer(7))).deferred
        await RootProducer(bounded.store, "b").append_many(19)
    for _ in range(2):
        messages: list[JSONRPCMessage] = []

        async def send(event: EventMessage, into: list[JSONRPCMessage] = messages) -> None:
            into.append(event.message)

        facts = await bounded.store.replay(cursor, send, stream_id=victim.stream)
        assert (facts.gap, facts.completed, facts.miss) == (True, True, None)
        (message,) = messages
        assert isinstance(message, JSONRPCError)
        assert (message.id, message.error.code) == (7, EVENTS_GONE)


async def test_backlog_of_one_long_stream_keeps_its_newest_events(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str
) -> None:
    """A stream that alone exceeds the bound keeps its newest events, in order."""
    bounded = BoundedStore(client, key_prefix, backlog_events=20)
    producer = RootProducer(bounded.store, "a")
    cursor = (await bounded.store.append(producer.stream, None)).event_id
    async with bounded.outage(proxy):
        await producer.append_many(205)
    facts, collected = await resumed(producer, cursor)
    assert facts.gap
    numbers = [number for _, number in await producer.stored(client)]
    assert numbers == list(range(205 - len(numbers), 205))
    assert len(collected.ids) == len(numbers) > 0
    assert sum(fact.events for fact in bounded.lost) == 205 - len(numbers)


async def test_backlog_never_exceeds_its_byte_bound(proxy: Proxy, client: aioredis.Redis, key_prefix: str) -> None:
    """An event larger than the whole bound is dropped by itself."""
    bounded = BoundedStore(client, key_prefix, backlog_bytes=100_000)
    producers = [RootProducer(bounded.store, f"s{number}", size=9_000) for number in range(30)]
    async with bounded.outage(proxy):
        for producer in producers:
            await producer.append_next()
            assert bounded.store.backlog.payload_bytes <= 100_000
        huge = await RootProducer(bounded.store, "huge", size=200_000).append_next()
        assert huge.deferred
        assert bounded.lost[-1].payload_bytes > 200_000
        assert bounded.store.backlog.payload_bytes <= 100_000
    assert not bounded.store.backlog.events


async def test_backlog_in_a_long_outage_bounds_memory(proxy: Proxy, client: aioredis.Redis, key_prefix: str) -> None:
    """Memory stays within a small multiple of the bound, however much is appended."""
    bound = 1 << 20
    bounded = BoundedStore(client, key_prefix, backlog_bytes=bound)
    message = note(0, "x" * 500)
    async with bounded.outage(proxy):

        async def append(times: int) -> None:
            for number in range(times):
                for name in range(200):
                    await bounded.store.append(f"{name}:{number}", message)

        tracemalloc.start()
        try:
            await append(5)
            gc.collect()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            await append(15)
            gc.collect()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The first thousand events have filled half of it.
        assert after - before < 2 * bound
        assert peak - before < 3 * bound
    events = [key async for key in client.scan_iter(match=f"{key_prefix}*event:*", count=1000)]
    lost = sum(fact.events for fact in bounded.lost)
    # And the one that found the outage.
    assert 0 < lost == 200 * 20 + 1 - len(events)


async def test_flush_while_redis_is_unreachable_returns_in_time(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str
) -> None:
    """It returns in time with the number of lost events, which are counted."""
    bounded = BoundedStore(client, key_prefix)
    producer = RootProducer(bounded.store, "a")
    await producer.append_next()
    for way in (proxy.refuse, proxy.hold):
        bounded.facts.clear()
        way()
        proxy.reset()
        await until(lambda: bounded.store.backlog.failure or producer.append_next())
        await producer.append_many(10)
        waiting = bounded.store.backlog.events
        assert waiting >= 10
        began = cpu_aware_clock()
        assert await bounded.store.flush(0.3) == waiting
        assert 0.2 < cpu_aware_clock() - began < 0.3 + 0.5
        (lost,) = bounded.lost
        assert (lost.reason, lost.events) == (LossReason.SHUTDOWN, waiting)
        assert bounded.store.backlog.events == 0
        if way == proxy.refuse:
            await proxy.listen()
        proxy.clear()
    # The store may be used again.
    assert (await producer.append_next()).event_id


async def test_flush_while_redis_recovers_stores_pending_events(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str
) -> None:
    """Pending events are stored when Redis recovers in time, and no task remains."""
    bounded = BoundedStore(client, key_prefix)
    producers = [RootProducer(bounded.store, f"s{number}") for number in range(20)]
    proxy.refuse()
    for producer in producers:
        await producer.append_many(20)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.listen)
        assert await bounded.store.flush(5) == 0
    await check_all(producers, client)
    assert not bounded.lost
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("eventscope-writer")]


async def test_flush_without_pending_events_returns_immediately(client: aioredis.Redis, key_prefix: str) -> None:
    """It returns immediately, also before the first append, and twice."""
    bounded = BoundedStore(client, key_prefix)
    with in_time(1):
        assert await bounded.store.flush(30) == 0
        await RootProducer(bounded.store, "a").append_next()
        assert await bounded.store.flush(30) == 0
        assert await bounded.store.flush(30) == 0


async def sometimes_cancelled(producer: RootProducer, dice: random.Random, cancelled: list[RootProducer]) -> None:
    """Append again and again, and cancel some appends at random."""
    for _ in range(40):
        with anyio.CancelScope() as scope:
            if dice.random() < 0.5:
                asyncio.get_running_loop().call_later(dice.uniform(0, 0.001), scope.cancel)
            await producer.append_next()
            await anyio.lowlevel.checkpoint()
        if scope.cancelled_caught:
            cancelled.append(producer)
        await asyncio.sleep(0.001)


async def _none(_: BoundedStore, __: Proxy) -> None:
    pass


async def _slow(_: BoundedStore, proxy: Proxy) -> None:
    proxy.delay = 0.005


async def _refused(bounded: BoundedStore, proxy: Proxy) -> None:
    await anyio.sleep(0.03)
    proxy.refuse()
    proxy.reset()
    await until(lambda: bounded.store.backlog.failure)
    await anyio.sleep(0.05)
    await proxy.listen()


async def _held(bounded: BoundedStore, proxy: Proxy) -> None:
    await anyio.sleep(0.03)
    proxy.hold()
    await until(lambda: bounded.store.backlog.failure)
    await anyio.sleep(0.05)
    proxy.clear()


FAULTS = {"none": _none, "slow": _slow, "refused": _refused, "held": _held}


@pytest.mark.parametrize("fault", FAULTS)
async def test_append_with_cancelled_callers_keeps_the_ids_of_others(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str, fault: str
) -> None:
    """Callers are cancelled at any moment: the others get their own ids, without loss or duplicates."""
    seed = random.randrange(2**32)  # noqa: S311 - chaos, not secrets
    dice = random.Random(seed)  # noqa: S311 - chaos, not secrets
    bounded = BoundedStore(client, key_prefix)
    producers = [RootProducer(bounded.store, f"s{n}", stream) for n in range(5) for stream in "12"]
    for producer in producers:
        await producer.append_next()
    cancelled: list[RootProducer] = []
    try:
        with in_time(30):
            async with anyio.create_task_group() as tasks:
                for producer in producers:
                    tasks.start_soon(sometimes_cancelled, producer, dice, cancelled)
                tasks.start_soon(FAULTS[fault], bounded, proxy)
            await until_settled(bounded.store)
        proxy.delay = 0
        await check_all(producers, client)
        for producer in producers:
            assert (await producer.append_next()).event_id
        await check_all(producers, client)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    assert cancelled
    assert not bounded.lost
    recoveries = sum(isinstance(fact, StoreRecovered) for fact in bounded.facts)
    assert recoveries == (fault in {"refused", "held"})


async def test_append_beside_a_cancelled_caller_is_not_deferred(
    proxy: Proxy, client: aioredis.Redis, key_prefix: str
) -> None:
    """A concurrent append in the same session gets its id as usual."""
    bounded = BoundedStore(client, key_prefix)
    leaving, staying = RootProducer(bounded.store, "a", "1"), RootProducer(bounded.store, "a", "2")
    await staying.append_next()
    proxy.delay = 0.05
    for _ in range(3):
        with anyio.move_on_after(0.01):
            await leaving.append_next()
        assert not (await staying.append_next()).deferred
    await until_settled(bounded.store)
    await check_all([leaving, staying], client)
