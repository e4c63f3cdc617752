"""The task store on Redis or Valkey."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import pydantic_core

from mcp_eventscope.errors import StoreRejectedError, StoreUnavailableError
from mcp_eventscope.options import Number, check_type
from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.redis.client import is_permanent, is_refusal
from mcp_eventscope.redis.clock import boot_microseconds
from mcp_eventscope.redis.limits import MAX_TTL
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.errors import result_unavailable, too_large, worker_lost
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import (
    MAX_RESULT_BYTES,
    JSONObject,
    NewTask,
    RunSignals,
    RunState,
    Settled,
    Task,
)

T = TypeVar("T")

TASK_TTL = 3600
"""Seconds for which the result of a task is kept after its end."""
POLL_INTERVAL = 1.0
"""Seconds between polls that are suggested to clients."""
SYNC_INTERVAL = 0.5
"""Seconds within which a signal reaches its run where pub/sub does not deliver it."""
NUMBERS: Mapping[str, Number] = {
    "ttl": Number("seconds", 1, MAX_TTL, whole=True),
    "poll_interval": Number("seconds", 0.05, 3600),
    "sync_interval": Number("seconds", 0.02, 60),
    "max_result_bytes": Number("bytes", 1, 256 << 20, whole=True),
}
"""The types and ranges of the numeric options of `RedisTaskStore`."""

_ID = re.compile(r"[0-9a-f]{12}-[A-Za-z0-9_-]{43}", re.ASCII)
"""A task id: the worker that runs the task, and 256 random bits. Clients may send any text instead."""
_RANDOM_BYTES = 32
_RUNS_AT_ONCE = 256
"""Maximum number of tasks in one call, which takes Redis about a millisecond."""
_MISSED_BEATS = 3
"""Renewals that a live worker misses before a task counts as one that it no longer knows."""
_SLACK = 2000
"""Milliseconds by which a renewal may be late on a busy machine, in addition."""
_MICROSECONDS = 1_000_000
_SYNCS_PER_TTL = 2
"""Minimum number of synchronizations within a TTL: with fewer, running tasks would expire."""

_put = Script("task_put.lua")
_sync = Script("task_sync.lua")
_read = Script("task_read.lua")
_signal = Script("task_signal.lua")
_uncollected = Script("task_uncollected.lua")


@dataclass(frozen=True, slots=True)
class _Found:
    """A task as read."""

    task: Task
    silent: bool
    """Whether its worker has not renewed it for several of its periods."""


class RedisTaskStore:
    """Tasks on Redis or Valkey, which any worker reads, and one worker runs.

    The worker that runs a task is named in its id, and holds a lease. A poll that finds the lease expired declares the
    task failed; no background scan is needed. A final status is written by compare-and-set on the run and the status,
    so that it is written once. The worker of a running task keeps its whole record in memory, and creates it again if
    Redis has lost it.

    Args:
        backend: The parts that the task store shares with the event store: `RedisEventStore(redis).backend`. Its worker
            lease must be held while tasks run.
        ttl: Seconds for which a task is kept after its end. While it runs, its expiry is renewed.
        poll_interval: Seconds between polls that are suggested to clients.
        sync_interval: Maximum seconds until a cancellation or an answer reaches the tool, where pub/sub does not
            deliver it earlier: on Redis Cluster, or for a user without permission for channels.
        max_result_bytes: Maximum size of a result, in bytes of JSON. A larger one fails its task.

    Raises:
        TypeError: `backend` is no `RedisBackend`, or a number has another type.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        backend: RedisBackend,
        *,
        ttl: int = TASK_TTL,
        poll_interval: float = POLL_INTERVAL,
        sync_interval: float = SYNC_INTERVAL,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        check_type("backend", backend, RedisBackend, "a RedisBackend", "pass RedisEventStore(redis).backend")
        numbers = {
            "ttl": ttl,
            "poll_interval": poll_interval,
            "sync_interval": sync_interval,
            "max_result_bytes": max_result_bytes,
        }
        for name, value in numbers.items():
            NUMBERS[name].check(name, value)
        if sync_interval > ttl / _SYNCS_PER_TTL:
            most = f"{ttl / _SYNCS_PER_TTL:g} seconds"
            msg = f"sync_interval must be at most {most} with ttl={ttl}, got {sync_interval!r}; lower it, or raise ttl"
            raise ValueError(msg)
        self._backend = backend
        self._ttl = ttl * 1000
        self._poll = round(poll_interval * 1000)
        self._sync_interval = sync_interval
        self._max_result_bytes = max_result_bytes
        self._known: dict[str, int] = {}
        """When Redis last had each task of this process as an open one, by a clock that includes suspend."""
        self._renewed_at = 0

    @property
    def sync_interval(self) -> float:
        """Seconds between calls of `sync`; see `TaskStore`."""
        return self._sync_interval

    # -- of clients ---------------------------------------------------------------------------------------------------

    async def create(self, new: NewTask) -> Task:
        """Create a task that this process runs; see `TaskStore`.

        Raises:
            StoreUnavailableError: Redis is unreachable, or this worker's lease may have expired: other workers would
                declare the task failed.
        """
        workers = self._backend.workers
        if not (workers.holding and workers.leased) or workers.lapsed:
            msg = f"could not create a task in Redis at {self._backend.address}: the worker's lease is not renewed"
            raise StoreUnavailableError(msg)
        now = self._backend.clock.now()
        task = Task(
            f"{self._backend.worker.name}-{secrets.token_urlsafe(_RANDOM_BYTES)}",
            new.owner,
            TaskStatus.WORKING,
            now,
            now,
            self._ttl,
            self._poll,
            traceparent=new.traceparent,
        )
        run, began = RunState(task), boot_microseconds()
        await self._write(run, "create")
        self._known[task.task_id] = began
        return task

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return a task, and declare it failed if its worker is dead; see `TaskStore`."""
        found = await self._find(task_id, partial(self._read, task_id, owner))
        if found is None or not await self._abandoned(found):
            return None if found is None else found.task
        run = f"{_worker_of(task_id)}:1"
        declared = await self._call("write to", partial(self._end, task_id, run, _failed(worker_lost())))
        found = await self._find(task_id, partial(self._read, task_id, owner))
        return None if found is None else replace(found.task, orphaned=declared == b"ok")

    async def request_cancel(self, task_id: str, *, owner: str | None) -> bool:
        """Set the flag that the worker of the task reads; see `TaskStore`."""
        return bool(await self._find(task_id, partial(self._signal, task_id, owner, ["cancel"])))

    async def resolve_input_requests(
        self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
    ) -> bool:
        """Store answers, which the worker of the task reads; see `TaskStore`."""
        texts = [text for key, answer in responses.items() for text in (key, pydantic_core.to_json(answer))]
        return bool(await self._find(task_id, partial(self._signal, task_id, owner, ["answer", *texts])))

    async def _find(self, task_id: str, access: Callable[[], Awaitable[T | None]]) -> T | None:
        """Access a task, and make sure of its absence.

        Args:
            task_id: The task.
            access: Returns None if Redis does not have the task.

        Returns:
            The result of `access`; None if the task is unknown.

        Raises:
            StoreUnavailableError: It is absent, but Redis may have lost it, and its worker may create it again.
        """
        if _ID.fullmatch(task_id) is None:
            return None
        for last in (False, True):
            if (found := await access()) is not None:
                return found
            dead, certain = await self._is_dead(_worker_of(task_id))
            if not certain:
                msg = f"could not find a task in Redis at {self._backend.address}: its data may not be complete yet"
                raise StoreUnavailableError(msg)
            if dead:
                break
            # A record that Redis has lost alone (evicted, or on a failed node of a cluster) is created again by the
            # next `sync` of its worker. So an id that was never given out is refused later if it names a live worker.
            if not last:
                await asyncio.sleep(2 * self._sync_interval)
        return None

    async def _read(self, task_id: str, owner: str | None) -> _Found | None:
        keys = self._keys(task_id)
        reply = await self._call("read from", lambda: _read(self._backend.redis, keys, [_digest(owner)]))
        if not reply:
            return None
        now, expires_in, first, result, *texts = reply
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        try:
            # The worker that runs the task may have other options than this one.
            silence = int(fields[b"ttl"]) - expires_in
            longest = _MISSED_BEATS * int(fields[b"beat"]) + _SLACK
            return _Found(_task(task_id, owner, fields, result, now, first=bool(first)), silence > longest)
        except (ValueError, KeyError):  # Damaged: as if lost, like one whose key has another type.
            return None

    async def _signal(self, task_id: str, owner: str | None, texts: Sequence[str | bytes]) -> bool | None:
        keys = self._backend.keys
        channel = keys.task_signals(_worker_of(task_id))
        args = [_digest(owner), channel, *texts]
        function = partial(_signal, self._backend.redis, self._keys(task_id)[:1], args)
        return True if await self._call("write to", function) else None

    async def _abandoned(self, found: _Found) -> bool:
        """Whether the worker of an open task is dead, or no longer knows the task."""
        if found.task.status.final or found.task.task_id in self._known:
            return False
        dead, certain = await self._is_dead(_worker_of(found.task.task_id))
        # After a rollback of Redis, a task may be open whose end its worker has stored.
        return certain and (dead or found.silent)

    async def _is_dead(self, worker: str) -> tuple[bool, bool]:
        """Whether the lease of a worker has expired, and whether that is certain.

        It is uncertain for the length of a lease after an outage, and after the start of this worker, which cannot
        know of an earlier outage.
        """
        workers = self._backend.workers
        self._check_reachable("read from")
        with _temporary_refusals():
            dead = await workers.expired({worker})
        return bool(dead), not (workers.uncertain or workers.started_recently)

    # -- of runs ------------------------------------------------------------------------------------------------------

    async def set_input_requests(self, run: RunState) -> Settled:
        """Store the requests for input of a run; see `TaskStore`."""
        texts = [text for key, request in run.input_requests.items() for text in (key, pydantic_core.to_json(request))]
        return await self._write(run, "ask", texts)

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete a task, or fail it if its result is too large; see `TaskStore`."""
        payload = pydantic_core.to_json(result)
        if len(payload) > self._max_result_bytes:
            failed = await self.set_failed(run, too_large(len(payload), self._max_result_bytes))
            return Settled.TOO_LARGE if failed is Settled.STORED else failed
        try:
            return await self._write(run, "end", ["status", TaskStatus.COMPLETED], payload)
        except StoreRejectedError as error:
            if not is_refusal(error.__cause__ or error):
                raise
        # Such as a service that limits the size of a command. It would refuse the result again.
        failed = await self.set_failed(run, result_unavailable(f"Redis refused its {len(payload)} bytes of JSON"))
        return Settled.TOO_LARGE if failed is Settled.STORED else failed

    async def set_failed(self, run: RunState, error: ErrorData) -> Settled:
        """Fail a task; see `TaskStore`."""
        return await self._write(run, "end", _failed(error))

    async def set_cancelled(self, run: RunState) -> Settled:
        """Cancel a task; see `TaskStore`."""
        return await self._write(run, "end", ["status", TaskStatus.CANCELLED])

    async def discard(self, run: RunState) -> None:
        """Delete a task; see `TaskStore`."""
        keys = [key.encode() for key in self._keys(run.task.task_id)]
        await self._call("write to", lambda: self._backend.redis.execute_command("UNLINK", *keys))

    def release(self, run: RunState) -> None:
        """Forget a task; see `TaskStore`."""
        self._known.pop(run.task.task_id, None)

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Publish progress, renew expiries, and read signals in one call for all tasks; see `TaskStore`."""
        began = boot_microseconds()
        renews = began - self._renewed_at >= self._beat * 1000
        signals: list[RunSignals] = []
        for start in range(0, len(runs), _RUNS_AT_ONCE):
            signals += await self._sync_some(runs[start : start + _RUNS_AT_ONCE], began, renews=renews)
        if renews:
            self._renewed_at = began
        return signals

    async def _sync_some(self, runs: Sequence[RunState], began: int, *, renews: bool) -> list[RunSignals]:
        keys = [self._keys(run.task.task_id)[0] for run in runs]
        args: list[str | bytes | int] = [self._ttl if renews else ""]
        for run in runs:
            args += [_run_of(run), run.status_message]
            args += [len(run.input_requests), *run.input_requests, len(run.received), *run.received]
        replies = await self._call("write to", lambda: _sync(self._backend.redis, keys, args))
        signals = []
        for run, (state, cancel, *answers) in zip(runs, replies, strict=True):
            if state == b"absent":
                signals.append(RunSignals(fenced=await self._write(run, "keep") is Settled.FENCED))
                continue
            if state == b"open":
                self._known[run.task.task_id] = began
            age = None if cancel == b"" else cancel / _MICROSECONDS
            responses = _responses(answers)
            signals.append(RunSignals(state == b"fenced", age, responses))
        return signals

    async def count_uncollected(self, task_ids: Sequence[str]) -> int:
        """Count the tasks that ended unread; see `TaskStore`."""
        keys = [self._keys(task_id)[0] for task_id in task_ids]
        return int(await self._call("read from", lambda: _uncollected(self._backend.redis, keys, [])))

    def on_signal(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Subscribe to the signals of this worker; see `TaskStore`.

        Raises:
            RuntimeError: The worker's lease is not held.
        """
        backend = self._backend
        if not backend.workers.holding:
            msg = (
                "the worker lease must be held while tasks run, got a backend without one, so that other workers "
                "would declare the tasks failed; run the tasks within the lifespan of http_app()"
            )
            raise RuntimeError(msg)
        channel = backend.keys.task_signals(backend.worker.name)

        def listener(_: bytes | None) -> None:
            wake()

        backend.pubsub.subscribe(channel, listener)
        return lambda: backend.pubsub.unsubscribe(channel, listener)

    # -- writing ------------------------------------------------------------------------------------------------------

    @property
    def _beat(self) -> int:
        """Milliseconds between renewals of running tasks."""
        return round(max(min(self._backend.workers.lease * 1000, self._ttl / 6), self._sync_interval * 1000))

    async def _write(self, run: RunState, verb: str, texts: Sequence[str | bytes] = (), result: bytes = b"") -> Settled:
        """Write a change of a task that this process runs. A record that Redis has lost is created again."""
        task_id, began, whole = run.task.task_id, boot_microseconds(), self._whole(run)
        known = self._known.get(task_id, began)
        if verb != "create" and began - known >= self._ttl * 1000:
            # Another worker may have declared it failed so long ago that its record has expired.
            whole = []
        function = partial(self._put, task_id, _run_of(run), verb, whole, texts, result)
        if await self._call("write to", function) != b"ok":
            return Settled.FENCED
        if verb in {"keep", "ask"}:
            self._known[task_id] = began
        return Settled.STORED

    async def _end(self, task_id: str, run: str, texts: Sequence[str | bytes]) -> bytes:
        """End a task of another worker."""
        return await self._put(task_id, run, "end", [], texts, b"")

    async def _put(  # noqa: PLR0913, PLR0917 - the script's arguments
        self,
        task_id: str,
        run: str,
        verb: str,
        whole: Sequence[str | bytes | int],
        texts: Sequence[str | bytes],
        result: bytes,
    ) -> bytes:
        args = [self._ttl, run, verb, self._backend.worker.name, result, len(whole), *whole, *texts]
        reply: bytes = await _put(self._backend.redis, self._keys(task_id), args)
        return reply

    def _whole(self, run: RunState) -> list[str | bytes | int]:
        """The fields and values of a record."""
        task, asked = run.task, len(run.input_requests)
        fields: dict[str, str | bytes | int] = {
            "owner": _digest(task.owner),
            "run": _run_of(run),
            "status": TaskStatus.INPUT_REQUIRED if asked else TaskStatus.WORKING,
            "created": task.created_at,
            "ttl": self._ttl,
            "beat": self._beat,
            "poll": task.poll_interval_ms,
            "message": run.status_message,
            "trace": task.traceparent,
            "asked": asked,
        }
        fields |= {f"r:{key}": pydantic_core.to_json(request) for key, request in run.input_requests.items()}
        return [text for pair in fields.items() for text in pair]

    def _keys(self, task_id: str) -> list[str]:
        worker, _, name = task_id.partition("-")
        keys = self._backend.keys
        return [keys.task(worker, name), keys.task_result(worker, name)]

    async def _call(self, operation: str, function: Callable[[], Awaitable[T]]) -> T:
        """Call Redis, unless it is known to be unreachable.

        Raises:
            StoreUnavailableError: Redis was not reached, or refuses such calls for now.
            StoreRejectedError: Redis would refuse the same call again.
        """
        self._check_reachable(operation)
        with _temporary_refusals():
            return await self._backend.call(operation, function)

    def _check_reachable(self, operation: str) -> None:
        backend = self._backend
        if backend.breaker.unreachable:
            msg = f"could not {operation} Redis at {backend.address}: unreachable ({backend.breaker.reason})"
            raise StoreUnavailableError(msg)


@contextmanager
def _temporary_refusals() -> Iterator[None]:
    """Treat a refusal that ends with a failover, or when memory is free, as an outage: clients repeat the request."""
    try:
        yield
    except StoreRejectedError as error:
        if is_permanent(error):
            raise
        raise StoreUnavailableError(str(error)) from error.__cause__


def _responses(texts: Sequence[bytes]) -> dict[str, JSONObject]:
    """The answers of a client, without damaged ones."""
    responses: dict[str, JSONObject] = {}
    for key, text in zip(texts[::2], texts[1::2], strict=True):
        with suppress(ValueError):
            answer = pydantic_core.from_json(text)
            if isinstance(answer, dict):
                responses[key.decode()] = answer
    return responses


def _worker_of(task_id: str) -> str:
    """The worker that runs a task."""
    return task_id.partition("-")[0]


def _run_of(run: RunState) -> str:
    """The fence: the worker and the number of the attempt. A task is never run twice, so the latter is 1."""
    return f"{_worker_of(run.task.task_id)}:1"


def _digest(owner: str | None) -> str:
    """The owner as stored: Redis holds no identities."""
    return "" if owner is None else hashlib.sha256(owner.encode()).hexdigest()


def _failed(error: ErrorData) -> list[str | bytes]:
    text = error.model_dump_json(by_alias=True, exclude_none=True)
    return ["status", TaskStatus.FAILED, "error", text, "message", error.message]


def _task(  # noqa: PLR0913 - the parts of the script's reply
    task_id: str, owner: str | None, fields: Mapping[bytes, bytes], result: bytes, now: int, *, first: bool
) -> Task:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    def number(name: bytes) -> int:
        return int(fields.get(name) or 0)

    status, created, ended = TaskStatus(text(b"status")), number(b"created"), number(b"ended")
    requests = {
        name[2:].decode(): pydantic_core.from_json(value) for name, value in fields.items() if name.startswith(b"r:")
    }
    error = ErrorData.model_validate_json(fields[b"error"]) if b"error" in fields else None
    content: Any = pydantic_core.from_json(result) if result else None
    if status is TaskStatus.COMPLETED and content is None:
        error = result_unavailable("Redis no longer stores it")
    return Task(
        task_id,
        owner,
        status,
        created,
        number(b"updated"),
        ((ended or now) - created) // 1000 + number(b"ttl"),
        number(b"poll"),
        text(b"message"),
        requests if status is TaskStatus.INPUT_REQUIRED else {},
        content,
        error,
        text(b"trace"),
        max(0, now - ended) / _MICROSECONDS if first else None,
    )
