"""The messages of the tasks extension (SEP-2663), as sent and received."""

from datetime import UTC, datetime
from typing import Any, Literal

from mcp.types import Request, RequestParams, Result
from pydantic import Field

from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import Task

IDENTIFIER = "io.modelcontextprotocol/tasks"
"""The identifier of the extension."""
RESULT_TYPE = "task"
"""The `resultType` of a task in place of a result."""


class TaskIdParams(RequestParams):
    """Parameters of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateTaskParams(TaskIdParams):
    """Parameters of `tasks/update`."""

    input_responses: dict[str, dict[str, Any]]


class GetTaskRequest(Request[TaskIdParams, Literal["tasks/get"]]):
    """`tasks/get`."""

    method: Literal["tasks/get"] = "tasks/get"
    params: TaskIdParams
    name_param = "taskId"


class UpdateTaskRequest(Request[UpdateTaskParams, Literal["tasks/update"]]):
    """`tasks/update`."""

    method: Literal["tasks/update"] = "tasks/update"
    params: UpdateTaskParams
    name_param = "taskId"


class CancelTaskRequest(Request[TaskIdParams, Literal["tasks/cancel"]]):
    """`tasks/cancel`."""

    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: TaskIdParams
    name_param = "taskId"


class TaskResult(Result):
    """The fields of `Task` in results."""

    task_id: str
    status: TaskStatus
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None


class CreateTaskResult(TaskResult):
    """The result of `tools/call` that runs as a task."""

    result_type: Literal["task"] = "task"


class GetTaskResult(TaskResult):
    """The result of `tasks/get`: the task with what its status adds."""

    result_type: Literal["complete"] = "complete"
    open_requests: dict[str, dict[str, Any]] | None = Field(None, alias="inputRequests")
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class Acknowledged(Result):
    """The empty result of `tasks/update` and `tasks/cancel`."""

    result_type: Literal["complete"] = "complete"


def on_the_wire(task: Task, *, created: bool) -> dict[str, Any]:
    """A task as the result of `tools/call` or of `tasks/get`.

    Args:
        task: The task.
        created: Whether it is the result of `tools/call`, which has only the fields of every status.
    """
    fields: dict[str, Any] = {
        "resultType": RESULT_TYPE if created else "complete",
        "taskId": task.task_id,
        "status": task.status.value,
        "createdAt": _iso(task.created_at),
        "lastUpdatedAt": _iso(task.updated_at),
        "ttlMs": task.ttl_ms,
        "pollIntervalMs": task.poll_interval_ms,
    }
    if task.status_message:
        fields["statusMessage"] = task.status_message
    if created:
        return fields
    if task.status is TaskStatus.INPUT_REQUIRED:
        fields["inputRequests"] = dict(task.input_requests)
    elif task.status is TaskStatus.COMPLETED:
        fields["result"] = task.result
    elif task.status is TaskStatus.FAILED and task.error is not None:
        fields["error"] = task.error.model_dump(mode="json", by_alias=True, exclude_none=True)
    return fields


def _iso(microseconds: int) -> str:
    return (
        datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
