"""The ASGI application of each contestant, served by uvicorn in a process of its own."""

import asyncio
import os
import sys
import uuid
from collections import deque
from dataclasses import dataclass

from benchmarks.e2e import CONTESTANT, FAST, REDIS_URL

# redis-py uses hiredis by its being importable.
if not os.environ.get(FAST):
    sys.modules["hiredis"] = None  # type: ignore[assignment]

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp.types import JSONRPCMessage
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

TTL = 3600
_KEPT = 2000
"""Events of a stream in memory. The default of the example, 100, is fewer than a resume of this benchmark needs."""


def app() -> Starlette:
    """Build the application that the environment names."""
    return {"none": _no_store, "memory": _in_memory, "ours": _ours, "persist": _persist}[os.environ[CONTESTANT]]()


def _no_store() -> Starlette:
    return _server().streamable_http_app()


def _in_memory() -> Starlette:
    return _server().streamable_http_app(event_store=InMemoryEventStore(_KEPT))


def _ours() -> Starlette:
    from mcp_eventscope import http_app  # noqa: PLC0415 - the other processes must not pay for it

    return http_app(_server(), redis_url=os.environ[REDIS_URL], ttl=TTL, registry=CollectorRegistry())


def _persist() -> Starlette:
    from mcp_persist import with_persistence  # noqa: PLC0415 - a peer, which need not be installed

    # Mounted at the root, since a mount at /mcp redirects every request to /mcp/.
    app: Starlette = with_persistence(
        _server(), backend="redis", url=os.environ[REDIS_URL], ttl=TTL, durable_sessions=True, mcp_path="/"
    )
    return app


def _server() -> MCPServer[object]:
    mcp: MCPServer[object] = MCPServer("benchmark", log_level="CRITICAL")

    @mcp.tool()
    async def count(times: int, ctx: Context, every: float = 0) -> str:
        """Report progress so many times, then return."""
        for step in range(times):
            if every:
                await asyncio.sleep(every)
            await ctx.report_progress(step, total=times, message=f"step {step} of {times}")
        return "done"

    return mcp


@dataclass(frozen=True)
class _Entry:
    event_id: EventId
    stream_id: StreamId
    message: JSONRPCMessage | None


class InMemoryEventStore(EventStore):
    """The example of the SDK's documentation: the last 100 events of each stream, for as long as the process lives."""

    def __init__(self, max_events_per_stream: int = 100) -> None:
        self._limit = max_events_per_stream
        self._streams: dict[StreamId, deque[_Entry]] = {}
        self._entries: dict[EventId, _Entry] = {}

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Append an event to its stream, and drop the oldest event of a full one."""
        entry = _Entry(str(uuid.uuid4()), stream_id, message)
        stream = self._streams.setdefault(stream_id, deque(maxlen=self._limit))
        if len(stream) == self._limit:
            self._entries.pop(stream[0].event_id, None)
        stream.append(entry)
        self._entries[entry.event_id] = entry
        return entry.event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send the later events of the stream to which an event belongs."""
        last = self._entries.get(last_event_id)
        if last is None:
            return None
        found = False
        for entry in list(self._streams[last.stream_id]):
            if found and entry.message is not None:
                await send_callback(EventMessage(entry.message, entry.event_id))
            found = found or entry.event_id == last_event_id
        return last.stream_id
