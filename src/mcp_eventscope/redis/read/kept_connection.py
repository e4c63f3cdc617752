"""A connection to Redis that a process keeps between its reads."""

import asyncio
import copy
from contextlib import suppress
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from mcp_eventscope.redis.client import LINGER_SECONDS, AnyRedis, has_spare_connections


class KeptConnection:
    """Executes commands on one connection that is kept in between, or on the client's pool while that one is in use.

    A client takes a connection from its pool for each command and returns it: 6 % of the time of a short read.

    Args:
        redis: The client. No connection is kept of a cluster client, or of one with a small pool. Neither is one of a
            client or pool of a subclass, which may have a state of its own: that of a Sentinel asks for the master.
    """

    def __init__(self, redis: AnyRedis) -> None:
        self._redis = redis
        self._client: aioredis.Redis | None = None
        """The same client, but with a `connection` of its own during a command: redis-py then uses no other."""
        if (
            type(redis) is aioredis.Redis
            and not redis.single_connection_client
            and type(redis.connection_pool) in {aioredis.ConnectionPool, aioredis.BlockingConnectionPool}
            and has_spare_connections(redis)
        ):
            self._client = copy.copy(redis)
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the connection."""
        self._in_use = False
        self._timer: asyncio.TimerHandle | None = None
        """Also under constant use: a pool renews the credentials of a connection that is returned."""
        self._closing: asyncio.Task[None] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, twice if the connection was closed meanwhile, and return its reply.

        Errors are those of the client.
        """
        client = self._client
        # An instrumentation may have replaced the method of the client, whenever it was asked to.
        if client is None or self._in_use or "execute_command" in vars(self._redis):
            return await self._redis.execute_command(*args, **options)
        self._in_use = True
        try:
            kept = self._connection is not None and self._connection.is_connected
            client.connection = connection = await self._open(client)
            try:
                if not connection.is_connected:  # Connects as the pool does: a command would only open the socket.
                    await connection.connect()  # type: ignore[no-untyped-call]
                return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except ResponseError:
                raise
            except BaseException as error:
                await connection.disconnect(nowait=True)  # Its reply may still arrive.
                # The pool would have noticed that Redis had closed it.
                if not kept or not isinstance(error, RedisConnectionError):
                    raise
        finally:
            client.connection = None
            self._in_use = False
            if self._timer is None and self._connection is not None:
                self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._expire)
        return await self._redis.execute_command(*args, **options)

    async def _open(self, client: aioredis.Redis) -> Connection:
        """Take a connection from the pool, unless one of this event loop is kept."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            await self._return(self._forget())
            self._loop = loop
        if self._connection is None:
            self._connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        return self._connection

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        if self._in_use:
            self._timer = loop.call_later(LINGER_SECONDS, self._expire)
        else:  # Forgotten immediately, or a command could use it until the task runs.
            self._closing = loop.create_task(self._return(self._forget()), name="eventscope-read-close")

    async def release(self) -> None:
        """Return the connection to the pool, unless it is in use."""
        if not self._in_use:
            await self._return(self._forget())

    def _forget(self) -> Connection | None:
        connection, self._connection = self._connection, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return connection

    async def _return(self, connection: Connection | None) -> None:
        if connection is None or self._client is None:
            return
        if self._loop is not asyncio.get_running_loop():
            with suppress(RedisError, OSError, RuntimeError):
                await connection.disconnect(nowait=True)
        with suppress(RedisError, OSError, RuntimeError, KeyError):
            await self._client.connection_pool.release(connection)
