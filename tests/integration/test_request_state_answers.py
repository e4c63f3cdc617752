"""Answers to request states when Redis, a worker, or a connection fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from mcp.shared.exceptions import MCPError
from redis import asyncio as aioredis

from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.request_state import answers as request_state_answers
from mcp_eventscope.request_state import middleware as request_state_middleware
from mcp_eventscope.request_state import store as request_state_store
from mcp_eventscope.request_state.answers import _Run
from mcp_eventscope.request_state.facts import (
    AnswerEnd,
    AnswerEnded,
    AnswerRepeated,
    AnswersLost,
    StateRefusal,
    WorkerLost,
)
from mcp_eventscope.request_state.outcomes import digest_of
from mcp_eventscope.store.jsonrpc_errors import (
    ANSWER_IN_PROGRESS,
    EVENTS_GONE,
    REQUEST_ORPHANED,
    STATE_UNAVAILABLE,
)
from mcp_eventscope.testing.request_state import NO, YES, Tool, refusal_of
from support.proxy import Proxy
from support.request_states import SECRET, StateWorker, state_workers
from support.servers import Valkey, cluster_of_one
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("anyio_backend")]


@pytest.fixture
def tool() -> Tool:
    """The tool of all workers."""
    return Tool()


async def first_use(worker: StateWorker, state: str) -> "asyncio.Task[object]":
    """Begin to answer, and return when the tool runs."""
    task: asyncio.Task[object] = asyncio.ensure_future(worker.answer(state))
    await worker.tool.started.wait()
    return task


async def stop_renewing(worker: StateWorker, client: aioredis.Redis, key_prefix: str) -> None:
    """Let the lease of a worker expire, as when it is killed or frozen."""
    workers = worker.state._backend.workers
    for task in workers._tasks:
        task.cancel()
    await client.delete(Keys(key_prefix).worker(worker.state._backend.worker.name))


@pytest.mark.usefixtures("leaks")
async def test_answer_of_a_dead_worker_gets_an_honest_error(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """It may have taken effect, and is not run again. The worker that was only frozen answers the same."""
    tool.gate = asyncio.Event()
    async with state_workers(redis_client, key_prefix, tool) as (one, other):
        state = await one.ask()
        frozen = await first_use(one, state)
        await stop_renewing(one, redis_client, key_prefix)
        other.state._backend.workers._began = -CEILING  # It is not young.
        error = await refusal_of(other.answer(state))
        assert (error.code, error.data) == (REQUEST_ORPHANED, {"reason": "worker_lost"})
        assert "may have taken effect" in error.message
        assert [fact.worker for fact in other.of(WorkerLost)] == [one.state._backend.worker.name]
        tool.gate.set()
        with pytest.raises(MCPError) as late:
            await frozen
        assert late.value.error == error.error
        assert one.of(AnswerEnded)[-1].end is AnswerEnd.WORKER_LOST
        assert (await refusal_of(other.answer(state))).error == error.error
        assert len(tool.effects) == 1


@pytest.mark.parametrize("doubt", ["uncertain", "young"])
@pytest.mark.usefixtures("leaks")
async def test_worker_without_lease_after_an_outage_is_not_declared_dead(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, doubt: str
) -> None:
    """Leases expire in an outage, also in one that a young worker does not know of. The repetition waits."""
    tool.gate = asyncio.Event()
    async with state_workers(redis_client, key_prefix, tool, wait_timeout=1) as (one, other):
        state = await one.ask()
        running = await first_use(one, state)
        await stop_renewing(one, redis_client, key_prefix)
        workers = other.state._backend.workers
        workers._began = asyncio.get_running_loop().time() if doubt == "young" else -CEILING
        workers._blind_until = 0.0 if doubt == "young" else asyncio.get_running_loop().time() + CEILING
        assert (await refusal_of(other.answer(state))).code == ANSWER_IN_PROGRESS
        tool.gate.set()
        await running
        await other.answer(state)
        assert other.of(WorkerLost) == []
        assert len(tool.effects) == 1


@pytest.mark.usefixtures("leaks")
async def test_repeated_answer_of_a_long_first_use_may_be_repeated_later(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """It waits for `wait_timeout`, here and on another worker, and gets the result afterwards."""
    tool.gate = asyncio.Event()
    async with state_workers(redis_client, key_prefix, tool, wait_timeout=0.2) as (one, other):
        state = await one.ask()
        running = await first_use(one, state)
        for worker in (one, other):
            error = await refusal_of(worker.answer(state))
            assert (error.code, error.data) == (ANSWER_IN_PROGRESS, {"reason": "in_progress", "retryable": True})
            assert worker.refusals == [StateRefusal.IN_PROGRESS]
        tool.gate.set()
        assert await other.answer(state) == await running
        assert [fact.waited >= 0 for fact in other.of(AnswerRepeated)] == [True]


@pytest.mark.usefixtures("leaks")
async def test_result_that_is_too_large_is_not_run_again(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request gets it; a repetition gets an error that explains it."""
    monkeypatch.setattr(request_state_middleware, "MAX_RESULT_BYTES", 20)
    async with state_workers(redis_client, key_prefix, tool) as (one, other):
        state = await one.ask()
        assert (await one.answer(state))["content"]
        error = await refusal_of(other.answer(state))
        assert (error.code, error.data) == (EVENTS_GONE, {"reason": "too_large"})
        assert one.of(AnswerEnded)[-1].end is AnswerEnd.TOO_LARGE
        assert len(tool.effects) == 1


@pytest.mark.usefixtures("leaks")
async def test_result_without_json_form_is_not_run_again(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool
) -> None:
    """A lone surrogate cannot be recorded."""
    async with state_workers(redis_client, key_prefix, tool) as (one, other):
        state = await one.ask()
        one.worker._tool = odd = Tool(question={"x": "\ud800"}, rounds=2)
        await one.answer(state)
        assert (await refusal_of(other.answer(state))).code == EVENTS_GONE
        assert (len(odd.effects), len(tool.effects)) == (1, 0)


async def test_answer_expires_with_its_state(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, leaks: object
) -> None:
    """What is recorded is kept for as long as a state is valid, and a minute more for clocks."""
    assert leaks is not None
    async with state_workers(redis_client, key_prefix, tool, ttl=600) as (one, _):
        await one.answer(await one.ask())
        keys = [key async for key in redis_client.scan_iter(match=f"{key_prefix}{{state}}:answer:*")]
        assert len(keys) == 1
        assert 600 < await redis_client.ttl(keys[0]) <= 660


@pytest.mark.usefixtures("leaks")
async def test_memory_for_outcomes_is_bounded(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest outcomes are dropped from memory, and served from Redis."""
    monkeypatch.setattr(request_state_answers, "RETAINED_ANSWERS", 3)
    async with state_workers(redis_client, key_prefix, tool) as (one, _):
        states = [await one.ask() for _ in range(6)]
        results = [await one.answer(state) for state in states]
        assert len(one.state._answers._runs) == 3
        assert one.state._answers._bytes == sum(len(run.outcome) for run in one.state._answers._runs.values())
        assert [await one.answer(state) for state in states] == results
        assert len(tool.effects) == 6


# -- outages ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def pair_on(
    server: OwnValkey, key_prefix: str, tool: Tool, **options: object
) -> AsyncIterator[tuple[StateWorker, StateWorker]]:
    """Two workers with clients of their own, which notice an outage quickly."""
    async with (
        connect(server.url) as first,
        connect(server.url) as second,
        state_workers(first, key_prefix, tool, 1, store_timeout=0.25, keys=[SECRET], **options) as (one,),
        state_workers(second, key_prefix, tool, 1, store_timeout=0.25, keys=[SECRET], **options) as (other,),
    ):
        yield one, other


async def reachable(*workers: StateWorker) -> None:
    """Return when the workers have noticed that Redis is reachable, and that its data is complete or restored."""
    for state in (worker.state for worker in workers):
        await until(lambda: state._confirmed and not state._backend.breaker.unreachable)  # noqa: B023
        await until(lambda: state._uncertain_until < time.monotonic())  # noqa: B023


@pytest.mark.slow
async def test_answer_in_a_short_outage_is_held(key_prefix: str, tool: Tool) -> None:
    """It takes effect once, after Redis has recovered; the client does not notice."""
    with own_valkey(durable=True) as server:
        async with pair_on(server, key_prefix, tool) as (one, other):
            state = await one.ask()
            server.kill()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.answer, state)
                tasks.start_soon(other.answer, state)
                await until(lambda: one.state._backend.breaker.unreachable)
                assert tool.effects == []
                await anyio.to_thread.run_sync(server.start)
            assert tool.effects == [YES]
            assert one.refusals == other.refusals == []


@pytest.mark.slow
async def test_answer_in_a_long_outage_is_refused_without_effect(key_prefix: str, tool: Tool) -> None:
    """The client may send the same answer again, which then takes effect once, on any worker."""
    with own_valkey(durable=True) as server:
        async with pair_on(server, key_prefix, tool, wait_timeout=0.5) as (one, other):
            state = await one.ask()
            server.kill()
            error = await refusal_of(one.answer(state))
            assert (error.code, error.data) == (STATE_UNAVAILABLE, {"reason": "unavailable", "retryable": True})
            assert one.refusals == [StateRefusal.UNAVAILABLE]
            assert tool.effects == []
            server.start()
            await reachable(one, other)
            await other.answer(state)
            await one.answer(state)
            assert tool.effects == [YES]


@pytest.mark.slow
async def test_outcome_in_an_outage_is_recorded_later(key_prefix: str, tool: Tool) -> None:
    """The response is not withheld. Until Redis has recovered, its worker serves repetitions from memory."""
    tool.gate = asyncio.Event()
    with own_valkey(durable=True) as server:
        async with pair_on(server, key_prefix, tool) as (one, other):
            state = await one.ask()
            running = await first_use(one, state)
            server.kill()
            tool.gate.set()
            with in_time(2):
                result = await running
                assert await one.answer(state) == result
                assert (await refusal_of(one.answer(state, NO))).data == {"reason": "other_answer"}
            server.start()
            assert await other.answer(state) == result
            assert tool.effects == [YES]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "running"])
@pytest.mark.slow
async def test_answer_in_a_redis_that_restarts_empty_is_not_run_again(
    key_prefix: str,
    tool: Tool,
    finished: bool,  # noqa: FBT001 - a case
) -> None:
    """Its worker writes it again. The others wait for that."""
    tool.gate = asyncio.Event()
    with own_valkey() as server:
        async with pair_on(server, key_prefix, tool) as (one, other):
            state = await one.ask()
            running = await first_use(one, state)
            if finished:
                tool.gate.set()
                await running
            server.kill()
            server.start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.answer, state)
                await until(lambda: one.of(AnswersLost))
                tool.gate.set()
            await running
            assert tool.effects == [YES]


@pytest.mark.slow
async def test_answer_waits_until_its_worker_has_restored_all_of_its_answers(
    key_prefix: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a worker writes its answers again, the others use none before it has finished."""
    monkeypatch.setattr(request_state_store, "REFRESH_SECONDS", 0.5)  # Twice as long, workers may take to announce it.
    monkeypatch.setattr(request_state_answers, "_BATCH_ANSWERS", 1)
    with own_valkey() as server:
        async with pair_on(server, key_prefix, tool) as (one, other):
            states = [await one.ask() for _ in range(3)]
            for state in states:
                await one.answer(state)
            calls, gate = 0, asyncio.Event()
            call_redis = one.state._answers._call

            async def call_slowly(function: Callable[[], Awaitable[object]]) -> object:
                nonlocal calls
                calls += 1
                if calls > 1:
                    await gate.wait()
                return await call_redis(function)

            monkeypatch.setattr(one.state._answers, "_call", call_slowly)
            async with connect(server.url) as client:
                await client.flushall()
            async with anyio.create_task_group() as tasks:
                await until(lambda: calls > 1)
                tasks.start_soon(other.answer, states[0])  # The oldest one, which is written last.
                await until(lambda: other.of(AnswersLost))
                await until(lambda: other.state._uncertain_until < time.monotonic())
                seen = other.state._finished
                await until(lambda: other.state._finished > seen + 1)
                assert len(tool.effects) == 3
                gate.set()
            assert len(tool.effects) == 3


async def test_restored_answers_are_written_in_batches(
    redis_client: aioredis.Redis, key_prefix: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is bounded by its number of answers and by the size of their outcomes."""
    async with state_workers(redis_client, key_prefix, tool, 1) as (one,):
        answers = one.state._answers
        sizes: list[int] = []
        expires = time.monotonic() + 60

        async def restored(outcomes: list[bytes]) -> list[int]:
            answers._runs = {str(n): _Run(str(n), "a", f"w-{n}", expires, each) for n, each in enumerate(outcomes)}
            sizes.clear()
            assert await answers.restore() == len(outcomes)
            keys = [answers._backend.keys.answer(str(n)) for n in range(len(outcomes))]
            assert await redis_client.exists(*keys) == len(keys)
            assert [await redis_client.pttl(key) > 0 for key in keys[:3]] == [True] * len(keys[:3])
            await redis_client.delete(*keys)
            return sizes

        call_redis = request_state_answers._restore

        async def counted(client: aioredis.Redis, keys: list[str], args: list[str | bytes | int]) -> object:
            sizes.append(len(keys) - 1)
            return await call_redis(client, keys, args)

        monkeypatch.setattr(request_state_answers, "_restore", counted)
        assert await restored([b"x"] * 600) == [256, 256, 88]
        assert await restored([b"x" * 600_000] * 3) == [1, 1, 1]
        assert await restored([b"x" * 3_000_000]) == [1]
        answers._runs = {}
        fields = {str(field) for field in await redis_client.hkeys(one.state.epoch_key)}
        assert not [field for field in fields if "restoring" in field]


@pytest.mark.slow
async def test_answer_after_a_silent_rollback_is_not_run_again(key_prefix: str, tool: Tool) -> None:
    """A Redis that is replaced by a snapshot, older than the last refresh, does not bring a used answer back."""
    with own_valkey() as server:
        async with pair_on(server, key_prefix, tool) as (one, other):
            state = await one.ask()
            server.save()
            await other.state._refresh()
            await one.answer(state)
            server.kill()
            server.start()
            await other.answer(state)
            assert tool.effects == [YES]
            assert len(one.of(AnswersLost)) >= 1


@pytest.fixture
async def proxy(valkey_server: Valkey) -> AsyncIterator[Proxy]:
    """A proxy before the Valkey of the run."""
    async with Proxy(valkey_server.socket).running() as proxy:
        yield proxy


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
async def test_claim_whose_reply_is_lost_is_ours(
    redis_client: aioredis.Redis, proxy: Proxy, key_prefix: str, tool: Tool
) -> None:
    """Redis has taken the claim; the retry recognizes it, and the answer takes effect once."""
    async with (
        connect(proxy.url) as client,
        state_workers(client, key_prefix, tool, 1, store_timeout=0.25, keys=[SECRET]) as (one,),
        state_workers(redis_client, key_prefix, tool, 1, keys=[SECRET]) as (other,),
    ):
        await other.answer(await other.ask())  # Redis knows the script.
        state = await one.ask()
        fault = proxy.drop_reply("}:answer:")
        assert (await one.answer(state))["content"]
        assert fault.happened == 1
        await other.answer(state)
        assert len(tool.effects) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
async def test_claim_that_is_given_up_is_released(
    redis_client: aioredis.Redis, proxy: Proxy, key_prefix: str, tool: Tool
) -> None:
    """A client that leaves during the claim can answer again: it had no effect."""
    async with (
        connect(proxy.url) as client,
        state_workers(client, key_prefix, tool, 1, store_timeout=0.25, keys=[SECRET]) as (one,),
        state_workers(redis_client, key_prefix, tool, 1, keys=[SECRET]) as (other,),
    ):
        await other.answer(await other.ask())
        state = await one.ask()
        key = Keys(key_prefix).answer(digest_of(state))
        proxy.mute()
        task = asyncio.ensure_future(one.answer(state))
        await until(lambda: redis_client.exists(key))
        task.cancel()
        await asyncio.wait({task})
        proxy.clear()
        await other.answer(state)
        assert len(tool.effects) == 2
        assert one.of(AnswerEnded) == []


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
async def test_claim_that_arrives_after_its_release_claims_nothing(
    redis_client: aioredis.Redis, proxy: Proxy, key_prefix: str, tool: Tool
) -> None:
    """A claim that the network holds back does not block the answer once its client has left."""
    async with (
        connect(proxy.url) as client,
        state_workers(client, key_prefix, tool, 1, store_timeout=0.25, keys=[SECRET]) as (one,),
        state_workers(redis_client, key_prefix, tool, 1, keys=[SECRET]) as (other,),
    ):
        await other.answer(await other.ask())
        state = await one.ask()
        key = Keys(key_prefix).answer(digest_of(state))
        fault = proxy.delay_request("}:answer:", times=2)
        task = asyncio.ensure_future(one.answer(state))
        await until(lambda: fault.happened)
        task.cancel()
        await asyncio.wait({task})
        proxy.clear()
        await until(lambda: redis_client.exists(key))  # Released.
        await proxy.deliver(fault)
        await other.answer(state)
        assert len(tool.effects) == 2


@pytest.mark.slow
async def test_request_state_on_a_cluster_crosses_no_slots(key_prefix: str, tool: Tool) -> None:
    """Keys, claims, outcomes and leases are each in one slot, under a prefix without a hash tag."""
    with cluster_of_one() as port:
        async with (
            aioredis.RedisCluster(host="127.0.0.1", port=port) as client,
            state_workers(client, key_prefix, tool) as (one, other),  # type: ignore[arg-type]
        ):
            state = await one.ask()
            for worker in (other, one, other):
                assert (await worker.answer(state))["content"][0]["text"] == "effect 1"
            await one.state._answers.restore()
            assert (await refusal_of(other.answer(state, NO))).data == {"reason": "other_answer"}
            assert len(tool.effects) == 1


@pytest.mark.usefixtures("leaks")
async def test_claims_during_refreshes_are_no_loss(redis_client: aioredis.Redis, key_prefix: str, tool: Tool) -> None:
    """Replies on several connections are read in any order, which does not look like a rollback."""
    async with state_workers(redis_client, key_prefix, tool) as (one, other):
        states = [await one.ask() for _ in range(15)]
        async with anyio.create_task_group() as tasks:
            for state in states:
                tasks.start_soon(one.answer, state)
                tasks.start_soon(one.state._refresh)
                tasks.start_soon(other.answer, state)
        assert one.of(AnswersLost) == other.of(AnswersLost) == []
        assert len(tool.effects) == 15
        before = one.state.epoch
        await one.state._refresh()
        assert one.state.epoch[1] > before[1]
