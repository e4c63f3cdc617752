"""The connection that a process keeps between its reads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from redis import asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import MaxConnectionsError, ResponseError

from mcp_eventscope.redis.client import SPARE_CONNECTIONS, AnyRedis, connect
from mcp_eventscope.redis.read import kept_connection
from mcp_eventscope.redis.read.kept_connection import KeptConnection
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

QUERY = f"socket_timeout={CEILING}&socket_connect_timeout={CEILING}"
SLOW = ("BLPOP", "kept-connection:nothing", "0.2")
"""A command that Redis answers after a moment, with nil."""


class Taken:
    """The connections that are out of a pool, and how often one was taken."""

    def __init__(self, client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pool = client.connection_pool
        self.times = 0
        take: Callable[[], Awaitable[object]] = self._pool.get_connection

        async def counted() -> object:
            self.times += 1
            return await take()

        monkeypatch.setattr(self._pool, "get_connection", counted)

    @property
    def now(self) -> int:
        """How many are taken."""
        return len(self._pool._in_use_connections)


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client with the default pool."""
    async with connect(f"{valkey_url}?{QUERY}") as client:
        yield client


@pytest.fixture
async def kept(client: aioredis.Redis) -> AsyncIterator[KeptConnection]:
    """A connection of its pool."""
    kept = KeptConnection(client)
    yield kept
    await kept.release()


@pytest.fixture
def taken(client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What the connection takes from the pool."""
    return Taken(client, monkeypatch)


async def test_consecutive_commands_take_one_connection(kept: KeptConnection, taken: Taken) -> None:
    """The connection stays out of the pool between commands, also after one that Redis refuses."""
    for number in range(10):
        assert await kept.execute_command("ECHO", number) == b"%d" % number
    with pytest.raises(ResponseError):
        await kept.execute_command("NO-SUCH-COMMAND")
    assert await kept.execute_command("PING") is True
    assert (taken.times, taken.now) == (1, 1)


async def test_concurrent_commands_take_connections_of_the_pool(kept: KeptConnection, taken: Taken) -> None:
    """No command waits for another one, and only one connection is kept."""
    async with asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(kept.execute_command(*SLOW))
        await asyncio.sleep(0)
        echoes = [tasks.create_task(kept.execute_command("ECHO", number)) for number in range(5)]
        await asyncio.wait(echoes)
        assert not slow.done()
    assert [echo.result() for echo in echoes] == [b"%d" % number for number in range(5)]
    assert taken.now == 1


async def test_command_after_a_cancelled_one_has_its_own_reply(kept: KeptConnection) -> None:
    """Wherever a command is cancelled, its reply is not taken for that of the next one."""
    for number in range(60):
        with anyio.move_on_after(number * 0.00002):
            await kept.execute_command("ECHO", "cancelled")
        assert await kept.execute_command("ECHO", number) == b"%d" % number


async def test_command_on_a_connection_that_was_closed_is_repeated(
    kept: KeptConnection, client: aioredis.Redis
) -> None:
    """A caller does not notice that Redis has closed the connection meanwhile."""
    for number in range(10):
        own = await kept.execute_command("CLIENT", "ID")
        assert await client.execute_command("CLIENT", "KILL", "ID", own) == 1  # type: ignore[no-untyped-call]
        if number % 2:
            await anyio.sleep(0.01)
        assert await kept.execute_command("ECHO", number) == b"%d" % number


async def test_idle_connection_is_returned(kept: KeptConnection, taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may use it after a while, and the next read takes one again."""
    monkeypatch.setattr(kept_connection, "LINGER_SECONDS", 0.01)
    for number in range(1, 4):
        assert await kept.execute_command("PING") is True
        await until(lambda: taken.now == 0)
        assert taken.times == number


async def test_connection_that_is_returned_is_used_by_its_next_owner_only(
    kept: KeptConnection, client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that begins while the connection is returned takes another one."""
    monkeypatch.setattr(kept_connection, "LINGER_SECONDS", 0)
    for turns in range(4):
        await kept.execute_command("PING")
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(kept.execute_command(*SLOW))
            for _ in range(4):
                await asyncio.sleep(0)
            for number in range(4):
                assert await client.execute_command("ECHO", number, NEVER_DECODE=True) == b"%d" % number  # type: ignore[no-untyped-call]
            assert not slow.done()
        assert slow.result() is None


async def test_release_returns_the_connection_unless_it_is_in_use(kept: KeptConnection, taken: Taken) -> None:
    """A command in progress keeps its connection, and its reply."""
    async with asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(kept.execute_command(*SLOW))
        await until(lambda: taken.now == 1)
        await kept.release()
        assert await kept.execute_command("ECHO", 1) == b"1"
    assert slow.result() is None
    await kept.release()
    assert taken.now == 0


async def test_exhausted_pool_fails_as_the_client_does(valkey_url: str) -> None:
    """The error is that of the client, and the next command succeeds when a connection is free."""
    async with aioredis.Redis.from_url(valkey_url, max_connections=SPARE_CONNECTIONS) as client:
        kept = KeptConnection(client)
        others = [await client.connection_pool.get_connection() for _ in range(SPARE_CONNECTIONS)]  # type: ignore[no-untyped-call]
        with pytest.raises(MaxConnectionsError):
            await kept.execute_command("PING")
        for other in others:
            await client.connection_pool.release(other)
        assert await kept.execute_command("PING") is True
        await kept.release()


class Counting(aioredis.Redis):
    """A subclass with a state of its own."""

    commands = 0

    async def execute_command(self, *args: object, **options: object) -> object:
        """Count the command."""
        self.commands += 1
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


async def test_no_connection_is_kept_of_a_subclass_or_a_small_pool(valkey_url: str) -> None:
    """A subclass sees each command; of few connections none is spared."""
    async with Counting.from_url(valkey_url) as client:
        assert isinstance(client, Counting)
        kept = KeptConnection(client)
        assert [await kept.execute_command("PING") for _ in range(3)] == [True] * 3
        assert (client.commands, len(client.connection_pool._in_use_connections)) == (3, 0)
    async with aioredis.Redis.from_url(valkey_url, max_connections=SPARE_CONNECTIONS - 1) as client:
        assert await KeptConnection(client).execute_command("PING") is True
        assert not client.connection_pool._in_use_connections


async def test_cluster_client_routes_each_command() -> None:
    """A cluster client has a connection to each node."""
    cluster: AnyRedis = aioredis.RedisCluster(startup_nodes=[ClusterNode("localhost", 1)])
    assert KeptConnection(cluster)._client is None


async def test_no_connection_is_kept_behind_a_sentinel() -> None:
    """The pool asks the Sentinel for the master before it connects; a failover moves its idle connections."""
    async with Sentinel([("localhost", 1)]).master_for("mymaster") as client:  # type: ignore[no-untyped-call]
        assert KeptConnection(client)._client is None


async def test_connection_is_opened_again_as_the_pool_does(
    kept: KeptConnection, client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error the connection is opened by `connect`, which a connection of an application may have extended."""
    opened, connection_class = [], client.connection_pool.connection_class
    connect_it = connection_class.connect

    async def counted(connection: Connection) -> None:
        opened.append(connection.is_connected)
        await connect_it(connection)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(connection_class, "connect", counted)
    for number in range(1, 4):
        assert await kept.execute_command("PING") is True
        assert opened.count(False) == number
        with anyio.move_on_after(0.001):
            await kept.execute_command(*SLOW)


@pytest.mark.parametrize("first", [True, False])
async def test_instrumentation_of_the_client_sees_each_command(client: aioredis.Redis, *, first: bool) -> None:
    """An instrumentation replaces a method of the client before or after the store is created."""
    seen: list[str] = []
    execute = client.execute_command

    async def counted(*args: str, **options: object) -> object:
        seen.append(args[0])
        return await execute(*args, **options)  # type: ignore[no-untyped-call]

    if first:
        client.execute_command = counted  # type: ignore[method-assign]
    kept = KeptConnection(client)
    client.execute_command = counted  # type: ignore[method-assign]
    assert await kept.execute_command("PING") is True
    assert (seen, len(client.connection_pool._in_use_connections)) == (["PING"], 0)


def test_connection_of_an_earlier_event_loop_is_replaced(valkey_url: str) -> None:
    """A store may be used in several loops, one after the other."""
    client = connect(f"{valkey_url}?{QUERY}")
    kept = KeptConnection(client)

    async def ask() -> int:
        assert await kept.execute_command("PING") is True
        assert await kept.execute_command("PING") is True
        taken = len(client.connection_pool._in_use_connections)
        await client.connection_pool.disconnect()
        return taken

    assert [asyncio.run(ask()) for _ in range(3)] == [1, 1, 1]

    async def close() -> None:
        await kept.release()
        assert not client.connection_pool._in_use_connections
        await client.aclose()

    asyncio.run(close())
