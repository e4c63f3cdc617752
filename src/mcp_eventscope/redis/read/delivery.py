"""One pass over a stream: its position, and the counts of delivered events."""

from collections import Counter
from collections.abc import Callable, Sequence

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.redis.read.cursor import Cursor
from mcp_eventscope.redis.read.elements import REASONS, Row
from mcp_eventscope.store import codec
from mcp_eventscope.store.messages import FINAL, EventCallback, EventId, EventMessage, StoredEvent, StreamId
from mcp_eventscope.store.results import Gap

PRODUCERS = 32
"""Maximum number of producers that a replay reports."""


class Delivery:
    """Delivers rows in order, and counts them.

    Args:
        stream: The stream.
        cursor: The position, which advances with each row.
        send: Awaited with each event.
        standalone: Whether the stream is the standalone stream, which never ends.
        horizon: Returns the time before which events have expired, in microseconds since 1970.
    """

    __slots__ = (
        "_horizon",
        "_send",
        "_standalone",
        "completed",
        "corrupt",
        "cursor",
        "delivered",
        "gaps",
        "origin",
        "payload_bytes",
        "producers",
        "stream",
    )

    def __init__(
        self,
        stream: StreamId,
        cursor: Cursor,
        send: EventCallback,
        *,
        standalone: bool,
        horizon: Callable[[], int] = int,
    ) -> None:
        self.stream = stream
        self.cursor = cursor
        self.delivered = self.payload_bytes = 0
        self.gaps: Counter[Gap] = Counter()
        """The number of missing events, by reason."""
        self.corrupt: list[EventId] = []
        self.producers: dict[str, None] = {}
        self.origin = ""
        """The `traceparent` of the request's first known event; "": unknown."""
        self.completed = False
        """Whether the response of the request was delivered, now or earlier."""
        self._send = send
        self._standalone = standalone
        self._horizon = horizon

    @property
    def missing(self) -> int:
        """Events that were due and no longer exist."""
        return self.gaps.total()

    async def take(self, run: str, rows: Sequence[Row], *, head: int = 0) -> None:
        """Deliver rows of one run up to the response, and advance the position past them.

        Args:
            run: The run.
            rows: The rows, in order.
            head: The number of the first element of the run's list; 0: they are from memory.
        """
        cursor = self.cursor
        positions, send, decode, standalone = cursor.positions, self._send, codec.decode, self._standalone
        # Before the first row of a run without a position in the cursor, no event is missing.
        before = positions.get(run, rows[0][2] - 1 if rows else 0)
        suffix = cursor.suffix(run)
        for number, time, first, producer, payload in rows:
            if number <= before:
                continue
            if first > before + 1:
                self._skipped(first - before - 1, trimmed=number == head)
            if first < number or payload is None:  # Lost. The position may be within the range.
                self._lost(number - max(first, before + 1) + 1, time, producer)
            elif payload:  # Else a priming event: a position without a message.
                event_id = f"{time}-{number}{suffix}"
                try:
                    message = decode(payload)
                except CorruptEventError:
                    self.corrupt.append(event_id)
                else:
                    await send(StoredEvent(message, event_id, payload))
                    self.delivered += 1
                    self.payload_bytes += len(payload)
                    if producer and len(self.producers) < PRODUCERS:
                        self.producers[producer] = None
                    self.completed = not standalone and type(message) in FINAL
            positions[run] = before = number
            cursor.run, cursor.time = run, time
            if self.completed:
                return

    def _skipped(self, events: int, *, trimmed: bool) -> None:
        """Count events without an element: those before the head of the list have expired, or were evicted."""
        removed = Gap.TRIMMED if self.cursor.time < self._horizon() else Gap.EVICTED
        self.gaps[removed if trimmed else Gap.STORE_LOST] += events

    def _lost(self, events: int, time: int, reason: str) -> None:
        """Count events of a placeholder, or one whose payload has disappeared."""
        gap = Gap(reason) if reason in REASONS else Gap.STORE_LOST
        if gap is Gap.STORE_LOST and time < self._horizon():
            gap = Gap.TRIMMED
        self.gaps[gap] += events

    async def answer(self, payload: bytes) -> None:
        """Deliver the error that replaces the response, last and without an id. A damaged one is counted as lost."""
        try:
            message = codec.decode(payload)
        except CorruptEventError:
            self.gaps[Gap.STORE_LOST] += 1
        else:
            await self._send(EventMessage(message))
            self.delivered += 1
            self.payload_bytes += len(payload)
        self.completed = True
