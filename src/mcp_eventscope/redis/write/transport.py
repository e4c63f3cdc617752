"""Transports of batches: pipelined on one connection, or through a cluster client."""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any, Protocol

from redis import asyncio as aioredis
from redis.asyncio.connection import Connection
from redis.client import NEVER_DECODE
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.redis.client import ANSWER_TIMEOUT, AnyRedis, node_of, raised_by_closed_connection
from mcp_eventscope.redis.write.batch import Batch, Probe

SLOWEST_TRANSFER = 1 << 20
"""Minimum bytes per second of a transfer, whose time is added to the timeout of a reply."""
BUFFERED = 32 * 1024
"""Bytes that are always written without waiting for Redis: half of asyncio's limit."""
_UNBOUND = nullcontext()
_DRAWS = 20
"""Keys that are tried for each master of a cluster, until each has one."""
_BYTES: Mapping[str, Any] = {NEVER_DECODE: True}


class ProbeFailedError(Exception):
    """Some masters of a cluster failed in a probe; the cause is the error of the first.

    Args:
        failed: How many.
        masters: Of how many.
    """

    def __init__(self, failed: int, masters: int) -> None:
        super().__init__(f"{failed} of {masters} masters failed")
        self.partial = failed < masters
        """Whether others answered."""


class Transport(Protocol):
    """An open connection to Redis."""

    depth: int
    """Maximum number of batches in flight."""
    parts: int
    """Maximum number of sessions or request streams in one batch."""
    isolated: bool
    """Whether a failure concerns one batch, whose session is on one of several nodes."""

    async def send(self, batch: Batch, *, as_eval: bool) -> None:
        """Send a batch; `as_eval` as in `Batch.packed`."""
        ...

    async def receive(self) -> tuple[Batch, bytes | Exception]:
        """Wait for the next reply, which may be an error reply. Raises if the connection is broken."""
        ...

    async def close(self, *, in_doubt: bool) -> None:
        """Release the connection. Disconnect it first if it is in doubt or replies are outstanding."""
        ...


async def connect(redis: AnyRedis) -> Transport:
    """Open a transport.

    Raises:
        RedisError, OSError, TimeoutError: Redis was not reached.
    """
    if not isinstance(redis, aioredis.Redis):
        return ClusterTransport(redis)
    async with asyncio.timeout(ANSWER_TIMEOUT):
        connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    return PipelinedTransport(redis, connection)


class PipelinedTransport:
    """One connection of the client's pool, with several batches in flight."""

    depth = 4
    parts = 1000
    isolated = False

    def __init__(self, redis: aioredis.Redis, connection: Connection) -> None:
        self._pool = redis.connection_pool
        self._connection = connection
        # Disabled while the connection is held: on Python 3.11 the client starts a task for each write with a timeout.
        # Writes and replies have their own timeouts below.
        self._socket_timeout, connection.socket_timeout = connection.socket_timeout, None
        self._in_flight: deque[Batch] = deque()
        self._sizes: deque[int] = deque()
        """Command bytes of each batch in flight."""

    async def send(self, batch: Batch, *, as_eval: bool) -> None:
        """Send a batch."""
        command = batch.packed(as_eval=as_eval)
        self._in_flight.append(batch)
        self._sizes.append(sum(map(len, command)))
        if not self._connection.is_connected:
            # The client would reconnect, and replies would be matched to the wrong batches.
            msg = "the connection was closed"
            raise RedisConnectionError(msg)
        # Small writes fit into the socket's buffer and never wait: a timer would cost as much as the write.
        waits = sum(self._sizes) > BUFFERED
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT + batch.payload_bytes / SLOWEST_TRANSFER) if waits else _UNBOUND:
                await self._connection.send_packed_command(command, check_health=False)
        except (AttributeError, TypeError) as error:  # See `raised_by_closed_connection`.
            if not raised_by_closed_connection(error):
                raise
            msg = "the connection was closed"
            raise RedisConnectionError(msg) from error

    async def receive(self) -> tuple[Batch, bytes | Exception]:
        """Wait for the next reply."""
        reply: bytes | Exception
        size = sum(batch.payload_bytes for batch in self._in_flight)  # A large command may still be in transfer.
        try:
            # Replaces the client's timeout, which would break the connection because of one slow reply.
            limit = ANSWER_TIMEOUT + size / SLOWEST_TRANSFER
            reply = await self._connection.read_response(disable_decoding=True, timeout=limit)
            if reply is None:  # A timeout of the client. No script returns nil.
                raise TimeoutError
        except RedisError as error:
            if not self._connection.is_connected or isinstance(error, RedisConnectionError):
                raise
            reply = error
        except (AttributeError, TypeError) as error:
            if not raised_by_closed_connection(error):
                raise
            msg = "the connection was closed"
            raise RedisConnectionError(msg) from error
        self._sizes.popleft()
        return self._in_flight.popleft(), reply

    async def close(self, *, in_doubt: bool) -> None:
        """Release the connection."""
        try:
            with suppress(RedisError, OSError, RuntimeError):
                if in_doubt or self._in_flight:  # The next user would receive its replies.
                    await self._connection.disconnect(nowait=True)
        finally:
            if self._connection.socket_timeout is None:
                self._connection.socket_timeout = self._socket_timeout
            # Also if the closing task is cancelled: a pool does not reclaim connections.
            with suppress(RedisError, OSError, RuntimeError, KeyError):
                await self._pool.release(self._connection)


class ClusterTransport:
    """A cluster client, which routes each batch to the node of its session."""

    depth = 32
    parts = 1
    isolated = True

    def __init__(self, redis: aioredis.RedisCluster) -> None:
        self._redis = redis
        self._replies: asyncio.Queue[tuple[Batch, bytes | Exception]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, batch: Batch, *, as_eval: bool) -> None:
        """Send a batch in a separate task."""
        task = asyncio.create_task(self._execute(batch, as_eval=as_eval), name="eventscope-commit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, batch: Batch, *, as_eval: bool) -> None:
        reply: bytes | Exception
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT + batch.payload_bytes / SLOWEST_TRANSFER):
                if isinstance(batch, Probe):
                    reply = await self._probe(batch)
                else:
                    reply = await self._redis.execute_command(*batch.arguments(as_eval=as_eval), **_BYTES)
        except Exception as error:  # noqa: BLE001 - handled by the receiver
            reply = error
        self._replies.put_nowait((batch, reply))

    async def _probe(self, probe: Probe) -> bytes:
        """Write to all masters concurrently.

        Raises:
            ProbeFailedError: One of them failed, or did not answer in time.
        """
        async with asyncio.timeout(probe.seconds):
            await self._redis.initialize()

        async def write(key: str) -> Exception | None:
            try:
                async with asyncio.timeout(probe.seconds):
                    await self._redis.execute_command(*probe.write(key), **_BYTES)
            except Exception as error:  # noqa: BLE001 - handled by the sender
                return error
            return None

        results = await asyncio.gather(*map(write, self._keys_of_masters(probe.key)))
        failures = [error for error in results if error is not None]
        if failures:
            raise ProbeFailedError(len(failures), len(results)) from failures[0]
        return b""

    def _keys_of_masters(self, key: str) -> list[str]:
        """A key in a slot of each master; of a prefix with a hash tag, the only key, whose master has all others."""
        keys: dict[str, str] = {}
        masters = len(self._redis.get_primaries())
        for number in range(1 if "{" in key else _DRAWS * masters):
            candidate = f"{key}:{number}"
            keys.setdefault(node_of(self._redis, candidate), candidate)
            if len(keys) == masters:
                break
        return list(keys.values())

    async def receive(self) -> tuple[Batch, bytes | Exception]:
        """Wait for any reply."""
        return await self._replies.get()

    async def close(self, *, in_doubt: bool) -> None:
        """Cancel the calls in flight."""
        for task in tuple(self._tasks):
            await cancel_task(task)
