"""Stores with one fault each, under the suite; `test_conformance_suite.py` runs it to fail."""

from collections.abc import Callable
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage, jsonrpc_message_adapter

from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.testing import EventStoreConformance, on_the_wire, sessions
from support.memory_store import MemoryEventStore


class Rewriting(MemoryEventStore):
    """Keeps messages as JSON, in a way that is given."""

    def __init__(self, dump: Callable[[JSONRPCMessage], str]) -> None:
        super().__init__()
        self._dump = dump

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store the message as read back from JSON."""
        kept = None if message is None else jsonrpc_message_adapter.validate_json(self._dump(message))
        return await super().store_event(stream_id, kept)


class WithoutNulls(Rewriting):
    """Drops nulls."""

    def __init__(self) -> None:
        super().__init__(lambda message: message.model_dump_json(exclude_none=True))


class WithDefaults(Rewriting):
    """Writes fields that were never set."""

    def __init__(self) -> None:
        super().__init__(lambda message: message.model_dump_json())


class Parsing(Rewriting):
    """Reads no more than the SDK's parser does."""

    def __init__(self) -> None:
        super().__init__(on_the_wire)


class Reversed(MemoryEventStore):
    """Replays the newest first."""

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Collect, and send in reverse."""
        held: list[EventMessage] = []

        async def hold(event: EventMessage) -> None:
            held.append(event)

        stream = await super().replay_events_after(last_event_id, hold)
        for event in reversed(held):
            await send_callback(event)
        return stream


class Inclusive(MemoryEventStore):
    """Sends the client's last event again."""

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Begin one too early."""
        kept = self._events.get(last_event_id)
        if kept is not None and kept.message is not None:
            await send_callback(EventMessage(kept.message, last_event_id))
        return await super().replay_events_after(last_event_id, send_callback)


class OneStream(MemoryEventStore):
    """Replays later events of every stream."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Keep all events on one stream."""
        return await super().store_event("all", message)


class Consuming(MemoryEventStore):
    """Deletes the events that it has replayed."""

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send, and delete."""

        async def send_and_forget(event: EventMessage) -> None:
            await send_callback(event)
            self._events.pop(event.event_id or "")

        return await super().replay_events_after(last_event_id, send_and_forget)


class Numbered(MemoryEventStore):
    """Takes every id for a number."""

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Raise on any other text."""
        int(last_event_id, 16)
        return await super().replay_events_after(last_event_id, send_callback)


class Swallowing(MemoryEventStore):
    """Takes a broken connection for a detail, and goes on."""

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Ignore exceptions of the callback."""

        async def send(event: EventMessage) -> None:
            try:
                await send_callback(event)
            except anyio.BrokenResourceError:
                return

        return await super().replay_events_after(last_event_id, send)


class Losing(MemoryEventStore):
    """Reads the last id, waits, and writes the next: two tasks that do so at once share one."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Keep an event under a number."""
        event_id = str(len(self._events) + 1)
        await anyio.lowlevel.checkpoint()
        kept = self._events
        await super().store_event(stream_id, message)
        kept[event_id] = kept.pop(next(reversed(kept)))
        return event_id


class Priming(MemoryEventStore):
    """Has no priming events: None is nothing to store."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Keep messages only."""
        return "" if message is None else await super().store_event(stream_id, message)


class Shortened(MemoryEventStore):
    """Cuts the names of streams to 64 characters."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Keep an event under a shorter name."""
        return await super().store_event(stream_id[:33], message)


class Faulty(EventStoreConformance):
    """The suite, on a store that is made by `make`."""

    ids_increase = False
    make: ClassVar[Callable[[], EventStore]]

    @pytest.fixture
    def store(self) -> EventStore:
        """The faulty store."""
        return type(self).make()


class TestWithoutNulls(Faulty):
    """The suite on `WithoutNulls`."""

    make = WithoutNulls


class TestWithDefaults(Faulty):
    """The suite on `WithDefaults`."""

    make = WithDefaults


class TestParsing(Faulty):
    """The suite on `Parsing`."""

    make = Parsing


class TestReversed(Faulty):
    """The suite on `Reversed`."""

    make = Reversed


class TestInclusive(Faulty):
    """The suite on `Inclusive`."""

    make = Inclusive


class TestOneStream(Faulty):
    """The suite on `OneStream`."""

    make = OneStream


class TestConsuming(Faulty):
    """The suite on `Consuming`."""

    make = Consuming


class TestNumbered(Faulty):
    """The suite on `Numbered`."""

    make = Numbered


class TestSwallowing(Faulty):
    """The suite on `Swallowing`."""

    make = Swallowing


class TestLosing(Faulty):
    """The suite on `Losing`."""

    make = Losing


class TestPriming(Faulty):
    """The suite on `Priming`."""

    make = Priming


class TestShortened(Faulty):
    """The suite on `Shortened`."""

    make = Shortened


class TestSharedViews(Faulty):
    """The suite where all sessions have one view, as the SDK's own manager has it."""

    make = MemoryEventStore

    @pytest.fixture(autouse=True)
    def views_are_shared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give every session the view of the same one."""
        view_of = sessions.view_of

        def shared(store: EventStore, _: str) -> SessionView:
            return view_of(store, "all")

        monkeypatch.setattr(sessions, "view_of", shared)
