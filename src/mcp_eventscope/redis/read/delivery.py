"""One pass over a stream: its position, and the counts of delivered events."""

from collections import Counter
from collections.abc import Callable, Iterable

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

    async def take(self, run: str, rows: Iterable[Row], *, start: int, head: int = 0) -> None:
        """Deliver rows of one run up to the response, and advance the position past them.

        Args:
            run: The run.
            rows: The rows, in order.
            start: The first number that they stand for. Of a run without a position, none before it is missing.
            head: The number of the first element of the run's list; 0: they are from memory.
        """
        cursor, send, decode = self.cursor, self._send, codec.decode
        due = start = cursor.positions.get(run, start - 1) + 1
        final = frozenset(() if self._standalone else FINAL)
        suffix = cursor.suffix(run)
        time = cursor.time
        delivered = size = 0
        try:
            for number, accepted, first, note, payload in rows:
                if number != due or first != due or not payload:
                    if number < due:
                        continue
                    payload = self._account((number, accepted, first, note, payload), due, time, head)  # noqa: PLW2901
                    if not payload:  # Lost, or a priming event: a position without a message.
                        due, time = number + 1, accepted
                        continue
                event_id = f"{accepted}-{number}{suffix}"
                try:
                    message = decode(payload)
                except CorruptEventError:
                    self.corrupt.append(event_id)
                else:
                    await send(StoredEvent(message, event_id, payload))
                    delivered += 1
                    size += len(payload)
                    if note and len(self.producers) < PRODUCERS:
                        self.producers[note] = None
                    if type(message) in final:
                        self.completed = True
                        due, time = number + 1, accepted
                        return
                due, time = number + 1, accepted
        finally:  # Also after an exception of the callback: the events before were delivered.
            self.delivered += delivered
            self.payload_bytes += size
            if due > start:
                cursor.positions[run] = due - 1
                cursor.run, cursor.time = run, time

    def _account(self, row: Row, due: int, time: int, head: int) -> bytes:
        """Count the events that are missing before or instead of a row, and return its payload; b"" if it is lost."""
        number, accepted, first, note, payload = row
        if first > due:
            self._skipped(first - due, time, trimmed=number == head)
        if first < number or payload is None:  # The position may be within the range.
            self._lost(number - max(first, due) + 1, accepted, note)
            return b""
        return payload

    def _skipped(self, events: int, time: int, *, trimmed: bool) -> None:
        """Count events without an element: those before the head of the list have expired, or were evicted."""
        removed = Gap.TRIMMED if time < self._horizon() else Gap.EVICTED
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
