"""The fault injection of the tests works: the proxy, its fault plans, and the servers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import anyio
import pytest
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from support import resp
from support.fault_plan import Cut, Error, FaultPlan, Freeze, Place, Reach, ReplyFault
from support.proxy import Proxy
from support.servers import HOST, Valkey
from support.stores import patient_client
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, promptly, slowness, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
async def proxy(valkey_server: Valkey) -> AsyncIterator[Proxy]:
    """A proxy in front of the Valkey of the run."""
    async with Proxy(valkey_server.socket).running() as proxy:
        yield proxy


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client that does not go through the proxy."""
    async with patient_client(valkey_url) as client:
        yield client


@pytest.fixture(params=[2, 3], ids="RESP{}".format)
async def through(request: pytest.FixtureRequest, proxy: Proxy) -> AsyncIterator[aioredis.Redis]:
    """A client behind the proxy, on one connection, that never retries."""
    never = Retry(NoBackoff(), 0)
    async with aioredis.Redis.from_url(
        proxy.url, protocol=request.param, retry=never, socket_timeout=CEILING, max_connections=1
    ) as client:
        yield client


@pytest.mark.parametrize(
    "message",
    [
        b"+OK\r\n",
        b"$5\r\nab\r\nc\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*2\r\n*0\r\n:5\r\n",
        b"%1\r\n+a\r\n*1\r\n_\r\n",
        b"|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n",
        b">2\r\n+a\r\n#t\r\n",
    ],
)
def test_resp_frames_are_split_exactly(message: bytes) -> None:
    """A message is taken when it is complete, whatever follows it."""
    for cut in range(len(message)):
        assert resp.frame_end(message[:cut]) is None
    buffer = bytearray(message * 2 + message[:-1])
    assert resp.frames(buffer) == [message, message]
    assert buffer == message[:-1]


async def test_proxy_without_faults_passes_everything(through: aioredis.Redis, key_prefix: str) -> None:
    """Pipelines, transactions, scripts, large values and subscriptions pass unchanged."""
    value = b"\r\n$1" * 100_000
    assert await through.set(key_prefix, value, ex=60)
    assert await through.get(key_prefix) == value
    async with through.pipeline(transaction=True) as pipeline:
        pipeline.get(key_prefix)
        pipeline.eval("return {1, {2}}", 0)
        assert await pipeline.execute() == [value, [1, [2]]]
    async with through.pubsub() as pubsub:
        await through.connection_pool.disconnect()
        await pubsub.subscribe(key_prefix)
        assert (await pubsub.get_message(timeout=CEILING))["type"] == "subscribe"


@pytest.mark.parametrize("turns", range(6))
async def test_proxy_that_ends_closes_a_connection_that_has_just_begun(valkey_server: Valkey, turns: int) -> None:
    """However far the connection has come, the client reads its end, and the garbage collector finds nothing open."""
    proxy = Proxy(valkey_server.socket)
    async with proxy.running():
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        for _ in range(turns):
            await asyncio.sleep(0)
    with anyio.fail_after(CEILING), contextlib.suppress(ConnectionResetError):  # Of what the event loop did not accept.
        assert await reader.read() == b""
    writer.close()


async def count_to_three(client: aioredis.Redis, key: str) -> None:
    """Send three commands in one pipeline."""
    async with client.pipeline(transaction=False) as pipeline:
        for _ in range(3):
            pipeline.incr(key)
        await pipeline.execute()


async def test_proxy_drop_reply_executes_the_command(through: aioredis.Redis, proxy: Proxy, key_prefix: str) -> None:
    """That command and later ones are executed; the client gets the earlier replies and a reset."""
    fault = proxy.drop_reply(key_prefix, skip=1)
    with pytest.raises(RedisConnectionError):
        await count_to_three(through, key_prefix)
    assert fault.happened == 1
    await until(lambda: through.get(key_prefix))
    assert await through.getdel(key_prefix) == b"3"


@pytest.mark.parametrize("after", [0, 20])
async def test_proxy_cut_request_executes_earlier_commands_only(
    through: aioredis.Redis, proxy: Proxy, key_prefix: str, after: int
) -> None:
    """Earlier commands of the pipeline are executed; the cut one and later ones are not."""
    proxy.cut_request(key_prefix, after=after, skip=1)
    with pytest.raises(RedisConnectionError):
        await count_to_three(through, key_prefix)
    await until(lambda: through.get(key_prefix))
    assert await through.getdel(key_prefix) == b"1"


async def test_proxy_delayed_request_is_executed_on_deliver(
    through: aioredis.Redis, proxy: Proxy, key_prefix: str
) -> None:
    """It is executed when the test delivers it, after later commands."""
    fault = proxy.delay_request(key_prefix)
    with pytest.raises(RedisConnectionError):
        await through.append(key_prefix, "a")
    await through.append(key_prefix, "b")
    await proxy.deliver(fault)
    assert await through.getdel(key_prefix) == b"ba"


async def test_proxy_answer_replaces_one_reply(through: aioredis.Redis, proxy: Proxy, key_prefix: str) -> None:
    """Other commands of the pipeline get their own replies, in order."""
    proxy.answer(key_prefix, "BUSY not now", skip=1)
    async with through.pipeline(transaction=False) as pipeline:
        for _ in range(3):
            pipeline.incr(key_prefix)
        pipeline.delete(key_prefix)
        replies = await pipeline.execute(raise_on_error=False)
    assert [replies[0], replies[2], replies[3]] == [1, 2, 1]
    assert isinstance(replies[1], ResponseError)


_FULL = b"-OOM full\r\n"


@pytest.mark.parametrize(
    ("faults", "received", "counted"),
    [
        ([], b":1\r\n:2\r\n:3\r\n", 3),
        ([(1, Error("OOM full"))], b":1\r\n" + _FULL + b":2\r\n", 2),
        ([(1, Error("OOM full", executed=True))], b":1\r\n" + _FULL + b":3\r\n", 3),
        ([(1, Cut(Place.BEFORE, Reach.NONE))], b":1\r\n", 1),
        ([(1, Cut(Place.BEFORE, Reach.THIS))], b":1\r\n", 2),
        ([(1, Cut(Place.MIDDLE, Reach.ALL))], b":1\r\n:2", 3),
        ([(1, Cut(Place.AFTER, Reach.THIS))], b":1\r\n:2\r\n", 2),
        ([(0, Error("OOM full")), (2, Cut(Place.BEFORE, Reach.NONE))], _FULL + b":1\r\n", 1),
        ([(1, Error("OOM full")), (1, Cut(Place.AFTER, Reach.ALL))], b":1\r\n" + _FULL, 2),
        ([(1, Freeze(0.1))], b":1\r\n:2\r\n:3\r\n", 3),
        ([(1, Freeze(0.1, cut=True))], b":1\r\n", 3),
    ],
)
async def test_fault_plan_applies_each_fault_at_its_reply(  # noqa: PLR0913 - three are fixtures
    proxy: Proxy,
    redis_client: aioredis.Redis,
    key_prefix: str,
    faults: list[tuple[int, ReplyFault]],
    *,
    received: bytes,
    counted: int,
) -> None:
    """Replies are held until released; then each fault happens at its reply, and no command repeats."""
    plan = FaultPlan(key_prefix, faults)
    proxy.follow(plan)
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    key = key_prefix.encode()
    writer.write(b"*2\r\n$4\r\nINCR\r\n$%d\r\n%b\r\n" % (len(key), key) * 3)
    await until(lambda: plan.ready == 3)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), 0.02)
    began = time.monotonic()
    proxy.release()
    assert await asyncio.wait_for(reader.readexactly(len(received)), 1) == received
    if any(isinstance(fault, Cut) or fault == Freeze(0.1, cut=True) for _, fault in faults):
        assert await asyncio.wait_for(reader.read(), 1) == b""
    if any(isinstance(fault, Freeze) for _, fault in faults):
        assert time.monotonic() - began >= 0.1
    writer.close()
    assert await redis_client.getdel(key_prefix) == str(counted).encode()


async def test_proxy_delay_slows_each_reply(through: aioredis.Redis, proxy: Proxy) -> None:
    """Each reply takes longer, and none waits for another."""
    await through.ping()
    proxy.delay = 0.1
    began = time.monotonic()
    with promptly(0.25):
        async with through.pipeline(transaction=False) as pipeline:
            for _ in range(3):
                pipeline.ping()
            await pipeline.execute()
    assert time.monotonic() - began >= proxy.delay


@pytest.mark.parametrize("through", [3], indirect=True, ids=["RESP3"])
@pytest.mark.parametrize("way", ["hold", "mute", "black_hole"])
async def test_proxy_without_replies_times_out(
    through: aioredis.Redis, proxy: Proxy, key_prefix: str, way: str
) -> None:
    """No reply arrives on old and new connections; the mode decides whether commands are executed."""
    through.connection_pool.connection_kwargs["socket_timeout"] = 0.2 * slowness()
    await through.ping()
    getattr(proxy, way)()
    for _ in range(2):
        with pytest.raises(RedisTimeoutError):
            await through.incr(key_prefix)
    proxy.clear()
    done = {"hold": b"1", "mute": b"1", "black_hole": None}[way]

    async def is_so() -> bool:
        with anyio.move_on_after(1):
            try:
                return bool(await through.get(key_prefix) == done)
            except RedisError:
                return False
        return False

    await until(is_so)
    await through.delete(key_prefix)


async def test_proxy_refuse_and_reset_break_connections(through: aioredis.Redis, proxy: Proxy) -> None:
    """Open connections break, new ones are refused, and later accepted on the same port."""
    await through.ping()
    proxy.refuse()
    await through.ping()
    assert proxy.reset() == 1
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            await through.ping()
    await proxy.listen()
    assert await through.ping()
    assert proxy.accepted == 2
    assert proxy.connections == 1


@pytest.fixture
async def own() -> AsyncIterator[tuple[OwnValkey, aioredis.Redis]]:
    """A durable Valkey, and a client of it that never retries."""
    with own_valkey(durable=True) as server:
        async with aioredis.Redis.from_url(
            server.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.3 * slowness()
        ) as client:
            yield server, client


async def test_own_valkey_killed_frozen_or_full_behaves_so(own: tuple[OwnValkey, aioredis.Redis]) -> None:
    """It keeps its data after a kill, does not answer while frozen, and refuses writes while full."""
    server, client = own
    await client.set("a", "b")
    server.kill()
    with pytest.raises(RedisConnectionError):
        await client.get("a")
    server.start()
    assert await client.get("a") == b"b"
    server.freeze()
    with pytest.raises(RedisTimeoutError):
        await client.get("a")
    server.thaw()
    assert await client.get("a") == b"b"
    server.set(maxmemory=1)
    with pytest.raises(OutOfMemoryError):
        await client.eval("redis.call('SET', 'a', 'c')", 0)
    server.set(maxmemory=0)
    await client.eval("redis.call('SET', 'a', 'c')", 0)


async def test_own_valkey_restart_loading_answers_loading(own: tuple[OwnValkey, aioredis.Redis]) -> None:
    """It answers LOADING for a while, and then has its data."""
    server, client = own
    await client.set("a", "b")
    await anyio.to_thread.run_sync(server.restart_loading)
    with pytest.raises(BusyLoadingError):
        await client.get("a")

    async def has() -> bool:
        try:
            return bool(await client.get("a") == b"b")
        except BusyLoadingError:
            return False

    await until(has)


async def test_own_valkey_as_replica_refuses_writes(own: tuple[OwnValkey, aioredis.Redis]) -> None:
    """A replica of its own former replica keeps its data, and refuses writes until it is primary again."""
    server, client = own
    await client.set("a", "b")
    with own_valkey() as other:
        other.follow(server)
        other.follow(None)
        server.follow(other)
        with pytest.raises(ReadOnlyError):
            await client.eval("redis.call('SET', 'a', 'c')", 0)
        server.follow(None)
    assert await client.get("a") == b"b"
    await client.eval("redis.call('SET', 'a', 'c')", 0)
