"""An event store in memory, of the shape that the SDK's examples have: somebody else's store."""

from dataclasses import dataclass

from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage


@dataclass(frozen=True)
class Entry:
    """One event."""

    event_id: EventId
    stream_id: StreamId
    message: JSONRPCMessage | None


class InMemoryEventStore(EventStore):
    """Keeps events in a list; finds one by its id alone, whoever asks."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event."""
        event_id = str(len(self._entries) + 1)
        self._entries.append(Entry(event_id, stream_id, message))
        return event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send the later events of the same stream."""
        found = next((entry for entry in self._entries if entry.event_id == last_event_id), None)
        if found is None:
            return None
        for entry in self._entries[self._entries.index(found) + 1 :]:
            if entry.stream_id == found.stream_id and entry.message is not None:
                await send_callback(EventMessage(entry.message, entry.event_id))
        return found.stream_id
