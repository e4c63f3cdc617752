"""Read runs from memory, or else from Redis in bounded chunks."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from redis.exceptions import MaxConnectionsError

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, call, parsing
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.read.delivery import Delivery
from mcp_eventscope.redis.read.elements import Chunk, Row, read_run
from mcp_eventscope.redis.read.kept_connection import KeptConnection
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.write.runs import PendingEvent, Placeholder, Run, is_run
from mcp_eventscope.store.messages import StreamId

FIRST_EVENTS = 320
"""Maximum number of events of a replay's first read. Redis executes the second one while these are sent."""
CHUNK_EVENTS = 1024
"""Maximum number of events of each further read. Of large ones it reads fewer, since it blocks Redis."""
CHUNK_BYTES = 1 << 20
"""Payload bytes after which a read stops early; a single larger event is still returned whole."""
TURN_EVENTS = 128
"""Maximum number of events that are sent before yielding to other tasks, with a callback that never waits."""
CONCURRENT_READS = 8
"""Maximum concurrent reads of a process, each on a connection of the client's pool. When thousands of clients resume
at the same moment, more reads would exhaust the pool without being faster, because Redis executes them one by one."""
_POOL_SECONDS = 0.01
"""Seconds until an exhausted pool is tried again."""

T = TypeVar("T")
_standalone = Script("standalone.lua")


class RunReader:
    """The reads of one process.

    Args:
        redis: The client.
        breaker: The circuit breaker of the store.
        clock: The clock of event ids, which each reply synchronizes: a worker may follow streams, and store nothing.
        find: Returns a run in this process's memory by its name.
    """

    def __init__(
        self, redis: AnyRedis, breaker: CircuitBreaker, clock: EventClock, find: Callable[[str], Run | None]
    ) -> None:
        self._redis = redis
        self._connection = KeptConnection(redis)
        self._breaker = breaker
        self._clock = clock
        self._find = find
        self._reads = asyncio.Semaphore(CONCURRENT_READS)

    async def release(self) -> None:
        """Return the connection that is kept between reads to the client's pool."""
        await self._connection.release()

    def local(self, keys: Keys, stream: StreamId, run: str) -> Run | None:
        """Return the run if it is in memory and belongs to this session and stream."""
        found = self._find(run)
        return found if found is not None and found.key == keys.run(stream, run) else None

    async def advance(self, keys: Keys, delivery: Delivery, run: str) -> Chunk | None:
        """Deliver the events of a run after the delivery's position.

        Args:
            keys: The session's keys.
            delivery: The delivery.
            run: The run.

        Returns:
            The last chunk read from Redis; None if all events were in memory.

        Raises:
            StoreError: Redis could not be read. Exceptions of the callback are passed on.
        """
        chunk: Chunk | None = None
        positions = delivery.cursor.positions
        while not delivery.completed:
            local = self.local(keys, delivery.stream, run)
            if local is not None and not local.refused:
                delivery.origin = delivery.origin or local.origin
                position = positions.get(run, 0)
                if local.next_is_here(position):
                    rows = [_row(event) for event in islice(local.after(position), TURN_EVENTS)]
                    await delivery.take(run, rows, start=rows[0][2])
                    await asyncio.sleep(0)
                    continue
                if position >= local.last:
                    return chunk
            before = positions.get(run, 0)
            if chunk is not None and before >= chunk.last:
                return chunk
            chunk = await self._from_redis(keys, delivery, run)
            if positions.get(run, 0) == before:
                return chunk  # There are no more events, or only rows of another program.
        return chunk

    async def _from_redis(self, keys: Keys, delivery: Delivery, run: str) -> Chunk:
        """Deliver all events in Redis, reading the next chunk while one is sent."""
        after = delivery.cursor.positions.get(run, 0)
        chunk = await self._read(keys, delivery.stream, run, after, FIRST_EVENTS)
        delivery.origin = delivery.origin or chunk.origin
        ahead: asyncio.Task[Chunk] | None = None
        try:
            while chunk.numbers:
                before, after = after, chunk.numbers[-1]
                if before < after < chunk.last:  # Another program's element may have any number.
                    reading = self._read(keys, delivery.stream, run, after, CHUNK_EVENTS)
                    ahead = asyncio.create_task(reading, name="eventscope-read")
                rows = chunk.rows()
                for _ in range(0, len(chunk.numbers), TURN_EVENTS):
                    await asyncio.sleep(0)
                    await delivery.take(run, islice(rows, TURN_EVENTS), start=chunk.firsts[0], head=chunk.first)
                    if delivery.completed:
                        return chunk
                if ahead is None:
                    break
                chunk, ahead = await ahead, None
        finally:
            if ahead is not None:
                await cancel_task(ahead)
                with suppress(asyncio.CancelledError, Exception):
                    ahead.result()
        return chunk

    async def _read(self, keys: Keys, stream: StreamId, run: str, after: int, max_events: int) -> Chunk:
        async def read() -> Chunk:
            chunk = await read_run(
                self._connection, keys, stream, run, after, max_events=max_events, max_bytes=CHUNK_BYTES
            )
            self._clock.synchronize(chunk.clock)
            return chunk

        return await self.call(read)

    async def standalone_runs(self, keys: Keys) -> tuple[int, dict[str, int]]:
        """Read Redis's clock, in microseconds, and the last numbers of the standalone stream's runs.

        Raises:
            StoreError: Redis could not be read.
        """

        async def read() -> tuple[int, dict[str, int]]:
            with parsing("EVALSHA"):
                clock, line = await _standalone(self._connection, [keys.requests], [])
                words = line.decode("ascii", "replace").split()
                pairs = zip(words[::2], words[1::2], strict=True)
                return int(clock), {run: int(last) for run, last in pairs if is_run(run)}

        clock, runs = await self.call(read)
        self._clock.synchronize(clock)
        return clock, runs

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Read from Redis, with limited concurrency.

        Raises:
            StoreError: Redis could not be read.
        """

        async def retry_exhausted_pool() -> T:
            while True:
                try:
                    return await function()
                except MaxConnectionsError:
                    await asyncio.sleep(_POOL_SECONDS)

        async with self._reads:
            return await call("read from", self._redis, self._breaker, retry_exhausted_pool)


def _row(event: PendingEvent) -> Row:
    if isinstance(event, Placeholder):
        return event.seq, event.time, event.first, event.reason.value, None
    # An error that replaces a lost response has that response's number, which shows the gap before it.
    return event.seq, event.time, event.seq, event.traceparent, event.payload
