"""The bounded queue of the root store's pending events. It does no I/O."""

import asyncio
from collections import OrderedDict, deque

from mcp_eventscope.redis.write.batch import BATCH_BYTES
from mcp_eventscope.store import codec
from mcp_eventscope.store.jsonrpc_errors import not_stored
from mcp_eventscope.store.messages import EventId, JSONRPCError, JSONRPCResponse, StreamId

EVENT_BYTES = 512
"""Memory of a pending event besides its payload, in bytes."""
BATCH_EVENTS = 64
"""Maximum number of events of one batch: Redis executes it in about a millisecond."""
LARGE_BATCH_EVENTS = 256
"""Maximum number of events of one batch when Redis is distant: the round trip then takes longer than the execution."""
SMALL_BATCH = 12
"""More events than this are split into at least two batches: one is encoded while Redis executes the other."""


class PendingEvent:
    """One event that is not stored yet.

    Args:
        stream_id: Its stream.
        payload: The message as JSON; b"" for a priming event.
        traceparent: The producer's W3C traceparent; "": none.
        final: Whether the event is the response that ends its stream.

    Raises:
        ValueError: The stream id cannot be encoded.
    """

    __slots__ = (
        "deadline",
        "deferred",
        "dropped",
        "final",
        "in_flight",
        "payload",
        "placeholder",
        "stream",
        "stream_id",
        "traceparent",
        "waiter",
    )

    def __init__(self, stream_id: StreamId, payload: bytes, traceparent: str, *, final: bool) -> None:
        self.stream_id = stream_id
        self.stream = stream_id.encode()
        self.payload = payload
        self.traceparent = traceparent.encode("ascii")
        self.final = final
        self.waiter: asyncio.Future[EventId | None] | None = None
        """The caller's future of the id; its result is None once the event is deferred."""
        self.deadline = 0.0
        """When the event is deferred, on the loop's clock."""
        self.in_flight = False
        self.deferred = False
        self.dropped = False
        self.placeholder = False
        """Whether the event stands for dropped events of its stream."""

    @property
    def size(self) -> int:
        """Memory of the pending event, in bytes."""
        return len(self.payload) + EVENT_BYTES


class Backlog:
    """The queue of a process. At most one batch is in flight, which preserves the order.

    Args:
        max_bytes: Maximum bytes of deferred events.
        max_events: Maximum number of deferred events.
    """

    def __init__(self, max_bytes: int, max_events: int) -> None:
        self._max_bytes = max_bytes
        self._max_events = max_events
        self.events = 0
        """Number of deferred events, including those in flight."""
        self.bytes = 0
        """Memory of the deferred events, in bytes."""
        self._queue: deque[PendingEvent] = deque()
        self._queued = 0
        """Number of events in the queue, without dropped ones."""
        self._dropped = 0
        """Number of dropped events that are still in the queue."""
        self._parts: deque[tuple[int, list[PendingEvent]]] = deque()
        """The remaining parts of a batch that Redis refused."""
        self._in_flight = False
        self._sequence = 1
        """The sequence of the next drained event."""
        self._settled = 0
        """Number of events of the last batch, whose callers will soon append the next ones."""
        # By stream. The stream that was deferred first is in front, and is dropped first.
        self._deferred: OrderedDict[StreamId, deque[PendingEvent]] = OrderedDict()
        # By dropped stream.
        self._placeholders: OrderedDict[StreamId, PendingEvent] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Whether there is a batch to send."""
        return not self._in_flight and bool(self._parts or self._queued)

    @property
    def queued(self) -> int:
        """Number of events that are not in flight."""
        return self._queued

    def put(self, event: PendingEvent) -> None:
        """Queue an event."""
        self._queue.append(event)
        self._queued += 1

    def drain(self, *, distant: bool) -> tuple[int, list[PendingEvent]]:
        """Remove and return the next batch. Call it only if `ready`.

        Args:
            distant: Whether Redis is distant, so that fewer round trips are preferred.

        Returns:
            The sequence of the first event, and the events.
        """
        self._in_flight = True
        if self._parts:
            return self._parts.popleft()
        events: list[PendingEvent] = []
        size = 0
        most = LARGE_BATCH_EVENTS
        if not distant:
            most = min(BATCH_EVENTS, max(SMALL_BATCH, (self._queued + self._settled + 1) // 2))
        queue = self._queue
        while queue and len(events) < most:
            event = queue[0]
            if event.dropped:
                queue.popleft()
                self._dropped -= 1
                continue
            size += len(event.payload)
            if events and size > BATCH_BYTES:
                break
            queue.popleft()
            event.in_flight = True
            events.append(event)
            if event.deferred:
                self._forget_queued(event)
        self._queued -= len(events)
        first, self._sequence = self._sequence, self._sequence + len(events)
        return first, events

    def _forget_queued(self, event: PendingEvent) -> None:
        if event.placeholder:
            del self._placeholders[event.stream_id]
            return
        stream = self._deferred[event.stream_id]
        stream.remove(event)  # Usually the first.
        if not stream:
            del self._deferred[event.stream_id]

    def settle(self, events: list[PendingEvent]) -> None:
        """Mark the events of a batch as stored or rejected, and allow the next batch."""
        self._in_flight = False
        self._settled = len(events)
        if self.events:
            for event in events:
                if event.deferred:
                    self._forget(event)

    def split(self, first: int, events: list[PendingEvent]) -> None:
        """Queue the two halves of a refused batch, before all other events.

        The sequences do not change: if Redis has executed the refused batch, it skips the events.
        """
        self._in_flight = False
        half = (len(events) + 1) // 2
        self._parts.extendleft([(first + half, events[half:]), (first, events[:half])])

    def put_back(self, events: list[PendingEvent]) -> None:
        """Return the events of a batch that will not be sent again."""
        self._in_flight = False
        self._queue.extendleft(reversed(events))
        self._queued += len(events)
        for event in reversed(events):
            event.in_flight = False
            if event.placeholder:
                self._placeholders[event.stream_id] = event
            elif event.deferred:
                self._deferred.setdefault(event.stream_id, deque()).appendleft(event)

    def _forget(self, event: PendingEvent) -> None:
        self.events -= 1
        self.bytes -= event.size

    def defer(self, event: PendingEvent) -> None:
        """Count an event for which no caller waits any longer."""
        event.deferred = True
        self.events += 1
        self.bytes += event.size
        if event.placeholder:
            self._placeholders[event.stream_id] = event
        elif not event.in_flight:
            self._deferred.setdefault(event.stream_id, deque()).append(event)

    def clear(self) -> list[PendingEvent]:
        """Remove and return all pending events."""
        left = [event for _, events in self._parts for event in events]
        left += [event for event in self._queue if not event.dropped]
        for event in left:
            if event.deferred:
                self._forget(event)
        for pending in (self._parts, self._queue, self._deferred, self._placeholders):
            pending.clear()
        self._queued = self._dropped = 0
        return left

    def overflow(self) -> list[PendingEvent]:
        """Drop whole streams, oldest first, until the rest is within the bounds.

        A placeholder remains for each dropped stream, so that a resume reports a gap, and ends if the response was
        dropped. Placeholders are dropped last.

        Returns:
            Copies of the dropped events.
        """
        dropped: list[PendingEvent] = []
        while self.bytes > self._max_bytes or self.events > self._max_events:
            if self._deferred:
                dropped += self._drop_stream(*self._deferred.popitem(last=False))
            elif self._placeholders:
                self._drop(self._placeholders.popitem(last=False)[1])
            else:
                break  # The rest is in flight.
        return dropped

    def _drop_stream(self, stream_id: StreamId, events: deque[PendingEvent]) -> list[PendingEvent]:
        dropped = [PendingEvent(stream_id, event.payload, "", final=event.final) for event in events]
        standing = self._placeholders.pop(stream_id, None)
        response = next((event.payload for event in dropped if event.final), None)
        for event in events:
            if standing is None:
                standing = event
                self._forget(event)
            else:
                self._drop(event)
        if standing is not None:
            if standing in events:
                payload, final = b"", False
            else:
                payload, final = standing.payload, standing.final
                self._forget(standing)
            if response is not None:
                payload, final = _in_place_of(response), True
            standing.payload, standing.final, standing.traceparent, standing.placeholder = payload, final, b"", True
            self.defer(standing)
        if self._dropped * 2 > len(self._queue):
            self._queue = deque(event for event in self._queue if not event.dropped)
            self._dropped = 0
        return dropped

    def _drop(self, event: PendingEvent) -> None:
        self._forget(event)
        event.dropped, event.payload = True, b""
        self._dropped += 1
        self._queued -= 1


def _in_place_of(response: bytes) -> bytes:
    """Return the error that is stored in place of a dropped response."""
    message = codec.decode(response)
    request_id = message.id if isinstance(message, JSONRPCResponse | JSONRPCError) else None
    return codec.encode(not_stored("" if request_id is None else request_id, "it was dropped"))
