"""One pass over a stream: what is delivered of a chunk, and what a cursor that is not there means."""

from collections.abc import Sequence

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.redis import codec, scripts
from mcp_eventscope.types import FINAL, GET_STREAM_KEY, EventCallback, EventId, EventMessage, Miss, StreamId

_MICROSECONDS = 1_000_000
_FIRST_CLOCK_ID = 10**15
"""Ids below this (the year 2001, in microseconds) were counted, not read off a clock: they have no age."""


class Reading:
    """One pass over a stream: where it stands, and what it has delivered."""

    __slots__ = (
        "_send",
        "_until_response",
        "completed",
        "corrupt",
        "cursor",
        "delivered",
        "missing",
        "payload_bytes",
        "stream_id",
        "traceparents",
    )

    def __init__(self, stream_id: StreamId, cursor: EventId, send: EventCallback, *, until_response: bool) -> None:
        self.stream_id = stream_id
        self.cursor = cursor
        self.delivered = self.payload_bytes = self.missing = 0
        self.corrupt: dict[EventId, None] = {}  # Each once: one that is no place to go on from is read again.
        self.completed = False
        self.traceparents: dict[EventId, str] = {}
        """Who produced events, as far as Redis has said it; filled by whoever reads."""
        self._send = send
        self._until_response = until_response

    @property
    def producers(self) -> tuple[str, ...]:
        """Who produced what was delivered: each once, the first of them."""
        if not self.traceparents:
            return ()
        reached = int(self.cursor)
        told = {
            traceparent: None
            for event_id, traceparent in self.traceparents.items()
            if int(event_id) <= reached and event_id not in self.corrupt
        }
        return tuple(told)[: scripts.PRODUCERS]

    async def take(self, rows: Sequence[scripts.Row]) -> None:
        """Deliver rows, or count why not, until the response. The cursor moves only past what was dealt with."""
        send, ends = self._send, self._until_response and self.stream_id != GET_STREAM_KEY
        for event_id, wrong, payload in rows:
            if wrong:
                self._miss(event_id, wrong)
                continue
            if payload:  # else a priming event: stored, so that its id is a cursor, and never sent again
                try:
                    message = codec.decode(payload)
                except CorruptEventError:
                    self.corrupt[event_id] = None
                else:
                    await send(EventMessage(message, event_id))
                    self.delivered += 1
                    self.payload_bytes += len(payload)
                    if ends and type(message) in FINAL:
                        self.completed = True
                        self.cursor = event_id
                        return
            self.cursor = event_id

    def _miss(self, event_id: EventId, wrong: str) -> None:
        if wrong == "missing":
            self.missing += 1
        else:
            self.corrupt[event_id] = None
        if wrong != "misplaced":
            self.cursor = event_id


def age_of(chunk: scripts.Chunk, cursor: int) -> float | None:
    """Seconds since a cursor's event was stored, by Redis's clock; None for an id that is no clock."""
    return None if cursor < _FIRST_CLOCK_ID else max(0, chunk.clock - cursor) / _MICROSECONDS


def miss_of(chunk: scripts.Chunk, cursor: int, stream_id: StreamId | None, ttl: int | None) -> Miss | None:
    """Why there is nothing to resume from; None when there is."""
    if chunk.named_stream is not None:
        return Miss.UNKNOWN if stream_id not in (None, chunk.named_stream) else None
    # Not before: a counter that was rolled back, or restarted by another writer, unmakes no event that is there.
    if chunk.last_given and cursor > chunk.last_given and not chunk.cursor_held:
        return Miss.UNKNOWN
    if stream_id is not None and cursor < chunk.restored:
        return None  # Redis has lost all of the session that was stored by then, and with it the event, if it was.
    age = age_of(chunk, cursor)
    expired = ttl is not None and age is not None and age >= ttl
    if stream_id is not None and chunk.oldest and (chunk.cursor_held or chunk.trimmed >= cursor or expired):
        return None  # The event itself is gone, and was there: what followed it can still be delivered.
    return Miss.EXPIRED if expired else Miss.UNKNOWN


def lost_after(chunk: scripts.Chunk, cursor: int) -> bool:
    """Whether events after the cursor were removed: trimmed past it, or with the index that named it."""
    return chunk.trimmed > cursor or cursor < chunk.restored or (not chunk.cursor_held and chunk.trimmed < cursor)
