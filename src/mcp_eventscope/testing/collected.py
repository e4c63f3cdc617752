"""What a replay delivered, in the form in which it is compared: ids, and the text that the transport writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mcp.server.streamable_http import EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage


def on_the_wire(message: JSONRPCMessage) -> str:
    """A message as the transport writes it after `data:`. Two messages are the same when this is."""
    return message.model_dump_json(by_alias=True, exclude_unset=True)


@dataclass
class Collected:
    """A callback that keeps what it is given."""

    stream_id: StreamId | None = None
    """What the replay returned."""
    ids: list[EventId | None] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    """The messages, as written on the wire."""

    async def __call__(self, event: EventMessage) -> None:
        """Keep one event."""
        self.ids.append(event.event_id)
        self.data.append(on_the_wire(event.message))

    @property
    def events(self) -> Sequence[tuple[EventId | None, str]]:
        """Ids and data, pair by pair."""
        return list(zip(self.ids, self.data, strict=True))


async def replay(store: EventStore, last_event_id: EventId) -> Collected:
    """Replay what is stored after an event, and return it with the stream that the store names."""
    collected = Collected()
    collected.stream_id = await store.replay_events_after(last_event_id, collected)
    return collected
