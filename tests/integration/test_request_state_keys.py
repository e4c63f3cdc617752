"""The keys of request states: shared, generated, rotated, and learnt from other workers."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
from mcp.client import Client
from mcp.server.mcpserver import Context, MCPServer
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, RedisRequestState
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.request_state import store as request_state_store
from mcp_eventscope.request_state.facts import KeysChanged, KeySource, StateRefusal, StateSealed
from mcp_eventscope.testing.request_state import YES, Tool, refusal_of
from support.leaks import LeakChecker
from support.request_states import SECRET, state_worker, state_workers
from support.valkeys import own_valkey
from support.waiting import until

pytestmark = pytest.mark.anyio

HOUR = 3_600_000_000
"""In microseconds."""


@pytest.fixture
def tool() -> Tool:
    """The tool of all workers."""
    return Tool()


@pytest.fixture
def rare_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers refresh their keys only when they must."""
    monkeypatch.setattr(request_state_store, "REFRESH_SECONDS", 3600.0)


async def age_keys(client: aioredis.Redis, key: str, *, created: int = 0, used: int = 0) -> list[str]:
    """Move the times of all keys into the past. Returns the keys."""
    found = {_text(name): _text(value) for name, value in (await client.hgetall(key)).items()}
    secrets = [name for name in found if name not in {"epoch", "calls", "current"}]
    for secret in secrets:
        was_created, was_used = map(int, found[secret].split())
        await client.hset(key, secret, f"{was_created - created} {was_used - used}")
    return secrets


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


async def test_generated_key_of_concurrent_starts_is_one(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, leaks: LeakChecker
) -> None:
    """Of the keys that workers generate concurrently, one wins atomically."""
    workers = [state_worker(redis_client, key_prefix, tool) for _ in range(8)]
    async with anyio.create_task_group() as tasks:
        running = [worker.state.running() for worker in workers]
        for each in running:
            tasks.start_soon(each.__aenter__)
    try:
        assert len({worker.state._ring.sealing.secret for worker in workers if worker.state._ring.sealing}) == 1
        assert {fact.source for worker in workers for fact in worker.of(KeysChanged)} == {KeySource.REDIS}
        assert await leaks.keys()
    finally:
        for each in reversed(running):
            await each.__aexit__(None, None, None)


@pytest.mark.usefixtures("rare_refreshes", "leaks")
async def test_rotated_key_keeps_states_in_flight_valid(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """One worker rotates for all. Old states open everywhere, and new ones on workers that do not know the key yet."""
    async with state_workers(redis_client, key_prefix, tool, rotation=3600) as (one, other):
        before = await one.ask()
        key = Keys(key_prefix).state_keys
        (old,) = await age_keys(redis_client, key, created=2 * HOUR)
        await one.state._refresh()
        assert one.of(KeysChanged)[-1] == KeysChanged(KeySource.REDIS, rotated=True)
        assert one.state._ring.sealing is not None
        assert one.state._ring.sealing.secret.hex() != old
        after = await one.ask()
        for state in (before, after):
            await other.answer(state)
        assert len(tool.effects) == 2
        assert other.refusals == []


@pytest.mark.usefixtures("rare_refreshes", "leaks")
async def test_old_key_is_dropped_after_the_last_state(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """A key is kept for as long as a state that it has sealed is valid, then no longer."""
    key = Keys(key_prefix).state_keys
    async with state_workers(redis_client, key_prefix, tool, rotation=3600, ttl=600) as (one, other):
        await age_keys(redis_client, key, created=2 * HOUR)
        await one.state._refresh()
        await other.state._refresh()
        assert len(await age_keys(redis_client, key, used=600_000_000)) == 2
        one.state._generated.clear()
        other.state._generated.clear()
        await one.state._refresh()
        assert len(await age_keys(redis_client, key, used=200_000_000)) == 2
        other.state._generated.clear()
        one.state._generated.clear()
        await one.state._refresh()
        assert len(await age_keys(redis_client, key)) == 1


@pytest.mark.usefixtures("rare_refreshes", "leaks")
async def test_key_of_a_worker_without_contact_is_kept_after_its_last_use(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """A worker that could not reach Redis seals with a key that the others have dropped, and shares it later."""
    key = Keys(key_prefix).state_keys
    async with state_workers(redis_client, key_prefix, tool, rotation=3600) as (one, other):
        secrets = await age_keys(redis_client, key, created=2 * HOUR)
        await one.state._refresh()
        await redis_client.hdel(key, *secrets)
        one.state._generated = {k: v for k, v in one.state._generated.items() if k.hex() not in secrets}
        await one.state._refresh()
        state = await other.ask()
        await other.state._refresh()
        await one.answer(state)
        assert len(tool.effects) == 1


@pytest.mark.usefixtures("leaks")
async def test_secret_is_not_written_to_redis(redis_client: aioredis.Redis, key_prefix: str, tool: Tool) -> None:
    """With a secret of the operator, Redis contains no key, and none is read from there."""
    async with state_workers(redis_client, key_prefix, tool, keys=[SECRET]) as (one, _):
        await one.ask()
        assert not await redis_client.exists(Keys(key_prefix).state_keys)
        assert set(map(_text, await redis_client.hkeys(Keys(key_prefix).state_epoch))) == {"epoch", "calls"}


@pytest.mark.usefixtures("leaks")
async def test_secrets_in_rotation_open_states_of_either(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """The first secret seals, and all open. An unknown one is refused."""
    new = SECRET[::-1]
    async with (
        state_workers(redis_client, key_prefix, tool, 1, keys=[SECRET, new]) as (before,),
        state_workers(redis_client, key_prefix, tool, 1, keys=[new, SECRET]) as (after,),
        state_workers(redis_client, key_prefix, tool, 1, keys=[new]) as (last,),
    ):
        await after.answer(await before.ask())
        await before.answer(await after.ask())
        await last.answer(await after.ask())
        assert len(tool.effects) == 3
        await refusal_of(last.answer(await before.ask()))
        assert last.refusals == [StateRefusal.UNKNOWN_KEY]


class _SkewedClock:
    """The wall clock of this process, whose error can be changed."""

    def __init__(self) -> None:
        self.error = 0.0
        self._time, self._time_ns = time.time, time.time_ns

    def time(self) -> float:
        """As `time.time`."""
        return self._time() + self.error

    def time_ns(self) -> int:
        """As `time.time_ns`."""
        return self._time_ns() + round(self.error * 1e9)


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[_SkewedClock]:
    """The wall clock, which the test sets before each step to that of the acting worker."""
    clock = _SkewedClock()
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(time, "time_ns", clock.time_ns)
    yield clock
    clock.error = 0.0


@pytest.mark.parametrize("error", [-3600.0, 3600.0])
@pytest.mark.usefixtures("leaks")
async def test_clocks_that_differ_do_not_expire_states(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, wall_clock: _SkewedClock, error: float
) -> None:
    """Workers whose clocks differ by an hour open the states of each other, and still expire them."""
    async with state_workers(redis_client, key_prefix, tool, ttl=600) as (one, other):
        state, late = await one.ask(), await one.ask()
        wall_clock.error = error
        await other.answer(state)
        assert len(tool.effects) == 1
        real = other.state._backend.clock
        real._offset += 601_000_000
        try:
            await refusal_of(other.answer(late))
        finally:
            real._offset -= 601_000_000
        assert other.refusals == [StateRefusal.EXPIRED]


@pytest.mark.slow
async def test_start_without_redis_seals_with_a_key_that_is_shared_later(key_prefix: str, tool: Tool) -> None:
    """A state of an outage opens on other workers as soon as Redis is reachable. Its answer waits until then."""
    with own_valkey() as server:
        server.kill()
        async with connect(server.url) as client, connect(server.url) as others:
            options = {"store_timeout": 0.25}
            async with (
                state_workers(client, key_prefix, tool, 1, **options) as (one,),
                state_workers(others, key_prefix, tool, 1, **options) as (other,),
            ):
                state = await one.ask()
                assert one.of(KeysChanged) == [KeysChanged(KeySource.PROCESS, rotated=False)]
                assert one.of(StateSealed)[-1].source is KeySource.PROCESS
                refresh = one.state._refresh

                async def late() -> None:
                    await until(lambda: other.state._finished)  # The other worker has asked Redis in vain.
                    await refresh()

                one.state._refresh = late  # type: ignore[method-assign]
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(other.answer, state)
                    await anyio.to_thread.run_sync(server.start)
                assert len(tool.effects) == 1
                await until(lambda: one.of(KeysChanged)[-1].source is KeySource.REDIS)
                await one.answer(state)
                assert len(tool.effects) == 1
                assert other.refusals == []


@pytest.mark.usefixtures("leaks")
async def test_unknown_keys_do_not_flood_redis(redis_client: aioredis.Redis, key_prefix: str, tool: Tool) -> None:
    """Many invented states share few refreshes, and each is refused like any invalid one."""
    async with state_workers(redis_client, key_prefix, tool, 1) as (one,):
        state, before = await one.ask(), one.state._started
        invented = ["v1." + ("A" if state[3] != "A" else "B") + state[4:-2] + f"{number:02}" for number in range(50)]
        async with anyio.create_task_group() as tasks:
            for each in invented:
                tasks.start_soon(lambda: refusal_of(one.answer(each)))  # noqa: B023
        assert one.state._started - before <= 3
        before, began = one.state._started, time.monotonic()
        for each in invented[:4]:
            await refusal_of(one.answer(each))
        assert one.state._started - before <= 2 + (time.monotonic() - began) / 0.25
        assert set(one.refusals) <= {StateRefusal.UNKNOWN_KEY, StateRefusal.MALFORMED}


async def test_state_before_start_is_refused(redis_client: aioredis.Redis, key_prefix: str, tool: Tool) -> None:
    """Without `running()` nothing is sealed with a key that no other worker has."""
    worker = state_worker(redis_client, key_prefix, tool)
    error = await refusal_of(worker.ask())
    assert (error.code, error.data) == (-32013, {"reason": "not_running", "retryable": True})
    assert worker.refusals == [StateRefusal.NOT_RUNNING]
    assert tool.effects == []
    assert (await worker.worker.send(inputResponses=YES))["content"]  # It needs no state.


@pytest.mark.usefixtures("leaks")
async def test_running_that_is_entered_twice_is_shared(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """A scope and a server may both enter it: it ends with the last one, and can start again."""
    async with state_workers(redis_client, key_prefix, tool, 1) as (one,):
        async with one.state.running():
            await one.answer(await one.ask())
        await one.answer(await one.ask())
    assert (await refusal_of(one.ask())).data == {"reason": "not_running", "retryable": True}
    async with one.state.running():
        await one.answer(await one.ask())


@pytest.mark.usefixtures("leaks")
async def test_lifespan_of_a_server_runs_its_request_state(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """`install` is the only line that an author writes. The server's own lifespan stays."""
    entered: list[str] = []

    @asynccontextmanager
    async def lifespan(_: MCPServer[str]) -> AsyncIterator[str]:
        entered.append("begin")
        yield "own"
        entered.append("end")

    mcp = MCPServer("orders", lifespan=lifespan)

    @mcp.tool()
    async def own(ctx: Context[str]) -> str:
        """Return the server's own context."""
        return ctx.request_context.lifespan_context

    state = RedisRequestState(RedisEventStore(redis_client, key_prefix=key_prefix).backend)
    state.install(mcp)
    async with Client(mcp) as client:
        assert state._running is not None
        assert (await client.call_tool("own")).structured_content == {"result": "own"}
    assert state._running is None
    assert entered == ["begin", "end"]
