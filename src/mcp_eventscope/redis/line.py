"""How batches reach Redis: one after the other on one connection, without waiting for the replies."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from redis import asyncio as aioredis
from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from mcp_eventscope.redis.backlog import Batch
from mcp_eventscope.redis.commits import Commits
from mcp_eventscope.redis.connection import ANSWER_TIMEOUT, AnyRedis
from mcp_eventscope.tasks import end

SLOWEST_TRANSFER = 1 << 20
"""Bytes a second that sending must reach, on top of the time for an answer."""


class Line(Protocol):
    """A way to Redis, which is open."""

    depth: int
    """The most batches under way."""
    sessions: int
    """The most sessions in one batch."""

    async def send(self, batch: Batch, *, whole: bool) -> None:
        """Send a batch; `whole` as in `Commits.packed`."""
        ...

    async def receive(self) -> tuple[Batch, bytes | Exception]:
        """Wait for the next answer: a reply, or the error that Redis answered. Raises when the line is broken."""
        ...

    async def close(self, *, in_doubt: bool) -> None:
        """Give the connection back; closed, if it is in doubt or answers are still to come."""
        ...


async def opened(redis: AnyRedis, commits: Commits) -> Line:
    """Open a line.

    Raises:
        RedisError, OSError, TimeoutError: Redis is not reached.
    """
    if not isinstance(redis, aioredis.Redis):
        return _ClientLine(redis, commits)
    async with asyncio.timeout(ANSWER_TIMEOUT):
        return _PoolLine(redis, commits, await redis.connection_pool.get_connection())  # type: ignore[no-untyped-call]


class _PoolLine:
    """One connection of the client's pool. Where several are under way, Redis works while we pack and unpack."""

    depth = 4
    sessions = 1000

    def __init__(self, redis: aioredis.Redis, commits: Commits, connection: Connection) -> None:
        self._commits = commits
        self._pool = redis.connection_pool
        self._connection = connection
        self._under_way: deque[Batch] = deque()

    async def send(self, batch: Batch, *, whole: bool) -> None:
        self._under_way.append(batch)
        pieces = self._commits.packed(batch, whole=whole)
        async with asyncio.timeout(ANSWER_TIMEOUT + batch.payload_bytes / SLOWEST_TRANSFER):
            await self._connection.send_packed_command(pieces, check_health=False)

    async def receive(self) -> tuple[Batch, bytes | Exception]:
        reply: bytes | Exception
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                # Without the client's own time limit, which would break the connection for one slow reply.
                reply = await self._connection.read_response(disable_decoding=True, timeout=float("inf"))
        except RedisError as error:
            if not self._connection.is_connected:
                raise
            reply = error
        return self._under_way.popleft(), reply

    async def close(self, *, in_doubt: bool) -> None:
        try:
            with suppress(RedisError, OSError, RuntimeError):
                if in_doubt or self._under_way:  # Its replies would be taken for somebody else's.
                    await self._connection.disconnect(nowait=True)
        finally:  # Whoever is cancelled while it closes: a pool does not get back what nobody gives back.
            with suppress(RedisError, OSError, RuntimeError, KeyError):
                await self._pool.release(self._connection)


class _ClientLine:
    """A client that finds the way by itself: of a cluster, whose sessions live on different nodes."""

    depth = 32
    sessions = 1

    def __init__(self, redis: AnyRedis, commits: Commits) -> None:
        self._commits = commits
        self._redis = redis
        self._answers: asyncio.Queue[tuple[Batch, bytes | Exception]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, batch: Batch, *, whole: bool) -> None:
        task = asyncio.create_task(
            self._execute(batch, self._commits.arguments(batch, whole=whole)), name="eventscope-commit"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, batch: Batch, arguments: Sequence[str | bytes]) -> None:
        answer: bytes | Exception
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT + batch.payload_bytes / SLOWEST_TRANSFER):
                answer = await self._redis.execute_command(*arguments, NEVER_DECODE=True)
        except Exception as error:  # noqa: BLE001 - told to whoever receives
            answer = error
        self._answers.put_nowait((batch, answer))

    async def receive(self) -> tuple[Batch, bytes | Exception]:
        return await self._answers.get()

    async def close(self, *, in_doubt: bool) -> None:
        for task in tuple(self._tasks):
            await end(task)
