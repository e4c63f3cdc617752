"""Damaged messages between workers, changes, tasks and keys: the parts go on, and others lose nothing."""

from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.subscriptions import ResourceUpdated, ToolsListChanged
from mcp.shared.exceptions import MCPError
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from mcp_eventscope import RedisEventStore, RedisTaskStore, StoreError
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.request_state import store as request_state_store
from mcp_eventscope.request_state.outcomes import serve
from mcp_eventscope.store.coordination import MessageKind, NewRecord, WorkerMessage, session_digest
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.subscriptions.facts import GapFound
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import NewTask, RunState
from mcp_eventscope.testing.request_state import YES, Tool
from support.buses import bus_worker
from support.fuzzing import (
    DAMAGES,
    JSON_TEXTS,
    RUBBISH,
    Damage,
    Leaked,
    as_row,
    command,
    examples,
    own_prefix,
    run_example,
)
from support.request_states import state_workers
from support.stores import LEASE, PATIENCE, nothing_to_publish
from support.waiting import until

pytestmark = pytest.mark.slow

TTL = 600
TEXTS = st.sampled_from(["", "s", "x" * 100, "\u0000", "\ud800", '["","",""]', '["", "srv", "{"]', "1", "[]", "~1"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | TEXTS | st.just([1])
KINDS = st.sampled_from([*MessageKind, "", "other", 7, None])
ROWS = (
    st.builds(as_row, TEXTS | SCALARS, SCALARS, KINDS, st.just(session_digest("s")) | SCALARS, SCALARS, SCALARS)
    | st.lists(SCALARS, max_size=8).map(lambda row: as_row(*row))
    | JSON_TEXTS
    | RUBBISH
)
DELAYS = st.integers().map(lambda number: b"%d" % number) | RUBBISH
ENTRIES = st.lists(st.tuples(st.sampled_from([b"m", b"x", b""]), ROWS), min_size=1, max_size=3) | st.tuples(
    ROWS, DELAYS
).map(lambda entry: list(zip((b"m", b"delay"), entry, strict=True)))
NUMBERS = st.sampled_from([b"*", b"*", b"*", b"18446744073709551615-18446744073709551615", b"9999999999999-5"])


@examples(40)
@given(st.lists(st.tuples(st.booleans(), NUMBERS, ENTRIES), min_size=1, max_size=3))
def test_forged_messages_keep_no_worker_from_those_of_others(
    valkey_url: str, forged: list[tuple[bool, bytes, list[tuple[bytes, bytes]]]]
) -> None:
    """Any entry in the inbox and among the announcements is skipped; the next genuine message arrives."""

    async def story(client: aioredis.Redis, stack: AsyncExitStack, _: Leaked) -> None:
        prefix = own_prefix(client, stack)
        received: list[WorkerMessage] = []
        stores = [RedisEventStore(client, key_prefix=prefix, ttl=TTL, store_timeout=PATIENCE) for _ in range(2)]
        dropped: list[StoreEvent] = []
        stores[1].observe(dropped.append)
        for store, take in zip(stores, (lambda _: None, received.append), strict=True):
            await stack.enter_async_context(store.coordinator.hold_lease(LEASE, take, nothing_to_publish))
            await store.coordinator.record(NewRecord("s", "", "{}"), ttl=TTL)
        name = stores[1].backend.worker.name
        keys = Keys(prefix)
        for to_all, number, fields in forged:
            key = keys.announcements if to_all else keys.inbox(name)
            flat = [text for pair in fields for text in pair]
            try:
                await command(client, "XADD", key, number, *flat)
            except ResponseError:
                continue  # After the largest id there is no other one.
        await stores[1].backend.workers._check()
        stores[0].coordinator.send("s", MessageKind.STOP, "genuine")
        await until(lambda: any(each.content == "genuine" for each in received))
        assert [each.sender for each in received if each.content == "genuine"] == [stores[0].backend.worker.name]

    run_example(valkey_url, story)


@examples(25)
@given(DAMAGES)
def test_damaged_changes_lead_to_repairs_and_signals_go_on(valkey_url: str, damages: list[Damage]) -> None:
    """Whatever is in the log of changes: later signals arrive, and the log is not repaired again and again."""

    async def story(client: aioredis.Redis, stack: AsyncExitStack, _: Leaked) -> None:
        prefix = own_prefix(client, stack)
        one = await stack.enter_async_context(bus_worker(client, prefix))
        two = await stack.enter_async_context(bus_worker(client, prefix))
        stream = await stack.enter_async_context(two.listening("a://1"))
        await one.bus.publish(ToolsListChanged())
        await until(lambda: stream.received)
        for each in damages:
            await each.apply(client, [Keys(prefix).changes.encode()])
        # A retyped key is refused until it is deleted: it is not repaired by force, since another program uses it.
        if await command(client, "TYPE", Keys(prefix).changes) not in {b"stream", b"none"}:
            await client.delete(Keys(prefix).changes)
        before = stream.count("a://1")

        async def published() -> bool:
            await one.bus.publish(ResourceUpdated("a://1"))
            return stream.count("a://1") > before

        await until(published)
        assert len([fact for fact in two.facts if isinstance(fact, GapFound)]) < 50, "the log is repaired in a loop"

    run_example(valkey_url, story)


@examples(40)
@given(DAMAGES)
def test_damaged_task_raises_documented_errors_and_harms_no_other(valkey_url: str, damages: list[Damage]) -> None:
    """A damaged task is lost at most; another task of the same worker gets its answer, and completes."""

    async def story(client: aioredis.Redis, stack: AsyncExitStack, leaked: Leaked) -> None:
        prefix = own_prefix(client, stack)
        events = RedisEventStore(client, key_prefix=prefix, ttl=TTL, store_timeout=PATIENCE)
        workers = events.backend.workers
        await stack.enter_async_context(workers.hold_lease(LEASE, lambda _: None, nothing_to_publish))
        await until(lambda: workers.leased)
        workers._began -= workers._renewal_limit
        store = RedisTaskStore(events.backend, sync_interval=0.02)
        question = {"k": {"method": "elicitation/create", "params": {}}}
        victim, other = [
            replace(RunState(await store.create(NewTask("ada"))), input_requests=question) for _ in range(2)
        ]
        for run in (victim, other):
            await store.set_input_requests(run)
            await store.resolve_input_requests(run.task.task_id, {"k": {"action": "accept"}}, owner="ada")
        keys = [key.encode() for key in store._keys(victim.task.task_id)]
        for each in damages:
            await each.apply(client, keys)
        try:
            await store.get(victim.task.task_id, owner="ada")
            assert await store.get(victim.task.task_id, owner="eve") is None
        except StoreError as error:
            leaked.texts.append(str(error))
        signals = await store.sync([victim, other])
        assert signals[1].input_responses == {"k": {"action": "accept"}}
        try:
            await store.set_completed(victim, {"content": []})
            await store.get(victim.task.task_id, owner="ada")
        except StoreError as error:
            leaked.texts.append(str(error))
        await store.set_completed(other, {"content": []})
        found = await store.get(other.task.task_id, owner="ada")
        assert found is not None
        assert found.status is TaskStatus.COMPLETED
        await store.count_uncollected([victim.task.task_id, other.task.task_id])

    run_example(valkey_url, story)


@examples(25)
@given(DAMAGES)
def test_damaged_keys_of_request_states_are_replaced(valkey_url: str, damages: list[Damage]) -> None:
    """After damage to keys, epoch and announcements, a new state is sealed on one worker and accepted on another."""

    async def story(client: aioredis.Redis, stack: AsyncExitStack, _: Leaked) -> None:
        prefix = own_prefix(client, stack)
        tool = Tool()
        stack.enter_context(patch.object(request_state_store, "REFRESH_SECONDS", 0.05))
        stack.enter_context(patch.object(request_state_store, "_REFRESH_PAUSE", 0.01))
        one, two = await stack.enter_async_context(state_workers(client, prefix, tool))
        key = Keys(prefix).state_keys.encode()
        for each in damages:
            await each.apply(client, [key])
        if await command(client, "TYPE", key) not in {b"hash", b"none"}:
            await command(client, "DEL", key)  # Another program's key is not replaced by force.
        for worker in (one, two):
            worker.state.doubt()
            await worker.state._refresh()
        state = await one.ask()
        await two.answer(state, YES)
        assert len(tool.effects) == 1

    run_example(valkey_url, story)


@examples(100)
@given(JSON_TEXTS | RUBBISH)
def test_damaged_outcome_is_served_as_an_error_of_the_protocol(outcome: bytes) -> None:
    """A result is a mapping; anything else is an error with a code."""
    with suppress(MCPError):
        assert isinstance(serve(outcome), dict)
