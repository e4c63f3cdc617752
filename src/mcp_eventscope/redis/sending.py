"""Sends batches, takes in the answers, and tries again what was not answered."""

import asyncio
import contextlib
import contextvars
import random
from collections import deque
from typing import Protocol

from mcp_eventscope.redis import line
from mcp_eventscope.redis.backlog import BATCH_BYTES, Backlog, Batch
from mcp_eventscope.redis.commits import Commits, Outcome, outcomes, refusal
from mcp_eventscope.redis.connection import AnyRedis, trouble_of
from mcp_eventscope.tasks import end
from mcp_eventscope.types import Trouble

MOST_BROKEN = 8
"""Times that a connection may break while a large event is under way, before the event is taken for the cause."""
LINGER_SECONDS = 1.0
"""How long the connection is kept after the last event, for the next one."""
SPARE_CONNECTIONS = 4
"""A pool that has fewer than these needs the connection for something else."""
FIRST_RETRY, LAST_RETRY = 0.05, 0.25
"""Seconds before Redis is tried again, the first time and after many."""


class Told(Protocol):
    """Who is told what became of batches."""

    away: Trouble | None
    """Why nobody waits for Redis; None when it is well. While it is not, it is tried even with nothing to send."""

    def settled(self, batch: Batch, outcomes: list[Outcome], seconds: float) -> None:
        """A batch was answered, so long after it was sent."""
        ...

    def retried(self, batch: Batch, trouble: Trouble, error: str) -> None:
        """A batch was not answered, or with an error, and is sent again."""
        ...

    def failed(self, trouble: Trouble, error: str) -> None:
        """Redis cannot be written to."""
        ...


class _InterruptedError(Exception):
    """Redis answered that it cannot write just now."""


class Sender:
    """One process's way of sending: several batches under way, on one connection, by one task while there is work.

    A batch whose answer is lost is sent again as it is: its numbers tell Redis whether it was committed.

    Args:
        redis: Where to.
        commits: Makes the commands.
        backlog: Where the batches come from.
        told: Who is told.
    """

    def __init__(self, redis: AnyRedis, commits: Commits, backlog: Backlog, told: Told) -> None:
        self._redis = redis
        self._commits = commits
        self._backlog = backlog
        self._told = told
        self._line: line.Line | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None
        self._bell: asyncio.Future[None] | None = None
        self._under_way: deque[Batch] = deque()
        # With whether the script's text has to be sent, too.
        self._again: deque[tuple[Batch, bool]] = deque()
        self._interrupted: Exception | None = None
        self._failures = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and nothing is under way."""
        return not (self._under_way or self._again or self._backlog.queued)

    def work(self, loop: asyncio.AbstractEventLoop) -> None:
        """There is something to send."""
        if self._working is None:
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
            # Not in the context of whoever came first: the work is everybody's.
            self._working = loop.create_task(self._run(), name="eventscope-writer", context=contextvars.Context())
        else:
            self._ring()

    async def rest(self, seconds: float) -> list[Batch]:
        """Send what waits, for at most so long; then stop, and give the connection back.

        Returns:
            The batches that were not answered.
        """
        if self._working is not None and not self.idle:
            await asyncio.wait({self._working}, timeout=seconds)
        if self._working is not None:
            await end(self._working)
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        await self._hang_up(in_doubt=False)
        left = [batch for batch, _ in self._again]
        self._again.clear()
        return left

    async def _run(self) -> None:
        """Send until nothing waits; while Redis is away, until it is back."""
        loop = asyncio.get_running_loop()
        probes = 0
        try:
            while not self.idle or self._told.away is not None:
                try:
                    if self._line is None:
                        self._line = await line.opened(self._redis, self._commits)
                    if self.idle:  # An empty batch, to see whether Redis is back, and in time.
                        await asyncio.sleep(LAST_RETRY if probes else 0)
                        probes += 1
                        self._again.append((Batch([]), False))
                    await self._exchange(self._line)
                except Exception as error:  # noqa: BLE001 - whatever it is, what waits must go on waiting
                    await self._failed(error)
        finally:
            self._working = None
            self._interrupt(None, "")
            # Not at once, for finding a connection takes as long as storing an event.
            spare = getattr(self._redis, "connection_pool", None)
            linger = LINGER_SECONDS if getattr(spare, "max_connections", 0) >= SPARE_CONNECTIONS else 0.0
            self._lingering = loop.call_later(linger, self._linger_no_longer, loop)

    async def _exchange(self, open_line: line.Line) -> None:
        """Send what waits and take in the answers, until there is nothing left of either."""
        reading: asyncio.Task[None] | None = None
        try:
            while True:
                while (following := self._following(open_line)) is not None:
                    batch, whole = following
                    batch.sent = asyncio.get_running_loop().time()
                    self._under_way.append(batch)
                    await open_line.send(batch, whole=whole)
                    if reading is None or reading.done():
                        _raise_from(reading)
                        reading = asyncio.create_task(self._read(open_line), name="eventscope-writer-read")
                        reading.add_done_callback(self._ring)
                if reading is not None and reading.done():
                    _raise_from(reading)
                    reading = None
                if self._under_way:
                    self._bell = asyncio.get_running_loop().create_future()
                    await self._bell
                elif self._interrupted is not None:
                    raise _InterruptedError
                elif self.idle:
                    return
        finally:
            self._bell = None
            if reading is not None:
                await end(reading)
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    reading.result()

    def _following(self, open_line: line.Line) -> tuple[Batch, bool] | None:
        """What is to be sent next, and whether with the script's text; None when nothing is, or may be yet."""
        if len(self._under_way) >= open_line.depth or self._interrupted is not None:
            return None
        if self._again:
            return self._again.popleft()
        batch = self._backlog.take(open_line.sessions)
        return None if batch is None else (batch, False)

    def _ring(self, _: object = None) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def _read(self, open_line: line.Line) -> None:
        """Take in answers while any are to come."""
        loop = asyncio.get_running_loop()
        while self._under_way:
            batch, reply = await open_line.receive()
            if isinstance(reply, Exception):
                self._under_way.remove(batch)
                self._answered_badly(batch, reply)
            else:
                told = outcomes(batch, reply)
                self._under_way.remove(batch)
                self._failures = 0
                self._told.settled(batch, told, loop.time() - batch.sent)
            self._ring()

    def _answered_badly(self, batch: Batch, error: Exception) -> None:
        trouble = trouble_of(error)
        self._told.retried(batch, trouble, str(error))
        forgotten = trouble is Trouble.NOSCRIPT
        self._again.append((batch, forgotten))
        if not forgotten:
            self._interrupted = error

    async def _failed(self, error: Exception) -> None:
        """Get ready to try again: at once where a connection broke, for it may have been stale; later else."""
        interrupted, self._interrupted = self._interrupted, None
        cause = error if interrupted is None else interrupted
        trouble = trouble_of(cause)
        # Decided by the exception that ended the exchange: a connection that breaks after Redis has answered an error
        # is broken as well, and replies on a new one would be attributed to the batches of the old one.
        broken = not isinstance(error, _InterruptedError)
        if broken or trouble is Trouble.READONLY:  # Another server may be the primary now.
            self._interrupt(trouble_of(error), str(error))
            await self._hang_up(in_doubt=True)
        self._failures += 1
        if self._failures > 1 or interrupted is not None:
            self._told.failed(trouble, str(cause))
            delay = min(FIRST_RETRY * 2.0 ** min(self._failures - 1, 10), LAST_RETRY)
            await asyncio.sleep(delay * random.uniform(0.7, 1.0))  # noqa: S311 - so that workers do not come at once

    def _interrupt(self, trouble: Trouble | None, error: str) -> None:
        """What is under way may have been committed or not: it is to be sent again."""
        under_way, self._under_way = self._under_way, deque()
        # A refusal that closes the connection, as LOADING does, has nothing to do with the size of an event.
        suspicious = trouble in {Trouble.CONNECTION, Trouble.TIMEOUT}
        for batch in under_way:
            batch.broken += suspicious
            if trouble is not None:
                self._told.retried(batch, trouble, error)
        if under_way:
            largest = max(under_way, key=lambda batch: batch.payload_bytes)
            if largest.broken >= MOST_BROKEN and largest.payload_bytes > BATCH_BYTES:
                # It goes alone, and whenever it does the connection breaks: Redis takes nothing that large.
                under_way.remove(largest)
                self._told.settled(largest, refusal(largest, error), 0.0)
        # What may be to blame goes last, so that the rest gets through.
        again = [(batch, False) for batch in sorted(under_way, key=lambda batch: batch.payload_bytes > BATCH_BYTES)]
        self._again.extendleft(reversed(again))

    def _linger_no_longer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lingering = None
        open_line, self._line = self._line, None  # At once: the next event opens another.
        if open_line is not None:
            closing = loop.create_task(open_line.close(in_doubt=False), name="eventscope-writer-rest")
            closing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _hang_up(self, *, in_doubt: bool) -> None:
        open_line, self._line = self._line, None
        if open_line is not None:
            await open_line.close(in_doubt=in_doubt)


def _raise_from(reading: asyncio.Task[None] | None) -> None:
    if reading is not None:
        reading.result()
