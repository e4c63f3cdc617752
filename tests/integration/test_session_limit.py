"""`max_session_bytes` bounds a session: the oldest events are evicted in a fixed order."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.store.events import EventsLost, LossReason, StoreEvent
from mcp_eventscope.store.messages import GET_STREAM_KEY, JSONRPCMessage
from mcp_eventscope.store.results import Gap, ReplayResult
from mcp_eventscope.testing import Collected
from support.leaks import LeakChecker
from support.messages import answer, note
from support.proxy import Proxy
from support.servers import Valkey
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]

TTL = 600
LIMIT = 1 << 20
SLACK = LIMIT // 4
"""Bytes that a worker has not accounted for yet, and that Redis needs for keys."""
TEXT = "x" * 1000
DAMAGED = (b'[["1","r",1,9,0,["x"]]]', b'[["1","r","x",9,0,[]]]', b"[[1,2,3,4,5,[]]]", b"[[", b"{}", b"7")
"""Texts that are no entries of an account."""
BYTES = pytest.mark.parametrize("redis_client", [False], indirect=True, ids=["bytes"])
"""Long, and about nothing that a client decodes: the other tests run with one that does."""


class Worker:
    """A worker's store, and the number of events that it has evicted."""

    def __init__(self, client: aioredis.Redis, key_prefix: str) -> None:
        self.store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, max_session_bytes=LIMIT)
        self.part = self.store.for_session("s")
        self.evicted = 0
        self.store.observe(self._note)

    def _note(self, fact: StoreEvent) -> None:
        if isinstance(fact, EventsLost) and fact.reason is LossReason.SESSION_LIMIT:
            self.evicted += fact.events

    async def call(self, number: int, *messages: JSONRPCMessage | None) -> list[str]:
        """Run a request that sends messages; returns their ids."""
        stream = str(number)
        self.part.begin(stream, number)
        return [(await self.part.append(stream, message)).event_id for message in messages]


@pytest.fixture
def worker(redis_client: aioredis.Redis, key_prefix: str) -> Worker:
    """The worker that stores."""
    return Worker(redis_client, key_prefix)


@pytest.fixture
def reader(redis_client: aioredis.Redis, key_prefix: str) -> RedisSessionStore:
    """The session's part of another worker's store."""
    return RedisEventStore(redis_client, key_prefix=key_prefix, ttl=TTL).for_session("s")


async def small_enough(client: aioredis.Redis, leaks: LeakChecker) -> None:
    """Return when the session's keys take up no more than they may."""

    async def small() -> bool:
        async with client.pipeline(transaction=False) as pipeline:
            for key in await leaks.keys():
                pipeline.memory_usage(key)
            return sum(size or 0 for size in await pipeline.execute()) <= LIMIT + SLACK

    await until(small)


async def replay(reader: RedisSessionStore, number: int, cursor: str) -> tuple[ReplayResult, Sequence[str | None]]:
    """A replay on the other worker, and the ids that it delivers."""
    collected = Collected()
    return await reader.replay(cursor, collected, stream_id=str(number)), collected.ids


async def test_small_session_has_no_account(worker: Worker, leaks: LeakChecker) -> None:
    """A session of a few calls writes no account, so that it costs nothing."""
    for number in range(1, 6):
        await worker.call(number, None, note(1), answer(number))
    await worker.store.flush(5)
    assert not [key for key in await leaks.keys() if key.endswith("sizes")]


async def test_finished_requests_are_evicted_first(
    worker: Worker, reader: RedisSessionStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """The session stays below its limit; responses, open requests and the newest call stay whole."""
    kept = await worker.call(0, None, *[note(n, TEXT) for n in range(50)])
    calls = {}
    for number in range(1, 200):
        calls[number] = await worker.call(number, None, *[note(n, TEXT) for n in range(20)], answer(number))
    await until(lambda: worker.store.backlog.events == 0)
    await until(lambda: worker.evicted > 0)
    await small_enough(redis_client, leaks)
    facts, ids = await replay(reader, 0, kept[0])
    assert (facts.missing, list(ids)) == (0, kept[1:])
    facts, ids = await replay(reader, 199, calls[199][0])
    assert (facts.missing, list(ids), facts.completed) == (0, calls[199][1:], True)
    facts, ids = await replay(reader, 1, calls[1][0])
    assert (facts.missing, list(ids), facts.completed, facts.gap) == (20, calls[1][-1:], True, True)
    assert facts.gaps == {Gap.EVICTED: 20}
    await worker.store.flush(5)


async def test_eviction_counts_every_event_once(
    worker: Worker, reader: RedisSessionStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """Every event that clients can no longer get is counted, and none twice."""
    calls = {n: await worker.call(n, None, *[note(i, TEXT) for i in range(30)], answer(n)) for n in range(1, 101)}

    async def counted() -> bool:
        missing = sum([(await replay(reader, number, ids[0]))[0].missing for number, ids in calls.items()])
        trimmed_priming = 0
        for number, ids in calls.items():
            run = ids[0].split("-")[2]
            first: Any = await redis_client.lindex(f"{reader.key_prefix}stream:{number}:{run}", 0)
            text = first if isinstance(first, str) else (first or b"").decode()
            trimmed_priming += not text.startswith("1 ")
        return missing > 0 and worker.evicted == missing + trimmed_priming

    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    await until(counted)  # The last eviction may be under way.
    await worker.store.flush(5)


async def test_open_requests_are_evicted_next(
    worker: Worker, reader: RedisSessionStore, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """One endless request and the standalone stream are bounded, too, and keep their newest events."""
    ids = await worker.call(1, None, *[note(n, TEXT) for n in range(3000)])
    for number in range(1000):
        await worker.part.append(GET_STREAM_KEY, note(number, TEXT))
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    facts, received = await replay(reader, 1, ids[0])
    assert list(received) == ids[len(ids) - len(received) :]
    assert facts.missing == len(ids) - 1 - len(received)
    assert worker.evicted > 2000
    await worker.store.flush(5)


@BYTES
@pytest.mark.parametrize("size", [3000, 200_000], ids=["in the list", "of its own key"])
async def test_responses_are_evicted_last(
    worker: Worker, reader: RedisSessionStore, redis_client: aioredis.Redis, leaks: LeakChecker, size: int
) -> None:
    """Where responses alone exceed the limit, the oldest go; a resume completes and counts the missing one."""
    calls = {}
    count = 4 * LIMIT // size
    for number in range(1, count):
        response = answer(number).model_copy(update={"result": {"text": "x" * size}})
        calls[number] = await worker.call(number, None, response)
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    facts, ids = await replay(reader, 1, calls[1][0])
    assert (facts.missing, list(ids), facts.completed) == (1, [], True)
    assert facts.gaps == {Gap.EVICTED: 1}
    facts, ids = await replay(reader, count - 1, calls[count - 1][0])
    assert (facts.missing, list(ids), facts.completed) == (0, calls[count - 1][1:], True)
    await worker.store.flush(5)


@BYTES
async def test_eviction_of_endless_calls_bounds_their_marks(
    worker: Worker, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """In the end even the marks of the oldest small calls are evicted."""
    for number in range(6000):
        await worker.call(number, answer(number))
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)

    async def few() -> bool:
        return len(await leaks.keys()) < 5500

    await until(few)
    await worker.store.flush(5)


async def test_two_workers_of_one_session_share_its_account(
    worker: Worker, redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """Both account in the same place, and may evict at the same time."""
    workers = worker, Worker(redis_client, key_prefix)
    for number in range(200):
        await workers[number % 2].call(number, None, *[note(n, TEXT) for n in range(20)], answer(number))
    for each in workers:
        await until(lambda each=each: each.store.backlog.events == 0)  # type: ignore[misc]
    await small_enough(redis_client, leaks)
    for each in workers:
        await each.store.flush(5)
    sizes = await redis_client.hgetall(f"{key_prefix}{{s}}:sizes")
    values = {
        (name if isinstance(name, str) else name.decode()): int(
            (value if isinstance(value, str) else value.decode()).partition(" ")[0]
        )
        for name, value in sizes.items()
    }
    assert values.pop("total") == sum(values.values())


async def test_many_open_requests_are_bounded_together(
    worker: Worker, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """Requests that run concurrently are bounded together, however little each has sent."""
    for number in range(300):
        await worker.call(number, None, *[note(n, TEXT) for n in range(10)])
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    await worker.store.flush(5)
    assert worker.evicted > 1500


async def test_damaged_account_entries_are_dropped(
    worker: Worker, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """The session stays bounded."""
    sizes = f"{worker.part.key_prefix}sizes"
    damaged = {f"{time.time_ns() // 1000:016d}-x-{place}": b"9 " + damage for place, damage in enumerate(DAMAGED)}
    for name, value in damaged.items():
        await redis_client.hset(sizes, name, value)
    for number in range(200):
        await worker.call(number, None, *[note(n, TEXT) for n in range(20)], answer(number))
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    await worker.store.flush(5)
    kept = await redis_client.hkeys(sizes)
    assert not {name if isinstance(name, str) else name.decode() for name in kept} & damaged.keys()


async def test_large_payloads_of_an_endless_request_are_bounded(
    worker: Worker, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """No more of them are renewed than the limit leaves in Redis."""
    await worker.call(1, None, *[note(n, "x" * 5000) for n in range(1500)])
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    (run,) = worker.part._queue.runs.values()
    stored = {key.rpartition(":")[2] for key in await leaks.keys() if ":large:" in key}
    assert stored <= set(map(str, run.larges))
    assert len(run.larges) <= 2 * LIMIT // 4096
    await worker.store.flush(5)


async def test_account_entries_left_by_flush_are_written_later(
    worker: Worker, redis_client: aioredis.Redis, leaks: LeakChecker
) -> None:
    """Events that a flush has no time to account for are accounted for at the next use."""
    for turn in range(4):
        for number in range(60):
            await worker.call(turn * 100 + number, None, *[note(n, TEXT) for n in range(20)], answer(number))
        await until(lambda: worker.store.backlog.events == 0)
        await worker.store.flush(0)
    for number in range(60):
        await worker.call(1000 + number, None, *[note(n, TEXT) for n in range(20)], answer(number))
    await until(lambda: worker.store.backlog.events == 0)
    await small_enough(redis_client, leaks)
    await worker.store.flush(5)
    assert worker.evicted > 0


async def test_eviction_without_an_account_does_not_create_it(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """A new account would have no TTL."""
    keys = Keys(key_prefix).for_session("s")
    run = keys.run("1", "0123456789ab1")
    assert await Script("evict.lua")(
        redis_client, [keys.sizes, keys.index, run], [1, "name", "9 []", "", 7, "t", 0]
    ) == [0, 0]
    assert not await redis_client.exists(keys.sizes)


@BYTES
@pytest.mark.parametrize("error", ["OOM no memory", "READONLY replica", "LOADING a snapshot", "MISCONF no disk"])
@pytest.mark.slow
async def test_account_entry_that_redis_refuses_is_written_later(
    valkey_server: Valkey, redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker, error: str
) -> None:
    """No entry is lost, and none counts twice."""
    async with Proxy(valkey_server.socket).running() as proxy, connect(proxy.url) as client:
        worker = Worker(client, key_prefix)
        proxy.answer(f"{worker.part.key_prefix}sizes", error, times=3)
        lost = proxy.drop_reply(f"{worker.part.key_prefix}sizes", times=2, skip=6)
        for number in range(200):
            await worker.call(number, None, *[note(n, TEXT) for n in range(20)], answer(number))
            await asyncio.sleep(0)
        await until(lambda: worker.store.backlog.events == 0)
        worker.part.close()
        await small_enough(redis_client, leaks)
        await until(lambda: not worker.store._limit._entries)
        await worker.store.flush(CEILING)
        assert lost.happened == 2
        await account_is_exact(redis_client, worker.part.key_prefix)


async def account_is_exact(client: aioredis.Redis, prefix: str) -> None:
    """The account's total is the sum of its entries, and they have every run that Redis has."""
    sizes = await client.hgetall(f"{prefix}sizes")
    values = {name if isinstance(name, str) else name.decode(): int(value.split()[0]) for name, value in sizes.items()}
    total = values.pop("total")
    assert total == sum(values.values())
    entries = [value.decode() if isinstance(value, bytes) else value for value in sizes.values()]
    accounted = {row[1] for value in entries if "[" in value for row in json.loads(value.partition(" ")[2])}
    keys = [str(key) async for key in client.scan_iter(match=f"{prefix}stream:*")]
    assert accounted == {key.rstrip("'").rpartition(":")[2] for key in keys}
