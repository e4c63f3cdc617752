"""The pool of connections under concurrent calls whose connections break."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from mcp_eventscope import RedisEventStore
from mcp_eventscope.errors import StoreUnavailableError
from mcp_eventscope.redis.client import connect, failure_reason, map_redis_errors
from mcp_eventscope.store.events import FailureReason
from support.proxy import Proxy
from support.servers import Valkey
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROUNDS = 30
CALLERS = 20
QUERY = f"socket_timeout={CEILING}&socket_connect_timeout={CEILING}"


@pytest.fixture
async def proxy(valkey_server: Valkey) -> AsyncIterator[Proxy]:
    """A proxy in front of the Valkey of the run."""
    async with Proxy(valkey_server.socket).running() as proxy:
        yield proxy


async def test_calls_whose_connections_break_succeed_on_new_ones(proxy: Proxy, key_prefix: str) -> None:
    """A caller that closes stale connections closes none that another caller has just taken."""
    async with connect(f"{proxy.url}?{QUERY}") as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        for number in range(ROUNDS):
            async with asyncio.TaskGroup() as tasks:
                for caller in range(CALLERS):
                    tasks.create_task(_touch(store, 0.001 * (caller % 5)))
                await anyio.sleep(0.0005 * (number % 10))
                proxy.reset()


async def _touch(store: RedisEventStore, after: float) -> None:
    await anyio.sleep(after)
    await store.probe()


async def test_connection_closed_by_another_task_is_unavailable(valkey_url: str) -> None:
    """redis-py raises AttributeError if that happens between its look at the connection and the write."""
    async with connect(valkey_url) as client:
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        await connection.disconnect()

        async def write() -> None:
            with map_redis_errors("write to", client):
                await connection._send_packed_command([b"PING"])

        with pytest.raises(StoreUnavailableError, match="closed during the call") as caught:
            await write()
        await client.connection_pool.release(connection)
    assert caught.value.__cause__ is not None
    assert failure_reason(caught.value.__cause__) is FailureReason.CONNECTION


async def test_write_to_a_lost_connection_is_unavailable(valkey_url: str) -> None:
    """On Python 3.12, and 3.13 up to 3.13.5, asyncio raises TypeError if it writes to a lost connection."""
    async with connect(valkey_url) as client:
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        transport = connection._writer.transport
        transport.abort()
        await until(lambda: transport._protocol is None)

        async def ask() -> None:
            with map_redis_errors("write to", client):
                await connection._send_packed_command([b"PING"])
                await connection.read_response()

        with pytest.raises(StoreUnavailableError) as caught:
            await ask()
        await client.connection_pool.release(connection)
    cause = caught.value.__cause__
    assert cause is not None
    assert failure_reason(cause) is failure_reason(cause.__cause__ or cause) is FailureReason.CONNECTION


async def test_attribute_error_of_ours_is_not_hidden(valkey_url: str) -> None:
    """It is a mistake in the code, and no failure of Redis."""
    async with connect(valkey_url) as client:
        with pytest.raises(AttributeError, match="missing"), map_redis_errors("write to", client):
            client.missing  # type: ignore[attr-defined]  # noqa: B018
