"""Metrics, spans and log events of tasks."""

from dataclasses import replace

import pytest
from opentelemetry import trace

from mcp_eventscope import InMemoryTaskStore, InstrumentedTaskStore, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.errors import worker_lost
from mcp_eventscope.tasks.protocol import NewTask, RunState, Task
from support.task_story import task_story
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio


async def test_metrics_after_a_story_count_each_task_once(scope: Scope) -> None:
    """By outcome; nothing runs at the end."""
    await task_story(scope.instrument_tasks(InMemoryTaskStore()))
    outcomes = {"completed": 1, "cancelled": 1, "failed": 1, "discarded": 1, "unsettled": 1, "fenced": 0}
    for outcome, number in outcomes.items():
        assert scope.sample("tasks_ended_total", outcome=outcome) == number, outcome
        assert scope.sample("tasks_duration_seconds_count", outcome=outcome) == number
    assert scope.sample("tasks_created_total") == 5
    assert [scope.sample("tasks_running", status=each) for each in ("working", "input_required")] == [0, 0]
    assert scope.sample("tasks_uncollected_total") == 1
    for histogram in ("poll_age", "cancel_duration", "input_wait"):
        assert scope.sample(f"tasks_{histogram}_seconds_count") == 1, histogram
    for operation, outcome, number in (
        ("create", "ok", 5),
        ("get", "ok", 1),
        ("get", "unknown", 1),
        ("update", "ok", 1),
        ("cancel", "ok", 1),
    ):
        found = scope.sample("tasks_operation_duration_seconds_count", operation=operation, outcome=outcome)
        assert found == number, operation


async def test_gauge_follows_the_status_of_running_tasks(scope: Scope) -> None:
    """Until the answer has reached the tool, or the tool has given up."""
    store = scope.instrument_tasks(InMemoryTaskStore())

    def running() -> list[float | None]:
        return [scope.sample("tasks_running", status=each) for each in ("working", "input_required")]

    run = RunState(await store.create(NewTask(None)))
    assert running() == [1, 0]
    asked = RunState(run.task, "", {"input-1": {"method": "roots/list"}})
    await store.set_input_requests(asked)
    assert running() == [0, 1]
    await store.sync([RunState(run.task, "", {}, ("input-1",))])
    assert running() == [1, 0]
    assert scope.sample("tasks_input_wait_seconds_count") == 0
    await store.set_input_requests(asked)
    await store.set_cancelled(run)
    store.release(run)
    assert running() == [0, 0]


async def test_run_span_links_to_its_call_and_polls_to_the_run(scope: Scope) -> None:
    """The run has a trace of its own, in which the tool's spans are."""
    store, tracer = scope.instrument_tasks(InMemoryTaskStore()), scope.provider.get_tracer("test")
    with tracer.start_as_current_span("call") as call:
        run = RunState(await store.create(NewTask("ada")))
        with store.run_context(run.task), tracer.start_as_current_span("tool"):
            pass
    await store.set_completed(run, {})
    store.release(run)
    await store.get(run.task.task_id, owner="ada")
    spans = {span.name: span for span in scope.spans()}
    ran, polled = spans["task.run"], spans["task.poll"]
    assert ran.parent is None
    assert [link.context.span_id for link in ran.links] == [call.get_span_context().span_id]
    assert spans["tool"].parent is not None
    assert spans["tool"].parent.span_id == ran.context.span_id
    assert [link.context.span_id for link in polled.links] == [ran.context.span_id]
    assert ran.attributes == {"eventscope.store": "default", "eventscope.outcome": "completed"}
    assert polled.attributes == {"eventscope.store": "default", "eventscope.outcome": "ok"}
    assert run.task.task_id not in str([span.attributes for span in scope.spans()])


async def test_run_span_outside_of_a_trace_has_no_links(scope: Scope) -> None:
    """There is no call to link to."""
    store = scope.instrument_tasks(InMemoryTaskStore())
    assert not trace.get_current_span().get_span_context().is_valid
    run = RunState(await store.create(NewTask(None)))
    await store.set_failed(run, ErrorData(code=1, message="x"))
    store.release(run)
    (ran,) = scope.spans()
    assert not ran.links
    assert ran.attributes is not None
    assert ran.attributes["error.type"] == "failed"


class Failing(InMemoryTaskStore):
    """Fails, or finds a dead worker."""

    error: Exception | None = None

    async def create(self, new: NewTask) -> Task:
        """Fail, if an error is set."""
        if self.error is not None:
            raise self.error
        return await super().create(new)

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Fail, or declare the task failed."""
        if self.error is not None:
            raise self.error
        task = await super().get(task_id, owner=owner)
        assert task is not None
        await self.set_failed(RunState(task), worker_lost())
        return replace(task, orphaned=True)


async def test_log_of_an_orphaned_and_a_fenced_task_has_the_fix(scope: Scope) -> None:
    """Both are counted, too."""
    store = scope.instrument_tasks(Failing())
    run = RunState(await store.create(NewTask("ada")))
    await store.get(run.task.task_id, owner="ada")
    (signals,) = await store.sync([run])
    assert signals.fenced
    store.release(run)
    assert scope.sample("tasks_orphaned_total") == 1
    assert scope.sample("tasks_ended_total", outcome="fenced") == 1
    events = {entry["event"]: entry for entry in scope.log.entries}
    assert {"task_store.orphaned", "task_store.fenced"} <= events.keys()
    assert all(entry["fix"] for entry in events.values())
    assert run.task.task_id not in str(events)


@pytest.mark.parametrize(
    ("error", "outcome", "logged"),
    [(StoreUnavailableError("away"), "unavailable", False), (StoreRejectedError("OOM"), "error", True)],
)
async def test_operation_that_fails_is_measured_and_passed_on(
    scope: Scope, error: Exception, outcome: str, *, logged: bool
) -> None:
    """An unreachable Redis is logged by the event store, once for all parts."""
    failing = Failing()
    failing.error = error
    store = scope.instrument_tasks(failing)
    with pytest.raises(type(error)):
        await store.create(NewTask(None))
    with pytest.raises(type(error)):
        await store.get("x", owner=None)
    for operation in ("create", "get"):
        found = scope.sample("tasks_operation_duration_seconds_count", operation=operation, outcome=outcome)
        assert found == 1
    assert [entry["event"] for entry in scope.log.entries] == ["task_store.failed"] * (2 * logged)


def test_store_that_is_instrumented_already_is_refused(scope: Scope) -> None:
    """Everything would be counted twice."""
    with pytest.raises(ValueError, match="counted twice"):
        InstrumentedTaskStore(scope.instrument_tasks(InMemoryTaskStore()))
