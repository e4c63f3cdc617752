"""A third-party store in memory, with only the SDK's interface and with random ids."""

import itertools
import secrets
from dataclasses import dataclass

from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage


@dataclass(frozen=True)
class _Kept:
    stream_id: StreamId
    message: JSONRPCMessage | None


class MemoryEventStore(EventStore):
    """Every event in one dictionary, in the order in which they came."""

    def __init__(self) -> None:
        self._events: dict[EventId, _Kept] = {}

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Keep an event, and return a random id."""
        event_id = secrets.token_hex(16)
        self._events[event_id] = _Kept(stream_id, message)
        return event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send what came after an event on its stream."""
        last = self._events.get(last_event_id)
        if last is None:
            return None
        later = itertools.dropwhile(lambda item: item[0] != last_event_id, list(self._events.items()))
        for event_id, event in itertools.islice(later, 1, None):
            if event.stream_id == last.stream_id and event.message is not None:
                await send_callback(EventMessage(event.message, event_id))
        return last.stream_id
