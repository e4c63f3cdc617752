"""The decorator that measures and traces tasks."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TypeVar

from mcp_eventscope.errors import StoreUnavailableError
from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.facts import (
    InputReceived,
    TaskCreated,
    TaskEnded,
    TaskFact,
    TaskOperation,
    TaskOperationOutcome,
    TaskOutcome,
    TaskPolled,
    TaskStatus,
    TaskStatusChanged,
    TasksUncollected,
)
from mcp_eventscope.tasks.protocol import JSONObject, NewTask, RunSignals, RunState, Settled, Task, TaskStore
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.declarations import LogEvent
from mcp_eventscope.telemetry.logs import Logger, LogSink
from mcp_eventscope.telemetry.measurements import outcome_of
from mcp_eventscope.telemetry.metrics.otel import MeterProvider
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.metrics.tasks import TasksMetrics
from mcp_eventscope.telemetry.sinks import Sinks
from mcp_eventscope.telemetry.tracing import Span, TracerProvider

T = TypeVar("T")

_FIXES: Mapping[TaskOutcome, tuple[LogEvent, str]] = {
    TaskOutcome.FENCED: (
        catalog.tasks.FENCED,
        "keep tools from blocking the event loop; raise worker_lease= where workers are cut off for longer",
    ),
    TaskOutcome.UNSETTLED: (
        catalog.tasks.UNSETTLED,
        "stop workers only while Redis is reachable, and give them more time than shutdown_timeout=",
    ),
}
_ORPHANED_FIX = (
    "find out why the worker ended: killed for its memory, crashed, or stopped with less time than shutdown_timeout="
)
_UNCOLLECTED_FIX = "raise ttl= of the task store if clients return later; none if they gave up"


@dataclass(slots=True)
class _Live:
    """A task that runs on this worker."""

    span: Span | None
    began: float
    asked: dict[str, float] = field(default_factory=dict)
    """When the tool asked for the input that it waits for, by key."""
    cancelled: float | None = None
    """When the client asked to cancel the task."""
    outcome: TaskOutcome = TaskOutcome.UNSETTLED

    @property
    def status(self) -> TaskStatus:
        return TaskStatus.INPUT_REQUIRED if self.asked else TaskStatus.WORKING


class InstrumentedTaskStore:
    """Wraps a task store, and emits spans, metrics and logs of tasks and of the operations on them.

    The run of a task is a span in a trace of its own, which links to the call that created it. A poll links to the run.
    Results and exceptions of the store are passed on unchanged. A telemetry sink that fails is counted, and has no
    other effect.

    Args:
        store: Any task store.
        name: The `store` label.
        registry: The Prometheus registry; None: no Prometheus metrics.
        tracer_provider: The tracer provider; None: the global one.
        meter_provider: The meter provider of OpenTelemetry metrics, in addition to `registry`; None: none.
        logger: The logger; None: as in `InstrumentedEventStore`.

    Raises:
        TypeError: An argument has another type.
        ValueError: `store` is already instrumented, or `name` is empty.
    """

    def __init__(  # noqa: PLR0913 - the destination of each signal
        self,
        store: TaskStore,
        *,
        name: str = "default",
        registry: Registry | None = DEFAULT_REGISTRY,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger: Logger | None = None,
    ) -> None:
        if isinstance(store, InstrumentedTaskStore):
            msg = "store must not be instrumented already, or everything would be counted twice; use it as it is"
            raise ValueError(msg)  # noqa: TRY004 - the type is right, its state is not
        self._store = store
        self._sinks = Sinks(name, registry, tracer_provider, meter_provider, logger)
        self._record: Callable[[TaskFact], None] = self._sinks.recorder(TasksMetrics, _log)
        self._live: dict[str, _Live] = {}

    @property
    def sync_interval(self) -> float:
        """Seconds between calls of `sync`; see the store."""
        return self._store.sync_interval

    # -- of clients ---------------------------------------------------------------------------------------------------

    async def create(self, new: NewTask) -> Task:
        """Create a task, and start the span of its run; see the store."""
        span = self._start(self._sinks.tracing.start_detached_span)
        began = perf_counter()
        if span is not None:
            new = replace(new, traceparent=self._sinks.tracing.traceparent(span))
        try:
            task = await self._measured(TaskOperation.CREATE, lambda: self._store.create(new))
        except BaseException:
            self._end_span(span, "error", failed=True)
            raise
        self._live[task.task_id] = _Live(span, began)
        self._record(TaskCreated())
        return task

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return a task, in a span that links to its run; see the store."""
        span = (
            None if self._sinks.tracing.in_unsampled_call() else self._start(self._sinks.tracing.start_span, poll=True)
        )
        producer, outcome = "", "error"
        try:
            task = await self._measured(TaskOperation.GET, lambda: self._store.get(task_id, owner=owner))
            producer, outcome = ("", "unknown") if task is None else (task.traceparent, "ok")
        except BaseException as error:
            outcome = _outcome_of(error).value
            raise
        finally:
            self._end_span(span, outcome, failed=outcome in {"error", "unavailable"}, producer=producer)
        return task

    async def request_cancel(self, task_id: str, *, owner: str | None) -> bool:
        """Ask to cancel a task; see the store."""
        return await self._measured(TaskOperation.CANCEL, lambda: self._store.request_cancel(task_id, owner=owner))

    async def resolve_input_requests(
        self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
    ) -> bool:
        """Answer requests for input; see the store."""
        return await self._measured(
            TaskOperation.UPDATE, lambda: self._store.resolve_input_requests(task_id, responses, owner=owner)
        )

    async def _measured(self, operation: TaskOperation, call: Callable[[], Awaitable[T]]) -> T:
        began = perf_counter()
        try:
            result = await call()
        except BaseException as error:
            outcome = _outcome_of(error)
            self._record(TaskPolled(operation, outcome, perf_counter() - began))
            if outcome is TaskOperationOutcome.ERROR:
                self._sinks.safely("logs", _log_failure, self._sinks.logs, operation, error)
            raise
        outcome = TaskOperationOutcome.OK if result else TaskOperationOutcome.UNKNOWN
        task = result if isinstance(result, Task) and operation is TaskOperation.GET else None
        age, orphaned = (None, False) if task is None else (task.collected_after, task.orphaned)
        self._record(TaskPolled(operation, outcome, perf_counter() - began, age, orphaned))
        return result

    # -- of runs ------------------------------------------------------------------------------------------------------

    async def set_input_requests(self, run: RunState) -> Settled:
        """Store requests for input; see the store."""
        if (live := self._live.get(run.task.task_id)) is not None:
            before, now = live.status, perf_counter()
            for key in run.input_requests:
                live.asked.setdefault(key, now)
            self._changed(live, before)
        return await self._store.set_input_requests(run)

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete a task; see the store."""
        return self._settled(run, await self._store.set_completed(run, result), TaskOutcome.COMPLETED)

    async def set_failed(self, run: RunState, error: ErrorData) -> Settled:
        """Fail a task; see the store."""
        return self._settled(run, await self._store.set_failed(run, error), TaskOutcome.FAILED)

    async def set_cancelled(self, run: RunState) -> Settled:
        """Cancel a task; see the store."""
        return self._settled(run, await self._store.set_cancelled(run), TaskOutcome.CANCELLED)

    async def discard(self, run: RunState) -> None:
        """Delete a task; see the store."""
        if (live := self._live.get(run.task.task_id)) is not None:
            live.outcome = TaskOutcome.DISCARDED
        await self._store.discard(run)

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Synchronize runs, and note their signals; see the store."""
        signals = await self._store.sync(runs)
        now = perf_counter()
        for run, each in zip(runs, signals, strict=True):
            if (live := self._live.get(run.task.task_id)) is None:
                continue
            before = live.status
            if each.fenced:
                live.outcome = TaskOutcome.FENCED
            if each.cancel_age is not None and live.cancelled is None:
                live.cancelled = now - each.cancel_age
            for key in each.input_responses:
                if (asked := live.asked.pop(key, None)) is not None:
                    self._record(InputReceived(now - asked))
            for key in run.received:  # The tool has given up.
                live.asked.pop(key, None)
            self._changed(live, before)
        return signals

    async def count_uncollected(self, task_ids: Sequence[str]) -> int:
        """Count and record the tasks that ended unread; see the store."""
        tasks = await self._store.count_uncollected(task_ids)
        if tasks:
            self._record(TasksUncollected(tasks))
        return tasks

    def release(self, run: RunState) -> None:
        """Forget a task, record its end, and end the span of its run; see the store."""
        self._store.release(run)
        live = self._live.pop(run.task.task_id, None)
        if live is None:
            return
        now = perf_counter()
        cancelled = None if live.cancelled is None else max(0.0, now - live.cancelled)
        self._record(TaskEnded(live.outcome, now - live.began, live.status, cancelled))
        failed = live.outcome in {TaskOutcome.FAILED, TaskOutcome.FENCED, TaskOutcome.UNSETTLED}
        self._end_span(live.span, live.outcome.value, failed=failed)

    def on_signal(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Register a callback for signals; see the store."""
        return self._store.on_signal(wake)

    @contextmanager
    def run_context(self, task: Task) -> Iterator[None]:
        """Make the span of a run current, so that the spans of the tool are its children."""
        live = self._live.get(task.task_id)
        span = None if live is None else live.span
        entered: AbstractContextManager[object] | None = None if span is None else self._sinks.tracing.within(span)
        if entered is None:
            yield
            return
        with entered:
            yield

    # -- telemetry ----------------------------------------------------------------------------------------------------

    def _settled(self, run: RunState, settled: Settled, outcome: TaskOutcome) -> Settled:
        if (live := self._live.get(run.task.task_id)) is not None:
            live.outcome = {
                Settled.STORED: outcome,
                Settled.TOO_LARGE: TaskOutcome.FAILED,
                Settled.FENCED: TaskOutcome.FENCED,
            }[settled]
        return settled

    def _changed(self, live: _Live, before: TaskStatus) -> None:
        if live.status is not before:
            self._record(TaskStatusChanged(live.status))

    def _start(self, start: Callable[..., Span | None], *, poll: bool = False) -> Span | None:
        try:
            return start(catalog.tasks.POLL_SPAN if poll else catalog.tasks.RUN_SPAN)
        except Exception as error:  # noqa: BLE001 - the sampler or processor of the application
            self._sinks.failed("traces", error)
            return None

    def _end_span(self, span: Span | None, outcome: str, *, failed: bool, producer: str = "") -> None:
        if span is not None:
            tracing = self._sinks.tracing
            self._sinks.safely("traces", lambda: tracing.end_with(span, outcome, failed=failed, producer=producer))


def _outcome_of(error: BaseException) -> TaskOperationOutcome:
    if isinstance(error, StoreUnavailableError):
        return TaskOperationOutcome.UNAVAILABLE
    cancelled = outcome_of(error) == "cancelled"
    return TaskOperationOutcome.CANCELLED if cancelled else TaskOperationOutcome.ERROR


def _log(logs: LogSink, fact: TaskFact) -> None:
    """Log a fact that needs the attention of an operator."""
    match fact:
        case TaskEnded() if fact.outcome in _FIXES:
            event, fix = _FIXES[fact.outcome]
            logs.limited(event, fix=fix)
        case TaskPolled() if fact.orphaned:
            logs.limited(catalog.tasks.ORPHANED, fix=_ORPHANED_FIX)
        case TasksUncollected():
            logs.limited(catalog.tasks.UNCOLLECTED, tasks=fact.tasks, fix=_UNCOLLECTED_FIX)


def _log_failure(logs: LogSink, operation: TaskOperation, error: BaseException) -> None:
    logs.limited(catalog.tasks.FAILED, operation=operation.value, error=str(error))
