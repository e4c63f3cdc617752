"""Answers in Redis: each takes effect once, and its outcome is served again."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import anyio
from mcp.shared.exceptions import MCPError

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.request_state import outcomes
from mcp_eventscope.request_state.facts import (
    AnswerEnd,
    AnswerEnded,
    AnswerRepeated,
    RequestStateFact,
    StateRefusal,
    StateRefused,
    WorkerLost,
)

_claim = Script("state_claim.lua")
_settle = Script("state_settle.lua")
_restore = Script("state_restore.lua")

RETAINED_BYTES = 16 * 1024 * 1024
"""Maximum size of the outcomes that a process retains, to record them later or again."""
_POLL_SECONDS = (0.02, 0.5)
"""The first and the longest pause between two looks at an answer that is being processed elsewhere."""
RETAINED_ANSWERS = 100_000
"""Maximum number of answers that a process retains."""
RESTORE_SECONDS = 10.0
"""Seconds for which other workers wait for the next batch of restored answers."""
_BATCH_ANSWERS = 256
_BATCH_BYTES = 1024 * 1024
"""Bounds of a batch: Redis writes it in about a millisecond."""

_ERRORS: Mapping[StateRefusal, Callable[[], MCPError]] = {
    StateRefusal.OTHER_ANSWER: outcomes.other_answer,
    StateRefusal.IN_PROGRESS: outcomes.in_progress,
    StateRefusal.UNAVAILABLE: partial(outcomes.unavailable, StateRefusal.UNAVAILABLE),
}

T = TypeVar("T")


class Keeper(Protocol):
    """Knows whether Redis is reachable, and whether it has lost data."""

    epoch_key: str
    epoch: tuple[str, int]
    """The epoch of the data in Redis, and the number of the last call in it."""

    async def confirm(self, until: float) -> bool:
        """Wait until Redis is reachable and its data is confirmed. False: not before `until` (monotonic)."""
        ...

    def doubt(self) -> None:
        """Confirm the data again: Redis may have lost some."""
        ...


@dataclass(slots=True)
class _Run:
    """An answer that this process has claimed."""

    state: str
    answer: str
    name: str
    expires: float
    """When no state with this answer is valid any more, on the monotonic clock."""
    outcome: bytes = b""
    """Empty while it runs."""
    recorded: bool = False
    """Whether Redis has acknowledged the outcome."""
    doubtful: bool = False
    """Whether Redis may have taken the claim although its reply was not read."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def milliseconds(self) -> int:
        """The time until the end of the state's validity."""
        return max(0, round((self.expires - time.monotonic()) * 1000))


class RedisAnswers:
    """Claims and records answers by compare-and-set, with the run that claimed an answer as the fence.

    Args:
        backend: The Redis that all workers share.
        keeper: Knows the state of Redis.
        lifetime: Seconds after which no state that exists now is valid any more.
        wait_timeout: Maximum seconds that an answer waits: for Redis, or for the outcome of its first use.
        emit: Called with each fact. It does not raise.
    """

    def __init__(
        self,
        backend: RedisBackend,
        keeper: Keeper,
        lifetime: float,
        wait_timeout: float,
        emit: Callable[[RequestStateFact], None],
    ) -> None:
        self._backend = backend
        self._keeper = keeper
        self._lifetime = lifetime
        self._wait_timeout = wait_timeout
        self._emit = emit
        self._numbers = itertools.count(1)
        self._runs: dict[str, _Run] = {}
        """By state, oldest first. They are served from memory, and written again where Redis has lost them."""
        self._bytes = 0
        self._abandoned: list[_Run] = []
        """Claims that may have reached Redis, and were not used."""
        self._tasks: set[asyncio.Task[bytes]] = set()
        self.announcement = secrets.token_hex(8)
        """The name under which this process announces in Redis that it writes answers again."""

    async def claim(self, state: str, answer: str) -> "bytes | _Claim":
        """Claim an answer; see `Answers.claim`."""
        began = time.monotonic()
        until = began + self._wait_timeout
        name = f"{self._backend.worker.name}-{next(self._numbers)}"
        run = _Run(state, answer, name, began + self._lifetime)
        pause, longest = _POLL_SECONDS
        try:
            while isinstance(found := await self._attempt(run, until), StateRefusal):
                if found is StateRefusal.OTHER_ANSWER or time.monotonic() >= until:
                    self._emit(StateRefused(found))
                    error = _ERRORS[found]()
                    raise error
                await anyio.sleep(pause)
                pause = min(2 * pause, longest)
        finally:
            if run.doubtful:
                self._abandoned.append(run)
        if isinstance(found, bytes):
            self._emit(AnswerRepeated(time.monotonic() - began))
        return found

    async def _attempt(self, run: _Run, until: float) -> "bytes | _Claim | StateRefusal":
        """Try once to claim an answer. Returns a reason where it must be tried again, or is refused."""
        own = self._runs.get(run.state)
        if own is not None and own.milliseconds:
            return await self._from_memory(own, run.answer, until)
        if not await self._keeper.confirm(until):
            return StateRefusal.UNAVAILABLE
        entry = await self._entry(run, until)
        if entry is None:
            return StateRefusal.UNAVAILABLE
        holder, worker, answer, outcome = entry
        run.doubtful = False
        if holder == run.name:
            self._runs[run.state] = run
            self._drop()
            return _Claim(self, run)
        if answer != run.answer:
            return StateRefusal.OTHER_ANSWER
        if not outcome and worker and await self._is_dead(worker):
            outcome = await self._orphan(run.state, holder, worker)
        return outcome or StateRefusal.IN_PROGRESS

    @staticmethod
    async def _from_memory(run: _Run, answer: str, until: float) -> bytes | StateRefusal:
        if run.answer != answer:
            return StateRefusal.OTHER_ANSWER
        with anyio.move_on_after(max(0.0, until - time.monotonic())):
            await run.ended.wait()
        return run.outcome or StateRefusal.IN_PROGRESS

    async def _entry(self, run: _Run, until: float) -> tuple[str, str, str, bytes] | None:
        """Claim an answer unless it is claimed. Returns the run, worker, answer and outcome; None: Redis failed."""
        worker = self._backend.worker.name if self._backend.workers.leased else ""
        epoch, calls = self._keeper.epoch
        args = (run.name, worker, run.answer, run.milliseconds, epoch, calls)
        keys = [self._backend.keys.answer(run.state), self._keeper.epoch_key]
        run.doubtful = True
        with (
            anyio.move_on_after(max(self._backend.breaker.call_timeout, until - time.monotonic())),
            contextlib.suppress(StoreError),
        ):
            reply: list[bytes] = await self._call(lambda: _claim(self._backend.redis, keys, args))
            if not reply:
                run.doubtful = False
                self._keeper.doubt()
                return None
            holder, found, answer, outcome, number = reply
            if int(number) and self._keeper.epoch[0] == epoch:
                self._keeper.epoch = (epoch, max(int(number), self._keeper.epoch[1]))
            # Damaged texts are no run, no worker and no answer.
            return _text(holder), _text(found), _text(answer), outcome
        return None

    async def _is_dead(self, worker: str) -> bool:
        """Whether a worker has certainly lost its lease. A young worker does not know of earlier outages."""
        workers = self._backend.workers
        if workers.started_recently:
            return False
        try:
            return worker in await workers.expired({worker})
        except StoreError:
            return False

    async def _orphan(self, state: str, run: str, worker: str) -> bytes:
        """Answer in place of a dead worker, which cannot record an outcome from now on.

        Returns:
            The outcome that stands; empty if Redis failed, or has lost the entry.
        """
        args = (run, outcomes.worker_lost(), "", 0)
        key = self._backend.keys.answer(state)
        with contextlib.suppress(StoreError):
            stands: bytes = await self._call(lambda: _settle(self._backend.redis, [key], args))
            if stands == args[1]:
                self._emit(WorkerLost(worker))
                self._emit(AnswerEnded(AnswerEnd.WORKER_LOST, None))
            return stands
        return b""

    async def settle(self, run: _Run, outcome: bytes) -> bytes:
        """Record an outcome. An unreachable Redis is not waited for: it is recorded later.

        Returns:
            The outcome that stands.
        """
        run.outcome = outcome
        self._bytes += len(outcome)
        # In a task, since the request may be cancelled natively.
        task = asyncio.create_task(self._record(run), name="eventscope-answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with anyio.move_on_after(0 if self._backend.breaker.unreachable else self._backend.breaker.call_timeout):
                await asyncio.wait({task})
            if task.done() and not task.cancelled():
                self._serve_instead(run, task.result())
        finally:
            run.ended.set()
            self._drop()
        return run.outcome

    async def _record(self, run: _Run) -> bytes:
        """Write an outcome to Redis. Returns the one that stands."""
        key = self._backend.keys.answer(run.state)
        args = (run.name, run.outcome, run.answer, run.milliseconds)
        with contextlib.suppress(StoreError):
            stands: bytes = await self._call(lambda: _settle(self._backend.redis, [key], args))
            run.recorded = True
            return stands or run.outcome
        return run.outcome

    def _serve_instead(self, run: _Run, outcome: bytes) -> None:
        self._bytes += len(outcome) - len(run.outcome)
        run.outcome = outcome

    async def flush(self) -> None:
        """Record what could not be recorded, and give abandoned claims up. It stops at the first failure."""
        for run in [run for run in self._runs.values() if run.outcome and not run.recorded]:
            self._serve_instead(run, await self._record(run))
            if not run.recorded:
                return
        while self._abandoned:
            run = self._abandoned[0]
            if not run.milliseconds:
                del self._abandoned[0]
                continue
            key = self._backend.keys.answer(run.state)
            args = (run.name, b"", run.answer, run.milliseconds)
            try:
                await self._call(partial(_settle, self._backend.redis, [key], args))
            except StoreError:
                return
            del self._abandoned[0]
        self._drop()

    async def restore(self) -> int:
        """Write those answers of this process again that Redis may have lost, newest first.

        Other workers wait for the last batch: each announces the next one.

        Returns:
            The number of answers.

        Raises:
            StoreError: A write failed.
        """
        runs = [run for run in reversed(self._runs.values()) if run.milliseconds]
        worker = self._backend.worker.name if self._backend.workers.leased else ""
        batches = list(_batches(runs)) or [[]]
        for number, batch in enumerate(batches, 1):
            keys = [self._keeper.epoch_key, *(self._backend.keys.answer(run.state) for run in batch)]
            announced = round(RESTORE_SECONDS * 1000) if number < len(batches) else 0
            args: list[str | bytes | int] = [self.announcement, announced]
            for run in batch:
                args += (run.name, "" if run.outcome else worker, run.answer, run.milliseconds, run.outcome)
            await self._call(partial(_restore, self._backend.redis, keys, args))
        return len(runs)

    def _drop(self) -> None:
        """Forget answers whose states have expired, and the oldest outcomes beyond the bound."""
        size, count, dropped = self._bytes, len(self._runs), []
        for run in self._runs.values():
            if run.milliseconds and size <= RETAINED_BYTES and count <= RETAINED_ANSWERS:
                break
            if run.outcome:
                dropped.append(run)
                size, count = size - len(run.outcome), count - 1
        for run in dropped:
            del self._runs[run.state]
        self._bytes = size

    async def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        return await self._backend.call("record an answer in", function)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _batches(runs: Sequence[_Run]) -> Iterator[list[_Run]]:
    """Split answers into batches of bounded number and size."""
    batch: list[_Run] = []
    size = 0
    for run in runs:
        if batch and (len(batch) >= _BATCH_ANSWERS or size + len(run.outcome) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(run)
        size += len(run.outcome)
    if batch:
        yield batch


class _Claim:
    """The first use of an answer; see `Answer`."""

    def __init__(self, answers: RedisAnswers, run: _Run) -> None:
        self._answers = answers
        self._run = run

    async def settle(self, outcome: bytes) -> bytes:
        """Record its outcome; see `Answer.settle`."""
        return await self._answers.settle(self._run, outcome)
