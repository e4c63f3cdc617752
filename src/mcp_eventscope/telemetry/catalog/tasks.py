"""Catalog: tasks, their runs and their polls."""

from mcp_eventscope.telemetry.declarations import STORE, Label, LogEvent, Metric, MetricType, Span

TASK_STATUS = Label("status", ("working", "input_required"))
TASK_OUTCOME = Label("outcome", ("completed", "failed", "cancelled", "fenced", "discarded", "unsettled"))
TASK_OPERATION = Label("operation", ("create", "get", "update", "cancel"))
TASK_OPERATION_OUTCOME = Label("outcome", ("ok", "unknown", "unavailable", "error", "cancelled"))

DURATION_SECONDS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 1_800, 3_600, 14_400, 86_400)
"""Tasks are calls that are too long for a connection."""
OPERATION_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
WAIT_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3_600)

TASKS_RUNNING = Metric(
    "eventscope_tasks_running",
    MetricType.GAUGE,
    "Tasks that this worker runs, by status: working, or waiting for input of the client (input_required).",
    (STORE, TASK_STATUS),
    counted="task",
    multiprocess_mode="livesum",
    per_worker=True,
)
TASKS_CREATED = Metric(
    "eventscope_tasks_created_total",
    MetricType.COUNTER,
    "Tasks that this worker created, and runs.",
    (STORE,),
    counted="task",
)
TASKS_ENDED = Metric(
    "eventscope_tasks_ended_total",
    MetricType.COUNTER,
    "Tasks that this worker no longer runs, by outcome. fenced: another worker had declared it failed. discarded: its "
    "client disconnected before the task was known to it. unsettled: the worker stopped before an end was stored.",
    (STORE, TASK_OUTCOME),
    counted="task",
)
TASKS_DURATION = Metric(
    "eventscope_tasks_duration_seconds",
    MetricType.HISTOGRAM,
    "Time from the creation of a task to its end, by outcome.",
    (STORE, TASK_OUTCOME),
    DURATION_SECONDS,
)
TASKS_ORPHANED = Metric(
    "eventscope_tasks_orphaned_total",
    MetricType.COUNTER,
    "Orphaned tasks: declared failed by a poll on this worker, because their worker was dead or no longer knew them.",
    (STORE,),
    counted="task",
)
TASKS_UNCOLLECTED = Metric(
    "eventscope_tasks_uncollected_total",
    MetricType.COUNTER,
    "Ended tasks whose final status no poll had returned when nine tenths of their TTL were over. Counted by the "
    "worker that ran them, if it still runs.",
    (STORE,),
    counted="task",
)
OPERATION_DURATION = Metric(
    "eventscope_tasks_operation_duration_seconds",
    MetricType.HISTOGRAM,
    "Latency of the operations of clients on the task store, by operation and outcome. unknown: no such task for this "
    "principal. unavailable: the store was unreachable, or could not know yet; the client may retry.",
    (STORE, TASK_OPERATION, TASK_OPERATION_OUTCOME),
    OPERATION_SECONDS,
    on_demand=True,
)
POLL_AGE = Metric(
    "eventscope_tasks_poll_age_seconds",
    MetricType.HISTOGRAM,
    "Age of a final status when the first poll returned it. Near the TTL, results are about to be lost.",
    (STORE,),
    DURATION_SECONDS,
)
CANCEL_DURATION = Metric(
    "eventscope_tasks_cancel_duration_seconds",
    MetricType.HISTOGRAM,
    "Time from the request of a client to cancel a task to its end.",
    (STORE,),
    WAIT_SECONDS,
)
INPUT_WAIT = Metric(
    "eventscope_tasks_input_wait_seconds",
    MetricType.HISTOGRAM,
    "Time for which a tool waited for input of its client, until the answer had reached it.",
    (STORE,),
    WAIT_SECONDS,
)

METRICS: tuple[Metric, ...] = (
    TASKS_RUNNING,
    TASKS_CREATED,
    TASKS_ENDED,
    TASKS_DURATION,
    TASKS_ORPHANED,
    TASKS_UNCOLLECTED,
    OPERATION_DURATION,
    POLL_AGE,
    CANCEL_DURATION,
    INPUT_WAIT,
)

RUN_SPAN = Span(
    "task.run",
    "One task, from its creation to its end, in a trace of its own. Links to the call that created it.",
    ("eventscope.store", "eventscope.outcome", "error.type"),
)
POLL_SPAN = Span(
    "task.poll",
    "One poll of a task. Links to the run of the task.",
    ("eventscope.store", "eventscope.outcome", "error.type"),
)

SPANS: tuple[Span, ...] = (RUN_SPAN, POLL_SPAN)

ORPHANED = LogEvent(
    "task_store.orphaned",
    "warning",
    "A poll declared a task failed, because its worker was dead or no longer knew it. It may have taken effect.",
    ("store", "fix", "suppressed"),
)
FENCED = LogEvent(
    "task_store.fenced",
    "warning",
    "Another worker had declared a task of this worker failed. Its tool was cancelled, or its result refused.",
    ("store", "fix", "suppressed"),
)
UNSETTLED = LogEvent(
    "task_store.unsettled",
    "warning",
    "This worker stopped before the store acknowledged the end of a task. A later poll declares it failed.",
    ("store", "fix", "suppressed"),
)
UNCOLLECTED = LogEvent(
    "task_store.uncollected",
    "warning",
    "Results of tasks are about to expire, and no poll has returned them.",
    ("store", "tasks", "fix", "suppressed"),
)
FAILED = LogEvent(
    "task_store.failed",
    "error",
    "The task store failed an operation of a client, for another reason than an unreachable Redis.",
    ("store", "operation", "error", "suppressed"),
)

LOG_EVENTS: tuple[LogEvent, ...] = (ORPHANED, FENCED, UNSETTLED, UNCOLLECTED, FAILED)
