"""Read streams of the root store in bounded chunks, with read-ahead."""

import asyncio

from redis.exceptions import MaxConnectionsError

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, call
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.root import scripts
from mcp_eventscope.redis.root.replay import ReplayCursor
from mcp_eventscope.store.messages import EventId, StreamId

CHUNK_EVENTS = 256
"""Maximum number of events of one read, which blocks Redis."""
CHUNK_BYTES = 1 << 18
"""Payload bytes after which a read stops early; a single larger event is still returned whole. Lua copies a text
several times while it grows: four times as many bytes would block Redis for three milliseconds."""
TURN_EVENTS = 32
"""Maximum number of events that are sent before yielding to other tasks, with a callback that never waits."""
READS_AT_ONCE = 8
"""Maximum concurrent reads of a process, each on a connection of the client's pool. When thousands of followers read
at the same moment, for example after a restart, more reads would exhaust the pool without being faster, because Redis
executes them one by one."""
_POOL_SECONDS = 0.01
"""Seconds until an exhausted pool is tried again."""


class ChunkReader:
    """The reads of one process.

    Args:
        redis: The client.
        breaker: Records failures.
    """

    def __init__(self, redis: AnyRedis, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._redis = redis
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def read(self, keys: Keys, cursor: EventId, stream_id: StreamId | None) -> scripts.Chunk:
        """Read one chunk of the events after a cursor; see `scripts.read`.

        Raises:
            StoreError: Redis could not be read.
        """
        async with self._reads:
            return await call("read from", self._redis, self._breaker, lambda: self._read(keys, cursor, stream_id))

    async def _read(self, keys: Keys, cursor: EventId, stream_id: StreamId | None) -> scripts.Chunk:
        while True:
            try:
                return await scripts.read(
                    self._redis, keys, cursor, stream_id, max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES
                )
            except MaxConnectionsError:
                await asyncio.sleep(_POOL_SECONDS)

    async def deliver(self, keys: Keys, replay: ReplayCursor, chunk: scripts.Chunk) -> None:
        """Send a chunk and its successors, up to the response or the end.

        At most three chunks are in memory: while one is sent, two are read ahead.

        Raises:
            StoreError: Redis could not be read. Exceptions of the callback are passed on.
        """
        ahead: asyncio.Queue[scripts.Chunk | Exception] = asyncio.Queue(1)
        ahead_task: asyncio.Task[None] | None = None
        if chunk.after:
            ahead_task = asyncio.create_task(
                self._read_ahead(keys, chunk.after, replay.stream_id, ahead), name="eventscope-read-ahead"
            )
        try:
            while True:
                if chunk.traceparents:
                    replay.traceparents |= chunk.traceparents
                for start in range(0, len(chunk.rows), TURN_EVENTS):
                    # Yields to other tasks, including the read-ahead.
                    await asyncio.sleep(0)
                    await replay.take(chunk.rows[start : start + TURN_EVENTS])
                    if replay.completed:
                        return
                if not chunk.after:
                    return
                following = await ahead.get()
                if isinstance(following, Exception):
                    raise following
                chunk = following
        finally:
            if ahead_task is not None:
                await cancel_task(ahead_task)

    async def _read_ahead(
        self, keys: Keys, cursor: EventId, stream_id: StreamId, ahead: "asyncio.Queue[scripts.Chunk | Exception]"
    ) -> None:
        while cursor:
            try:
                chunk = await self.read(keys, cursor, stream_id)
            except Exception as error:  # noqa: BLE001 - `deliver` raises it, if it still runs
                await ahead.put(error)
                return
            await ahead.put(chunk)
            cursor = chunk.after
