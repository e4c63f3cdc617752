"""Reads streams in bounded chunks, the next one while the last one is being sent."""

import asyncio

from redis.exceptions import MaxConnectionsError

from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.connection import AnyRedis, told_as
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.reading import Reading
from mcp_eventscope.types import EventId, StreamId

CHUNK_EVENTS = 256
"""The most events that one read brings: Redis is blocked for one."""
CHUNK_BYTES = 1 << 20
"""Payload bytes after which a read stops early; a single larger event still comes whole."""
READS_AT_ONCE = 8
"""The most reads of a process that are under way, each on a connection of the client's pool: when thousands are to read
at the same moment, after a restart say, more would exhaust the pool and not be faster, for Redis reads one by one."""
_POOL_SECONDS = 0.01
"""How soon a pool that is exhausted is asked again."""


class Reader:
    """The reads of one process.

    Args:
        redis: Where from.
    """

    def __init__(self, redis: AnyRedis) -> None:
        self._redis = redis
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def read(self, keys: Keys, cursor: EventId, stream_id: StreamId | None) -> scripts.Chunk:
        """Read what is stored after a cursor, one chunk of it; see `scripts.read`.

        Raises:
            StoreError: Redis could not be read.
        """
        async with self._reads:
            with told_as("read from", self._redis):
                while True:
                    try:
                        return await scripts.read(
                            self._redis, keys, cursor, stream_id, max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES
                        )
                    except MaxConnectionsError:
                        await asyncio.sleep(_POOL_SECONDS)

    async def deliver(self, keys: Keys, reading: Reading, chunk: scripts.Chunk) -> None:
        """Send a chunk, and those after it, until nothing is left or the response has been sent.

        Two chunks are held at most: while one is sent, however slowly, the next is read, and no further one.

        Raises:
            StoreError: Redis could not be read. What the callback raises is passed on.
        """
        following: asyncio.Task[scripts.Chunk] | None = None
        try:
            while True:
                if chunk.after:
                    reading_on = self.read(keys, chunk.after, reading.stream_id)
                    following = asyncio.create_task(reading_on, name="eventscope-read-ahead")
                    following.add_done_callback(_heard)
                for row in chunk.rows:
                    await reading.take(row)
                    if reading.completed:
                        return
                if following is None:
                    return
                await asyncio.sleep(0)  # It may be there already: let others have their turn.
                chunk, following = await following, None
        finally:
            if following is not None:
                following.cancel()


def _heard(reading_ahead: asyncio.Task[scripts.Chunk]) -> None:
    """What went wrong with a chunk that nobody wants any longer concerns nobody."""
    if not reading_ahead.cancelled():
        reading_ahead.exception()
