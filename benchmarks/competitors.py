"""The competitors, each set up as documented, on the same kind of connection pool."""

import asyncio
import importlib.util
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, SessionsNotIsolatedWarning
from mcp_eventscope.store.messages import EventCallback, EventId, EventStore, JSONRPCMessage, StreamId

PREFIX = "mcp:"
"""The default of mcp-eventscope and mcp-persist; longer keys would cost both more."""
ROOT_PREFIX = "mcr:"
"""The prefix of our root store, equally long: with the same one it would share the counter of mcp-persist."""
TTL = 3600
POOL = 50
"""Connections of each competitor: redis-py's default for a blocking pool."""
WIDE = 500
"""A connection for each writer. redis-py's pool is not fair: a caller that returns a connection gets the next one, and
others may wait for as long as the load lasts. With this many connections no writer waits."""


@dataclass(frozen=True)
class Competitor:
    """One process that stores and replays.

    `needs` names the modules that must be importable. `telemetry` is "", "metrics" (in a call that is sampled out),
    "spans" (in a call whose spans are recorded), or "empty spans" (without our decorator).
    """

    name: str
    title: str
    product: str
    needs: tuple[str, ...] = ()
    hiredis: bool = False
    uvloop: bool = False
    telemetry: str = ""
    pool: int = POOL

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        needs = (*self.needs, *(("hiredis",) if self.hiredis else ()), *(("uvloop",) if self.uvloop else ()))
        return [name for name in needs if importlib.util.find_spec(name) is None]


_FASTMCP = ("fastmcp", "key_value")
_PERSIST = ("mcp_persist",)
COMPETITORS = {
    each.name: each
    for each in (
        Competitor("ours", "mcp-eventscope", "ours"),
        Competitor("root", "mcp-eventscope, root store", "root"),
        Competitor("persist", "mcp-persist", "persist", _PERSIST),
        Competitor("fastmcp", "FastMCP, py-key-value", "fastmcp", _FASTMCP),
        Competitor("metrics", "mcp-eventscope, metrics", "ours", telemetry="metrics"),
        Competitor("spans", "mcp-eventscope, metrics and spans", "ours", telemetry="spans"),
        # The share of OpenTelemetry: the least that a span for every event costs.
        Competitor("empty-spans", "mcp-eventscope, an empty span each", "ours", telemetry="empty spans"),
        Competitor("ours-hiredis", "mcp-eventscope, hiredis", "ours", hiredis=True),
        Competitor("ours-uvloop", "mcp-eventscope, uvloop", "ours", uvloop=True),
        Competitor("ours-both", "mcp-eventscope, uvloop and hiredis", "ours", uvloop=True, hiredis=True),
        Competitor("persist-hiredis", "mcp-persist, hiredis", "persist", _PERSIST, hiredis=True),
        Competitor("fastmcp-hiredis", "FastMCP, py-key-value, hiredis", "fastmcp", _FASTMCP, hiredis=True),
        Competitor("persist-wide", "mcp-persist, 500 connections", "persist", _PERSIST, pool=WIDE),
        Competitor("fastmcp-wide", "FastMCP, py-key-value, 500 connections", "fastmcp", _FASTMCP, pool=WIDE),
        # A weaker promise: it returns the id before Redis has the event, and loses pending events when it dies.
        Competitor("persist-batching", "mcp-persist, acknowledging early", "persist-batching", _PERSIST),
    )
}


@dataclass(frozen=True)
class Opened:
    """A store that is ready; `scoped` scopes it to a session as the product's own session manager does.

    Our root store has no sessions: a session is a prefix of its streams, as in the peers' stores.
    """

    client: aioredis.Redis
    scoped: Callable[[str], EventStore]

    def session(self) -> EventStore:
        """The part of a new session."""
        return self.scoped(session_id())


def session_id() -> str:
    """A session id in the SDK's format."""
    return uuid.uuid4().hex


@asynccontextmanager
async def opened(competitor: Competitor, url: str, *, kept: int = 0) -> AsyncIterator[Opened]:
    """Open the store of a competitor until the block ends.

    Args:
        competitor: The competitor.
        url: The URL of Redis.
        kept: Events that a stream must keep; FastMCP's default is 100.
    """
    client = aioredis.Redis.from_pool(
        # It waits without a limit: redis-py's ordinary pool raises if all connections are in use.
        aioredis.BlockingConnectionPool.from_url(
            url,
            max_connections=competitor.pool,
            timeout=None,
            # redis-py uses hiredis if it is importable, unless a parser is chosen.
            parser_class=_parser(hiredis=competitor.hiredis),
            # As py-key-value's store does by default, and requires: it does not accept bytes as a value.
            decode_responses=competitor.product == "fastmcp",
        )
    )
    provider: TracerProvider | None = None
    store: Any = None
    try:
        scoped: Callable[[str], EventStore]
        if competitor.product == "root":
            store = RedisEventStore(client, key_prefix=ROOT_PREFIX, ttl=TTL)
            # Its streams are named after their sessions here.
            warnings.simplefilter("ignore", SessionsNotIsolatedWarning)
            scoped = partial(_Prefixed, store)
        elif competitor.product == "ours":
            store = RedisEventStore(client, key_prefix=PREFIX, ttl=TTL)
            if competitor.telemetry:
                provider = tracer_provider(recorded=competitor.telemetry != "metrics")
                scoped = (
                    partial(_EmptySpans, store, provider.get_tracer("benchmarks"))
                    if competitor.telemetry == "empty spans"
                    else InstrumentedEventStore(
                        store, registry=CollectorRegistry(), tracer_provider=provider
                    ).for_session
                )
            else:
                scoped = store.for_session
        elif competitor.product == "fastmcp":
            scoped = _fastmcp(client, kept)
        else:
            store, scoped = _persist(client, batching=competitor.product == "persist-batching")
        with nullcontext() if provider is None else in_a_call(provider):
            yield Opened(client, scoped)
    finally:
        # Not every store has something to close.
        if close := getattr(store, "aclose", None):
            await close()
        if provider is not None:
            # It joins a thread.
            await asyncio.to_thread(provider.shutdown)
        await client.aclose()
        await client.connection_pool.disconnect()


def _persist(client: aioredis.Redis, *, batching: bool) -> tuple[Any, Callable[[str], EventStore]]:
    """Set up as in its README; sessions are scoped as by its `SessionScopedSessionManager`."""
    import mcp_persist  # noqa: PLC0415 - a peer, which need not be installed
    from mcp_persist.session_scope import SessionScopedEventStore  # noqa: PLC0415

    store: Any = mcp_persist.RedisEventStore(client, key_prefix=PREFIX, ttl=TTL)
    if batching:
        from mcp_persist.batching import BatchingEventStore  # noqa: PLC0415

        store = BatchingEventStore(store)
    return store, lambda session_id: SessionScopedEventStore(store, session_id)  # type: ignore[no-any-return, unused-ignore]


def _fastmcp(client: aioredis.Redis, kept: int) -> Callable[[str], EventStore]:
    """Set up as in its documentation; sessions are scoped as by its `http_app`."""
    from fastmcp.server.event_store import EventStore as FastMCPEventStore  # noqa: PLC0415 - as above
    from fastmcp.server.session_scoped_event_store import SessionScopedEventStore  # noqa: PLC0415
    from key_value.aio.stores.redis import RedisStore  # noqa: PLC0415

    limits = {"max_events_per_stream": kept} if kept else {}
    store = FastMCPEventStore(RedisStore(client=client), ttl=TTL, **limits)
    return lambda session_id: SessionScopedEventStore(store, session_id)  # type: ignore[no-any-return, unused-ignore]


def _parser(*, hiredis: bool) -> type:
    # The name by which redis-py reports its choice, which depends on the installed packages.
    from redis import _parsers  # noqa: PLC0415

    # For RESP2 it chooses the other one by itself.
    return _parsers._AsyncHiredisParser if hiredis else _parsers._AsyncRESP3Parser


_SPANS_QUEUED = 1 << 17


class _Prefixed(EventStore):
    """The streams of one session in a store that all sessions share."""

    def __init__(self, store: RedisEventStore, session_id: str) -> None:
        self._store = store
        self._session_id = session_id
        self.key_prefix = store.key_prefix

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event under the name of its session."""
        return await self._store.store_event(f"{self._session_id}:{stream_id}", message)

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Replay a stream of any session."""
        return await self._store.replay_events_after(last_event_id, send_callback)


class _EmptySpans(EventStore):
    """A session's part of a store, with an empty span around each event."""

    def __init__(self, store: RedisEventStore, tracer: Tracer, session_id: str) -> None:
        self._store: Any = store.for_session(session_id)
        self._tracer = tracer
        if hasattr(self._store, "begin"):
            self.begin, self.flush = self._store.begin, self._store.flush

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None) -> Any:
        """Append one event of a run."""
        span = self._tracer.start_span("store")
        try:
            return await self._store.append(stream_id, message)
        finally:
            span.end()

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event."""
        span = self._tracer.start_span("store")
        try:
            event_id: EventId = await self._store.store_event(stream_id, message)
        finally:
            span.end()
        return event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Replay, unchanged."""
        stream_id: StreamId | None = await self._store.replay_events_after(last_event_id, send_callback)
        return stream_id


class _Dropped(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def in_a_call(provider: TracerProvider) -> AbstractContextManager[object]:
    """Run as in a tool call: a span is current that determines whether the call is sampled."""
    return provider.get_tracer("benchmarks").start_as_current_span("call")


def tracer_provider(*, recorded: bool) -> TracerProvider:
    """The SDK's provider, whose spans are all sampled out, or all recorded, exported in batches and dropped."""
    provider = TracerProvider(sampler=ALWAYS_ON if recorded else ALWAYS_OFF, shutdown_on_exit=False)
    if recorded:
        # With the default queue it would drop spans at this rate, which would cost less.
        provider.add_span_processor(BatchSpanProcessor(_Dropped(), max_queue_size=_SPANS_QUEUED))
    return provider
