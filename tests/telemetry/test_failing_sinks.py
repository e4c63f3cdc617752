"""Telemetry that fails changes nothing for the caller, and is counted."""

import logging
from collections.abc import Sequence

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from mcp.types import JSONRPCNotification
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreUnavailableError, http_app
from mcp_eventscope.telemetry.prometheus import MetricsSink
from mcp_eventscope.types import EventMessage
from support.logs import Recorder
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")


async def exercise(store: InstrumentedEventStore) -> None:
    """Store, replay and follow, and see that each does what it does."""
    session = store.for_session("s")
    first = await session.append("1", None)
    await session.append("1", NOTE)
    seen: list[EventMessage] = []

    async def send(event: EventMessage) -> None:
        seen.append(event)

    facts = await session.replay(first.event_id, send, stream_id="1")
    assert facts.delivered == 1
    await session.follow("1", facts.last_event_id, send, limit=0.01)
    await session.replay("malformed", send, stream_id="1")
    assert [event.message for event in seen] == [NOTE]


class RaisingSampler(Sampler):
    """A sampler that raises."""

    def should_sample(self, *_: object, **__: object) -> SamplingResult:
        """Raise."""
        msg = "sampler"
        raise RuntimeError(msg)

    def get_description(self) -> str:
        """Its name."""
        return "raising"


class RaisingProcessor(SpanProcessor):
    """A processor that raises when a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Raise."""
        msg = f"processor of {span.name}"
        raise RuntimeError(msg)


class RaisingLogger(Recorder):
    """A logger that raises."""

    def warning(self, event: str, **fields: object) -> None:
        """Raise."""
        msg = f"cannot write {event} {fields}"
        raise OSError(msg)

    info = error = warning


@pytest.mark.parametrize("broken", ["sampler", "processor"])
async def test_tracing_raises(scope: Scope, redis: FakeAsyncRedis, broken: str) -> None:
    """A sampler or a span processor of the application's that raises."""
    provider = TracerProvider(sampler=RaisingSampler()) if broken == "sampler" else TracerProvider()
    if broken == "processor":
        provider.add_span_processor(RaisingProcessor())
    store = InstrumentedEventStore(
        RedisEventStore(redis, ttl=60), registry=scope.registry, tracer_provider=provider, logger=scope.log
    )
    await exercise(store)
    assert scope.sample("telemetry_failures_total", sink="traces") == 4
    (entry,) = scope.log.named("event_store.telemetry_failed")
    assert (entry["sink"], entry["error"]) == ("traces", "RuntimeError")
    assert scope.sample("stored_events_total", kind="notification") == 1


async def test_logger_raises(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A logger that raises, at construction too."""
    store = InstrumentedEventStore(RedisEventStore(redis), registry=scope.registry, logger=RaisingLogger())
    await exercise(store)
    await store.store_event("1", NOTE)
    assert scope.sample("telemetry_failures_total", sink="logs") == 3


async def test_logger_raises_while_an_application_starts(scope: Scope) -> None:
    """A logger that raises prevents no application: not a server with warnings to give, not one without its Redis."""
    app = http_app(
        MCPServer("s"),
        redis_url="redis://127.0.0.1:1",
        registry=scope.registry,
        logger=RaisingLogger(),
        stateless_http=True,
    )
    async with app.router.lifespan_context(app):
        pass
    # Stateless, and unreachable; where nothing is resumed, no TTL is too short.
    assert scope.sample("telemetry_failures_total", sink="logs") == 2


@pytest.mark.parametrize("logger", [logging.getLogger("x"), logging.LoggerAdapter(logging.getLogger("x"), {})])
async def test_logger_without_fields(redis: FakeAsyncRedis, logger: object) -> None:
    """A logger of the standard library, which would raise on every event, is refused at once."""
    store = RedisEventStore(redis, ttl=60)
    with pytest.raises(TypeError, match="must take fields"):
        InstrumentedEventStore(store, registry=None, logger=logger)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must take fields"):
        http_app(MCPServer("s"), store, registry=CollectorRegistry(), logger=logger)  # type: ignore[arg-type]


async def test_metrics_raise(scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that raise."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    for verb in ("configured", "stored", "replayed", "following", "followed"):
        monkeypatch.setattr(MetricsSink, verb, fail)
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    await exercise(store)
    assert (scope.sample("telemetry_failures_total", sink="metrics") or 0) >= 6
    assert len(scope.spans()) == 4


async def test_everything_raises(redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left to tell, and the store works; an error of the store is still the store's."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    for verb in ("configured", "stored", "replayed", "following", "followed", "failed"):
        monkeypatch.setattr(MetricsSink, verb, fail)
    store = InstrumentedEventStore(
        RedisEventStore(redis, ttl=60),
        registry=CollectorRegistry(),
        tracer_provider=TracerProvider(sampler=RaisingSampler()),
        logger=RaisingLogger(),
    )
    await exercise(store)

    async def unavailable(*_: object) -> None:
        msg = "down"
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(RedisEventStore, "append", unavailable)
    with pytest.raises(StoreUnavailableError, match="down"):
        await store.append("1", NOTE)


async def test_registry_that_holds_our_names_already(redis: FakeAsyncRedis) -> None:
    """Somebody else's metric of the same name is an error at construction, as prometheus_client says it."""
    registry = CollectorRegistry()
    taken: Sequence[str] = ["eventscope_ttl_seconds"]

    class Other:
        def collect(self) -> list[object]:
            """Nothing."""
            return []

        def describe(self) -> list[object]:
            """The names."""
            from prometheus_client import Metric  # noqa: PLC0415 - only here

            return [Metric(name, "", "gauge") for name in taken]

    registry.register(Other())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=registry)
