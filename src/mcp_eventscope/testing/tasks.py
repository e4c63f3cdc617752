"""The conformance suite for task stores."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import pydantic_core
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.types import ErrorData

from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE, REQUEST_ORPHANED
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import JSONObject, NewTask, RunState, Settled, Task, TaskStore
from mcp_eventscope.testing.strategies import json_values

OWNER = '["client","https://issuer.example","ada"]'
OTHER_OWNERS = (None, "", '["client","https://issuer.example","eve"]', OWNER.upper(), f"{OWNER} ")
UNKNOWN_IDS = ("", " ", "0", "\0", "*", "a" * 5000, "../x", "{x}", "\u00e9", "0123456789ab-" + "A" * 43)
ERROR = ErrorData(code=-32050, message="failed", data={"why": [1, None, "\u00e9"]})
QUESTIONS: Mapping[str, JSONObject] = {
    f"input-{number}": {"method": "elicitation/create", "params": {"message": f"{number}?"}} for number in (1, 2)
}
ANSWERS: Mapping[str, JSONObject] = {
    key: {"action": "accept", "content": {"text": f"to {key}"}} for key in (*QUESTIONS, "input-9")
}

End: TypeAlias = Callable[[TaskStore, RunState], Awaitable[Settled]]
"""Ends a task."""
ENDS: Mapping[TaskStatus, End] = {
    TaskStatus.COMPLETED: lambda store, run: store.set_completed(run, {"content": []}),
    TaskStatus.FAILED: lambda store, run: store.set_failed(run, ERROR),
    TaskStatus.CANCELLED: lambda store, run: store.set_cancelled(run),
}

_few_examples = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)


@dataclass
class TaskStores:
    """Two stores on the same data: tasks run on one, and clients ask the other, as another process would."""

    runs: TaskStore
    asks: TaskStore

    async def create(self, owner: str | None = OWNER) -> RunState:
        """Create a task."""
        return RunState(await self.runs.create(NewTask(owner)))

    async def get(self, run: RunState) -> Task:
        """Return the task of a run as its owner gets it."""
        task = await self.asks.get(run.task.task_id, owner=run.task.owner)
        assert task is not None, "the task is not found"
        return task


class TaskStoreConformance:
    """A task is found by its owner only, ends once, and exchanges signals with its run.

    Override the fixture `stores`. A store of a single process passes one store twice. A store of several processes
    overrides `declare_dead` and `lose_data`, too.
    """

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.anyio
    max_result_bytes: ClassVar[int | None] = None
    """The maximum size of a result, if a test may exceed it."""

    @pytest.fixture
    def stores(self) -> TaskStores:
        """The stores under test."""
        msg = "override the fixture `stores`"
        raise NotImplementedError(msg)

    async def declare_dead(self, stores: TaskStores) -> None:
        """Let the process that runs tasks die, as far as the other one can know."""
        pytest.skip("one process")

    async def lose_data(self, stores: TaskStores) -> None:
        """Lose all data of the store."""
        pytest.skip("no data to lose")

    # -- creation and reading -----------------------------------------------------------------------------------------

    async def test_created_task_is_found_immediately(self, stores: TaskStores) -> None:
        """The other process finds it when `create` has returned (SEP-2663, Task Creation)."""
        run = await stores.create()
        task = await stores.get(run)
        assert task.task_id == run.task.task_id
        assert task.status is run.task.status is TaskStatus.WORKING
        assert task.created_at == run.task.created_at
        assert task.updated_at >= task.created_at
        assert task.ttl_ms is None or task.ttl_ms > 0
        assert task.poll_interval_ms > 0
        assert (task.input_requests, task.result, task.error) == ({}, None, None)

    async def test_task_ids_are_unguessable(self, stores: TaskStores) -> None:
        """Ids differ in at least 128 bits, and fit into a header."""
        runs = [await stores.create() for _ in range(20)]
        ids = [run.task.task_id for run in runs]
        assert len(set(ids)) == len(ids)
        assert all(each.isascii() and each.isprintable() and " " not in each and len(each) <= 255 for each in ids)
        for one, other in itertools.pairwise(ids):
            # 22 characters of base64 have 132 bits; two random ones agree in few places.
            assert sum(a != b for a, b in zip(one, other, strict=True)) >= 16

    async def test_trace_context_is_kept(self, stores: TaskStores) -> None:
        """Polls can link to the run."""
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        run = RunState(await stores.runs.create(NewTask(OWNER, trace)))
        assert (await stores.get(run)).traceparent == run.task.traceparent != ""

    @pytest.mark.parametrize("task_id", UNKNOWN_IDS)
    async def test_unknown_id_is_not_found(self, stores: TaskStores, task_id: str) -> None:
        """Any text is accepted, and is no task."""
        assert await stores.asks.get(task_id, owner=OWNER) is None
        assert not await stores.asks.request_cancel(task_id, owner=OWNER)
        assert not await stores.asks.resolve_input_requests(task_id, ANSWERS, owner=OWNER)

    async def test_task_of_another_owner_is_unknown(self, stores: TaskStores) -> None:
        """Another owner neither reads nor changes it."""
        run = await stores.create()
        asked = replace(run, input_requests=QUESTIONS)
        await stores.runs.set_input_requests(asked)
        for owner in OTHER_OWNERS:
            assert await stores.asks.get(run.task.task_id, owner=owner) is None, owner
            assert not await stores.asks.request_cancel(run.task.task_id, owner=owner)
            assert not await stores.asks.resolve_input_requests(run.task.task_id, ANSWERS, owner=owner)
        (signals,) = await stores.runs.sync([asked])
        assert (signals.fenced, signals.cancel_age, dict(signals.input_responses)) == (False, None, {})
        assert (await stores.get(run)).status is TaskStatus.INPUT_REQUIRED

    async def test_task_without_owner_is_found_without_one_only(self, stores: TaskStores) -> None:
        """No authentication is not an empty name."""
        run = await stores.create(None)
        assert (await stores.get(run)).task_id == run.task.task_id
        assert await stores.asks.get(run.task.task_id, owner="") is None

    async def test_discarded_task_is_unknown(self, stores: TaskStores) -> None:
        """A task whose client has disconnected leaves nothing."""
        run = await stores.create()
        await stores.runs.discard(run)
        stores.runs.release(run)
        assert await stores.asks.get(run.task.task_id, owner=OWNER) is None

    # -- progress and ends --------------------------------------------------------------------------------------------

    async def test_progress_is_visible_after_sync(self, stores: TaskStores) -> None:
        """The status message is the latest progress."""
        run = await stores.create()
        for message in ("first", "second \u00e9"):
            await stores.runs.sync([replace(run, status_message=message)])
            task = await stores.get(run)
            assert (task.status, task.status_message) == (TaskStatus.WORKING, message)

    async def test_sync_keeps_runs_apart(self, stores: TaskStores) -> None:
        """Signals are returned in the order of the runs."""
        runs = [await stores.create() for _ in range(5)]
        await stores.asks.request_cancel(runs[3].task.task_id, owner=OWNER)
        await stores.runs.set_cancelled(runs[1])
        signals = await stores.runs.sync([replace(run, status_message=str(n)) for n, run in enumerate(runs)])
        assert [each.fenced for each in signals] == [False, True, False, False, False]
        assert [each.cancel_age is not None for each in signals] == [False, False, False, True, False]
        assert [(await stores.get(run)).status_message for run in runs] == ["0", "", "2", "3", "4"]

    @_few_examples
    @given(st.dictionaries(st.text(max_size=20), json_values(), max_size=5))
    async def test_any_result_is_kept(self, stores: TaskStores, result: dict[str, Any]) -> None:
        """A result is read back as the same JSON."""
        run = await stores.create()
        assert await stores.runs.set_completed(run, result) is Settled.STORED
        task = await stores.get(run)
        assert (task.status, task.error) == (TaskStatus.COMPLETED, None)
        assert pydantic_core.to_json(task.result) == pydantic_core.to_json(result)

    async def test_error_is_kept(self, stores: TaskStores) -> None:
        """A failed task has the JSON-RPC error, with its data."""
        run = await stores.create()
        assert await stores.runs.set_failed(run, ERROR) is Settled.STORED
        task = await stores.get(run)
        assert (task.status, task.error, task.result) == (TaskStatus.FAILED, ERROR, None)
        assert task.status_message

    async def test_too_large_result_fails_the_task(self, stores: TaskStores) -> None:
        """The client learns that the tool was run, and that its result is not available."""
        if self.max_result_bytes is None:
            pytest.skip("no known limit")
        run = await stores.create()
        assert await stores.runs.set_completed(run, {"text": "x" * self.max_result_bytes}) is Settled.TOO_LARGE
        task = await stores.get(run)
        assert task.status is TaskStatus.FAILED
        assert task.error is not None
        assert task.error.code == EVENTS_GONE

    @pytest.mark.parametrize("first", ENDS)
    @pytest.mark.parametrize("second", ENDS)
    async def test_final_status_never_changes(self, stores: TaskStores, first: TaskStatus, second: TaskStatus) -> None:
        """A second end is refused; a repetition of the first is not."""
        run = await stores.create()
        assert await ENDS[first](stores.runs, run) is Settled.STORED
        before = await stores.get(run)
        assert await ENDS[second](stores.runs, run) is (Settled.STORED if first is second else Settled.FENCED)
        assert await stores.runs.set_input_requests(replace(run, input_requests=QUESTIONS)) is Settled.FENCED
        assert (await stores.runs.sync([run]))[0].fenced
        assert await stores.asks.request_cancel(run.task.task_id, owner=OWNER)
        assert await stores.asks.resolve_input_requests(run.task.task_id, ANSWERS, owner=OWNER)
        after = await stores.get(run)
        assert replace(after, collected_after=None) == replace(before, collected_after=None)

    async def test_one_of_many_concurrent_ends_stands(self, stores: TaskStores) -> None:
        """Exactly one end is stored, and it is the one that clients see."""
        for _ in range(5):
            run = await stores.create()
            settled = await asyncio.gather(*(end(stores.runs, run) for end in ENDS.values()))
            assert sorted(settled) == [Settled.FENCED, Settled.FENCED, Settled.STORED]
            assert (await stores.get(run)).status is list(ENDS)[settled.index(Settled.STORED)]

    async def test_ttl_counts_from_the_end(self, stores: TaskStores) -> None:
        """The TTL, counted from creation, grows until the end."""
        run = await stores.create()
        before = (await stores.get(run)).ttl_ms
        if before is None:
            pytest.skip("no TTL")
        await asyncio.sleep(0.02)
        during = (await stores.get(run)).ttl_ms
        await stores.runs.set_cancelled(run)
        after = (await stores.get(run)).ttl_ms
        await asyncio.sleep(0.02)
        assert before < (during or 0) <= (after or 0) == (await stores.get(run)).ttl_ms

    async def test_first_read_of_an_end_is_reported_once(self, stores: TaskStores) -> None:
        """Unread ends can be counted."""
        run, unread = await stores.create(), await stores.create()
        assert (await stores.get(run)).collected_after is None
        for each in (run, unread):
            await stores.runs.set_cancelled(each)
        ids = [run.task.task_id, unread.task.task_id]
        assert await stores.runs.count_uncollected(ids) == 2
        age = (await stores.get(run)).collected_after
        assert age is not None
        assert age >= 0
        assert (await stores.get(run)).collected_after is None
        assert await stores.runs.count_uncollected(ids) == 1

    # -- signals ------------------------------------------------------------------------------------------------------

    async def test_cancellation_reaches_the_run(self, stores: TaskStores) -> None:
        """`sync` returns it, until the task has ended. The status is that of the run."""
        run = await stores.create()
        assert (await stores.runs.sync([run]))[0].cancel_age is None
        for _ in range(2):
            assert await stores.asks.request_cancel(run.task.task_id, owner=OWNER)
        for _ in range(2):
            (signals,) = await stores.runs.sync([run])
            assert signals.cancel_age is not None
            assert signals.cancel_age >= 0
        assert (await stores.get(run)).status is TaskStatus.WORKING
        assert await stores.runs.set_completed(run, {}) is Settled.STORED

    async def test_input_is_requested_and_answered(self, stores: TaskStores) -> None:
        """Answers may come one by one. The task waits for the last one."""
        run = replace(await stores.create(), input_requests=QUESTIONS)
        assert await stores.runs.set_input_requests(run) is Settled.STORED
        task = await stores.get(run)
        assert (task.status, task.input_requests) == (TaskStatus.INPUT_REQUIRED, QUESTIONS)
        first, second = QUESTIONS
        await self.answer(stores, run, first, "input-9")
        task = await stores.get(run)
        assert (task.status, task.input_requests) == (TaskStatus.INPUT_REQUIRED, {second: QUESTIONS[second]})
        (signals,) = await stores.runs.sync([run])
        assert signals.input_responses == {first: ANSWERS[first]}
        run = replace(run, input_requests={second: QUESTIONS[second]}, received=(first,))
        await self.answer(stores, run, second)
        (signals,) = await stores.runs.sync([run])
        assert signals.input_responses == {second: ANSWERS[second]}
        task = await stores.get(run)
        assert (task.status, task.input_requests) == (TaskStatus.WORKING, {})

    async def test_first_answer_stands(self, stores: TaskStores) -> None:
        """A second answer to a request is ignored."""
        run = replace(await stores.create(), input_requests=QUESTIONS)
        await stores.runs.set_input_requests(run)
        first = next(iter(QUESTIONS))
        await self.answer(stores, run, first)
        other = {first: {"action": "decline"}}
        assert await stores.asks.resolve_input_requests(run.task.task_id, other, owner=OWNER)
        (signals,) = await stores.runs.sync([run])
        assert signals.input_responses == {first: ANSWERS[first]}

    async def test_answers_are_returned_until_they_are_received(self, stores: TaskStores) -> None:
        """The reply of a `sync` may be lost."""
        run = replace(await stores.create(), input_requests=QUESTIONS)
        await stores.runs.set_input_requests(run)
        await self.answer(stores, run, *QUESTIONS)
        for _ in range(2):
            (signals,) = await stores.runs.sync([run])
            assert signals.input_responses == {key: ANSWERS[key] for key in QUESTIONS}

    async def test_answered_request_is_not_asked_again(self, stores: TaskStores) -> None:
        """A repeated `set_input_requests` skips requests that were answered meanwhile."""
        run = replace(await stores.create(), input_requests=QUESTIONS)
        await stores.runs.set_input_requests(run)
        await self.answer(stores, run, *QUESTIONS)
        assert await stores.runs.set_input_requests(run) is Settled.STORED
        task = await stores.get(run)
        assert (task.status, task.input_requests) == (TaskStatus.WORKING, {})

    async def test_request_that_the_tool_has_given_up_is_withdrawn(self, stores: TaskStores) -> None:
        """A tool may stop waiting."""
        run = replace(await stores.create(), input_requests=QUESTIONS)
        await stores.runs.set_input_requests(run)
        await stores.runs.sync([replace(run, input_requests={}, received=tuple(QUESTIONS))])
        task = await stores.get(run)
        assert (task.status, task.input_requests) == (TaskStatus.WORKING, {})

    # -- several processes --------------------------------------------------------------------------------------------

    async def test_task_of_a_dead_process_fails_once(self, stores: TaskStores) -> None:
        """A poll declares it failed, and that stands: a late end of the process is refused."""
        run = await stores.create()
        await self.declare_dead(stores)
        task = await stores.get(run)
        assert (task.status, task.orphaned) == (TaskStatus.FAILED, True)
        assert task.error is not None
        assert task.error.code == REQUEST_ORPHANED
        assert not (await stores.get(run)).orphaned
        (signals,) = await stores.runs.sync([run])
        assert signals.fenced
        for end in ENDS.values():
            assert await end(stores.runs, run) is Settled.FENCED
        assert (await stores.get(run)).error == task.error

    async def test_end_of_a_dead_process_stands(self, stores: TaskStores) -> None:
        """A task that ended before its process died keeps its result."""
        run = await stores.create()
        await stores.runs.set_completed(run, {"content": []})
        await self.declare_dead(stores)
        task = await stores.get(run)
        assert (task.status, task.result, task.orphaned) == (TaskStatus.COMPLETED, {"content": []}, False)

    async def test_lost_record_is_created_again(self, stores: TaskStores) -> None:
        """The run knows its owner, its progress, and its requests for input."""
        run = replace(await stores.create(), input_requests=QUESTIONS, status_message="on it")
        await stores.runs.set_input_requests(run)
        ended = await stores.create()
        await self.lose_data(stores)
        assert not (await stores.runs.sync([run]))[0].fenced
        task = await stores.get(run)
        assert (task.status, task.input_requests) == (TaskStatus.INPUT_REQUIRED, QUESTIONS)
        assert (task.created_at, task.status_message) == (run.task.created_at, "on it")
        assert await stores.asks.get(run.task.task_id, owner=None) is None
        assert await stores.runs.set_completed(ended, {"late": True}) is Settled.STORED
        assert (await stores.get(ended)).result == {"late": True}

    @staticmethod
    async def answer(stores: TaskStores, run: RunState, *keys: str) -> None:
        """Answer requests for input as their owner."""
        answers = {key: ANSWERS[key] for key in keys}
        assert await stores.asks.resolve_input_requests(run.task.task_id, answers, owner=OWNER)
