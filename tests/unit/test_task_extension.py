"""`TasksExtension` and its runner on the reference store, without a server."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import fakeredis
import pytest
from mcp import MCPError
from mcp.client import Client, ClientRequestContext
from mcp.client.session import ElicitationFnT
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import REQUEST_TIMEOUT, ElicitRequestParams, ElicitResult, ErrorData
from pydantic import BaseModel

from mcp_eventscope import (
    EventScope,
    InMemoryTaskStore,
    InstrumentedTaskStore,
    RedisTaskStore,
    StoreUnavailableError,
    TasksClient,
    TasksExtension,
    TaskStore,
)
from mcp_eventscope.scope import TaskOptions
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from mcp_eventscope.tasks import extension as extension_module
from mcp_eventscope.tasks import redis_store
from mcp_eventscope.tasks import runner as runner_module
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import JSONObject, NewTask, RunSignals, RunState, Settled, Task
from mcp_eventscope.tasks.runner import Busy, Completed, Outcome, Run, TaskRunner
from mcp_eventscope.tasks.wire import TaskResult
from support.task_client import accept, start, text_of
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


class Flaky(InMemoryTaskStore):
    """Fails the next calls, and can hold a creation back."""

    def __init__(self) -> None:
        super().__init__(poll_interval=0.01, sync_interval=0.01)
        self.failing = 0
        self.created = asyncio.Event()
        self.taken = asyncio.Event()
        self.taken.set()
        self.released: list[str] = []

    def _fail(self) -> None:
        if self.failing:
            self.failing -= 1
            msg = "away"
            raise StoreUnavailableError(msg)

    async def create(self, new: NewTask) -> Task:
        """Create, and return when the test allows it."""
        self._fail()
        task = await super().create(new)
        self.created.set()
        await self.taken.wait()
        return task

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Get, unless it fails."""
        self._fail()
        return await super().get(task_id, owner=owner)

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete, unless it fails."""
        self._fail()
        return await super().set_completed(run, result)

    async def set_input_requests(self, run: RunState) -> Settled:
        """Ask, unless it fails."""
        self._fail()
        return await super().set_input_requests(run)

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Synchronize, unless it fails."""
        self._fail()
        return await super().sync(runs)

    def release(self, run: RunState) -> None:
        """Note it."""
        self.released.append(run.task.task_id)


class Tool:
    """A tool whose end the test decides."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.runs = 0
        self.cancelled = False
        self.finish = asyncio.Event()
        self._stubborn = stubborn

    async def __call__(self, run: Run) -> Outcome:
        """Run until the test lets it end."""
        self.runs += 1
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            if not self._stubborn:
                raise
        return Completed({"content": []})


def runner_of(store: TaskStore, **options: Any) -> TaskRunner:
    """A runner with short timeouts."""
    limits = {"max_tasks": 10, "max_tasks_per_principal": 10, "max_input_requests": 10, "max_input_bytes": 1000}
    return TaskRunner(store, **{**limits, "input_timeout": CEILING, "shutdown_timeout": 0.05, **options})


async def status_of(store: TaskStore, task: Task) -> TaskStatus | None:
    """The status of a task; None if it is unknown."""
    found = await store.get(task.task_id, owner=task.owner)
    return None if found is None else found.status


async def test_runner_whose_caller_leaves_during_the_creation_discards_the_task() -> None:
    """Trap: the store has taken the task, and the client has disconnected before the reply."""
    store, tool = Flaky(), Tool()
    store.taken.clear()
    runner = runner_of(store, max_tasks=1)
    async with runner.running():
        calling = asyncio.create_task(runner.start("ada", tool))
        await store.created.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        store.taken.set()
        await until(lambda: store.released)
        assert not store._records
        assert tool.runs == 0
        await runner.start("ada", tool)  # Its place is free again.
        tool.finish.set()


async def test_runner_whose_store_refuses_the_creation_runs_nothing() -> None:
    """The error is the caller's, and its place is free again."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store, max_tasks=1)
    async with runner.running():
        store.failing = 1
        with pytest.raises(StoreUnavailableError):
            await runner.start("ada", tool)
        await runner.start("ada", tool)
        tool.finish.set()


async def test_runner_at_its_limits_refuses_further_tasks() -> None:
    """Of the process, and of each principal."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store, max_tasks=3, max_tasks_per_principal=2)
    async with runner.running():
        for _ in range(2):
            await runner.start("ada", tool)
        with pytest.raises(Busy, match="2 of your tasks"):
            await runner.start("ada", tool)
        await runner.start("eve", tool)
        with pytest.raises(Busy, match="3 tasks already"):
            await runner.start("bob", tool)
        tool.finish.set()
        await until(lambda: len(store.released) == 3)
        await runner.start("ada", tool)
    with pytest.raises(Busy, match="stopping"):
        await runner.start("ada", tool)


async def test_runner_whose_store_is_unreachable_stores_the_end_later() -> None:
    """The tool runs once, and its result is kept until the store takes it."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store, shutdown_timeout=CEILING)
    async with runner.running():
        task = await runner.start("ada", tool)
        await until(lambda: tool.runs)
        store.failing = 5
        tool.finish.set()
        await until(lambda: store.released)
    assert await status_of(store, task) is TaskStatus.COMPLETED
    assert tool.runs == 1


async def test_runner_that_stops_fails_the_tasks_that_do_not_end_in_time() -> None:
    """With the error that it may have taken effect; a task that ends in time keeps its result."""
    store, slow, quick = Flaky(), Tool(), Tool()
    runner = runner_of(store)
    async with runner.running():
        failed, completed = await runner.start("ada", slow), await runner.start("ada", quick)
        await until(lambda: slow.runs and quick.runs)
        quick.finish.set()
    found = await store.get(failed.task_id, owner="ada")
    assert found is not None
    assert found.error is not None
    assert (found.status, found.error.code) == (TaskStatus.FAILED, REQUEST_ORPHANED)
    assert slow.cancelled
    assert await status_of(store, completed) is TaskStatus.COMPLETED
    assert sorted(store.released) == sorted([failed.task_id, completed.task_id])


async def test_runner_that_stops_waits_for_its_tasks() -> None:
    """A tool that ends within `shutdown_timeout` keeps its result; no new one is started meanwhile."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store, shutdown_timeout=CEILING)
    async with runner.running():
        task = await runner.start("ada", tool)
        store.created.clear()
        store.taken.clear()
        late = asyncio.create_task(runner.start("ada", Tool()))
        await store.created.wait()
        asyncio.get_running_loop().call_later(0.05, store.taken.set)
        asyncio.get_running_loop().call_later(0.1, tool.finish.set)
    assert await status_of(store, task) is TaskStatus.COMPLETED
    with pytest.raises(Busy, match="stopping"):
        await late
    assert list(store._records) == [task.task_id]


async def test_runner_that_stops_without_its_store_ends_in_time() -> None:
    """A later poll declares the tasks failed whose end it could not store."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store)
    with anyio.fail_after(CEILING):
        async with runner.running():
            task = await runner.start("ada", tool)
            await until(lambda: tool.runs)
            store.set_failed = unreachable  # type: ignore[method-assign, assignment]
    assert store.released == [task.task_id]
    assert await status_of(store, task) is TaskStatus.WORKING


async def unreachable(*_: object) -> Settled:
    """Raise as an unreachable store."""
    msg = "away"
    raise StoreUnavailableError(msg)


async def test_tool_that_finishes_despite_its_cancellation_completes() -> None:
    """A cancellation asks; the tool decides."""
    store, tool = Flaky(), Tool(stubborn=True)
    runner = runner_of(store)
    async with runner.running():
        task = await runner.start("ada", tool)
        await until(lambda: tool.runs)
        await store.request_cancel(task.task_id, owner="ada")
        await until(lambda: store.released)
    assert tool.cancelled
    assert await status_of(store, task) is TaskStatus.COMPLETED


async def test_fenced_tool_is_cancelled_and_its_end_not_stored() -> None:
    """Another worker has declared the task failed."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store)
    async with runner.running():
        task = await runner.start("ada", tool)
        await until(lambda: tool.runs)
        await store.set_failed(RunState(task), ErrorData(code=REQUEST_ORPHANED, message="dead"))
        await until(lambda: store.released)
    assert tool.cancelled
    assert await status_of(store, task) is TaskStatus.FAILED


async def test_unread_ends_are_counted_before_they_expire() -> None:
    """`count_uncollected` is asked once, when nine tenths of the TTL are over."""
    counted: list[Sequence[str]] = []

    class Short(Flaky):
        async def count_uncollected(self, task_ids: Sequence[str]) -> int:
            counted.append(task_ids)
            return await super().count_uncollected(task_ids)

    store, tool = Short(), Tool()
    store._ttl = 100
    tool.finish.set()
    runner = runner_of(store)
    async with runner.running():
        task = await runner.start("ada", tool)
        await until(lambda: counted)
    assert counted == [[task.task_id]]


async def test_runner_that_is_entered_twice_runs_until_the_last_block_ends() -> None:
    """Some servers run their lifespan for each connection."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store)
    async with runner.running():
        async with runner.running():
            task = await runner.start("ada", tool)
        assert await status_of(store, task) is TaskStatus.WORKING
        await runner.start("ada", tool)
        tool.finish.set()
        await until(lambda: len(store.released) == 2)
    assert not store._wakes


async def test_block_that_begins_while_another_stops_keeps_its_tasks() -> None:
    """As in a hot restart: each block fails only its own tasks, and none is left without synchronization."""
    store, old, new = Flaky(), Tool(), Tool()
    runner = runner_of(store)
    leave = asyncio.Event()

    async def first() -> Task:
        async with runner.running():
            task = await runner.start("ada", old)
            await until(lambda: old.runs)
            await leave.wait()
        return task

    stopping = asyncio.create_task(first())
    await until(lambda: old.runs)
    leave.set()
    await until(lambda: not runner._users)
    async with runner.running():
        kept = await runner.start("ada", new)
        assert await status_of(store, await stopping) is TaskStatus.FAILED
        assert await status_of(store, kept) is TaskStatus.WORKING
        assert len(store._wakes) == 1
        await store.request_cancel(kept.task_id, owner="ada")
        await until(lambda: kept.task_id in store.released)
    assert await status_of(store, kept) is TaskStatus.CANCELLED
    assert not store._wakes


async def test_stopping_block_that_is_cancelled_leaves_no_task() -> None:
    """The tasks of the block and the synchronization end."""
    store, tool = Flaky(), Tool()
    runner = runner_of(store, shutdown_timeout=CEILING)

    async def run() -> None:
        async with runner.running():
            await runner.start("ada", tool)
            await until(lambda: tool.runs)

    running = asyncio.create_task(run())
    await until(lambda: tool.runs and not runner._users)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: store.released)
    assert tool.cancelled
    assert runner._syncing.done()
    assert not store._wakes


async def test_tool_that_ignores_its_cancellation_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task has ended; the limits of the process count it until it has ended itself."""
    monkeypatch.setattr(runner_module, "_CANCEL_SECONDS", 0.01)
    store, finish = Flaky(), asyncio.Event()

    async def ignore(_: Run) -> Outcome:
        while not finish.is_set():
            try:
                await finish.wait()
            except asyncio.CancelledError:
                continue
        return Completed({"content": []})

    runner = runner_of(store, max_tasks=1)
    async with runner.running():
        task = await runner.start("ada", ignore)
        await store.request_cancel(task.task_id, owner="ada")
        await until(lambda: store.released)
        assert await status_of(store, task) is TaskStatus.CANCELLED
        try:
            with pytest.raises(Busy, match="1 tasks already"):
                await runner.start("ada", Tool())
        finally:
            finish.set()
        await until(lambda: not runner._owners)
        tool = Tool()
        await runner.start("ada", tool)
        tool.finish.set()


async def test_question_that_no_client_answers_ends_after_the_timeout() -> None:
    """The tool may catch the error; else its task fails with it."""
    store = Flaky()
    runner = runner_of(store, input_timeout=0.05)
    caught: list[int] = []

    async def ask(run: Run) -> Outcome:
        for _ in range(2):
            try:
                await runner.request_input(run, {"": {"method": "elicitation/create", "params": {}}})
            except MCPError as error:
                caught.append(error.error.code)
        return Completed({"content": []})

    async with runner.running():
        task = await runner.start("ada", ask)
        await until(lambda: store.released)
    found = await store.get(task.task_id, owner="ada")
    assert found is not None
    assert (found.status, found.input_requests) == (TaskStatus.COMPLETED, {})
    assert caught == [REQUEST_TIMEOUT, REQUEST_TIMEOUT]


@pytest.mark.parametrize(
    ("limits", "number", "reason"),
    [({"max_input_requests": 3}, 4, "too often"), ({"max_input_bytes": 100}, 2, "too much input")],
)
async def test_questions_beyond_a_limit_are_refused(limits: dict[str, int], number: int, reason: str) -> None:
    """Of one task: their number, and the bytes of those that are open at a time."""
    store = Flaky()
    runner = runner_of(store, **limits)
    refused: list[str] = []
    question: JSONObject = {"method": "elicitation/create", "params": {"message": "x" * 40}}

    async def ask(run: Run) -> Outcome:
        asked = [asyncio.ensure_future(runner.request_input(run, {"": question})) for _ in range(number)]
        done, open_ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused.extend(str(each.exception()) for each in done)
        for each in open_:
            each.cancel()
        await asyncio.wait(open_)
        if "max_input_bytes" in limits:  # Questions that are no longer open do not count.
            with anyio.move_on_after(0.01):
                await runner.request_input(run, {"": question})
        return Completed({"content": []})

    async with runner.running():
        task = await runner.start("ada", ask)
        await until(lambda: store.released)
    assert await status_of(store, task) is TaskStatus.COMPLETED
    (text,) = refused
    assert reason in text


async def test_tool_that_raises_a_cancellation_of_its_own_fails() -> None:
    """No client has cancelled the task."""
    store = Flaky()

    async def broken(_: Run) -> Outcome:
        raise asyncio.CancelledError

    runner = runner_of(store)
    async with runner.running():
        task = await runner.start("ada", broken)
        await until(lambda: store.released)
    assert await status_of(store, task) is TaskStatus.FAILED


def test_scope_takes_all_options_of_tasks() -> None:
    """Those of the store, and those of the extension."""
    assert set(TaskOptions.__annotations__) == {*redis_store.NUMBERS, *extension_module.NUMBERS}
    scope = EventScope("s", redis=fakeredis.FakeAsyncRedis(), registry=None)
    tasks = scope.tasks({"build"}, ttl=7, max_tasks=3)
    assert isinstance(tasks._store, InstrumentedTaskStore)
    assert isinstance(tasks._store._store, RedisTaskStore)
    assert (tasks._store._store._ttl, tasks._runner._max_tasks) == (7000, 3)


# -- with the SDK's server and client in this process -----------------------------------------------------------------


class Name(BaseModel):
    """What `ask` asks for."""

    name: str


@asynccontextmanager
async def connected(store: TaskStore, extension: TasksClient, elicit: ElicitationFnT = accept) -> AsyncIterator[Client]:
    """A client of a server in this process."""
    tasks = TasksExtension(store, tools={"ask", "count"})

    @asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        async with tasks.running():
            yield

    mcp: MCPServer[None] = MCPServer("s", extensions=[tasks], lifespan=lifespan)

    @mcp.tool()
    async def ask(ctx: Context) -> str:
        answer = await ctx.elicit("Who?", Name)
        return answer.data.name if answer.action == "accept" else answer.action

    @mcp.tool()
    async def count(ctx: Context) -> str:
        await ctx.report_progress(1, 2)
        answer = await ctx.elicit("Go on?", Name)
        return answer.action

    async with Client(mcp, extensions=[extension], elicitation_callback=elicit) as client:
        yield client


async def test_tasks_in_one_process_work_without_redis() -> None:
    """The reference store serves a single process, progress with numbers included."""
    seen: list[TaskResult] = []
    async with connected(InMemoryTaskStore(poll_interval=0.01, sync_interval=0.01), TasksClient(seen.append)) as client:
        assert text_of(await client.call_tool("ask", {})) == "Ada"
        task_id = await start(client, "count")
        assert text_of(await TasksClient().poll(client.session, task_id)) == "accept"


async def test_client_whose_polls_fail_repeats_them() -> None:
    """An unreachable store is never an unknown task."""
    store = Flaky()
    async with connected(store, TasksClient()) as client:
        task_id = await start(client, "ask")
        store.failing = 1
        with pytest.raises(MCPError, match="temporarily unavailable; retry"):
            await client.session.send_request(*get_request(task_id))
        store.failing = 2
        assert text_of(await TasksClient().poll(client.session, task_id)) == "Ada"
        store.failing = 1
        with pytest.raises(MCPError, match="temporarily unavailable; retry"):
            await start(client, "ask")


async def test_client_whose_answer_was_lost_sends_it_again() -> None:
    """The user is not asked twice."""
    asked = 0

    class Losing(InMemoryTaskStore):
        lost = False

        async def resolve_input_requests(
            self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
        ) -> bool:
            if not self.lost:
                self.lost = True
                return True
            return await super().resolve_input_requests(task_id, responses, owner=owner)

    async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        nonlocal asked
        asked += 1
        return await accept(context, params)

    async with connected(Losing(poll_interval=0.01, sync_interval=0.01), TasksClient(), elicit) as client:
        assert text_of(await client.call_tool("ask", {})) == "Ada"
    assert asked == 1


def get_request(task_id: str) -> tuple[Any, Any]:
    """A `tasks/get` request and its result type."""
    from mcp_eventscope.tasks.wire import GetTaskRequest, GetTaskResult, TaskIdParams  # noqa: PLC0415 - for one test

    return GetTaskRequest(params=TaskIdParams(task_id=task_id)), GetTaskResult


async def test_extension_that_does_not_run_refuses_calls_with_the_fix(caplog: pytest.LogCaptureFixture) -> None:
    """The log of the server names the missing block."""
    mcp: MCPServer[Any] = MCPServer("s", extensions=[TasksExtension(InMemoryTaskStore(), tools={"ask"})])

    @mcp.tool()
    async def ask() -> str:
        return ""

    async with Client(mcp, extensions=[TasksClient()]) as client:
        with pytest.raises(MCPError):
            await client.call_tool("ask", {})
    assert "tasks.running()" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tools": "build"}, TypeError, "tools must be a collection of names, got str"),
        ({"tools": [1]}, TypeError, "tools must be a collection of names"),
        ({"tools": (), "max_tasks": 0}, ValueError, "max_tasks must be at least 1"),
        ({"tools": (), "max_tasks_per_principal": 1.5}, TypeError, "max_tasks_per_principal must be a whole number"),
        ({"tools": (), "shutdown_timeout": -1}, ValueError, "shutdown_timeout must be between 0"),
    ],
)
def test_extension_with_invalid_options_names_the_option(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Errors name the option and the fix."""
    with pytest.raises(error, match=message):
        TasksExtension(InMemoryTaskStore(), **options)


def test_redis_store_with_another_object_names_the_backend() -> None:
    """A store is not its backend."""
    with pytest.raises(TypeError, match=r"backend must be a RedisBackend, got .*RedisEventStore\(redis\).backend"):
        RedisTaskStore(object())  # type: ignore[arg-type]
