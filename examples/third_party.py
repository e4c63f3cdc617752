"""Instruments third-party event stores with metrics, spans and log events.

    pip install 'mcp-persist[sqlite]' fastmcp
    python examples/third_party.py memory sqlite fastmcp

To serve a third-party store, pass it to `http_app(mcp, store)`, which instruments it and isolates sessions.
"""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage, JSONRPCNotification, JSONRPCResponse
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore


class InMemoryEventStore(EventStore):
    """An in-memory store like that of the SDK's examples."""

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self._events: dict[EventId, tuple[StreamId, JSONRPCMessage | None]] = {}

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store an event."""
        event_id = str(next(self._count))
        self._events[event_id] = (stream_id, message)
        return event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send the later events of the same stream."""
        if last_event_id not in self._events:
            return None
        stream, _ = self._events[last_event_id]
        for event_id, (of, message) in list(self._events.items()):
            if of == stream and message is not None and int(event_id) > int(last_event_id):
                await send_callback(EventMessage(message, event_id))
        return stream


@asynccontextmanager
async def memory() -> AsyncIterator[EventStore]:
    """An in-memory store with only the SDK's interface."""
    yield InMemoryEventStore()


@asynccontextmanager
async def sqlite() -> AsyncIterator[EventStore]:
    """mcp-persist's store, on SQLite."""
    import aiosqlite  # noqa: PLC0415 - comes with the extra `sqlite` of mcp-persist
    from mcp_persist import SQLiteEventStore  # noqa: PLC0415 - optional

    async with aiosqlite.connect(":memory:") as connection:
        store = SQLiteEventStore(connection, ttl=3600)
        await store.initialize()
        yield store


@asynccontextmanager
async def fastmcp() -> AsyncIterator[EventStore]:
    """FastMCP's store, which py-key-value keeps in memory by default."""
    from fastmcp.server.event_store import EventStore as FastMCPEventStore  # noqa: PLC0415 - need not be installed

    yield FastMCPEventStore(ttl=3600)


STORES: dict[str, Callable[[], AbstractAsyncContextManager[EventStore]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "fastmcp": fastmcp,
}


async def show(name: str, registry: CollectorRegistry) -> None:
    """Store a call with progress, resume it from its first event, then resume from an unknown event."""
    async with STORES[name]() as theirs:
        store = InstrumentedEventStore(theirs, name=name, registry=registry).for_session("a session")
        first = await store.append("1", None)
        for step in range(3):
            params = {"progressToken": 1, "progress": step}
            await store.append("1", JSONRPCNotification(jsonrpc="2.0", method="notifications/progress", params=params))
        await store.append("1", JSONRPCResponse(jsonrpc="2.0", id=1, result={}))

        async def send(event: EventMessage) -> None:
            print(f"{name}: replayed", event.message.model_dump_json(by_alias=True, exclude_unset=True))

        await store.replay(first.event_id, send, stream_id="1")
        await store.replay("nonsense", send, stream_id="1")


async def main(names: list[str]) -> None:
    """Run the stores, then print their metrics."""
    registry = CollectorRegistry()
    for name in names:
        await show(name, registry)
    for metric in ("eventscope_events_stored_total", "eventscope_replay_duration_seconds_count"):
        for sample in (sample for family in registry.collect() for sample in family.samples):
            if sample.name == metric and sample.value:
                print(sample.name, dict(sample.labels), int(sample.value))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["memory"]))
