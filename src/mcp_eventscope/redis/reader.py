"""Reads streams in bounded chunks, two of them ahead of the one that is being sent."""

import asyncio

from redis.exceptions import MaxConnectionsError

from mcp_eventscope.errors import StoreUnavailableError
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.connection import AnyRedis, failure_text, told_as, trouble_of
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.reading import Reading
from mcp_eventscope.tasks import end
from mcp_eventscope.types import EventId, StreamId

CHUNK_EVENTS = 256
"""The most events that one read brings: Redis is blocked for one."""
CHUNK_BYTES = 1 << 20
"""Payload bytes after which a read stops early; a single larger event still comes whole."""
TURN_EVENTS = 32
"""The most events that are sent without letting others have their turn, by a callback that never waits."""
READS_AT_ONCE = 8
"""The most reads of a process that are under way, each on a connection of the client's pool: when thousands are to read
at the same moment, after a restart say, more would exhaust the pool and not be faster, for Redis reads one by one."""
_POOL_SECONDS = 0.01
"""How soon a pool that is exhausted is asked again."""


class Reader:
    """The reads of one process.

    Args:
        redis: Where from.
        breaker: Records that Redis was not reached: others need not find out by themselves.
    """

    def __init__(self, redis: AnyRedis, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._redis = redis
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def read(self, keys: Keys, cursor: EventId, stream_id: StreamId | None) -> scripts.Chunk:
        """Read what is stored after a cursor, one chunk of it; see `scripts.read`.

        Raises:
            StoreError: Redis could not be read.
        """
        try:
            async with self._reads:
                with told_as("read from", self._redis):
                    return await self._read(keys, cursor, stream_id)
        except StoreUnavailableError as error:
            cause = error.__cause__ or error
            self._breaker.record_failure(trouble_of(cause), failure_text(cause, self._redis))
            raise

    async def _read(self, keys: Keys, cursor: EventId, stream_id: StreamId | None) -> scripts.Chunk:
        while True:
            try:
                return await scripts.read(
                    self._redis, keys, cursor, stream_id, max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES
                )
            except MaxConnectionsError:
                await asyncio.sleep(_POOL_SECONDS)

    async def deliver(self, keys: Keys, reading: Reading, chunk: scripts.Chunk) -> None:
        """Send a chunk, and those after it, until nothing is left or the response has been sent.

        Three chunks are held at most: while one is sent, however slowly, two are read ahead.

        Raises:
            StoreError: Redis could not be read. What the callback raises is passed on.
        """
        ahead: asyncio.Queue[scripts.Chunk | Exception] = asyncio.Queue(1)
        reading_ahead: asyncio.Task[None] | None = None
        if chunk.after:
            reading_ahead = asyncio.create_task(
                self._read_ahead(keys, chunk.after, reading.stream_id, ahead), name="eventscope-read-ahead"
            )
        try:
            while True:
                if chunk.traceparents:
                    reading.traceparents |= chunk.traceparents
                for start in range(0, len(chunk.rows), TURN_EVENTS):
                    # Others have their turn, the reading ahead among them.
                    await asyncio.sleep(0)
                    await reading.take(chunk.rows[start : start + TURN_EVENTS])
                    if reading.completed:
                        return
                if not chunk.after:
                    return
                following = await ahead.get()
                if isinstance(following, Exception):
                    raise following
                chunk = following
        finally:
            if reading_ahead is not None:
                await end(reading_ahead)

    async def _read_ahead(
        self, keys: Keys, cursor: EventId, stream_id: StreamId, ahead: "asyncio.Queue[scripts.Chunk | Exception]"
    ) -> None:
        while cursor:
            try:
                chunk = await self.read(keys, cursor, stream_id)
            except Exception as error:  # noqa: BLE001 - raised where the chunk is waited for, if it still is
                await ahead.put(error)
                return
            await ahead.put(chunk)
            cursor = chunk.after
