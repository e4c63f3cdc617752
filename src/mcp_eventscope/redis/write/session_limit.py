"""Bound the bytes of a session in Redis by evicting its oldest events."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from functools import partial
from itertools import count, product
from typing import Annotated, NamedTuple, TypeVar

import pydantic_core
from pydantic import Field, TypeAdapter

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, call, is_permanent
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.element import LARGE_PAYLOAD
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.runs import Run, SessionQueue
from mcp_eventscope.store.events import EventsLost, LossReason, SessionSized

ELEMENT_BYTES, RUN_BYTES = 24, 200
"""Bytes of an element besides its payload, and of a run besides its elements."""
ENTRY_RUNS = 32
"""Stored runs that a process adds to the session's size in Redis at a time. Until then only its memory has them."""
ENTRY_BYTES = 1 << 20
"""Stored bytes after which a process does so earlier; a 64th of the limit if that is less."""
RETRY_SECONDS = 1.0
"""Seconds until a retry after a failure of Redis."""
_PAGE = 4
"""Entries that are read and changed in one step, which takes Redis about a millisecond."""
_MICROSECONDS = 1_000_000

_Number = Annotated[int, Field(ge=0, lt=1 << 53)]
"""A number within the range of Lua's arithmetic."""
_ROWS = TypeAdapter(list[tuple[str, str, _Number, _Number, _Number, tuple[_Number, ...]]])
"""The rows of an entry: the fields of `_Piece`."""

T = TypeVar("T")
_account = Script("account.lua")
_evict = Script("evict.lua")


class SessionLimit:
    """Accounts for the bytes of sessions in the background, and evicts events beyond the limit.

    A process accounts for several runs of a session at a time, when they have ended or grown. A session therefore uses
    at most the limit plus one 64th of it per worker. An eviction frees bytes until seven eighths of the limit remain.

    Args:
        redis: The client.
        worker: This process.
        clock: The clock of event ids.
        ttl: Seconds that keys are kept; None: no expiry.
        breaker: The circuit breaker of the store.
        observers: Called with the size of each session that was accounted for, and with each eviction.
        max_bytes: Maximum bytes of a session.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        redis: AnyRedis,
        worker: WorkerId,
        clock: EventClock,
        ttl: int | None,
        breaker: CircuitBreaker,
        observers: Observers,
        max_bytes: int,
    ) -> None:
        self._redis = redis
        self._worker = worker
        self._clock = clock
        self._ttl = ttl
        self._breaker = breaker
        self._observers = observers
        self._max_bytes = max_bytes
        self._entry_bytes = min(ENTRY_BYTES, max_bytes // 64)
        self._most_larges = max_bytes // LARGE_PAYLOAD
        """Maximum number of large payloads of a run in Redis: the limit evicts older ones."""
        self._names = count()
        self._entries: deque[tuple[Keys, str, int, bytes]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    def stored(self, run: Run, last: int, size: int, response: int, larges: Sequence[int]) -> None:
        """Record acknowledged events of a run.

        Args:
            run: The run.
            last: The number of the last event.
            size: Bytes of the events, without the response.
            response: Bytes of the response, or 0 if it is not among the events.
            larges: The numbers of the events whose payload has a separate key.
        """
        session = run.session
        run.unaccounted += size
        run.larges += larges
        if len(run.larges) > 2 * self._most_larges:  # Several at a time, because the deletion takes linear time.
            evicted = min(len(run.larges) - self._most_larges, run.larges_accounted)
            del run.larges[:evicted]
            run.larges_accounted -= evicted
        session.unaccounted += size
        session.unrecorded[run] = last
        if response:
            session.unaccounted += response + RUN_BYTES
            self._add_piece(run, response + RUN_BYTES)
        if len(session.pieces) >= ENTRY_RUNS or session.unaccounted >= self._entry_bytes:
            self.account(session)

    @staticmethod
    def _add_piece(run: Run, response: int) -> None:
        """Record the events of a run that were stored since its last piece."""
        session = run.session
        last, larges = session.unrecorded.pop(run), run.larges[run.larges_accounted :]
        row = pydantic_core.to_json((run.stream, run.name, last, run.unaccounted, response, larges))
        session.pieces.append((run.unaccounted + response, row))
        run.unaccounted, run.larges_accounted = 0, len(run.larges)

    def account(self, session: SessionQueue) -> None:
        """Start accounting in Redis for the events that a session has stored here."""
        for run in tuple(session.unrecorded):
            self._add_piece(run, 0)
        pieces = session.pieces
        session.pieces, session.unaccounted = [], 0
        for start in range(0, len(pieces), ENTRY_RUNS):
            some = pieces[start : start + ENTRY_RUNS]
            name = f"{self._clock.now():016d}-{self._worker.name}-{next(self._names)}"
            size = sum(size for size, _ in some)
            self._entries.append((session.keys, name, size, b"%d [%b]" % (size, b",".join(row for _, row in some))))
        self._start()

    def _start(self) -> None:
        self._cancel_retry()
        if self._entries and self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="eventscope-limit", context=contextvars.Context())

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def drain(self, seconds: float) -> None:
        """Finish pending entries for at most `seconds`, and end the background task.

        The remaining entries are finished if the store is used again.
        """
        self._start()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
        if self._task is not None:
            await cancel_task(self._task)
        self._cancel_retry()

    async def _run(self) -> None:
        try:
            while self._entries:
                entry = self._entries.popleft()
                try:
                    await self._take(*entry)
                except StoreError as error:
                    if is_permanent(error):
                        continue  # Another program uses the key, or the Redis user lacks a permission.
                    self._entries.append(entry)  # Last, because the others may be on another node of a cluster.
                    self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._start)
                    return
                except asyncio.CancelledError:
                    self._entries.append(entry)
                    raise
        finally:
            self._task = None

    async def _take(self, keys: Keys, name: str, size: int, value: bytes) -> None:
        """Account for an entry, and evict events if the session exceeds the limit. Idempotent.

        If the entry was evicted meanwhile, it is created again without events, and removed by the next eviction.
        """
        total: int = await self._script(_account, [keys.sizes, keys.session], [self._ttl or 0, name, size, value])
        if total:
            self._observers.emit(SessionSized(size=total, limit=self._max_bytes))
        if total > self._max_bytes:
            await self._shrink(keys, total)

    async def _shrink(self, keys: Keys, total: int) -> None:
        """Evict events until seven eighths of the limit remain.

        Args:
            keys: The session's keys.
            total: The session's accounted bytes, including expired entries.
        """
        names: list[bytes] = await self._command("HKEYS", keys.sizes)
        entries = sorted(name for name in names if name != b"total")
        horizon = f"{self._clock.now() - self._ttl * _MICROSECONDS:016d}".encode() if self._ttl else b""
        pages = [entries[start : start + _PAGE] for start in range(0, len(entries), _PAGE)]
        events = freed = 0
        try:
            for step, page in product(_Step, pages):
                excess = total - (self._max_bytes - self._max_bytes // 8)
                if excess <= 0:
                    break
                eviction = _Eviction(keys, step, excess)
                await self._plan(eviction, page, horizon)
                evicted: int
                total, evicted = await self._script(_evict, eviction.script_keys, eviction.script_arguments)
                events += evicted
                freed += eviction.freed
        finally:  # Once, because log events of the same reason are rate-limited.
            if events:
                self._observers.emit(EventsLost(reason=LossReason.SESSION_LIMIT, events=events, payload_bytes=freed))

    async def _plan(self, eviction: "_Eviction", names: list[bytes], horizon: bytes) -> None:
        """Choose the events to evict from the runs of some entries."""
        values: list[bytes | None] = await self._command("HMGET", eviction.keys.sizes, *names)
        entries = [(name, value, _pieces(value)) for name, value in zip(names, values, strict=True) if value]
        open_runs: set[str] = set()
        if eviction.step is _Step.FINISHED:
            runs = list({piece.run for _, _, pieces in entries for piece in pieces})
            found: list[bytes | None] = await self._command("HMGET", eviction.keys.requests, *runs) if runs else []
            open_runs = {run for run, entry in zip(runs, found, strict=True) if entry and not entry.startswith(b"a ")}
        for name, value, pieces in entries:
            if name < horizon:
                eviction.change(name, value, [])
            else:
                eviction.change(name, value, [eviction.take(piece, open_runs) for piece in pieces])

    async def _script(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> T:
        function: Callable[[], Awaitable[T]] = partial(script, self._redis, keys, arguments)
        return await call("write to", self._redis, self._breaker, function)

    async def _command(self, command: str, key: str, *fields: str | bytes) -> T:
        arguments = [key.encode(), *(name.encode() if isinstance(name, str) else name for name in fields)]
        function: Callable[[], Awaitable[T]] = partial(
            self._redis.execute_command, command, *arguments, NEVER_DECODE=True
        )
        return await call("read from", self._redis, self._breaker, function)


class _Step(IntEnum):
    """The steps of an eviction, in this order, until the session is small enough."""

    FINISHED = 1
    """The events of finished runs, except responses."""
    OPEN = 2
    """The events of open runs."""
    RESPONSES = 3
    REMAINDERS = 4
    """The marks of runs without other remaining events."""


class _Piece(NamedTuple):
    """Consecutive events of a run, as one row of an entry of `sizes`."""

    stream: str
    run: str
    last: int
    """The number of the last event."""
    bytes: int
    """Bytes of the events, without the response."""
    response: int
    """Bytes of the response and of the run itself; 0 if the piece does not end the run."""
    larges: tuple[int, ...]
    """The numbers of the events whose payload has a separate key."""


class _Eviction:
    """The evictions of one call of `evict.lua`.

    Args:
        keys: The session's keys.
        step: The events that may be evicted.
        excess: Bytes to free.
    """

    def __init__(self, keys: Keys, step: _Step, excess: int) -> None:
        self.keys = keys
        self.step = step
        self.freed = 0
        """Bytes freed by this call."""
        self._excess = excess
        self.script_keys: list[str] = [keys.sizes, keys.index]
        """The script's keys."""
        self._changes: list[bytes] = []
        self._runs: list[str | bytes | int] = []

    @property
    def script_arguments(self) -> list[str | bytes | int]:
        """The script's arguments."""
        return [len(self._changes) // 3, *self._changes, *self._runs]

    def take(self, piece: _Piece, open_runs: set[str]) -> _Piece | None:
        """Evict the events of a piece that this step allows; return the rest."""
        if self.freed >= self._excess:
            return piece
        last, fate, left = piece.last, "t", None
        if self.step is _Step.FINISHED or self.step is _Step.OPEN:
            if not piece.bytes or piece.run in open_runs:
                return piece
            if piece.response:
                last -= 1
                left = piece._replace(bytes=0, larges=tuple(number for number in piece.larges if number > last))
        elif self.step is _Step.RESPONSES:
            if piece.response <= RUN_BYTES:
                return piece
            fate, left = "f", piece._replace(response=RUN_BYTES, larges=())
        else:
            fate = "d"
        keys, larges = self.keys, [number for number in piece.larges if number <= last]
        self.script_keys.append(keys.run(piece.stream, piece.run))
        self.script_keys += [keys.large(piece.stream, piece.run, number) for number in larges]
        self._runs += [last, fate, len(larges)]
        self.freed += piece.bytes + piece.response - (left.bytes + left.response if left else 0)
        return left

    def change(self, name: bytes, value: bytes, pieces: Sequence[_Piece | None]) -> None:
        """Change an entry to its remaining pieces."""
        left = [piece for piece in pieces if piece is not None]
        size = sum(piece.bytes + piece.response for piece in left)
        changed = b"%d %b" % (size, pydantic_core.to_json(left)) if left else b""
        if changed != value:
            self._changes += (name, value, changed)


def _pieces(value: bytes) -> list[_Piece]:
    """Parse an entry's value; no pieces if another program has written it."""
    try:
        rows = _ROWS.validate_json(value.partition(b" ")[2], strict=True)
    except ValueError:
        return []
    return [_Piece(*row) for row in rows]
