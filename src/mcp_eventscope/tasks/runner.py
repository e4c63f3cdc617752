"""Runs the tools of tasks in the background, in step with their store."""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import anyio
import pydantic_core
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, REQUEST_TIMEOUT

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.errors import StoreError, StoreUnavailableError
from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.errors import result_unavailable, worker_lost
from mcp_eventscope.tasks.protocol import (
    JSONObject,
    NewTask,
    RunSignals,
    RunState,
    Settled,
    Task,
    TaskStore,
    TracedTaskStore,
)

MESSAGE_CHARACTERS = 1024
"""Maximum length of a status message; the rest is cut."""
_DATA_BYTES = 64 * 1024
"""Maximum bytes of the data of an error, which every poll returns."""
_RETRY_SECONDS = 0.25
"""Seconds until a failed write of an end is repeated."""
_CANCEL_SECONDS = 5.0
"""Seconds that a tool gets to react to its cancellation, before its task ends without it."""
_SETTLE_SECONDS = 2.0
"""Seconds within which a stopping process must store that its remaining tasks have failed."""
_REMEMBERED = 10_000
"""Maximum number of ended tasks of which the runner checks whether a client has read them."""
_UNREAD_RATIO = 0.9
"""The part of a task's TTL after which that is checked."""
_CHECKED_AT_ONCE = 256


_STOPPING = "the server process is stopping; retry"

T = TypeVar("T")


class Busy(Exception):  # noqa: N818 - no error of the server
    """A limit of running tasks is reached. The message is for the client."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A tool returned a result."""

    result: JSONObject


Outcome: TypeAlias = Completed | ErrorData | None
"""How a tool ended; None: it was cancelled."""
Tool: TypeAlias = Callable[["Run"], Awaitable[Outcome]]


class _Block:
    """A `running` block, or several that overlap, with the tasks that were started in it."""

    def __init__(self) -> None:
        self.stopping = False
        self.runs: set[Run] = set()
        self.work: set[asyncio.Task[Any]] = set()

    def in_background(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start work that the end of the block waits for."""
        task = asyncio.create_task(work, name="eventscope-task")
        self.work.add(task)
        task.add_done_callback(self.work.discard)
        return task


class Run:
    """A task that this process runs.

    Args:
        task: The task, as created.
        block: The block in which it was started.
    """

    def __init__(self, task: Task, block: _Block) -> None:
        self.task = task
        self.block = block
        self.tool: asyncio.Future[Outcome] | None = None
        self.message = ""
        self.fenced = False
        self.cancelled = asyncio.Event()
        """Set when the tool must end: the task was cancelled or fenced, or the process stops."""
        self.failure: ErrorData | None = None
        """The error that ends the task once its tool is cancelled; None: its client cancelled it."""
        self.requests: dict[str, JSONObject] = {}
        self.received: list[str] = []
        self._answers: dict[str, asyncio.Future[JSONObject]] = {}
        self._asked = 0
        self._sizes: dict[str, int] = {}

    @property
    def state(self) -> RunState:
        """The required content of the task's record."""
        return RunState(self.task, self.message, dict(self.requests), tuple(self.received))

    def report(self, text: str) -> None:
        """Set the status message, which the next `sync` publishes."""
        self.message = _valid(text)[:MESSAGE_CHARACTERS]

    @property
    def asked(self) -> int:
        """How many requests for input the tool has made, answered ones included: Redis keeps the keys of all."""
        return self._asked

    def input_bytes(self) -> int:
        """Bytes of the unanswered requests for input, in JSON."""
        return sum(self._sizes[key] for key in self.requests)

    def ask(self, method: str, params: JSONObject, size: int) -> "tuple[str, asyncio.Future[JSONObject]]":
        """Add a request for input. Its key is never used again (SEP-2663).

        Args:
            method: The method of the request.
            params: Its parameters.
            size: Its bytes in JSON.

        Returns:
            The key, and the future of the answer.
        """
        self._asked += 1
        self._sizes = {key: self._sizes[key] for key in self.requests}
        key = f"input-{self._asked}"
        self.requests[key] = {"method": method, "params": params}
        self._sizes[key] = size
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        return key, answer

    def withdraw(self, key: str) -> None:
        """Forget a request for input whose answer the tool no longer awaits."""
        if self.requests.pop(key, None) is not None:
            self.received.append(key)
        self._answers.pop(key, None)

    def apply(self, signals: RunSignals, reported: RunState) -> None:
        """Apply the signals of a `sync`.

        Args:
            signals: The signals.
            reported: The state that was passed to it.
        """
        self.received = [key for key in self.received if key not in reported.received]
        for key, answer in signals.input_responses.items():
            if key in self.requests:
                del self.requests[key]
                self.received.append(key)
                if not (future := self._answers.pop(key)).done():
                    future.set_result(answer)
        if signals.fenced:
            self.fenced = True
        if signals.fenced or signals.cancel_age is not None:
            self.cancelled.set()


class TaskRunner:
    """Runs tools as tasks.

    Args:
        store: Where tasks are stored.
        max_tasks: Maximum number of tasks that this process runs.
        max_tasks_per_principal: The same for one principal. Without authentication all clients are one.
        max_input_requests: Maximum number of requests for input of one task, answered ones included.
        max_input_bytes: Maximum bytes of the unanswered ones of a task, which every poll returns.
        input_timeout: Seconds until the tool stops waiting for answers.
        shutdown_timeout: Seconds that running tasks get when the process stops.
    """

    def __init__(  # noqa: PLR0913 - constructed in one place
        self,
        store: TaskStore,
        *,
        max_tasks: int,
        max_tasks_per_principal: int,
        max_input_requests: int,
        max_input_bytes: int,
        input_timeout: float,
        shutdown_timeout: float,
    ) -> None:
        self._store = store
        self._max_input_requests = max_input_requests
        self._max_input_bytes = max_input_bytes
        self._input_timeout = input_timeout
        self._max_tasks = max_tasks
        self._max_tasks_per_principal = max_tasks_per_principal
        self._shutdown_timeout = shutdown_timeout
        self._runs: dict[str, Run] = {}
        """The running tasks of all blocks."""
        self._stubborn: set[asyncio.Future[Outcome]] = set()
        """Tools that still run although they were cancelled. Their results are dropped."""
        self._owners: Counter[str | None] = Counter()
        self._wakeup = asyncio.Event()
        self._ended: deque[tuple[float, str]] = deque(maxlen=_REMEMBERED)
        self._block: _Block | None = None
        """The block that accepts tasks."""
        self._users = 0
        """How often that block was entered."""
        self._blocks = 0
        """How many blocks need the synchronization: one that accepts tasks, and those that are still stopping."""
        self._started = False

    @property
    def started(self) -> bool:
        """Whether `running` was entered."""
        return self._started

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run tasks until the block ends.

        Tasks that are then still running may finish within `shutdown_timeout`; after that they fail. The block may be
        entered several times, as by servers that run their lifespan for each connection.
        """
        if self._block is None:
            if not self._blocks:
                self._wakeup = asyncio.Event()  # For this event loop, which may be a new one.
                self._remove = self._store.on_signal(self._wakeup.set)
                self._syncing = asyncio.create_task(self._sync_loop(), name="eventscope-tasks-sync")
            self._block, self._started = _Block(), True
            self._blocks += 1
        block = self._block
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._stop(block)

    async def _stop(self, block: _Block) -> None:
        """Stop a block. The tasks of another block that begins meanwhile are not affected."""
        block.stopping, self._block = True, None
        try:
            with anyio.CancelScope(shield=True):
                await self._drain(block)
        finally:
            for task in block.work:  # Unfinished if the drain was cancelled.
                task.cancel()
            self._blocks -= 1
            if not self._blocks:
                self._remove()
                await cancel_task(self._syncing)

    async def start(self, owner: str | None, tool: Tool) -> Task:
        """Create a task and run a tool in it.

        If the caller is cancelled meanwhile, because its client has disconnected, the task is deleted and not run.

        Args:
            owner: The principal.
            tool: The tool.

        Returns:
            The task, which every process finds from now on.

        Raises:
            Busy: Too many tasks run.
            StoreError: The task could not be created.
        """
        block = self._block
        if block is None:
            raise Busy(_STOPPING)
        if self._owners.total() >= self._max_tasks:
            msg = f"the server process runs {self._max_tasks} tasks already; retry later"
            raise Busy(msg)
        if self._owners[owner] >= self._max_tasks_per_principal:
            msg = f"{self._max_tasks_per_principal} of your tasks run already; wait for one of them, or cancel it"
            raise Busy(msg)
        self._owners[owner] += 1
        # Never interrupt the write: Redis may create the task even if the reply is lost or the caller is cancelled.
        creating = block.in_background(self._store.create(NewTask(owner)))
        try:
            task = await asyncio.shield(creating)
        except asyncio.CancelledError:
            block.in_background(self._discard(creating, owner))
            raise
        except BaseException:
            self._forget(owner)
            raise
        if block.stopping:  # It began to stop meanwhile.
            block.in_background(self._discard(creating, owner))
            raise Busy(_STOPPING)
        run = self._runs[task.task_id] = Run(task, block)
        block.runs.add(run)
        block.in_background(self._run(run, tool))
        if len(self._runs) == 1:  # Otherwise the loop is already synchronizing.
            self._wakeup.set()
        return task

    def _forget(self, owner: str | None) -> None:
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]

    async def _discard(self, creating: "asyncio.Task[Task]", owner: str | None) -> None:
        """Delete a task whose caller has been cancelled."""
        try:
            with contextlib.suppress(StoreError):
                state = RunState(await creating)
                try:
                    await self._store.discard(state)
                finally:
                    self._store.release(state)
        finally:
            self._forget(owner)

    # -- one task -----------------------------------------------------------------------------------------------------

    async def _run(self, run: Run, tool: Tool) -> None:
        store = self._store
        context = store.run_context(run.task) if isinstance(store, TracedTaskStore) else nullcontext()
        try:
            with context:
                outcome = await self._outcome(run, tool)
            if not run.fenced:
                await self._settle(run, outcome)
        finally:
            self._runs.pop(run.task.task_id, None)
            run.block.runs.discard(run)
            if run.tool is None or run.tool.done():
                self._forget(run.task.owner)
            else:  # It occupies its place until it has ended.
                self._stubborn.add(run.tool)
                run.tool.add_done_callback(partial(self._ended_late, run.task.owner))
            store.release(run.state)

    def _ended_late(self, owner: str | None, tool: "asyncio.Future[Outcome]") -> None:
        self._stubborn.discard(tool)
        self._forget(owner)
        if not tool.cancelled():
            tool.exception()  # Retrieved, or asyncio would log it.

    async def _outcome(self, run: Run, tool: Tool) -> Outcome:
        """Run the tool until it ends, or must end."""
        running = run.tool = asyncio.ensure_future(tool(run))
        stopped = asyncio.create_task(run.cancelled.wait())
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
                await asyncio.wait({running}, timeout=_SETTLE_SECONDS if run.block.stopping else _CANCEL_SECONDS)
        finally:
            stopped.cancel()
            if not running.done():
                running.cancel()
        if not running.done() or (running.cancelled() and run.cancelled.is_set()):
            return run.failure
        if running.cancelled() or running.exception() is not None:  # A tool may raise CancelledError of its own.
            return ErrorData(code=INTERNAL_ERROR, message="Internal server error")
        return running.result()

    async def _settle(self, run: Run, outcome: Outcome) -> None:
        """Store the end of a task; retry until the store accepts or refuses it."""
        store = self._store
        if isinstance(outcome, ErrorData):
            outcome = _storable(outcome)
        while True:
            try:
                if isinstance(outcome, Completed):
                    settled = await store.set_completed(run.state, outcome.result)
                elif outcome is None:
                    settled = await store.set_cancelled(run.state)
                else:
                    settled = await store.set_failed(run.state, outcome)
            except StoreError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except Exception:
                if not isinstance(outcome, Completed):
                    raise
                outcome = result_unavailable("it has no JSON form")
                continue
            if settled is not Settled.FENCED and run.task.ttl_ms is not None:
                self._ended.append((time.monotonic() + _UNREAD_RATIO * run.task.ttl_ms / 1000, run.task.task_id))
                if len(self._ended) == 1:
                    self._wakeup.set()
            return

    async def request_input(self, run: Run, requests: Mapping[str, JSONObject]) -> dict[str, JSONObject]:
        """Ask the client, and wait for its answers.

        Args:
            run: The task.
            requests: Requests with `method` and `params`, by any keys.

        Returns:
            The answers, by the same keys.

        Raises:
            MCPError: The task exceeds a limit, or the client has not answered in time. It fails the task, unless the
                tool catches it.
        """
        sizes = {name: len(pydantic_core.to_json(request)) for name, request in requests.items()}
        if run.asked + len(requests) > self._max_input_requests:
            msg = f"The tool asked for input too often: a task may ask {self._max_input_requests} times"
            raise MCPError(INTERNAL_ERROR, msg)
        if run.input_bytes() + sum(sizes.values()) > self._max_input_bytes:
            msg = f"The tool asked for too much input: requests of a task may have {self._max_input_bytes} bytes"
            raise MCPError(INTERNAL_ERROR, msg)
        asked = {
            name: run.ask(request["method"], request.get("params", {}), sizes[name])
            for name, request in requests.items()
        }
        try:
            async with asyncio.timeout(self._input_timeout) as waiting:
                await self._publish_requests(run)
                return {name: await answer for name, (_, answer) in asked.items()}
        except TimeoutError:
            if not waiting.expired():
                raise
            msg = f"The client has not answered a request for input within {self._input_timeout:g} seconds"
            raise MCPError(REQUEST_TIMEOUT, msg) from None
        finally:
            for key, _ in asked.values():
                run.withdraw(key)

    async def _publish_requests(self, run: Run) -> None:
        while True:
            try:
                if await self._store.set_input_requests(run.state) is Settled.FENCED:
                    run.fenced = True
                    run.cancelled.set()
            except StoreError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            return

    # -- all tasks ----------------------------------------------------------------------------------------------------

    async def _sync_loop(self) -> None:
        """Synchronize the running tasks with the store. Without tasks, it waits."""
        while True:
            self._wakeup.clear()
            due = self._ended[0][0] - time.monotonic() if self._ended else None
            with anyio.move_on_after(self._store.sync_interval if self._runs else due):
                await self._wakeup.wait()
            try:
                await self._sync()
                await self._check_read()
            except Exception:  # noqa: BLE001 - without this loop, all tasks of the process would be declared failed
                await asyncio.sleep(_RETRY_SECONDS)

    async def _sync(self) -> None:
        runs = list(self._runs.values())
        if not runs:
            return
        states = [run.state for run in runs]
        try:
            signals = await self._store.sync(states)
        except StoreUnavailableError:
            raise
        except Exception:  # noqa: BLE001 - one task that cannot be synchronized must not affect the others
            await self._sync_each(runs)
            return
        for run, state, each in zip(runs, states, signals, strict=True):
            run.apply(each, state)

    async def _sync_each(self, runs: Sequence[Run]) -> None:
        """Synchronize tasks one by one, and leave out those that fail."""
        for run in runs:
            state = run.state
            try:
                (signals,) = await self._store.sync([state])
            except StoreUnavailableError:
                raise
            except Exception:  # noqa: BLE001, S112 - polls find that the task is not renewed
                continue
            run.apply(signals, state)

    async def _check_read(self) -> None:
        """Count the tasks that expire soon, and that no client has read."""
        now = time.monotonic()
        due = [task_id for when, task_id in islice(self._ended, _CHECKED_AT_ONCE) if when <= now]
        if due:
            await self._store.count_uncollected(due)
            for _ in due:
                self._ended.popleft()

    async def _drain(self, block: _Block) -> None:
        """Wait for the running tasks of a block, then fail those that are left."""
        if block.work:
            await asyncio.wait(block.work, timeout=self._shutdown_timeout)
        for run in tuple(block.runs):
            run.failure = worker_lost()
            run.cancelled.set()
        if block.work:
            await asyncio.wait(block.work, timeout=2 * _SETTLE_SECONDS)
        for task in tuple(block.work):
            await cancel_task(task)


def _valid(text: str) -> str:
    """A text without the surrogates that JSON from a client, or a file name, may contain. UTF-8 has none."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _storable(error: ErrorData) -> ErrorData:
    """An error that a store can write: of valid text, bounded, and without data that has no JSON form."""
    stored = ErrorData(code=error.code, message=_valid(error.message)[:MESSAGE_CHARACTERS])
    try:
        data = pydantic_core.to_json(error.data)
    except ValueError:
        return stored
    if error.data is None or len(data) > _DATA_BYTES:
        return stored
    return stored.model_copy(update={"data": error.data})
