"""The tasks extension of a client (SEP-2663), which the SDK's `Client` lacks."""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import anyio
from mcp.client import ClientRequestContext
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, ErrorData, InputRequest
from pydantic import TypeAdapter

from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.wire import (
    IDENTIFIER,
    RESULT_TYPE,
    Acknowledged,
    CancelTaskRequest,
    CreateTaskResult,
    GetTaskRequest,
    GetTaskResult,
    TaskIdParams,
    TaskResult,
    UpdateTaskParams,
    UpdateTaskRequest,
)

POLL_SECONDS = 1.0
"""Seconds between polls where the server suggests none."""
_MOST_SECONDS = 60.0
"""Maximum seconds between polls, whatever the server suggests."""
_RETRY_SECONDS = 0.5
"""Seconds until a poll is repeated that the server asked to repeat."""
T = TypeVar("T")
_request: TypeAdapter[InputRequest] = TypeAdapter(InputRequest)


class TaskCancelledError(Exception):
    """The task of a call was cancelled."""


class _UnansweredError(Exception):
    """A callback of the client failed, so that the task would wait for ever."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


class TasksClient(ClientExtension):
    """Finishes calls that a server runs as tasks: polls them, and answers their requests for input.

    ```python
    async with Client(url, extensions=[TasksClient()]) as client:
        result = await client.call_tool("build", {"target": "all"})
    ```

    Requests for input go to the callbacks of the client, for example its `elicitation_callback`. A call that is
    cancelled asks the server to cancel its task. `poll` continues with the task of a lost connection:
    `on_task` receives the id, to be kept.

    Args:
        on_task: Called with each new task, before it is polled, and with each poll; None: not called.
        retry_timeout: Seconds for which a poll is repeated that the server asks to repeat.
    """

    identifier = IDENTIFIER

    def __init__(self, on_task: Callable[[TaskResult], None] | None = None, *, retry_timeout: float = 60.0) -> None:
        self._on_task = on_task
        self._retry_timeout = retry_timeout

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """The result of `tools/call` that is a task."""
        return [ResultClaim(result_type=RESULT_TYPE, model=CreateTaskResult, resolve=self._resolve)]

    async def _resolve(self, created: CreateTaskResult, ctx: ClaimContext) -> CallToolResult:
        if self._on_task is not None:
            self._on_task(created)
        try:
            return await self._poll(ctx.session, created.task_id)
        except (anyio.get_cancelled_exc_class(), _UnansweredError) as error:
            with anyio.move_on_after(2, shield=True), suppress(Exception):  # The connection may be the reason.
                await self.cancel(ctx.session, created.task_id)
            if isinstance(error, _UnansweredError):
                raise error.cause from None
            raise

    async def poll(self, session: ClientSession, task_id: str) -> CallToolResult:
        """Poll a task until it ends, and answer its requests for input. If this is cancelled, the task continues.

        Args:
            session: `Client.session`, of any connection of the same principal.
            task_id: The task.

        Returns:
            The result of the tool.

        Raises:
            MCPError: The task failed, is not known, or has expired.
            TaskCancelledError: The task was cancelled.
        """
        try:
            return await self._poll(session, task_id)
        except _UnansweredError as error:
            raise error.cause from None

    async def _poll(self, session: ClientSession, task_id: str) -> CallToolResult:
        answers: dict[str, dict[str, Any]] = {}
        while True:
            task = await self._get(session, task_id)
            if self._on_task is not None:
                self._on_task(task)
            match task.status:
                case TaskStatus.COMPLETED:
                    return CallToolResult.model_validate(task.result, by_name=False)
                case TaskStatus.FAILED:
                    raise MCPError.from_error_data(ErrorData.model_validate(task.error))
                case TaskStatus.CANCELLED:
                    msg = "the task was cancelled"
                    raise TaskCancelledError(msg)
            if requests := task.open_requests or {}:
                new = requests.keys() - answers
                try:
                    answers |= {key: await _answer(session, key, requests[key]) for key in new}
                except Exception as error:
                    raise _UnansweredError(error) from error
                # One that is open although it was answered: the server has lost the answer.
                await self._update(session, task_id, {key: answers[key] for key in requests})
                if new:
                    continue
            seconds = POLL_SECONDS if task.poll_interval_ms is None else task.poll_interval_ms / 1000
            await anyio.sleep(min(seconds, _MOST_SECONDS))

    async def cancel(self, session: ClientSession, task_id: str) -> None:
        """Ask the server to cancel a task. It may have ended before.

        Args:
            session: As in `poll`.
            task_id: The task.

        Raises:
            MCPError: The task is not known, or has expired.
        """
        await session.send_request(CancelTaskRequest(params=TaskIdParams(task_id=task_id)), Acknowledged)

    async def _get(self, session: ClientSession, task_id: str) -> GetTaskResult:
        request = GetTaskRequest(params=TaskIdParams(task_id=task_id))
        return await self._repeated(lambda: session.send_request(request, GetTaskResult))

    async def _update(self, session: ClientSession, task_id: str, answers: dict[str, dict[str, Any]]) -> None:
        params = UpdateTaskParams(task_id=task_id, input_responses=answers)
        await self._repeated(lambda: session.send_request(UpdateTaskRequest(params=params), Acknowledged))

    async def _repeated(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request, and repeat it while the server asks for that."""
        until = time.monotonic() + self._retry_timeout
        while True:
            try:
                return await send()
            except MCPError as error:
                if not _retryable(error) or time.monotonic() >= until:
                    raise
            await anyio.sleep(_RETRY_SECONDS)


async def _answer(session: ClientSession, key: str, content: dict[str, Any]) -> dict[str, Any]:
    """Pass a request for input to the callbacks of the client."""
    request = _request.validate_python(content, by_name=False)
    response = await session.dispatch_input_request(
        ClientRequestContext(session=session, request_id=key, meta=None), request
    )
    if isinstance(response, ErrorData):
        raise MCPError.from_error_data(response)
    return response.model_dump(by_alias=True, mode="json", exclude_none=True)


def _retryable(error: MCPError) -> bool:
    data = error.error.data
    return isinstance(data, dict) and data.get("retryable") is True
