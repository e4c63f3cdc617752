"""Failing telemetry does not affect the caller, and is counted."""

import logging
from collections.abc import Sequence

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from mcp.types import JSONRPCNotification
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler as SpanSampler
from opentelemetry.sdk.trace.sampling import SamplingResult
from prometheus_client import CollectorRegistry, Gauge, Histogram

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreUnavailableError, http_app
from mcp_eventscope.redis.stats import RedisStatsPoller
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.telemetry.facts import (
    OperationEnded,
    Origin,
    Refusal,
    Requested,
    ResumeWaited,
    ResumptionDisabled,
    ServingFact,
    SessionBegan,
    SessionEnd,
    SessionEnded,
    SessionRefused,
    TTLShort,
)
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.metrics.observations import ObservationBuffer
from mcp_eventscope.telemetry.metrics.sessions import SessionMetrics
from mcp_eventscope.telemetry.metrics.store import MetricsSink
from mcp_eventscope.telemetry.tracing import Tracing
from support.http_client import events
from support.logs import Recorder
from support.memory_store import MemoryEventStore
from support.waiting import until
from telemetry.conftest import Rig, Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")
FACTS: tuple[ServingFact, ...] = (
    SessionBegan(Origin.OPENED),
    SessionEnded(SessionEnd.IDLE, 1.5, "2025-11-25"),
    OperationEnded("tools/call", 0.1, "tool_error"),
    SessionRefused(Refusal.LIMIT, "s"),
    ResumeWaited(0.1),
    Requested("other"),
    ResumptionDisabled("stateless", "serve with sessions"),
    TTLShort(1, "follow_timeout", 2, "set ttl=3"),
)


async def exercise(store: InstrumentedEventStore) -> None:
    """Store, replay and follow, and check each result."""
    session = store
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


class RaisingSampler(SpanSampler):
    """A sampler that raises."""

    def should_sample(self, *_: object, **__: object) -> SamplingResult:
        """Raise."""
        msg = "sampler"
        raise RuntimeError(msg)

    def get_description(self) -> str:
        """Its description."""
        return "raising"


class RaisingProcessor(SpanProcessor):
    """A span processor that raises when a span ends."""

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
async def test_tracing_that_raises_is_counted(scope: Scope, redis: FakeAsyncRedis, broken: str) -> None:
    """A sampler or span processor of the application."""
    provider = TracerProvider(sampler=RaisingSampler()) if broken == "sampler" else TracerProvider()
    if broken == "processor":
        provider.add_span_processor(RaisingProcessor())
    store = InstrumentedEventStore(
        RedisEventStore(redis, ttl=60), registry=scope.registry, tracer_provider=provider, logger=scope.log
    )
    await exercise(store)
    assert scope.sample("telemetry_failures_total", sink="traces") == 5
    (entry,) = scope.log.named("event_store.telemetry_failed")
    assert (entry["sink"], entry["error"]) == ("traces", "RuntimeError")
    assert scope.sample("events_stored_total", message_type="notification") == 1


async def test_logger_that_raises_is_counted(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Also at construction."""
    store = InstrumentedEventStore(RedisEventStore(redis), registry=scope.registry, logger=RaisingLogger())
    await exercise(store)
    await store.store_event("1", NOTE)
    assert scope.sample("telemetry_failures_total", sink="logs") == 3


async def test_logger_raises_while_an_application_starts(scope: Scope) -> None:
    """A failing logger does not prevent an application from starting, with warnings or without its Redis."""
    app = http_app(
        MCPServer("default"),
        redis_url="redis://127.0.0.1:1",
        registry=scope.registry,
        logger=RaisingLogger(),
        stateless_http=True,
    )
    async with app.router.lifespan_context(app):
        pass
    # Stateless, started, degraded, and unreachable; where nothing is resumed, no TTL is too short.
    assert scope.sample("telemetry_failures_total", sink="logs") == 4


@pytest.mark.parametrize("logger", [logging.getLogger("x"), logging.LoggerAdapter(logging.getLogger("x"), {})])
async def test_logger_without_fields_is_refused_at_construction(redis: FakeAsyncRedis, logger: object) -> None:
    """A logger of the standard library, which would raise on every event, is refused immediately."""
    store = RedisEventStore(redis, ttl=60)
    with pytest.raises(TypeError, match="must accept fields"):
        InstrumentedEventStore(store, registry=None, logger=logger)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must accept fields"):
        http_app(MCPServer("s"), store, registry=CollectorRegistry(), logger=logger)  # type: ignore[arg-type]


async def test_metrics_that_raise_are_counted(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is not affected."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    monkeypatch.setattr(ObservationBuffer, "add", fail)
    for verb in ("configured", "replayed", "following", "followed"):
        monkeypatch.setattr(MetricsSink, verb, fail)
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    await exercise(store)
    assert (scope.sample("telemetry_failures_total", sink="metrics") or 0) >= 6
    assert len(scope.spans()) == 5


async def test_spans_whose_context_raises_are_ended(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans whose context raises are still ended."""

    def fail(*_: object) -> None:
        msg = "ids"
        raise RuntimeError(msg)

    monkeypatch.setattr(Tracing, "ids", fail)
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    await exercise(store)
    assert (scope.sample("telemetry_failures_total", sink="traces") or 0) >= 3
    assert len(scope.spans()) == 5


async def test_instruments_that_raise_are_counted(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing instruments, such as those of a registry with read-only files, are counted."""

    def fail(*_: object) -> None:
        msg = "disk full"
        raise OSError(msg)

    store = scope.instrument(RedisEventStore(redis, ttl=60))
    monkeypatch.setattr(Histogram, "observe", fail)
    monkeypatch.setattr(Gauge, "inc", fail)
    await exercise(store)
    assert scope.sample("telemetry_failures_total", sink="metrics") or 0
    entry = scope.log.named("event_store.telemetry_failed")[0]
    assert (entry["sink"], entry["error"]) == ("metrics", "OSError")


class RaisingExporter(SpanExporter):
    """An exporter that raises."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Raise."""
        msg = f"exporter of {len(spans)}"
        raise RuntimeError(msg)


async def test_exporter_that_raises_is_not_counted(
    scope: Scope, redis: FakeAsyncRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenTelemetry catches and logs errors of an exporter: none is counted here."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(RaisingExporter()))
    store = InstrumentedEventStore(
        RedisEventStore(redis, ttl=60), registry=scope.registry, tracer_provider=provider, logger=scope.log
    )
    await exercise(store)
    assert "exporter of 1" in caplog.text
    assert scope.log.named("event_store.telemetry_failed") == []


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
async def test_session_facts_that_sinks_fail_to_record_are_counted(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, fact: ServingFact
) -> None:
    """Each fact about sessions that metrics and logger fail to record is counted, and nothing is raised."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    monkeypatch.setattr(SessionMetrics, "record", fail)
    store = scope.instrument(MemoryEventStore())
    store.record(fact, Log(RaisingLogger()))
    logged = not isinstance(fact, SessionBegan | SessionEnded | OperationEnded | ResumeWaited | Requested)
    assert scope.sample("telemetry_failures_total", sink="metrics") == 1
    assert scope.sample("telemetry_failures_total", sink="logs") == int(logged)
    assert {entry["sink"] for entry in scope.log.named("event_store.telemetry_failed")} == (
        {"metrics", "logs"} if logged else {"metrics"}
    ), "one sink hides no other"


async def test_failing_replay_metrics_are_counted_beside_the_outcome(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics beside the outcome of a replay that fail are counted."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    monkeypatch.setattr(SessionMetrics, "replayed", fail)
    await exercise(scope.instrument(RedisEventStore(redis, ttl=60)))
    assert scope.sample("telemetry_failures_total", sink="metrics") == 2
    assert scope.sample("replay_duration_seconds_count", outcome="resumed") == 1


async def test_poller_of_redis_raises(scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed poll is counted and logged; events are still stored."""

    async def fail(*_: object) -> None:
        msg = "sampler"
        raise RuntimeError(msg)

    monkeypatch.setattr(RedisStatsPoller, "poll", fail)
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    async with store.poll_redis_stats(0.01):
        await until(lambda: (scope.sample("redis_stats_duration_seconds_count", outcome="error") or 0) > 1)
        await exercise(store)
    assert len(scope.log.named("event_store.redis_stats_failed")) == 1


async def test_sessions_are_served_while_everything_raises(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are opened, used, refused and ended as without telemetry."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    monkeypatch.setattr(SessionMetrics, "record", fail)
    monkeypatch.setattr(rig.scope, "log", RaisingLogger())
    client = await rig.serve(max_sessions=1)
    await client.initialize()
    async with client.call(1, "echo", text="x") as response:
        received = [event async for event in events(response)]
    assert await client.resume(received[0].id) == received[1:]
    for revision, status in (("2025-11-25", 503), ("2026-07-28", 400)):
        headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": revision}
        assert (await client.http.post(client.url, json={}, headers=headers)).status_code == status
    assert await client.delete() == 200
    assert (rig.scope.sample("telemetry_failures_total", sink="metrics") or 0) >= 8
    # The start, too many sessions, and the revision; in the background the self-test of Redis.
    await until(lambda: rig.scope.sample("telemetry_failures_total", sink="logs") == 4)


async def test_store_works_while_all_sinks_raise(redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own errors are unchanged."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    monkeypatch.setattr(ObservationBuffer, "add", fail)
    for verb in ("configured", "replayed", "following", "followed", "failed"):
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
    """A metric of the same name in the registry is an error at construction."""
    registry = CollectorRegistry()
    taken: Sequence[str] = ["eventscope_ttl_seconds"]

    class Other:
        def collect(self) -> list[object]:
            """Collect nothing."""
            return []

        def describe(self) -> list[object]:
            """The metrics of the same names."""
            from prometheus_client import Metric  # noqa: PLC0415 - only here

            return [Metric(name, "", "gauge") for name in taken]

    registry.register(Other())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=registry)
