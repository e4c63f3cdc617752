"""Collect the events of a replay in comparable form: ids and texts on the wire."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mcp.server.streamable_http import EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage


def on_the_wire(message: JSONRPCMessage) -> str:
    """A message as the transport writes it after `data:`, which determines equality."""
    return message.model_dump_json(by_alias=True, exclude_unset=True)


@dataclass
class Collected:
    """A callback that collects events."""

    stream_id: StreamId | None = None
    """The return value of the replay."""
    ids: list[EventId | None] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    """The messages, as written on the wire."""

    async def __call__(self, event: EventMessage) -> None:
        """Collect one event."""
        self.ids.append(event.event_id)
        self.data.append(on_the_wire(event.message))

    @property
    def events(self) -> Sequence[tuple[EventId | None, str]]:
        """Pairs of id and data."""
        return list(zip(self.ids, self.data, strict=True))


async def replay(store: EventStore, last_event_id: EventId) -> Collected:
    """Replay the events after an event, and return them with the stream."""
    collected = Collected()
    collected.stream_id = await store.replay_events_after(last_event_id, collected)
    return collected
