"""Sends batches, reads the replies, and retries unacknowledged batches."""

import asyncio
import contextlib
import contextvars
import random
from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import (
    LINGER_SECONDS,
    AnyRedis,
    failure_reason,
    failure_text,
    has_spare_connections,
    is_refusal,
)
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.write import transport
from mcp_eventscope.redis.write.batch import BATCH_BYTES, Batch, BatchSource, Probe
from mcp_eventscope.redis.write.transport import ProbeFailedError, Transport
from mcp_eventscope.store.events import BatchRetried, FailureReason

MOST_BROKEN = 3
"""How often the connection may break while only one large batch is in flight, before its event is rejected."""
LOOP_LATE = 0.05
"""Seconds by which a timer may be late before the loop, rather than Redis, counts as slow."""
FIRST_RETRY, LAST_RETRY = 0.05, 0.25
"""Seconds before the first retry, and the maximum before later ones."""
OUTAGE_RETRY = 1.0
"""Maximum seconds before a batch is resent to a node of a cluster while a probe of it fails. The client looks up all
nodes after each failure, and commands to the others wait for that."""


class _InterruptedError(Exception):
    """Redis replied that it cannot write now."""


class Sender:
    """Sends the batches of a process, several in flight on one connection, in one task.

    The task ends when there is no work. A batch whose reply is lost is resent unchanged: Redis detects by its numbers
    whether it was committed.

    On Redis Cluster each batch goes to the node of its session. A batch that fails is resent after a pause, while those
    of other nodes continue, and causes a probe of all nodes, which decides on the circuit.

    Args:
        redis: The client.
        sources: The sources of batches, by priority.
        breaker: Records failures and replies. While it is open, the sender probes Redis until it answers.
        observers: Called with each `BatchRetried`.
        reconnected: Called when a connection is open after another one broke, and when a cluster has recovered.
        probe_key: Returns the key of this worker's probes.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        redis: AnyRedis,
        sources: Sequence[BatchSource],
        breaker: CircuitBreaker,
        observers: Observers,
        reconnected: Callable[[], None],
        probe_key: Callable[[], str],
    ) -> None:
        self._redis = redis
        self._sources = sources
        self._breaker = breaker
        self._observers = observers
        self._reconnected = reconnected
        self._probe_key = probe_key
        self._transport: Transport | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._expected: asyncio.Future[None] | None = None
        """Wakes the reader, which serves consecutive batches: a task for each would cost as much as a write."""
        self._watchdog: asyncio.TimerHandle | None = None
        self._in_flight: deque[Batch] = deque()
        # With each batch, whether to send the script's text.
        self._retry_queue: deque[tuple[Batch, bool]] = deque()
        self._interrupted: Exception | None = None
        self._failures = 0
        self._broken = False
        """Whether the connection broke and was not yet reopened."""
        self._delayed: dict[Batch, asyncio.TimerHandle] = {}
        """The batches to nodes of a cluster that are resent after a pause."""
        self._suspected = False
        """Whether a failure calls for a probe of a cluster."""
        self._probed = -inf
        """When a cluster was last probed."""
        breaker.on_failure(self._suspect)

    @property
    def idle(self) -> bool:
        """Whether nothing is ready or in flight."""
        sources = any(source.ready for source in self._sources)
        return not (self._in_flight or self._retry_queue or self._delayed or sources)

    def wake(self) -> None:
        """Start sending the batches that are ready."""
        if self._task is None:
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
            # Not in the caller's context, because the task works for all callers.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="eventscope-writer", context=contextvars.Context())
        else:
            self._wake_exchange()

    def _suspect(self) -> None:
        self._suspected = self._breaker.cluster
        self.wake()

    async def drain(self, seconds: float) -> list[Batch]:
        """Send ready batches for at most `seconds`, then stop and release the connection.

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
        """Send until nothing is ready and the circuit is closed."""
        loop = asyncio.get_running_loop()
        probes = 0
        try:
            while not self.idle or self._breaker.reason is not None or self._suspected:
                try:
                    if self._transport is None:
                        self._transport = await transport.connect(self._redis)
                        if self._broken:
                            self._broken = False
                            self._reconnected()
                    if self.idle and not self._transport.isolated:
                        await asyncio.sleep(LAST_RETRY if probes else 0)
                        probes += 1
                        self._retry_queue.append((self._new_probe(), False))
                    await self._exchange(self._transport)
                except Exception as error:  # noqa: BLE001 - pending events must stay pending after any failure
                    await self._on_failure(error)
        finally:
            self._task = None
            self._requeue(None, "")
            for batch, timer in self._delayed.items():
                timer.cancel()
                self._retry_queue.append((batch, False))
            self._delayed.clear()
            if self._watchdog is not None:
                self._watchdog.cancel()
                self._watchdog = None
            linger = LINGER_SECONDS if has_spare_connections(self._redis) else 0.0
            self._lingering = loop.call_later(linger, self._close_idle, loop)

    async def _exchange(self, open_transport: Transport) -> None:
        """Send ready batches and read replies until there are none of either."""
        loop = asyncio.get_running_loop()
        self._expected = loop.create_future()
        reading = asyncio.create_task(self._read(open_transport, self._expected), name="eventscope-writer-read")
        reading.add_done_callback(self._wake_exchange)
        try:
            while True:
                while (following := self._due_probe() or self._next_batch(open_transport)) is not None:
                    batch, as_eval = following
                    batch.sent = loop.time()
                    self._in_flight.append(batch)
                    self._watch(loop)
                    await open_transport.send(batch, as_eval=as_eval)
                    if self._in_flight:  # Else the reader has already read the reply, and would end.
                        self._wake_reader()
                if reading.done():
                    reading.result()
                in_doubt = self._suspected or self._breaker.reason is not None
                if open_transport.isolated and (self._in_flight or self._delayed or in_doubt):
                    self._wakeup = loop.create_future()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LAST_RETRY if in_doubt else None):  # Then the next probe is due.
                            await self._wakeup
                elif self._in_flight:
                    self._wakeup = loop.create_future()
                    await self._wakeup
                elif self._interrupted is not None:
                    raise _InterruptedError
                elif self.idle:
                    self._wake_reader()
                    await reading  # Ends, because no reply is outstanding.
                    return
        finally:
            self._wakeup = None
            if not reading.done():
                await cancel_task(reading)
            self._expected = None
            with contextlib.suppress(asyncio.CancelledError, Exception):
                reading.result()

    def _next_batch(self, open_transport: Transport) -> tuple[Batch, bool] | None:
        """Return the next batch, and whether to send the script's text; None without one."""
        if self._interrupted is not None or self._full(open_transport):
            return None
        if self._retry_queue:
            batch, _ = self._retry_queue[0]
            if batch.broken and batch.payload_bytes > BATCH_BYTES and self._in_flight:
                return None  # Sent alone, to find out whether it breaks the connection.
            return self._retry_queue.popleft()
        if self._in_flight and self._in_flight[-1].broken and self._in_flight[-1].payload_bytes > BATCH_BYTES:
            return None
        for source in self._sources:
            if source.ready and (taken := source.take(open_transport.parts)) is not None:
                return taken, False
        return None

    def _new_probe(self) -> Probe:
        self._suspected = False
        self._probed = asyncio.get_running_loop().time()
        return Probe(self._probe_key(), self._breaker.call_timeout)

    def _due_probe(self) -> tuple[Batch, bool] | None:
        """A probe of a cluster, after a failure and while the circuit is open, with pauses; None if none is due."""
        due = self._breaker.cluster and (self._suspected or self._breaker.reason is not None)
        if (
            not due
            or asyncio.get_running_loop().time() - self._probed < LAST_RETRY
            or any(isinstance(batch, Probe) for batch in self._in_flight)
        ):
            return None
        return self._new_probe(), False

    def _full(self, open_transport: Transport) -> bool:
        """Whether to wait for a reply before the next batch is sent."""
        waiting = len(self._in_flight)
        if waiting >= open_transport.depth and open_transport.isolated:
            # A node that does not answer holds up no other one. Each session has at most one batch in flight.
            overdue = asyncio.get_running_loop().time() - self._breaker.call_timeout
            waiting = sum(batch.sent > overdue for batch in self._in_flight)
        return waiting >= open_transport.depth

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the circuit when a batch is not acknowledged in time."""
        if self._watchdog is None and self._in_flight:
            due = self._in_flight[0].sent + self._breaker.call_timeout
            self._watchdog = loop.call_at(due, self._check_timeout, loop, due)

    def _check_timeout(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._watchdog = None
        now = loop.time()
        if now - due > LOOP_LATE:  # The loop was busy: an unread reply may have arrived.
            self._watchdog = loop.call_at(now + LOOP_LATE, self._check_timeout, loop, now + LOOP_LATE)
            return
        if self._in_flight and self._in_flight[0].sent + self._breaker.call_timeout <= now:
            if self._breaker.reason is None:
                self._breaker.record_failure(FailureReason.TIMEOUT, failure_text(TimeoutError(), self._redis))
            return  # The next sent batch starts the watchdog again.
        self._watch(loop)

    def _wake_exchange(self, _: object = None) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _wake_reader(self) -> None:
        """Wake the reader, which ends if no replies are outstanding."""
        if self._expected is not None and not self._expected.done():
            self._expected.set_result(None)

    async def _read(self, open_transport: Transport, expected: asyncio.Future[None]) -> None:
        """Read replies whenever some are outstanding; end otherwise."""
        loop = asyncio.get_running_loop()
        while True:
            await expected
            if not self._in_flight:
                return
            while self._in_flight:
                batch, reply = await open_transport.receive()
                if isinstance(reply, Exception):
                    self._in_flight.remove(batch)
                    self._on_error_reply(batch, reply)
                else:
                    seconds = loop.time() - batch.sent
                    batch.acknowledge(reply, seconds)
                    self._in_flight.remove(batch)
                    self._failures = 0
                    opened = self._breaker.reason is not None
                    self._breaker.record_success(seconds, probe=isinstance(batch, Probe))
                    if isinstance(batch, Probe) and open_transport.isolated and self._breaker.reason is None:
                        self._retry(*self._delayed)
                        if opened:  # A replica may have taken over without the last writes.
                            self._reconnected()
                self._wake_exchange()
            self._expected = expected = loop.create_future()

    def _on_error_reply(self, batch: Batch, error: Exception) -> None:
        """Handle an error reply or, on a cluster, an unreachable node."""
        if isinstance(error, ProbeFailedError) and isinstance(cause := error.__cause__, Exception):
            text = f"{failure_text(cause, self._redis)} ({error})"
            self._breaker.open(failure_reason(cause), text, partial=error.partial)
            return
        reason, text = failure_reason(error), failure_text(error, self._redis)
        if is_refusal(error) and batch.refuse(text):
            return
        if batch.events:
            self._observers.emit(BatchRetried(reason=reason, events=batch.events, error=text))
        script_missing = reason is FailureReason.NOSCRIPT
        if self._transport is not None and self._transport.isolated and not script_missing:
            self._retry_later(batch, reason, text)
            return
        self._retry_queue.append((batch, script_missing))
        if not script_missing:
            self._interrupted = error

    def _retry_later(self, batch: Batch, reason: FailureReason, text: str) -> None:
        """Retry a batch after a pause, because a node of a cluster failed; the batches of other nodes continue."""
        if isinstance(batch, Probe):  # Before any node answered.
            self._breaker.open(reason, text)
            return
        delay = (OUTAGE_RETRY if self._breaker.reason else LAST_RETRY) * random.uniform(0.7, 1.0)  # noqa: S311 - spreads
        self._delayed[batch] = asyncio.get_running_loop().call_later(delay, self._retry, batch)
        self._breaker.record_failure(reason, text)

    def _retry(self, *batches: Batch) -> None:
        """Queue delayed batches, whose node may answer again."""
        for batch in batches:
            self._delayed.pop(batch).cancel()
            self._retry_queue.append((batch, False))
        self._wake_exchange()

    async def _on_failure(self, error: Exception) -> None:
        """Pause before the retry, except after a first broken connection, which may have been stale."""
        interrupted, self._interrupted = self._interrupted, None
        # Judged by the end of the exchange: a connection may break after an error reply, too, and lose its replies.
        broken = not isinstance(error, _InterruptedError)
        cause = error if broken or interrupted is None else interrupted
        reason, text = failure_reason(cause), failure_text(cause, self._redis)
        if broken or reason is FailureReason.READONLY:  # Another server may be primary now.
            self._requeue(reason, text)
            self._broken = True
            await self._disconnect(in_doubt=True)
        self._failures += 1
        if self._failures > 1 or interrupted is not None:
            self._breaker.record_failure(reason, text)
            delay = min(FIRST_RETRY * 2.0 ** min(self._failures - 1, 10), LAST_RETRY)
            await asyncio.sleep(delay * random.uniform(0.7, 1.0))  # noqa: S311 - spreads the workers' retries

    def _requeue(self, reason: FailureReason | None, error: str) -> None:
        """Queue the batches in flight for a retry, whether or not they were committed."""
        in_flight, self._in_flight = self._in_flight, deque()
        for batch in in_flight:
            if reason is not None and batch.events:
                self._observers.emit(BatchRetried(reason=reason, events=batch.events, error=error))
        large = [batch for batch in in_flight if batch.payload_bytes > BATCH_BYTES]
        for batch in large:
            # Other failures have other causes: Redis may be loading, or frozen.
            batch.broken += 1 if reason is FailureReason.CONNECTION else 0
            if (
                reason is FailureReason.CONNECTION
                and len(in_flight) == 1
                and batch.broken >= MOST_BROKEN
                and batch.refuse(error)
            ):
                in_flight.remove(batch)  # Redis accepts no command of this size.
        # Large batches last, so that the others succeed.
        again = [(batch, False) for batch in sorted(in_flight, key=lambda batch: batch.payload_bytes > BATCH_BYTES)]
        self._retry_queue.extendleft(reversed(again))

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lingering = None
        open_transport, self._transport = self._transport, None  # First, so that the next event opens a new one.
        if open_transport is not None:
            closing = loop.create_task(open_transport.close(in_doubt=False), name="eventscope-writer-close")
            closing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _disconnect(self, *, in_doubt: bool) -> None:
        open_transport, self._transport = self._transport, None
        if open_transport is not None:
            await open_transport.close(in_doubt=in_doubt)
