"""The tasks extension of a server (SEP-2663): tools that run as tasks, and the methods of their clients."""

import functools
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.request_state import authenticated_principal
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    ClientCapabilities,
    ErrorData,
    InputRequiredResult,
    InputResponses,
)
from mcp_types import methods
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, TypeAdapter, ValidationError

from mcp_eventscope.errors import StoreError, StoreUnavailableError
from mcp_eventscope.options import Number, check_type, given
from mcp_eventscope.redis.limits import MAX_TTL
from mcp_eventscope.tasks.channel import detached
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import JSONObject, TaskStore
from mcp_eventscope.tasks.runner import Busy, Completed, Outcome, Run, TaskRunner
from mcp_eventscope.tasks.wire import IDENTIFIER, TaskIdParams, UpdateTaskParams, on_the_wire

NUMBERS: Mapping[str, Number] = {
    "max_tasks": Number("tasks", 1, whole=True),
    "max_tasks_per_principal": Number("tasks", 1, whole=True),
    "max_input_requests": Number("requests", 1, 3000, whole=True),  # A script of Redis takes some 4,000 at once.
    "max_input_bytes": Number("bytes", 1, 256 << 20, whole=True),
    "input_timeout": Number("seconds", 0.05, MAX_TTL),
    "shutdown_timeout": Number("seconds", 0, 3600),
}
"""The types and ranges of the numeric options of `TasksExtension`."""
_LISTED = 20
"""Maximum number of tools that an error lists."""
RETRYABLE: Mapping[str, bool] = {"retryable": True}
"""The data of an error after which the client may repeat its request."""
_responses: TypeAdapter[InputResponses] = TypeAdapter(InputResponses)
_DECLARED = ClientCapabilities(extensions={IDENTIFIER: {}})


class TasksExtension(Extension):
    """Runs tools as tasks, which survive the connection of their client, and which any worker can be asked about.

    ```python
    tasks = TasksExtension(RedisTaskStore(RedisEventStore(redis).backend), tools={"build", "train"})
    mcp = MCPServer("builder", extensions=[tasks])
    ```

    A client that declares the extension receives a task in place of a result, and polls. Any other client waits for the
    result, as without the extension. Within the tool, `ctx.report_progress` sets the status message of the task,
    `ctx.elicit` makes it `input_required`, and log messages that the client asked for set the status message, too.

    Args:
        store: Where tasks are stored: a `RedisTaskStore`, or an `InMemoryTaskStore` for a single process.
        tools: The names of the tools that run as tasks.
        max_tasks: Maximum number of tasks that this process runs at a time.
        max_tasks_per_principal: The same for one principal. Without authentication all clients are one principal.
        max_input_requests: Maximum number of requests for input of one task, answered ones included. A further one
            raises an `MCPError` in the tool.
        max_input_bytes: Maximum bytes of the unanswered requests for input of one task, in JSON. The same applies.
        input_timeout: Seconds that a client gets to answer. Then the request raises an `MCPError` in the tool, which
            fails the task unless the tool catches it.
        shutdown_timeout: Seconds that running tasks get when the process stops. Then they fail with an error.

    Raises:
        TypeError: `tools` is a single string or something else, or a number has another type.
        ValueError: A number is out of range.
    """

    identifier = IDENTIFIER

    def __init__(  # noqa: PLR0913 - the limits of an operator
        self,
        store: TaskStore,
        *,
        tools: Collection[str],
        max_tasks: int = 1000,
        max_tasks_per_principal: int = 1000,
        max_input_requests: int = 1000,
        max_input_bytes: int = 1 << 20,
        input_timeout: float = 3600.0,
        shutdown_timeout: float = 10.0,
    ) -> None:
        numbers = {
            "max_tasks": max_tasks,
            "max_tasks_per_principal": max_tasks_per_principal,
            "max_input_requests": max_input_requests,
            "max_input_bytes": max_input_bytes,
            "input_timeout": input_timeout,
            "shutdown_timeout": shutdown_timeout,
        }
        for name, value in numbers.items():
            NUMBERS[name].check(name, value)
        check_type("store", store, TaskStore, "a TaskStore", "pass RedisTaskStore(RedisEventStore(redis).backend)")
        if isinstance(tools, str) or not all(isinstance(name, str) for name in tools):
            msg = f'tools must be a collection of names, got {given(tools)}; write tools={{"build"}}, for example'
            raise TypeError(msg)
        self._store = store
        self._tools = frozenset(tools)
        self._runner = TaskRunner(
            store,
            max_tasks=max_tasks,
            max_tasks_per_principal=max_tasks_per_principal,
            max_input_requests=max_input_requests,
            max_input_bytes=max_input_bytes,
            input_timeout=input_timeout,
            shutdown_timeout=shutdown_timeout,
        )

    def check_tools(self, names: Collection[str]) -> None:
        """Check that a server has the tools that run as tasks. `http_app` calls this when it starts.

        Args:
            names: The names of the server's tools.

        Raises:
            ValueError: A name in `tools` is none of them.
        """
        if unknown := sorted(self._tools.difference(names)):
            known = f"{len(names)}: {', '.join(sorted(names)[:_LISTED])}" if names else "none"
            msg = (
                f"tools that run as tasks must be tools of the server, got {', '.join(map(repr, unknown))}; "
                f"correct the name, or register the tool before the server starts (it has {known})"
            )
            raise ValueError(msg)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run tasks until the block ends.

        Enter it in the lifespan of the application, within the worker lease of the store. Tasks that run when it ends
        get `shutdown_timeout`. Then they fail with an error, before other workers can declare them failed.

        Raises:
            RuntimeError: The worker lease of the store is not held.
        """
        async with self._runner.running():
            yield

    def methods(self) -> Sequence[MethodBinding]:
        """The methods of the extension."""
        return [
            MethodBinding(method, params, handler, frozenset(MODERN_PROTOCOL_VERSIONS))
            for method, params, handler in (
                ("tasks/get", TaskIdParams, self._get),
                ("tasks/update", UpdateTaskParams, self._update),
                ("tasks/cancel", TaskIdParams, self._cancel),
            )
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Run a declared tool as a task, if the client has declared the extension on this request."""
        if (
            params.name not in self._tools
            or ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS
            or not ctx.session.check_client_capability(_DECLARED)
        ):
            return await call_next(ctx)
        if not self._runner.started:
            msg = (
                "TasksExtension must run to serve tasks, got a call before; "
                "enter `async with tasks.running():` in the lifespan of the application"
            )
            raise RuntimeError(msg)
        tool = functools.partial(self._tool, params, ctx, call_next)
        with _client_errors():
            try:
                task = await self._runner.start(authenticated_principal(ctx), tool)
            except Busy as busy:
                raise MCPError(INTERNAL_ERROR, f"The tool was not run: {busy}", RETRYABLE) from None
        return on_the_wire(task, created=True)

    async def _tool(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext, run: Run
    ) -> Outcome:
        """Run the tool of a task."""
        runner = self._runner

        async def ask(method: str, request: JSONObject) -> dict[str, Any]:
            answers = await runner.request_input(run, {"": {"method": method, "params": request}})
            return dict(answers[""])

        context = detached(ctx, ask, run.report)
        try:
            result = await call_next(context)
            while isinstance(result, InputRequiredResult):
                # The handler reads the parameters that it shares with this extension.
                params.input_responses = await self._answers(run, result)
                params.request_state = result.request_state
                result = await call_next(context)
            dumped = _dumped(result)
            return Completed(methods.serialize_server_result("tools/call", ctx.protocol_version, dumped))
        except MCPError as error:
            return error.error
        except Exception:  # noqa: BLE001 - as the SDK does, so that no detail of the server is sent
            return ErrorData(code=INTERNAL_ERROR, message="Internal server error")

    async def _answers(self, run: Run, result: InputRequiredResult) -> InputResponses | None:
        if not result.input_requests:
            return None
        requests = {
            key: request.model_dump(by_alias=True, mode="json", exclude_none=True)
            for key, request in result.input_requests.items()
        }
        return _responses.validate_python(await self._runner.request_input(run, requests), by_name=False)

    # -- methods ------------------------------------------------------------------------------------------------------

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: TaskIdParams) -> HandlerResult:
        _require_declared(ctx)
        with _client_errors():
            task = await self._store.get(params.task_id, owner=authenticated_principal(ctx))
        if task is None:
            raise _unknown()
        if task.status is TaskStatus.COMPLETED and task.error is not None:
            raise MCPError.from_error_data(task.error)
        return on_the_wire(task, created=False)

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: UpdateTaskParams) -> HandlerResult:
        _require_declared(ctx)
        try:
            _responses.validate_python(params.input_responses, by_name=False)
        except ValidationError:
            raise MCPError(INVALID_PARAMS, "inputResponses must contain results of input requests") from None
        with _client_errors():
            known = await self._store.resolve_input_requests(
                params.task_id, params.input_responses, owner=authenticated_principal(ctx)
            )
        if not known:
            raise _unknown()
        return {}

    async def _cancel(self, ctx: ServerRequestContext[Any, Any], params: TaskIdParams) -> HandlerResult:
        _require_declared(ctx)
        with _client_errors():
            known = await self._store.request_cancel(params.task_id, owner=authenticated_principal(ctx))
        if not known:
            raise _unknown()
        return {}


async def check_tools(server: object) -> None:
    """Check that an `MCPServer` has the tools that its extensions run as tasks.

    Args:
        server: Any server. One that decides on its tools for each request is not checked.

    Raises:
        ValueError: A tool is missing.
    """
    if isinstance(server, MCPServer) and type(server).list_tools is MCPServer.list_tools:
        names = {tool.name for tool in await server.list_tools()}
        for extension in server._extensions:
            if isinstance(extension, TasksExtension):
                extension.check_tools(names)


def _dumped(result: HandlerResult) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        return result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return dict(result or {})


def _require_declared(ctx: ServerRequestContext[Any, Any]) -> None:
    if not ctx.session.check_client_capability(_DECLARED):
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "Missing required client capability",
            {"requiredCapabilities": {"extensions": {IDENTIFIER: {}}}},
        )


def _unknown() -> MCPError:
    """The same error for tasks that never were, have expired, and belong to another principal."""
    return MCPError(INVALID_PARAMS, "Task not found: it is unknown or has expired")


@contextmanager
def _client_errors() -> Iterator[None]:
    """Map the errors of the store to those of the client, which never claim that a task does not exist."""
    try:
        yield
    except StoreUnavailableError:
        raise MCPError(INTERNAL_ERROR, "Task store temporarily unavailable; retry", RETRYABLE) from None
    except StoreError:
        raise MCPError(INTERNAL_ERROR, "Task store failed") from None
