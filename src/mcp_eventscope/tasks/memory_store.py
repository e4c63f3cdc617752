"""The reference task store, in the memory of one process."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pydantic_core

from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.errors import too_large
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import MAX_RESULT_BYTES, JSONObject, NewTask, RunSignals, RunState, Settled, Task

_MICROSECONDS = 1_000_000


@dataclass(slots=True)
class _Record:
    task: Task
    cancel_requested_at: int | None = None
    answers: dict[str, JSONObject] = field(default_factory=dict)
    ended_at: int | None = None
    seen: bool = False


class InMemoryTaskStore:
    """Tasks of one process, for tests and for servers with one worker. Tasks end with the process.

    Args:
        ttl: Seconds for which a task is kept after its end.
        poll_interval: Seconds between polls that are suggested to clients.
        sync_interval: Maximum seconds until progress is published. Signals reach a run immediately.
        max_result_bytes: Maximum size of a result, in bytes of JSON.
    """

    def __init__(
        self,
        *,
        ttl: float = 3600,
        poll_interval: float = 1.0,
        sync_interval: float = 0.5,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        self._ttl = round(ttl * 1000)
        self._poll = round(poll_interval * 1000)
        self._sync_interval = sync_interval
        self._max_result_bytes = max_result_bytes
        self._records: dict[str, _Record] = {}
        self._wakes: list[Callable[[], None]] = []

    @property
    def sync_interval(self) -> float:
        """Seconds between calls of `sync`; see `TaskStore`."""
        return self._sync_interval

    async def create(self, new: NewTask) -> Task:
        """Create a task; see `TaskStore`."""
        self._purge()
        now = _now()
        task = Task(
            secrets.token_urlsafe(32),
            new.owner,
            TaskStatus.WORKING,
            now,
            now,
            self._ttl,
            self._poll,
            traceparent=new.traceparent,
        )
        self._records[task.task_id] = _Record(task)
        return task

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return a task; see `TaskStore`."""
        record = self._find(task_id, owner)
        if record is None:
            return None
        now, ended = _now(), record.ended_at
        ttl = ((ended or now) - record.task.created_at) // 1000 + self._ttl
        first = ended is not None and not record.seen
        record.seen = ended is not None
        age = max(0, now - ended) / _MICROSECONDS if first and ended is not None else None
        return replace(record.task, ttl_ms=ttl, collected_after=age)

    async def request_cancel(self, task_id: str, *, owner: str | None) -> bool:
        """Note the cancellation, and wake the runs; see `TaskStore`."""
        record = self._find(task_id, owner)
        if record is not None and not record.task.status.final and record.cancel_requested_at is None:
            record.cancel_requested_at = _now()
            self._wake()
        return record is not None

    async def resolve_input_requests(
        self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
    ) -> bool:
        """Note the answers, and wake the runs; see `TaskStore`."""
        record = self._find(task_id, owner)
        if record is None or record.task.status.final:
            return record is not None
        answered = {key: answer for key, answer in responses.items() if key in record.task.input_requests}
        if answered:
            record.answers |= answered
            self._ask(record, {k: v for k, v in record.task.input_requests.items() if k not in answered})
            self._wake()
        return True

    async def set_input_requests(self, run: RunState) -> Settled:
        """Note the requests for input; see `TaskStore`."""
        record = self._open(run)
        if record is None:
            return Settled.FENCED
        new = {key: request for key, request in run.input_requests.items() if key not in record.answers}
        self._ask(record, {**record.task.input_requests, **new})
        return Settled.STORED

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete a task; see `TaskStore`."""
        payload = pydantic_core.to_json(result)
        if len(payload) > self._max_result_bytes:
            failed = await self.set_failed(run, too_large(len(payload), self._max_result_bytes))
            return Settled.TOO_LARGE if failed is Settled.STORED else failed
        return self._end(run, TaskStatus.COMPLETED, result=pydantic_core.from_json(payload))

    async def set_failed(self, run: RunState, error: ErrorData) -> Settled:
        """Fail a task; see `TaskStore`."""
        return self._end(run, TaskStatus.FAILED, error=error, message=error.message)

    async def set_cancelled(self, run: RunState) -> Settled:
        """Cancel a task; see `TaskStore`."""
        return self._end(run, TaskStatus.CANCELLED)

    async def discard(self, run: RunState) -> None:
        """Delete a task; see `TaskStore`."""
        self._records.pop(run.task.task_id, None)

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Publish progress, and return signals; see `TaskStore`."""
        signals = []
        for run in runs:
            record = self._open(run)
            if record is None:
                signals.append(RunSignals(fenced=True))
                continue
            if run.status_message != record.task.status_message:
                record.task = replace(record.task, status_message=run.status_message, updated_at=_now())
            if withdrawn := record.task.input_requests.keys() & run.received:
                self._ask(record, {k: v for k, v in record.task.input_requests.items() if k not in withdrawn})
                record.answers |= {key: {} for key in withdrawn}
            answers = {key: record.answers[key] for key in run.input_requests if key in record.answers}
            requested = record.cancel_requested_at
            age = None if requested is None else max(0, _now() - requested) / _MICROSECONDS
            signals.append(RunSignals(cancel_age=age, input_responses=answers))
        return signals

    async def count_uncollected(self, task_ids: Sequence[str]) -> int:
        """Count the tasks that ended unread; see `TaskStore`."""
        records = [self._records[task_id] for task_id in task_ids if task_id in self._records]
        return sum(record.ended_at is not None and not record.seen for record in records)

    def release(self, run: RunState) -> None:
        """Do nothing: there is no other process."""

    def on_signal(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Register a callback; see `TaskStore`."""
        self._wakes.append(wake)
        return lambda: self._wakes.remove(wake)

    def _find(self, task_id: str, owner: str | None) -> _Record | None:
        record = self._records.get(task_id)
        return None if record is None or record.task.owner != owner or self._expired(record) else record

    def _open(self, run: RunState) -> _Record | None:
        record = self._records.get(run.task.task_id)
        return None if record is None or record.task.status.final else record

    def _ask(self, record: _Record, requests: Mapping[str, JSONObject]) -> None:
        status = TaskStatus.INPUT_REQUIRED if requests else TaskStatus.WORKING
        record.task = replace(record.task, status=status, input_requests=requests, updated_at=_now())

    def _end(
        self,
        run: RunState,
        status: TaskStatus,
        *,
        result: JSONObject | None = None,
        error: ErrorData | None = None,
        message: str | None = None,
    ) -> Settled:
        record = self._records.get(run.task.task_id)
        if record is None:
            return Settled.FENCED
        if record.task.status.final:  # A repetition by the same run has the same end.
            return Settled.STORED if record.task.status is status else Settled.FENCED
        record.ended_at = now = _now()
        record.task = replace(
            record.task,
            status=status,
            updated_at=now,
            status_message=run.status_message if message is None else message,
            input_requests={},
            result=result,
            error=error,
        )
        return Settled.STORED

    def _purge(self) -> None:
        """Delete expired tasks. Records are in the order of creation, ends are not, hence the full scan."""
        for task_id in [task_id for task_id, record in self._records.items() if self._expired(record)]:
            del self._records[task_id]

    def _expired(self, record: _Record) -> bool:
        return record.ended_at is not None and record.ended_at < _now() - self._ttl * 1000

    def _wake(self) -> None:
        for wake in tuple(self._wakes):
            wake()


def _now() -> int:
    return time.time_ns() // 1000
