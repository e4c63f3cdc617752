"""The protocol of a task store, and its records."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.facts import TaskStatus

JSONObject: TypeAlias = Mapping[str, Any]
"""A JSON object."""

MAX_RESULT_BYTES = 8 << 20
"""The default maximum size of a result, in bytes of its JSON text."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to create."""

    owner: str | None
    """The principal that may access the task; None: without authentication, where the task id is the secret."""
    traceparent: str = ""
    """W3C trace context of the task's run; "": none."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as a store returns it."""

    task_id: str
    """Unguessable: at least 128 random bits."""
    owner: str | None
    status: TaskStatus
    created_at: int
    """Microseconds since 1970."""
    updated_at: int
    """Microseconds since 1970."""
    ttl_ms: int | None
    """Milliseconds from creation until the record may be deleted. It grows until the end of the task."""
    poll_interval_ms: int
    """Suggested milliseconds between polls."""
    status_message: str = ""
    """Progress, or the reason of the status; "": none."""
    input_requests: Mapping[str, JSONObject] = field(default_factory=dict)
    """The unanswered requests for input, by key."""
    result: JSONObject | None = None
    """The result of a completed task."""
    error: ErrorData | None = None
    """The error of a failed task."""
    traceparent: str = ""
    """W3C trace context of the task's run; "": none."""
    collected_after: float | None = None
    """Seconds since the end of the task, if this is the first read of its final status."""
    orphaned: bool = False
    """Whether this read declared the task failed, because its worker is dead."""


@dataclass(frozen=True, slots=True)
class RunState:
    """A task that this process runs, with all that its record must contain until the end."""

    task: Task
    """As created."""
    status_message: str = ""
    """The latest progress."""
    input_requests: Mapping[str, JSONObject] = field(default_factory=dict)
    """The requests for input whose answers the tool has not received, by key."""
    received: Sequence[str] = ()
    """Keys of requests that the tool no longer awaits, since it has the answer or has given up."""


@dataclass(frozen=True, slots=True)
class RunSignals:
    """What concerns a running task since the last `sync`."""

    fenced: bool = False
    """Whether the task has a final status already, or belongs to another run. The tool must be cancelled."""
    cancel_age: float | None = None
    """Seconds since the client asked to cancel the task; None: it did not."""
    input_responses: Mapping[str, JSONObject] = field(default_factory=dict)
    """Answers to `RunState.input_requests`, by key."""


class Settled(StrEnum):
    """Whether an end was stored."""

    STORED = "stored"
    FENCED = "fenced"
    """The task has another final status, which stands."""
    TOO_LARGE = "too_large"
    """The result exceeds the limit of the store, and the task was failed with an error that names the reason."""


@runtime_checkable
class TaskStore(Protocol):
    """Stores tasks. Any process can read them; one process runs each.

    Methods of clients (`get`, `request_cancel`, `resolve_input_requests`) take the owner, and treat a task of another
    owner as unknown. Methods of the run (`set_…`, `sync`) are fenced: a final status never changes. All methods are
    idempotent, so that a caller may repeat one whose reply was lost.

    All raise `StoreUnavailableError` if the store is unreachable, refuses calls for now, or cannot know yet whether a
    task exists.
    """

    @property
    def sync_interval(self) -> float:
        """Seconds between calls of `sync` in a process that runs tasks. A signal reaches a run within this time."""
        ...

    async def create(self, new: NewTask) -> Task:
        """Create a task with status `working`, which this process is about to run.

        Returns:
            The task, which every process finds from now on (SEP-2663, Task Creation).
        """
        ...

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return a task, or None if it is unknown, has expired, or belongs to another owner.

        A task whose worker is dead is declared failed by this call.
        """
        ...

    async def request_cancel(self, task_id: str, *, owner: str | None) -> bool:
        """Ask the process that runs a task to cancel it. A task with a final status is not changed.

        Returns:
            False if the task is unknown, has expired, or belongs to another owner.
        """
        ...

    async def resolve_input_requests(
        self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
    ) -> bool:
        """Store answers for the process that runs a task. Answers to unknown and answered keys are ignored.

        Without unanswered requests the status is `working` again.

        Returns:
            False if the task is unknown, has expired, or belongs to another owner.
        """
        ...

    async def set_input_requests(self, run: RunState) -> Settled:
        """Store the requests for input of a run, which become part of its record. The status is `input_required`."""
        ...

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete a task. A result that is too large fails the task instead, with an honest error."""
        ...

    async def set_failed(self, run: RunState, error: ErrorData) -> Settled:
        """Fail a task."""
        ...

    async def set_cancelled(self, run: RunState) -> Settled:
        """Cancel a task."""
        ...

    async def discard(self, run: RunState) -> None:
        """Delete a task that was created and is not run."""
        ...

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Publish the progress of runs, keep their records alive, and return their signals, in the same order.

        A record that the store has lost is created again.
        """
        ...

    async def count_uncollected(self, task_ids: Sequence[str]) -> int:
        """Count the tasks of this process with a final status that no poll has returned."""
        ...

    def release(self, run: RunState) -> None:
        """Forget a task that this process no longer runs, whether or not its end was stored. Called once per task."""
        ...

    def on_signal(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Register a callback for signals to tasks of this process, so that `sync` need not wait for its interval.

        The callback may be missing or spurious.

        Returns:
            Removes the callback.
        """
        ...


@runtime_checkable
class TracedTaskStore(Protocol):
    """Optional capability of a task store: it makes the trace of a run current."""

    def run_context(self, task: Task) -> AbstractContextManager[None]:
        """Return the context in which the tool of a task runs."""
        ...
