"""Facts about tasks, as reported by their stores: creation, input, cancellation, ends and polls."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class TaskStatus(StrEnum):
    """The status of a task (SEP-2663)."""

    WORKING = "working"
    """The tool runs."""
    INPUT_REQUIRED = "input_required"
    """The tool waits for input of the client."""
    COMPLETED = "completed"
    """The tool has returned a result, which may be a tool error."""
    FAILED = "failed"
    """The call ended with a JSON-RPC error."""
    CANCELLED = "cancelled"
    """The client cancelled the task before the tool had returned."""

    @property
    def final(self) -> bool:
        """Whether the status never changes again."""
        return self not in _OPEN


_OPEN = frozenset({TaskStatus.WORKING, TaskStatus.INPUT_REQUIRED})


class TaskOutcome(StrEnum):
    """How the run of a task ended on the worker that ran it."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FENCED = "fenced"
    """Another worker had already declared the task failed. The tool was cancelled, or its result refused."""
    DISCARDED = "discarded"
    """The client disconnected while the task was being created. The tool was not run."""
    UNSETTLED = "unsettled"
    """The worker stopped before the store acknowledged an end. A later poll declares the task failed."""


class TaskOperation(StrEnum):
    """The operations of clients on a task store."""

    CREATE = "create"
    GET = "get"
    UPDATE = "update"
    CANCEL = "cancel"


class TaskOperationOutcome(StrEnum):
    """How an operation of a client ended."""

    OK = "ok"
    UNKNOWN = "unknown"
    """There is no such task for this principal."""
    UNAVAILABLE = "unavailable"
    """The store was unreachable, or cannot know yet. The client may retry."""
    ERROR = "error"
    CANCELLED = "cancelled"
    """The client disconnected."""


@dataclass(frozen=True, slots=True)
class TaskCreated:
    """A task was created, and runs on this worker."""


@dataclass(frozen=True, slots=True)
class TaskStatusChanged:
    """A task that runs on this worker began to wait for input, or received it."""

    status: TaskStatus
    """The new status: `working` or `input_required`."""


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task no longer runs on this worker."""

    outcome: TaskOutcome
    seconds: float
    """Seconds since its creation."""
    status: TaskStatus
    """Its last status before the end: `working` or `input_required`."""
    cancel_seconds: float | None = None
    """Seconds between the client's request to cancel it and its end; None: it was not cancelled by a client."""


@dataclass(frozen=True, slots=True)
class InputReceived:
    """A tool received the answer to a request for input."""

    seconds: float
    """Seconds between the request for input and its arrival at the tool."""


@dataclass(frozen=True, slots=True)
class TaskPolled:
    """A client operation on a task has ended."""

    operation: TaskOperation
    outcome: TaskOperationOutcome
    seconds: float
    collected_after: float | None = None
    """Seconds between the end of the task and this poll, if it is the first one that returns the final status."""
    orphaned: bool = False
    """Whether this poll declared the task failed, because its worker is dead."""


@dataclass(frozen=True, slots=True)
class TasksUncollected:
    """Tasks whose records expire, although no poll has returned their final status."""

    tasks: int


TaskFact: TypeAlias = TaskCreated | TaskStatusChanged | TaskEnded | InputReceived | TaskPolled | TasksUncollected
"""A fact about tasks."""
