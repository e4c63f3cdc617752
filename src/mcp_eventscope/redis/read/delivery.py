"""One pass over a stream: its position, and the counts of delivered events."""

from collections.abc import Sequence

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.redis.read.cursor import Cursor
from mcp_eventscope.redis.read.elements import Row
from mcp_eventscope.store import codec
from mcp_eventscope.store.messages import FINAL, EventCallback, EventId, EventMessage, StreamId

PRODUCERS = 32
"""Maximum number of producers that a replay reports."""


class Delivery:
    """Delivers rows in order, and counts them.

    Args:
        stream: The stream.
        cursor: The position, which advances with each row.
        send: Awaited with each event.
        standalone: Whether the stream is the standalone stream, which never ends.
    """

    __slots__ = (
        "_send",
        "_standalone",
        "completed",
        "corrupt",
        "cursor",
        "delivered",
        "missing",
        "payload_bytes",
        "producers",
        "stream",
    )

    def __init__(self, stream: StreamId, cursor: Cursor, send: EventCallback, *, standalone: bool) -> None:
        self.stream = stream
        self.cursor = cursor
        self.delivered = self.payload_bytes = self.missing = 0
        self.corrupt: list[EventId] = []
        self.producers: dict[str, None] = {}
        self.completed = False
        """Whether the response of the request was delivered, now or earlier."""
        self._send = send
        self._standalone = standalone

    async def take(self, run: str, rows: Sequence[Row]) -> None:
        """Deliver rows of one run up to the response, and advance the position past them."""
        cursor = self.cursor
        positions, send, decode, standalone = cursor.positions, self._send, codec.decode, self._standalone
        # Before the first row of a run without a position in the cursor, no event is missing.
        before = positions.get(run, rows[0][2] - 1 if rows else 0)
        suffix = cursor.suffix(run)
        for number, time, first, producer, payload in rows:
            if number <= before:
                continue
            if first > before + 1:
                self.missing += first - before - 1  # Trimmed.
            if first < number or payload is None:  # Lost. The position may be within the range.
                self.missing += number - max(first, before + 1) + 1
            elif payload:  # Else a priming event: a position without a message.
                event_id = f"{time}-{number}{suffix}"
                try:
                    message = decode(payload)
                except CorruptEventError:
                    self.corrupt.append(event_id)
                else:
                    await send(EventMessage(message, event_id))
                    self.delivered += 1
                    self.payload_bytes += len(payload)
                    if producer and len(self.producers) < PRODUCERS:
                        self.producers[producer] = None
                    self.completed = not standalone and type(message) in FINAL
            positions[run] = before = number
            cursor.run, cursor.time = run, time
            if self.completed:
                return

    async def answer(self, payload: bytes) -> None:
        """Deliver the error that replaces the response, last and without an id."""
        await self._send(EventMessage(codec.decode(payload)))
        self.delivered += 1
        self.payload_bytes += len(payload)
        self.completed = True
