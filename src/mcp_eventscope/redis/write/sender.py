"""Sends batches, reads the replies, and resends unacknowledged batches."""

import asyncio
import contextlib
import contextvars
import random
from collections import deque
from collections.abc import Callable, Sequence

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, failure_reason, failure_text, is_refusal
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.write import transport
from mcp_eventscope.redis.write.batch import BATCH_BYTES, Batch, BatchSource, Probe
from mcp_eventscope.redis.write.transport import Transport
from mcp_eventscope.store.events import BatchRetried, FailureReason

MOST_BROKEN = 3
"""How often a connection may break while a large batch is alone in flight, before its event is taken for the cause."""
LINGER_SECONDS = 1.0
"""How long an idle connection is kept for the next event."""
SPARE_CONNECTIONS = 4
"""A pool that has fewer than these needs the connection for something else."""
LOOP_LATE = 0.05
"""Seconds by which a timer may be late before the loop, and not Redis, is considered slow."""
FIRST_RETRY, LAST_RETRY = 0.05, 0.25
"""Seconds before Redis is tried again, the first time and after many."""


class _InterruptedError(Exception):
    """Redis replied that it cannot write just now."""


class Sender:
    """One process's way of sending: several batches in flight, on one connection, by one task while there is work.

    A batch whose reply is lost is sent again as it is: Redis finds by its numbers whether it was committed.

    Args:
        redis: The client.
        sources: Where batches come from, in turn.
        breaker: Records failures and replies; while it is open, the sender probes Redis until it answers.
        observers: Called with each `BatchRetried`.
        reconnected: Called when a connection is open after another one broke.
    """

    def __init__(
        self,
        redis: AnyRedis,
        sources: Sequence[BatchSource],
        breaker: CircuitBreaker,
        observers: Observers,
        reconnected: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._sources = sources
        self._breaker = breaker
        self._observers = observers
        self._reconnected = reconnected
        self._transport: Transport | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._expected: asyncio.Future[None] | None = None
        """Wakes the reader, which is kept while batches follow each other: a task for each costs as much as a write."""
        self._watchdog: asyncio.TimerHandle | None = None
        self._in_flight: deque[Batch] = deque()
        # Each with whether the script's text has to be sent.
        self._retry_queue: deque[tuple[Batch, bool]] = deque()
        self._interrupted: Exception | None = None
        self._failures = 0
        self._broken = False
        """Whether a connection broke since one was last opened."""
        breaker.on_open(self.wake)

    @property
    def idle(self) -> bool:
        """Whether nothing is ready to be sent, and nothing is in flight."""
        return not (self._in_flight or self._retry_queue or any(source.ready for source in self._sources))

    def wake(self) -> None:
        """Send the batches that are ready."""
        if self._task is None:
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
            # Not in the caller's context: the work is done for all callers.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="eventscope-writer", context=contextvars.Context())
        else:
            self._wake_exchange()

    async def drain(self, seconds: float) -> list[Batch]:
        """Send the batches that are ready, for at most so long; then stop, and release the connection.

        Returns:
            The batches that were not acknowledged.
        """
        if self._task is not None and not self.idle:
            await asyncio.wait({self._task}, timeout=seconds)
        if self._task is not None:
            await cancel_task(self._task)
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        await self._disconnect(in_doubt=False)
        left = [batch for batch, _ in self._retry_queue]
        self._retry_queue.clear()
        return left

    async def _run(self) -> None:
        """Send until nothing is ready; while the circuit is open, until Redis answers."""
        loop = asyncio.get_running_loop()
        probes = 0
        try:
            while not self.idle or self._breaker.reason is not None:
                try:
                    if self._transport is None:
                        self._transport = await transport.connect(self._redis)
                        if self._broken:
                            self._broken = False
                            self._reconnected()
                    if self.idle:
                        await asyncio.sleep(LAST_RETRY if probes else 0)
                        probes += 1
                        self._retry_queue.append((Probe(), False))
                    await self._exchange(self._transport)
                except Exception as error:  # noqa: BLE001 - whatever it is, pending events must stay pending
                    await self._failed(error)
        finally:
            self._task = None
            self._requeue(None, "")
            if self._watchdog is not None:
                self._watchdog.cancel()
                self._watchdog = None
            # Not immediately, since taking a connection from the pool takes as long as storing an event.
            pool = getattr(self._redis, "connection_pool", None)
            linger = LINGER_SECONDS if getattr(pool, "max_connections", 0) >= SPARE_CONNECTIONS else 0.0
            self._lingering = loop.call_later(linger, self._linger_no_longer, loop)

    async def _exchange(self, open_transport: Transport) -> None:
        """Send ready batches and read the replies, until nothing is left of either."""
        loop = asyncio.get_running_loop()
        self._expected = loop.create_future()
        reading = asyncio.create_task(self._read(open_transport, self._expected), name="eventscope-writer-read")
        reading.add_done_callback(self._wake_exchange)
        try:
            while True:
                while (following := self._following(open_transport)) is not None:
                    batch, as_eval = following
                    batch.sent = loop.time()
                    self._in_flight.append(batch)
                    self._watch(loop)
                    await open_transport.send(batch, as_eval=as_eval)
                    if self._in_flight:  # Else the reader has read the reply meanwhile, and would end.
                        self._expect()
                if reading.done():
                    reading.result()
                if self._in_flight:
                    self._wakeup = loop.create_future()
                    await self._wakeup
                elif self._interrupted is not None:
                    raise _InterruptedError
                elif self.idle:
                    self._expect()
                    await reading  # It ends, since no reply is to come.
                    return
        finally:
            self._wakeup = None
            if not reading.done():
                await cancel_task(reading)
            self._expected = None
            with contextlib.suppress(asyncio.CancelledError, Exception):
                reading.result()

    def _following(self, open_transport: Transport) -> tuple[Batch, bool] | None:
        """The batch to send next, and whether with the script's text; None when there is none, or not yet."""
        if len(self._in_flight) >= open_transport.depth or self._interrupted is not None:
            return None
        if self._retry_queue:
            batch, _ = self._retry_queue[0]
            if batch.broken and batch.payload_bytes > BATCH_BYTES and self._in_flight:
                return None  # Alone, so that it is known what breaks the connection.
            return self._retry_queue.popleft()
        if self._in_flight and self._in_flight[-1].broken and self._in_flight[-1].payload_bytes > BATCH_BYTES:
            return None
        for source in self._sources:
            if source.ready and (taken := source.take(open_transport.parts)) is not None:
                return taken, False
        return None

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the circuit when a batch is not acknowledged in time."""
        if self._watchdog is None and self._in_flight:
            due = self._in_flight[0].sent + self._breaker.call_timeout
            self._watchdog = loop.call_at(due, self._check_timeout, loop, due)

    def _check_timeout(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._watchdog = None
        now = loop.time()
        if now - due > LOOP_LATE:  # The reply may be there, and this process had no time to read it.
            self._watchdog = loop.call_at(now + LOOP_LATE, self._check_timeout, loop, now + LOOP_LATE)
            return
        if self._in_flight and self._in_flight[0].sent + self._breaker.call_timeout <= now:
            if self._breaker.reason is None:
                self._breaker.record_failure(FailureReason.TIMEOUT, failure_text(TimeoutError(), self._redis))
            return  # The next batch that is sent is watched again.
        self._watch(loop)

    def _wake_exchange(self, _: object = None) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _expect(self) -> None:
        """Let the reader read replies, or end when none are to come."""
        if self._expected is not None and not self._expected.done():
            self._expected.set_result(None)

    async def _read(self, open_transport: Transport, expected: asyncio.Future[None]) -> None:
        """Read replies each time that some are expected; end when none are."""
        loop = asyncio.get_running_loop()
        while True:
            await expected
            if not self._in_flight:
                return
            while self._in_flight:
                batch, reply = await open_transport.receive()
                if isinstance(reply, Exception):
                    self._in_flight.remove(batch)
                    self._replied_error(batch, reply)
                else:
                    seconds = loop.time() - batch.sent
                    batch.acknowledge(reply, seconds)
                    self._in_flight.remove(batch)
                    self._failures = 0
                    self._breaker.record_success(seconds)
                self._wake_exchange()
            self._expected = expected = loop.create_future()

    def _replied_error(self, batch: Batch, error: Exception) -> None:
        """Redis replied with an error, or, on a cluster, one node was not reached."""
        reason, text = failure_reason(error), failure_text(error, self._redis)
        if is_refusal(error) and batch.refuse(text):
            return
        if batch.events:
            self._observers.emit(BatchRetried(reason=reason, events=batch.events, error=text))
        forgotten = reason is FailureReason.NOSCRIPT
        self._retry_queue.append((batch, forgotten))
        if not forgotten:
            self._interrupted = error

    async def _failed(self, error: Exception) -> None:
        """Prepare the next attempt: immediately after a connection broke, since it may have been stale; later else."""
        interrupted, self._interrupted = self._interrupted, None
        # By what ended the exchange: a connection may break after an error reply, too, and its replies are lost then.
        broken = not isinstance(error, _InterruptedError)
        cause = error if broken or interrupted is None else interrupted
        reason, text = failure_reason(cause), failure_text(cause, self._redis)
        if broken or reason is FailureReason.READONLY:  # Another server may be the primary now.
            self._requeue(reason, text)
            self._broken = True
            await self._disconnect(in_doubt=True)
        self._failures += 1
        if self._failures > 1 or interrupted is not None:
            self._breaker.record_failure(reason, text)
            delay = min(FIRST_RETRY * 2.0 ** min(self._failures - 1, 10), LAST_RETRY)
            await asyncio.sleep(delay * random.uniform(0.7, 1.0))  # noqa: S311 - so that workers do not come together

    def _requeue(self, reason: FailureReason | None, error: str) -> None:
        """Resend the batches in flight, which may have been committed or not."""
        in_flight, self._in_flight = self._in_flight, deque()
        for batch in in_flight:
            if reason is not None and batch.events:
                self._observers.emit(BatchRetried(reason=reason, events=batch.events, error=error))
        large = [batch for batch in in_flight if batch.payload_bytes > BATCH_BYTES]
        for batch in large:
            # Only a broken connection is the event's doing: Redis may be loading, or frozen.
            batch.broken += 1 if reason is FailureReason.CONNECTION else 0
            if (
                reason is FailureReason.CONNECTION
                and len(in_flight) == 1
                and batch.broken >= MOST_BROKEN
                and batch.refuse(error)
            ):
                in_flight.remove(batch)  # Whenever it is sent, the connection breaks: Redis takes nothing that large.
        # A suspect goes last, so that the others get through.
        again = [(batch, False) for batch in sorted(in_flight, key=lambda batch: batch.payload_bytes > BATCH_BYTES)]
        self._retry_queue.extendleft(reversed(again))

    def _linger_no_longer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lingering = None
        open_transport, self._transport = self._transport, None  # Immediately: the next event opens another.
        if open_transport is not None:
            closing = loop.create_task(open_transport.close(in_doubt=False), name="eventscope-writer-close")
            closing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _disconnect(self, *, in_doubt: bool) -> None:
        open_transport, self._transport = self._transport, None
        if open_transport is not None:
            await open_transport.close(in_doubt=in_doubt)
