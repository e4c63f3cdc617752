"""Updates the metrics of tasks."""

from mcp_eventscope.tasks.facts import (
    InputReceived,
    TaskCreated,
    TaskEnded,
    TaskFact,
    TaskOperation,
    TaskPolled,
    TaskStatus,
    TaskStatusChanged,
    TasksUncollected,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.metrics.instruments import Histogram, Instruments


class TasksMetrics:
    """Records facts about tasks. Every child is bound in the constructor, except those of rare outcomes.

    Args:
        instruments: The instruments of one store.
    """

    def __init__(self, instruments: Instruments) -> None:
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        outcomes = catalog.tasks.TASK_OUTCOME.values or ()
        self._instruments = instruments
        self._running = {v: gauge(catalog.tasks.TASKS_RUNNING, v) for v in catalog.tasks.TASK_STATUS.values or ()}
        self._created = counter(catalog.tasks.TASKS_CREATED)
        self._ended = {v: counter(catalog.tasks.TASKS_ENDED, v) for v in outcomes}
        self._seconds = {v: histogram(catalog.tasks.TASKS_DURATION, v) for v in outcomes}
        self._orphaned = counter(catalog.tasks.TASKS_ORPHANED)
        self._uncollected = counter(catalog.tasks.TASKS_UNCOLLECTED)
        self._poll_age = histogram(catalog.tasks.POLL_AGE)
        self._cancel = histogram(catalog.tasks.CANCEL_DURATION)
        self._input = histogram(catalog.tasks.INPUT_WAIT)
        self._operations: dict[tuple[str, str], Histogram] = {}
        for operation in TaskOperation:
            self._operation(operation, "ok")

    def record(self, fact: TaskFact) -> None:
        """Record a fact."""
        match fact:
            case TaskCreated():
                self._created.inc()
                self._running[TaskStatus.WORKING].inc()
            case TaskStatusChanged():
                waits = fact.status is TaskStatus.INPUT_REQUIRED
                self._running[TaskStatus.WORKING if waits else TaskStatus.INPUT_REQUIRED].dec()
                self._running[fact.status].inc()
            case TaskEnded():
                self._running[fact.status].dec()
                self._ended[fact.outcome].inc()
                self._seconds[fact.outcome].observe(fact.seconds)
                if fact.cancel_seconds is not None:
                    self._cancel.observe(fact.cancel_seconds)
            case InputReceived():
                self._input.observe(fact.seconds)
            case TaskPolled():
                self._operation(fact.operation, fact.outcome).observe(fact.seconds)
                if fact.collected_after is not None:
                    self._poll_age.observe(fact.collected_after)
                if fact.orphaned:
                    self._orphaned.inc()
            case TasksUncollected():
                self._uncollected.inc(fact.tasks)

    def _operation(self, operation: str, outcome: str) -> Histogram:
        if (operation, outcome) not in self._operations:
            bound = self._instruments.histogram(catalog.tasks.OPERATION_DURATION, operation, outcome)
            self._operations[operation, outcome] = bound
        return self._operations[operation, outcome]
