"""Redis is killed or frozen while fifty sessions append to the root store."""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import BatchCommitted, EventsLost, FailureReason, StoreDegraded, StoreRecovered
from support.root_producers import RootProducer, check_all
from support.stores import until_settled
from support.valkeys import OwnValkey, fail_repeatedly, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SESSIONS = 50
STORE_TIMEOUT = 0.25
SLACK = 0.3
"""Seconds that a busy machine may add."""
KILLED_SECONDS = 2.0
FROZEN_SECONDS = 5.0


@dataclass
class World:
    """A Redis to be killed, a store on it, and its events."""

    server: OwnValkey
    client: aioredis.Redis
    store: RedisEventStore
    facts: list[object]


@dataclass(frozen=True)
class Outage:
    """When it began, when it was known, and when it was over, by the monotonic clock."""

    began: float
    known: float
    back: float


@pytest.fixture(autouse=True)
def no_long_pause() -> Iterator[None]:
    """Freeze garbage: after a thousand tests a full collection takes as long as the measured waits."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A running Redis, and the store on it."""
    with own_valkey(durable=True) as server:
        async with connect(server.url) as client:
            store = RedisEventStore(client, ttl=600, store_timeout=STORE_TIMEOUT)
            world = World(server, client, store, [])
            store.observe(world.facts.append)
            yield world


async def append_through(world: World, outage: Callable[[], Awaitable[None]]) -> tuple[list[RootProducer], Outage]:
    """Fifty sessions append through an outage. Returns their producers and the outage's times."""
    producers, over = [RootProducer(world.store, f"s{number}") for number in range(SESSIONS)], asyncio.Event()

    async def more() -> None:
        before = [len(producer.calls) for producer in producers]
        await until(lambda: all(len(s.calls) > n + 5 for s, n in zip(producers, before, strict=True)))

    began = known = 0.0

    def watch(fact: object) -> None:
        nonlocal known
        # On a busy machine Redis may have been too slow before.
        if isinstance(fact, StoreDegraded) and began and not known:
            known = time.monotonic()

    world.store.observe(watch)
    async with anyio.create_task_group() as tasks:
        for producer in producers:
            tasks.start_soon(producer.append_until, over)
        await more()
        await until_settled(world.store)
        began = time.monotonic()
        await outage()
        back = time.monotonic()
        await until_settled(world.store)
        await more()
        over.set()
    assert known
    return producers, Outage(began, known, back)


def check_waits(world: World, producers: list[RootProducer], outage: Outage) -> None:
    """Each waited for Redis at most once, and none while it was known to be unreachable."""
    calls = [call for producer in producers for call in producer.calls]
    assert max(call.seconds for call in calls) < STORE_TIMEOUT + SLACK
    waits = sorted(call.seconds for call in calls if outage.known < call.began < outage.back)
    assert len(waits) > SESSIONS * 20
    # The loop serves fifty sessions on a busy machine: the median shows that no caller waits.
    assert statistics.median(waits) < 0.002
    assert waits[len(waits) * 99 // 100] < 0.05
    assert waits[-1] < STORE_TIMEOUT
    for producer in producers:
        within = [
            call for call in producer.calls if call.began < outage.back and call.began + call.seconds > outage.began
        ]
        waited = [call for call in within if call.deferred and call.seconds > STORE_TIMEOUT * 0.8]
        others = [fact for fact in world.facts if not isinstance(fact, BatchCommitted)]
        assert len(waited) <= 1, (outage, waited, others)


async def test_root_appends_while_redis_is_killed_are_stored_once(world: World) -> None:
    """Redis is killed for two seconds."""

    async def outage() -> None:
        world.server.kill()
        await anyio.sleep(KILLED_SECONDS)
        await anyio.to_thread.run_sync(world.server.start)

    producers, when = await append_through(world, outage)
    check_waits(world, producers, when)
    await check_all(producers, world.client)
    assert not [fact for fact in world.facts if isinstance(fact, EventsLost)]
    # A busy machine may be too slow before or after the outage.
    (came_back,) = [f for f in world.facts if isinstance(f, StoreRecovered) and f.reason is not FailureReason.TIMEOUT]
    assert KILLED_SECONDS - 0.1 < came_back.seconds < KILLED_SECONDS + 2


async def test_root_appends_while_redis_is_frozen_are_stored_once(world: World) -> None:
    """Redis is frozen for five seconds, and executes earlier commands after the thaw, not twice."""

    async def outage() -> None:
        world.server.freeze()
        await anyio.sleep(FROZEN_SECONDS)
        world.server.thaw()

    producers, when = await append_through(world, outage)
    check_waits(world, producers, when)
    await check_all(producers, world.client)
    assert not [fact for fact in world.facts if isinstance(fact, EventsLost)]
    assert [fact for fact in world.facts if isinstance(fact, StoreRecovered)]


async def test_root_appends_while_redis_is_killed_repeatedly_are_stored_once(world: World) -> None:
    """Redis is killed and frozen at any moment of its recovery."""
    producers, _ = await append_through(world, partial(fail_repeatedly, world.server))
    await check_all(producers, world.client)
    assert not [fact for fact in world.facts if isinstance(fact, EventsLost)]


async def test_root_backlog_after_an_outage_is_stored_in_bulk(world: World) -> None:
    """The events of an outage are stored soon afterwards, and later ones behind them."""
    server = world.server
    producers = [RootProducer(world.store, f"s{number}") for number in range(SESSIONS)]
    for producer in producers:
        await producer.append_next()
    server.kill()
    await until(lambda: world.store.backlog.failure or producers[0].append_next())
    for producer in producers:
        await producer.append_many(400)
    assert world.store.backlog.events >= 400 * SESSIONS
    server.start()
    began = time.monotonic()
    newcomer = RootProducer(world.store, "newcomer")
    await until(lambda: world.store.backlog.failure is None)
    deferred = (await newcomer.append_next()).deferred
    left = world.store.backlog.events
    await until_settled(world.store)
    newcomer_id = (await newcomer.append_next()).event_id
    # Written to disk batch by batch, on a busy machine.
    assert time.monotonic() - began < 8
    assert left > 0
    assert deferred
    assert newcomer_id
    await check_all([*producers, newcomer], world.client)
