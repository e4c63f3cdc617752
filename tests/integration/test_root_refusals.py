"""Redis or a service refuses a root batch: only the offending event fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    FailureReason,
    LossReason,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
)
from mcp_eventscope.store.results import AppendResult
from support.fault_plan import Error, FaultPlan
from support.messages import note
from support.proxy import Proxy
from support.root_producers import RootProducer, check_all
from support.servers import Valkey
from support.stores import patient_client, until_settled

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EVENTS = 50
POISON = "poison"
REFUSED = "ERR this command is refused"


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client that does not use the proxy."""
    async with patient_client(valkey_url) as client:
        yield client


@pytest.fixture
async def proxy(valkey_server: Valkey) -> AsyncIterator[Proxy]:
    """A proxy before Redis."""
    async with Proxy(valkey_server.socket).running() as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: Proxy, key_prefix: str, redis_client: aioredis.Redis) -> AsyncIterator[RedisEventStore]:
    """A store behind the proxy, with an open connection; its keys are deleted."""
    async with connect(proxy.url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60, store_timeout=2)
        await store.append("warm", None)
        yield store
        await store.flush(1)
    if keys := [key async for key in redis_client.scan_iter(match=f"{key_prefix}*", count=1000)]:
        await redis_client.delete(*keys)


async def append_all(store: RedisEventStore, texts: list[str]) -> list[AppendResult | BaseException]:
    """Append a note with each text concurrently to one of three streams."""
    appends = (store.append(str(number % 3), note(number, text)) for number, text in enumerate(texts))
    return await asyncio.gather(*appends, return_exceptions=True)


def ids_of(results: list[AppendResult | BaseException]) -> list[int]:
    """The ids of the stored events, in the order of the appends."""
    return [int(result.event_id) for result in results if isinstance(result, AppendResult)]


@pytest.mark.parametrize("place", [0, 1, EVENTS // 2, EVENTS - 1])
async def test_refused_event_fails_its_own_caller_only(
    store: RedisEventStore, proxy: Proxy, redis_client: aioredis.Redis, place: int
) -> None:
    """Wherever it is in the batch, the other events are stored, once and in order."""
    facts: list[StoreEvent] = []
    store.observe(facts.append)
    proxy.answer(POISON, REFUSED, times=1000)
    results = await append_all(store, [POISON if number == place else "" for number in range(EVENTS)])
    (error,) = [result for result in results if isinstance(result, BaseException)]
    assert error is results[place]
    assert isinstance(error, StoreRejectedError)
    assert str(error) == f"could not append to Redis at {store.address}: replied {REFUSED.removeprefix('ERR ')}"
    assert POISON not in str(error)
    ids = ids_of(results)
    assert ids == sorted(set(ids))
    stored = [await redis_client.zcard(f"{store.key_prefix}stream:{stream}") for stream in range(3)]
    assert sum(stored) == EVENTS - 1
    assert sum(fact.events for fact in facts if isinstance(fact, BatchCommitted)) == EVENTS - 1
    assert {fact.reason for fact in facts if isinstance(fact, BatchRetried)} == {FailureReason.OTHER}
    assert not [fact for fact in facts if isinstance(fact, StoreDegraded | StoreRecovered | EventsLost)]
    assert (await store.append("1", note(0))).event_id


async def test_several_refused_events_fail_their_own_callers_only(store: RedisEventStore, proxy: Proxy) -> None:
    """Several events of a batch are refused, neighbours among them."""
    poisoned = {3, 4, 17, 30, 31, 32}
    proxy.answer(POISON, REFUSED, times=1000)
    results = await append_all(store, [POISON if number in poisoned else "" for number in range(EVENTS)])
    assert {number for number, result in enumerate(results) if isinstance(result, StoreRejectedError)} == poisoned
    assert ids_of(results) == sorted(set(ids_of(results)))


async def test_batch_above_a_command_limit_is_split(store: RedisEventStore, proxy: Proxy) -> None:
    """Where a limit is below a batch and above an event, smaller batches are sent."""
    proxy.largest = 4096
    results = await append_all(store, ["x" * 1000] * EVENTS)
    assert all(isinstance(result, AppendResult) and result.event_id for result in results)
    assert ids_of(results) == sorted(set(ids_of(results)))


async def test_event_above_a_command_limit_is_rejected(store: RedisEventStore, proxy: Proxy) -> None:
    """One large event is rejected; earlier and later ones are stored."""
    proxy.largest = 100_000
    results = await append_all(store, ["", "x" * 1_200_000, "", ""])
    assert [isinstance(result, StoreRejectedError) for result in results] == [False, True, False, False]


@pytest.mark.parametrize("reply", range(3))
async def test_committed_batch_with_an_error_reply_is_stored_once(
    store: RedisEventStore, proxy: Proxy, redis_client: aioredis.Redis, key_prefix: str, reply: int
) -> None:
    """Its parts are not stored again, and have the ids of the first commit."""
    proxy.follow(plan := FaultPlan(key_prefix, [(reply, Error(REFUSED, executed=True))]))
    proxy.release()
    producers = [RootProducer(store, f"s{number}") for number in range(EVENTS)]
    for _ in range(3):
        await asyncio.gather(*(producer.append_next() for producer in producers))
    assert plan.seen > reply
    await redis_client.delete(
        f"{key_prefix}stream:warm",
        *[
            key
            async for key in redis_client.scan_iter(match=f"{key_prefix}event:*", count=1000)
            if await redis_client.hget(key, "stream_id") == b"warm"
        ],
    )
    assert all(answer is not None and answer.event_id for producer in producers for answer in producer.results)
    await check_all(producers, redis_client)


async def test_refused_deferred_event_is_reported_lost(
    store: RedisEventStore, proxy: Proxy, redis_client: aioredis.Redis
) -> None:
    """It has no caller to fail; the others, deferred before and after it, are stored."""
    facts: list[StoreEvent] = []
    store.observe(facts.append)
    proxy.answer(POISON, REFUSED, times=1000)
    proxy.refuse()
    proxy.reset()
    results = await append_all(store, [POISON if number == 20 else "" for number in range(EVENTS)])
    assert all(isinstance(result, AppendResult) and result.deferred for result in results)
    await proxy.listen()
    await until_settled(store)
    (lost,) = [fact for fact in facts if isinstance(fact, EventsLost)]
    assert (lost.reason, lost.events) == (LossReason.REJECTED, 1)
    payloads = [await redis_client.zcard(f"{store.key_prefix}stream:{stream}") for stream in range(3)]
    assert sum(payloads) == EVENTS - 1


async def test_flush_while_isolating_an_event_reports_each_event_once(store: RedisEventStore, proxy: Proxy) -> None:
    """Pending parts are stored, or reported lost, when the store is closed."""
    proxy.largest = 4096
    proxy.delay = 0.02
    appends = asyncio.gather(*(store.append("1", note(number, "x" * 1000)) for number in range(EVENTS)))
    await asyncio.sleep(0.05)
    lost = await store.flush(0.05)
    results = await appends
    assert sum(result.deferred for result in results) == lost > 0
    assert store.backlog.events == 0
    proxy.delay = 0
    assert (await store.append("1", note(0))).event_id
