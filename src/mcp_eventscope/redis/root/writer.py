"""The writer of the root store: callers wait until Redis has acknowledged their events."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from mcp_eventscope.errors import StoreRejectedError
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, address_of
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.root.backlog import Backlog, PendingEvent
from mcp_eventscope.redis.root.batch_codec import BatchCodec, Reply, parse_reply
from mcp_eventscope.redis.write.batch import Batch
from mcp_eventscope.redis.write.sender import LOOP_LATE
from mcp_eventscope.store.events import BatchCommitted, BatchRetried, EventsLost, FailureReason, LossReason
from mcp_eventscope.store.messages import EventId

DISTANT_SECONDS = 0.005
"""Round trip of a batch, in seconds, from which Redis counts as distant and batches are larger."""


class RootWriter:
    """Stores events in batches, one of them in flight.

    A caller waits at most the circuit breaker's `call_timeout`. While the circuit is open it does not wait: the event
    is deferred, and stored in order when Redis has recovered.

    Args:
        redis: The client, for its address.
        breaker: Records timeouts.
        backlog: The pending events.
        codec: Encodes batches.
        observers: Called with commits, retries and losses.
        wake: Called when a batch is ready.
        stored: Called with stored events.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        redis: AnyRedis,
        breaker: CircuitBreaker,
        backlog: Backlog,
        codec: BatchCodec,
        observers: Observers,
        wake: Callable[[], None],
        stored: Callable[[Sequence[PendingEvent]], None],
    ) -> None:
        self._redis = redis
        self._breaker = breaker
        self._backlog = backlog
        self._codec = codec
        self._observers = observers
        self._wake = wake
        self._stored = stored
        self._last_id = 0
        """The last id that this process received from Redis."""
        self._round_trip = 0.0
        """Seconds between sending the last batch and its acknowledgement."""
        self._waiting: deque[PendingEvent] = deque()
        self._timer: asyncio.TimerHandle | None = None
        breaker.on_failure(self._defer_waiting)

    @property
    def deferred(self) -> tuple[int, int]:
        """The number of deferred events and their memory in bytes."""
        return self._backlog.events, self._backlog.bytes

    @property
    def ready(self) -> bool:
        """Whether there is a batch to send (`BatchSource`)."""
        return self._backlog.ready

    def take(self, parts: int) -> "RootBatch | None":
        """Take the next batch (`BatchSource`)."""
        if not self._backlog.ready:
            return None
        first, events = self._backlog.drain(distant=self._round_trip >= DISTANT_SECONDS)
        return RootBatch(self, first, events)

    def submit(self, event: PendingEvent) -> "asyncio.Future[EventId | None] | None":
        """Store an event.

        Returns:
            A future of the event's id, or of None once the event is deferred; it raises `StoreRejectedError` when Redis
            refuses the event permanently. None: the event is deferred immediately.
        """
        backlog = self._backlog
        backlog.put(event)
        if self._breaker.reason is not None or backlog.events:
            self._defer(event)
            self._wake()
            return None
        loop = asyncio.get_running_loop()
        event.waiter = waiter = loop.create_future()
        event.deadline = loop.time() + self._breaker.call_timeout
        self._waiting.append(event)
        if self._timer is None:
            self._timer = loop.call_at(event.deadline, self._check_deadlines, loop, event.deadline)
        self._wake()
        return waiter

    def clear(self) -> int:
        """Drop the pending events when the store is closed.

        Returns:
            The number of dropped events.
        """
        left = self._backlog.clear()
        for event in left:
            _resolve(event, None)
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._lose(left, LossReason.SHUTDOWN)

    # -- callers ------------------------------------------------------------------------------------------------------

    def _check_deadlines(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Open the circuit when a caller has waited for too long."""
        waiting, now = self._waiting, loop.time()
        self._timer = None
        while waiting and waiting[0].waiter is None:
            waiting.popleft()
        if not waiting:
            return
        deadline = waiting[0].deadline
        if deadline <= now:
            if now - due < LOOP_LATE:
                text = f"Redis at {address_of(self._redis)}: no reply within {self._breaker.call_timeout} seconds"
                self._breaker.record_failure(FailureReason.TIMEOUT, text)
                return
            deadline = now + LOOP_LATE  # The loop was busy: an unread reply may have arrived.
        self._timer = loop.call_at(deadline, self._check_deadlines, loop, deadline)

    def _defer_waiting(self) -> None:
        """Defer all waiting events when the circuit opens."""
        waiting, self._waiting = self._waiting, deque()
        for event in waiting:
            if event.waiter is not None:
                self._defer(event)

    def _defer(self, event: PendingEvent) -> None:
        _resolve(event, None)
        self._backlog.defer(event)
        if dropped := self._backlog.overflow():
            self._lose(dropped, LossReason.OVERFLOW)

    def _lose(self, events: Sequence[PendingEvent], reason: LossReason) -> int:
        lost = [event for event in events if not event.placeholder]
        if lost:
            size = sum(len(event.payload) for event in lost)
            self._observers.emit(EventsLost(reason=reason, events=len(lost), payload_bytes=size))
        return len(lost)

    # -- batches ------------------------------------------------------------------------------------------------------

    def encode(self, batch: "RootBatch", *, as_eval: bool) -> list[bytes]:
        """Encode a batch as bytes."""
        self._codec.expire_checks(batch.sent)
        return self._codec.encode(batch.first, batch.pending, self._last_id, as_eval=as_eval)

    def arguments(self, batch: "RootBatch", *, as_eval: bool) -> list[str | bytes]:
        """Encode a batch as arguments."""
        self._codec.expire_checks(batch.sent)
        return self._codec.arguments(batch.first, batch.pending, self._last_id, as_eval=as_eval)

    def acknowledge(self, batch: "RootBatch", reply: bytes, seconds: float) -> None:
        """Handle Redis's reply to a batch."""
        parsed = parse_reply(batch.first, batch.events, reply)
        if parsed.errors:
            address = address_of(self._redis)
            errors = {index: f"Redis at {address}: replied {error}" for index, error in parsed.errors.items()}
            parsed = parsed._replace(errors=errors)
        self._settle(batch.pending, parsed, seconds)

    def _settle(self, events: list[PendingEvent], reply: Reply, seconds: float) -> None:
        """Report the outcome of a batch."""
        rejected: list[PendingEvent] = []
        for index, error in reply.errors.items():
            event = events[index]
            if self._reject(event, error):
                rejected.append(event)
        acknowledged: list[tuple[asyncio.Future[EventId | None], EventId]] = []
        size = deferred = 0
        for event_id, event in enumerate(events, reply.first_id):
            size += len(event.payload)
            deferred += event.deferred
            waiter, event.waiter = event.waiter, None
            if waiter is not None:
                acknowledged.append((waiter, str(event_id)))
        waiting = self._waiting
        while waiting and waiting[0].waiter is None:
            waiting.popleft()
        self._round_trip = seconds
        self._backlog.settle(events)
        if self._backlog.queued and seconds < DISTANT_SECONDS:
            # Deferred, so that the sender sends the next batch before the callers of this one continue.
            asyncio.get_running_loop().call_soon(_acknowledge, acknowledged)
        else:
            _acknowledge(acknowledged)
        if reply.first_id:
            self._last_id = max(self._last_id, reply.first_id + len(events) - 1)
            self._codec.trimmed(events, reply.untrimmed)
            self._stored(events)
        if committed := len(events) - len(reply.errors):
            self._observers.emit(
                BatchCommitted(events=committed, payload_bytes=size, deferred=deferred, seconds=seconds)
            )
        if rejected:
            self._lose(rejected, LossReason.REJECTED)

    def _reject(self, event: PendingEvent, error: str) -> bool:
        """Fail the caller of a rejected event. Return whether there is none, and the event is lost."""
        waiter, event.waiter = event.waiter, None
        if waiter is None:
            return True
        if not waiter.done():
            waiter.set_exception(StoreRejectedError(f"could not append to {error}"))
        return False

    def refuse(self, batch: "RootBatch", error: str) -> None:
        """Isolate the event for which Redis refuses a batch, by bisection, and reject it."""
        if len(batch.pending) == 1:
            self._settle(batch.pending, Reply(0, {0: error}), 0.0)
            return
        self._observers.emit(BatchRetried(reason=FailureReason.OTHER, events=batch.events, error=error))
        self._backlog.split(batch.first, batch.pending)

    def put_back(self, events: list[PendingEvent]) -> None:
        """Return the events of a batch that will not be sent again."""
        self._backlog.put_back(events)


class RootBatch(Batch):
    """A batch of the root store."""

    __slots__ = ("_writer", "first", "pending")

    def __init__(self, writer: RootWriter, first: int, pending: list[PendingEvent]) -> None:
        super().__init__()
        self._writer = writer
        self.first = first
        """The sequence of the first event."""
        self.pending = pending
        self.events = len(pending)
        self.payload_bytes = sum([len(event.payload) for event in pending])

    def packed(self, *, as_eval: bool) -> list[bytes]:
        """Encode the command as bytes for the wire."""
        return self._writer.encode(self, as_eval=as_eval)

    def arguments(self, *, as_eval: bool) -> list[str | bytes]:
        """Encode the command as arguments."""
        return self._writer.arguments(self, as_eval=as_eval)

    def acknowledge(self, reply: bytes, seconds: float) -> None:
        """Handle Redis's reply."""
        self._writer.acknowledge(self, reply, seconds)

    def refuse(self, error: str) -> bool:
        """Isolate the event that Redis refuses."""
        self._writer.refuse(self, error)
        return True

    def abandon(self) -> None:
        """Return the events."""
        self._writer.put_back(self.pending)


def _acknowledge(waiters: Sequence[tuple["asyncio.Future[EventId | None]", EventId]]) -> None:
    for waiter, event_id in waiters:
        if not waiter.done():
            waiter.set_result(event_id)


def _resolve(event: PendingEvent, event_id: EventId | None) -> None:
    """Release the caller of an event, if there is one."""
    waiter, event.waiter = event.waiter, None
    if waiter is not None and not waiter.done():
        waiter.set_result(event_id)
