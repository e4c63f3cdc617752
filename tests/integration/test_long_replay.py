"""The replay of a long stream: bounded memory, short calls, and back-pressure."""

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from benchmarks import long_replay
from benchmarks.long_replay import SESSION, STREAM, TTL
from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.read.elements import Chunk
from mcp_eventscope.redis.read.run_reader import CHUNK_EVENTS, FIRST_EVENTS
from mcp_eventscope.store.messages import EventMessage
from support.messages import note
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EVENTS = 100_000
CONNECTIONS = 3
MEGABYTE = 1 << 20


async def test_long_replay_bounds_memory_and_calls() -> None:
    """A few chunks are in memory, whatever the length, and each keeps Redis busy for a moment only."""
    measured = await long_replay.measure(EVENTS)
    assert measured.delivered == EVENTS - 1
    # All of it would be 8 MB as text, and ten times that as messages.
    assert measured.grown_bytes < 8 * MEGABYTE
    assert measured.calls >= EVENTS / CHUNK_EVENTS
    # On a busy machine some calls take long without working.
    assert measured.slow_calls <= measured.calls / 20


@pytest.fixture
async def small_pool(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client with few connections, which raises when they are all in use."""
    never = Retry(NoBackoff(), 0)
    async with aioredis.Redis.from_url(valkey_url, retry=never, max_connections=CONNECTIONS) as client:
        yield client


@pytest.fixture
async def cursor(small_pool: aioredis.Redis, key_prefix: str) -> AsyncIterator[str]:
    """The first event of a stream of some thousands."""
    yield await long_replay.fill(small_pool, key_prefix, 10_000)
    await small_pool.delete(*[key async for key in small_pool.scan_iter(match=f"{key_prefix}*", count=1000)])


async def test_long_replay_to_a_slow_client_reads_no_further(
    small_pool: aioredis.Redis, key_prefix: str, cursor: str
) -> None:
    """While the callback blocks, no more than the current chunk is read."""
    part = RedisEventStore(small_pool, key_prefix=key_prefix, ttl=TTL).for_session(SESSION)
    delivered, reads, may_go_on = 0, 0, anyio.Event()
    reader = part._shared.reader
    read = reader._read

    async def counted(keys: Keys, stream: str, run: str, after: int, max_events: int) -> Chunk:
        nonlocal reads
        reads += 1
        return await read(keys, stream, run, after, max_events)

    reader._read = counted  # type: ignore[method-assign]

    async def slow(_: EventMessage) -> None:
        nonlocal delivered
        delivered += 1
        if delivered == 1000:
            await may_go_on.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: part.replay(cursor, slow, stream_id=STREAM))
        await until(lambda: delivered == 1000)
        await anyio.sleep(0.2)
        assert FIRST_EVENTS < delivered < FIRST_EVENTS + CHUNK_EVENTS
        assert reads == 3, "the chunk that was delivered, the current one, and one ahead"
        assert delivered == 1000
        may_go_on.set()
    assert delivered == 9_999


async def test_long_replay_cancelled_anywhere_keeps_the_pool_usable(
    small_pool: aioredis.Redis, key_prefix: str, cursor: str
) -> None:
    """Every connection of the pool is free afterwards, and gives the right replies."""
    store = RedisEventStore(small_pool, key_prefix=key_prefix, ttl=TTL)
    part = store.for_session(SESSION)

    async def cancelled_after(count: int) -> None:
        seen = 0
        with anyio.CancelScope() as scope:

            async def stop(_: EventMessage) -> None:
                nonlocal seen
                seen += 1
                if seen == count:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

            await part.replay(cursor, stop, stream_id=STREAM)
        assert scope.cancelled_caught

    async def timed_out(seconds: float) -> None:
        async def take(_: EventMessage) -> None:
            await anyio.lowlevel.checkpoint()

        with anyio.move_on_after(seconds):
            await part.replay(cursor, take, stream_id=STREAM)

    with anyio.fail_after(CEILING):
        for count in (1, 2, 255, 256, 257, 511, 600, 3000):
            await cancelled_after(count)
        for number in range(40):
            await timed_out(number * 0.0007)
        await store.flush(1)
        pool = small_pool.connection_pool
        await until(lambda: not pool._in_use_connections)
        async with anyio.create_task_group() as tasks:
            for number in range(CONNECTIONS):
                tasks.start_soon(_echoes, small_pool, str(number).encode())
            part.begin("2", 2)
            assert (await part.append("2", note(1))).event_id


async def _echoes(client: aioredis.Redis, text: bytes) -> None:
    for _ in range(20):
        assert await client.execute_command("ECHO", text) == text  # type: ignore[no-untyped-call]
