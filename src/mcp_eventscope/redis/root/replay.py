"""One pass over a stream of the root store, and the classification of unknown cursors."""

from collections.abc import Sequence

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.redis.root import scripts
from mcp_eventscope.store import codec
from mcp_eventscope.store.messages import FINAL, GET_STREAM_KEY, EventCallback, EventId, EventMessage, StreamId
from mcp_eventscope.store.results import Gap, Miss

_MICROSECONDS = 1_000_000
_FIRST_CLOCK_ID = 10**15
"""Smaller ids (before the year 2001, in microseconds) are counters of another writer, and have no age."""


class ReplayCursor:
    """One pass over a stream: its position, and the counts of delivered events."""

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
        self.corrupt: dict[EventId, None] = {}  # Without duplicates: a misplaced event is read again.
        self.completed = False
        self.traceparents: dict[EventId, str] = {}
        """The known producers by event, added by the reader."""
        self._send = send
        self._until_response = until_response

    @property
    def producers(self) -> tuple[str, ...]:
        """The first distinct producers of the delivered events."""
        if not self.traceparents:
            return ()
        reached = int(self.cursor)
        delivered = {
            traceparent: None
            for event_id, traceparent in self.traceparents.items()
            if int(event_id) <= reached and event_id not in self.corrupt
        }
        return tuple(delivered)[: scripts.PRODUCERS]

    async def take(self, rows: Sequence[scripts.Row]) -> None:
        """Deliver rows up to the response, count missing and corrupt ones, and advance the cursor."""
        send, ends = self._send, self._until_response and self.stream_id != GET_STREAM_KEY
        for event_id, wrong, payload in rows:
            if wrong:
                self._miss(event_id, wrong)
                continue
            if payload:  # Else a priming event: stored so that its id is a cursor, but never replayed.
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
    """Seconds since a cursor's event was stored; None if its id is no time."""
    return None if cursor < _FIRST_CLOCK_ID else max(0, chunk.clock - cursor) / _MICROSECONDS


def miss_of(chunk: scripts.Chunk, cursor: int, stream_id: StreamId | None, ttl: int | None) -> Miss | None:
    """Why a cursor cannot be resumed from; None if it can."""
    if chunk.named_stream is not None:
        return Miss.UNKNOWN if stream_id not in (None, chunk.named_stream) else None
    # Checked last: the counter may have been rolled back, or restarted by another writer.
    if chunk.last_given and cursor > chunk.last_given and not chunk.cursor_held:
        return Miss.UNKNOWN
    age = age_of(chunk, cursor)
    expired = ttl is not None and age is not None and age >= ttl
    if stream_id is not None and chunk.oldest and (chunk.cursor_held or chunk.trimmed >= cursor or expired):
        return None  # Only the event itself is missing: its successors can still be delivered.
    return Miss.EXPIRED if expired else Miss.UNKNOWN


def lost_after(chunk: scripts.Chunk, cursor: int) -> bool:
    """Whether events after the cursor were removed: trimmed, or lost with the index."""
    return chunk.trimmed > cursor or (not chunk.cursor_held and chunk.trimmed < cursor)


def gaps_of(missing: int, chunk: scripts.Chunk, cursor: int) -> dict[Gap, int]:
    """The reasons of a gap, with the numbers of missing events: 0 where they are unknown.

    Args:
        missing: The number of events that the index listed, and that no longer exist.
        chunk: The first chunk of the replay.
        cursor: The last event that the client has.
    """
    gaps = {Gap.STORE_LOST: missing} if missing else {}
    if chunk.trimmed > cursor:
        gaps[Gap.TRIMMED] = 0
    elif lost_after(chunk, cursor):
        gaps.setdefault(Gap.STORE_LOST, 0)
    return gaps
