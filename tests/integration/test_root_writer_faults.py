"""Faults between the root writer and Redis: each event is stored once, in order, promptly."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    FailureReason,
    StoreDegraded,
    StoreRecovered,
)
from support.connection_faults import FAULTS, RETRIED, STORE_TIMEOUT, MakeClient, retrying_client
from support.proxy import Fault, Proxy
from support.root_producers import RootProducer, check_all
from support.servers import Valkey
from support.stores import patient_client, until_settled
from support.waiting import cpu_aware_clock, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SLACK = 0.3
"""Seconds that a busy machine may add."""
SESSIONS = 4
STREAMS = ("1", "2")


@dataclass
class World:
    """A store behind a proxy, and its events."""

    proxy: Proxy
    store: RedisEventStore
    direct: aioredis.Redis
    facts: list[object] = field(default_factory=list)

    @property
    def token(self) -> str:
        """Every command of the store contains it."""
        return self.store.key_prefix

    def forget(self) -> None:
        """Forget earlier reports, such as that of a script that is not loaded yet."""
        self.facts[:] = [fact for fact in self.facts if isinstance(fact, BatchCommitted)]

    def reasons(self) -> set[FailureReason]:
        """The reported reasons."""
        return {fact.reason for fact in self.facts if isinstance(fact, BatchRetried | StoreDegraded)}

    def producers(self, sessions: int = SESSIONS) -> list[RootProducer]:
        """Producers that append concurrently."""
        return [RootProducer(self.store, f"s{number}", stream) for number in range(sessions) for stream in STREAMS]

    async def check(self, producers: list[RootProducer]) -> None:
        """Redis has every number once, in order and counted, and no append took too long."""
        await until_settled(self.store)
        await check_all(producers, self.direct)
        committed = [fact for fact in self.facts if isinstance(fact, BatchCommitted)]
        stored = sum([len(await producer.stored(self.direct)) for producer in producers])
        assert sum(fact.events for fact in committed) == stored
        assert not [fact for fact in self.facts if isinstance(fact, EventsLost)]
        slowest = max(call.seconds for producer in producers for call in producer.calls)
        assert slowest < STORE_TIMEOUT + SLACK


@pytest.fixture
def make_client() -> MakeClient:
    """Makes the store's client."""
    return connect


@pytest.fixture
async def world(
    make_client: MakeClient, valkey_server: Valkey, key_prefix: str, redis_client: aioredis.Redis
) -> AsyncIterator[World]:
    """A store behind a proxy."""
    async with Proxy(valkey_server.socket).running() as proxy, make_client(proxy.url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60, store_timeout=STORE_TIMEOUT)
        world = World(proxy, store, redis_client)
        store.observe(world.facts.append)
        yield world
        proxy.clear()
        await store.flush(5)
        if keys := [key async for key in redis_client.scan_iter(match=f"{key_prefix}*", count=1000)]:
            await redis_client.delete(*keys)


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client that bypasses the proxy."""
    async with patient_client(valkey_url) as client:
        yield client


async def check_fault(world: World, fault: str) -> None:
    """Inject a fault while events are appended: nothing is lost or stored twice, and the reason is reported."""
    happen, reported = FAULTS[fault]
    producers, over = world.producers(), asyncio.Event()
    with in_time(30):
        async with anyio.create_task_group() as tasks:
            for producer in producers:
                tasks.start_soon(producer.append_until, over)
            await until(lambda: all(len(producer.calls) > 5 for producer in producers))
            world.forget()
            await happen(world)
            await until_settled(world.store)
            before = [len(producer.calls) for producer in producers]
            await until(lambda: all(len(s.calls) > n + 5 for s, n in zip(producers, before, strict=True)))
            over.set()
    await world.check(producers)
    assert reported <= world.reasons()


@pytest.mark.parametrize("fault", FAULTS)
async def test_root_appends_through_a_fault_are_stored_once(world: World, fault: str) -> None:
    """Nothing is lost or stored twice, and the reason is reported."""
    await check_fault(world, fault)


@pytest.mark.parametrize("make_client", [retrying_client], ids=["default"])
@pytest.mark.parametrize("fault", RETRIED)
async def test_root_appends_with_a_retrying_client_are_stored_once(world: World, fault: str) -> None:
    """A client that retries by itself stores nothing twice, and takes no longer."""
    await check_fault(world, fault)


@pytest.mark.parametrize("count", [1, 20])
async def test_root_batch_copy_that_arrives_late_is_not_stored_again(world: World, count: int) -> None:
    """The copy arrives after later events."""
    producer = RootProducer(world.store, "a")
    await producer.append_many(count)
    fault = world.proxy.delay_request(world.token)
    await producer.append_next()
    await until_settled(world.store)
    assert fault.happened
    await producer.append_many(count)
    await world.proxy.deliver(fault)
    await producer.append_many(count)
    await world.check([producer])


async def test_root_writer_on_a_held_connection_queues_few_copies(world: World) -> None:
    """While nothing passes, no queue of copies builds up for Redis."""
    producers, over = world.producers(), asyncio.Event()
    async with anyio.create_task_group() as tasks:
        for producer in producers:
            tasks.start_soon(producer.append_until, over)
        await until(lambda: all(len(producer.calls) > 5 for producer in producers))
        world.proxy.hold()
        accepted = world.proxy.accepted
        await anyio.sleep(STORE_TIMEOUT * 5)
        assert world.proxy.accepted - accepted <= 20
        world.proxy.clear()
        await until_settled(world.store)
        over.set()
    await world.check(producers)


async def test_root_append_with_slow_replies_is_not_deferred(world: World) -> None:
    """A reply later than usual but in time is no failure."""
    producers = world.producers(10)
    await producers[0].append_next()
    world.proxy.delay = STORE_TIMEOUT / 5
    began = cpu_aware_clock()
    async with anyio.create_task_group() as tasks:
        for producer in producers:
            tasks.start_soon(producer.append_many, 10)
    # Twenty streams share each round trip: one after the other this were ten seconds.
    assert cpu_aware_clock() - began < 3
    await world.check(producers)
    assert world.reasons() <= {FailureReason.NOSCRIPT}
    assert not any(call.deferred for producer in producers for call in producer.calls)


async def test_root_append_in_an_outage_returns_immediately(world: World) -> None:
    """Once Redis is known to be unreachable, no caller waits for a refusal or a silence."""
    for breaks in (world.proxy.hold, world.proxy.refuse):
        world.facts.clear()
        producer = RootProducer(world.store, breaks.__name__)
        await producer.append_next()
        breaks()
        world.proxy.reset()
        while not producer.results[-1].deferred:  # type: ignore[union-attr]
            await producer.append_next()
        await until(lambda: StoreDegraded in map(type, world.facts))
        first = len(producer.calls)
        began = time.monotonic()
        while time.monotonic() - began < 2 * STORE_TIMEOUT:
            await producer.append_next()
            await asyncio.sleep(0.001)
        slow = [call.seconds for call in producer.calls[first:] if call.seconds > 0.02]
        assert len(slow) <= len(producer.calls[first:]) // 50 + 1, slow
        assert all(call.deferred for call in producer.calls[first:])
        assert StoreRecovered not in map(type, world.facts)
        if breaks == world.proxy.refuse:
            await world.proxy.listen()
        world.proxy.clear()
        await until_settled(world.store)
        (back,) = [fact for fact in world.facts if isinstance(fact, StoreRecovered)]
        assert back.seconds >= 2 * STORE_TIMEOUT
        await producer.check(world.direct)


class RandomFaults:
    """Applies random faults to a proxy, one after the other."""

    def __init__(self, proxy: Proxy, token: str, seed: int) -> None:
        self._proxy = proxy
        self._token = token
        self._dice = random.Random(seed)  # noqa: S311 - chaos, not secrets
        self._kept: list[Fault] = []
        self._faults = [self._lose, self._cut, self._delay, self._deny, self._refuse, self._be_silent]

    async def do(self) -> None:
        """Apply the next fault, and deliver earlier delayed requests."""
        await self._dice.choice(self._faults)()
        await anyio.sleep(self._dice.uniform(0, 0.2))
        await self.deliver()

    async def deliver(self) -> None:
        """Deliver the delayed requests."""
        for kept in self._kept:
            await self._proxy.deliver(kept)

    async def _lose(self) -> None:
        self._proxy.drop_reply(self._token, times=self._dice.randint(1, 4), skip=self._dice.randrange(3))

    async def _cut(self) -> None:
        self._proxy.cut_request(self._token, after=self._dice.randrange(3000), skip=self._dice.randrange(3))

    async def _delay(self) -> None:
        self._kept.append(self._proxy.delay_request(self._token, skip=self._dice.randrange(2)))

    async def _deny(self) -> None:
        error = self._dice.choice(["NOSCRIPT", "BUSY", "LOADING", "READONLY"])
        self._proxy.answer(self._token, f"{error} just so", times=2)

    async def _refuse(self) -> None:
        self._proxy.refuse()
        self._proxy.reset()
        await anyio.sleep(self._dice.uniform(0.05, 0.4))
        await self._proxy.listen()

    async def _be_silent(self) -> None:
        self._dice.choice([self._proxy.hold, self._proxy.mute, self._proxy.black_hole])()
        await anyio.sleep(self._dice.uniform(0.05, 0.6))
        self._proxy.clear()


async def test_root_appends_through_random_faults_are_stored_once(world: World) -> None:
    """Faults happen in random order, and on top of each other."""
    seed = random.randrange(2**32)  # noqa: S311 - chaos, not secrets
    producers, over = world.producers(8), asyncio.Event()
    faults = RandomFaults(world.proxy, world.token, seed)
    try:
        with in_time(40):
            async with anyio.create_task_group() as tasks:
                for producer in producers:
                    tasks.start_soon(producer.append_until, over)
                began = time.monotonic()
                while time.monotonic() - began < 2.5:
                    await faults.do()
                world.proxy.clear()
                over.set()
            await until_settled(world.store)
            await faults.deliver()
        await check_all(producers, world.direct)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
