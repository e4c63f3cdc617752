"""OpenTelemetry metrics: the same catalog and the same values as for Prometheus."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from mcp.server.request_state import RequestStateSecurity
from mcp.types import JSONRPCNotification, JSONRPCResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from prometheus_client.utils import floatToGoString

from mcp_eventscope import (
    InMemoryTaskStore,
    InstrumentedEventStore,
    InstrumentedRequestState,
    InstrumentedTaskStore,
    RedisEventStore,
    StoreUnavailableError,
    http_app,
)
from mcp_eventscope.redis.self_test import Capabilities, Capability
from mcp_eventscope.redis.stats import RedisStats
from mcp_eventscope.request_state.facts import (
    AnswerEnd,
    AnswerEnded,
    AnswerRepeated,
    KeysChanged,
    KeySource,
    StateOpened,
    StateRefusal,
    StateRefused,
    StateSealed,
)
from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    FailureReason,
    ForeignElementsRemoved,
    LossReason,
    SessionSized,
    StoreDegraded,
    StoreRecovered,
)
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import AppendResult
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.facts import OperationEnded, ResumeWaited, SessionEnd, SessionEnded
from mcp_eventscope.telemetry.measurements import RedisStatsMeasurement
from mcp_eventscope.telemetry.metrics.store import MetricsSink
from support.boards import board_queries, rule_queries
from support.logs import Recorder
from support.subscription_story import subscription_story
from support.task_story import task_story
from telemetry.conftest import Scope
from telemetry.otlp_translator import label_name, series_name

pytestmark = pytest.mark.anyio

QUERIES = board_queries() | rule_queries()

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")
RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


async def ignore(_: EventMessage) -> None:
    """A client that accepts everything."""


@pytest.fixture
def reader() -> InMemoryMetricReader:
    """An in-memory reader."""
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    """The meter provider of the application."""
    made = MeterProvider([reader], shutdown_on_exit=False)
    yield made
    made.shutdown()


@pytest.fixture
async def both(scope: Scope, provider: MeterProvider, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """A store with Prometheus and OpenTelemetry metrics, after some of everything that happens to the other parts."""
    return await instrumented(scope, provider, redis)


async def instrumented(scope: Scope, provider: MeterProvider, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """See `both`."""
    subscription_story(registry=scope.registry, meter_provider=provider, logger=scope.log)
    state = InstrumentedRequestState(
        RequestStateSecurity.ephemeral(), registry=scope.registry, meter_provider=provider, logger=scope.log
    )
    for fact in (
        KeysChanged(KeySource.REDIS, rotated=False),
        StateSealed(KeySource.REDIS, 12.5),
        StateOpened(),
        StateRefused(StateRefusal.EXPIRED),
        AnswerEnded(AnswerEnd.COMPLETED, 0.3),
        AnswerRepeated(0.02),
    ):
        state._on_fact(fact)
    await task_story(
        InstrumentedTaskStore(InMemoryTaskStore(), registry=scope.registry, meter_provider=provider, logger=scope.log)
    )
    return InstrumentedEventStore(
        RedisEventStore(redis, ttl=60), registry=scope.registry, meter_provider=provider, logger=scope.log
    )


@pytest.fixture(scope="module")
def exported() -> dict[str, Metric]:
    """The metrics in OpenTelemetry, by name, after the whole `story`, which runs once."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)

    async def run() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            await story(await instrumented(Scope(), provider, FakeAsyncRedis()), monkeypatch)

    asyncio.run(run())
    found = metrics_of(reader)
    provider.shutdown()
    return found


def metrics_of(reader: InMemoryMetricReader) -> dict[str, Metric]:
    """The metrics in OpenTelemetry, by name."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def story(store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of everything that can happen."""
    part = store.for_session("s")
    part.begin("1", 1)
    await part.append("1", NOTE)
    await store.flush(1)
    session = store
    first = (await session.append("1", None)).event_id
    for _ in range(3):
        await session.append("1", NOTE)
    facts = await session.replay(first, ignore, stream_id="1")
    await session.follow("1", facts.last_event_id, ignore, limit=0.01)
    await session.append("1", RESPONSE)
    await session.follow("1", facts.last_event_id, ignore, limit=5)
    await session.replay("malformed", ignore, stream_id="1")
    store._on_event(BatchCommitted(events=3, payload_bytes=9, deferred=1, seconds=0.002))
    store._on_event(BatchRetried(reason=FailureReason.CONNECTION, events=1))
    store._on_event(StoreDegraded(reason=FailureReason.TIMEOUT))
    store._on_event(StoreRecovered(reason=FailureReason.TIMEOUT, seconds=1.5))
    store._on_event(StoreDegraded(reason=FailureReason.OOM))
    store._on_event(EventsLost(reason=LossReason.OVERFLOW, events=2, payload_bytes=20))
    store._on_event(ForeignElementsRemoved(elements=1))
    store._on_event(SessionSized(size=500, limit=1000))
    store._sinks.count(MetricsSink.followed_event, 0.02)
    store._polled(
        RedisStatsMeasurement(
            0.01,
            "ok",
            None,
            None,
            RedisStats(
                keys=5,
                without_ttl=1,
                lasting={},
                db_keys=7,
                event_bytes=300,
                memory_bytes=1000,
                memory_limit=0,
                evicted=2,
            ),
        )
    )
    store.record(SessionEnded(SessionEnd.IDLE, 42, "2025-11-25", idle=40))
    store.record(SessionEnded(SessionEnd.FAILED, 1, "2024-11-05"))
    store.record(OperationEnded("tools/call", 0.3, ""))
    store.record(OperationEnded("_OTHER", 0.02, "-32601"))
    store.record(ResumeWaited(0.4))
    store._tested(Capabilities(dict.fromkeys(Capability, True), (), "mcp:", "noeviction"))
    store._sinks.failed("logs", ValueError())
    with monkeypatch.context() as patch:
        outcomes: Iterator[AppendResult | Exception] = iter(
            [AppendResult("", 5, deferred=True), AppendResult("", 5, refused=True), StoreUnavailableError("down")]
        )

        async def otherwise(*_: object) -> AppendResult:
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        patch.setattr(RedisEventStore, "append", otherwise)
        for _ in range(2):
            await session.append("2", NOTE)
        with pytest.raises(StoreUnavailableError):
            await session.append("2", NOTE)


async def test_otel_and_prometheus_have_the_same_values(
    scope: Scope, reader: InMemoryMetricReader, both: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the same story, each metric has its unit, help, attributes, buckets and value."""
    await story(both, monkeypatch)
    found = metrics_of(reader)
    assert set(found) == {metric.otel_name for metric in catalog.METRICS}
    for declared in catalog.METRICS:
        metric = found[declared.otel_name]
        assert (metric.unit, metric.description) == (declared.unit, declared.help)
        for point in metric.data.data_points:
            compare(scope, declared, metric, point)
    observed = {name for name, metric in found.items() if isinstance(metric.data, Histogram)}
    assert observed == {metric.otel_name for metric in catalog.METRICS if metric.buckets}


def compare(
    scope: Scope, declared: declarations.Metric, metric: Metric, point: NumberDataPoint | HistogramDataPoint | object
) -> None:
    """Compare a point with the sample in Prometheus."""
    assert isinstance(point, NumberDataPoint | HistogramDataPoint)
    attributes = {name: str(value) for name, value in (point.attributes or {}).items()}
    assert "" not in attributes.values()
    possible = {label.attribute for label in declared.labels if "" in (label.values or ())}
    assert {label.attribute for label in declared.labels} - possible <= set(attributes)
    labels = {label.name: attributes.pop(label.attribute, "") for label in declared.labels}
    assert not attributes

    def shown(suffix: str = "", **more: str) -> float | None:
        return scope.registry.get_sample_value(declared.name + suffix, {**labels, **more})

    if isinstance(point, HistogramDataPoint):
        assert tuple(point.explicit_bounds) == declared.buckets
        assert shown("_count") == point.count > 0
        assert shown("_sum") == pytest.approx(point.sum)
        reached = 0
        for bound, count in zip(point.explicit_bounds, point.bucket_counts, strict=False):
            reached += count
            le = floatToGoString(bound)  # type: ignore[no-untyped-call]
            assert shown("_bucket", le=le) == reached
        return
    assert shown() == pytest.approx(point.value), declared.name
    if declared.type is declarations.MetricType.COUNTER:
        assert isinstance(metric.data, Sum)
        assert metric.data.is_monotonic
    else:
        assert isinstance(metric.data, Sum if declared.multiprocess_mode == "livesum" else Gauge)


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda metric: metric.name)
def test_otlp_translator_metric_has_its_prometheus_name(
    exported: dict[str, Metric], metric: declarations.Metric
) -> None:
    """Dashboards and rules query Prometheus names and labels: they find the same series after OTLP."""
    delivered = exported[metric.otel_name]
    assert series_name(delivered) == metric.name
    for point in delivered.data.data_points:
        found = {label_name(name) for name in point.attributes or {}}
        absent = {label.name for label in metric.labels} - found
        assert found | absent == {label.name for label in metric.labels}
        assert all("" in (label.values or ()) for label in metric.labels if label.name in absent)


@pytest.mark.parametrize("name", QUERIES)
def test_otlp_translator_query_finds_its_series(exported: dict[str, Metric], name: str) -> None:
    """No query of a panel or a rule names a metric or a label that OTLP does not deliver."""
    delivered = {series_name(metric): metric for metric in exported.values()}
    for selector in QUERIES[name].selectors():
        if not selector.name.startswith(("eventscope_", "mcp_")):
            continue
        family = delivered[re.sub(r"_(bucket|count|sum)$", "", selector.name)]
        labels = {label_name(attribute) for point in family.data.data_points for attribute in point.attributes or {}}
        assert set(selector.matchers) <= labels | {"job", "instance", "le"}


async def test_counters_are_there_before_anything_happens(
    reader: InMemoryMetricReader, both: InstrumentedEventStore
) -> None:
    """Counters start at 0, as in Prometheus."""
    points = metrics_of(reader)["eventscope.errors"].data.data_points
    assert len(points) == 9
    assert both.ttl == 60


async def test_otel_without_prometheus_has_the_same_values(
    reader: InMemoryMetricReader, provider: MeterProvider, redis: FakeAsyncRedis
) -> None:
    """Without a registry the values are the same; stores differ in an attribute."""
    for name in ("one", "two"):
        store = InstrumentedEventStore(
            RedisEventStore(redis, ttl=60), name=name, registry=None, meter_provider=provider, logger=Recorder()
        )
        await store.append("1", NOTE)
    points = metrics_of(reader)["eventscope.store.duration"].data.data_points
    assert sorted(str((point.attributes or {})["store"]) for point in points) == ["one", "two"]


async def test_http_app_passes_the_meter_provider_on(
    reader: InMemoryMetricReader, provider: MeterProvider, scope: Scope
) -> None:
    """`http_app` passes the provider on, and refuses it for an instrumented store."""
    http_app(
        MCPServer("s"),
        redis_url="redis://127.0.0.1:1",
        registry=scope.registry,
        meter_provider=provider,
        logger=Recorder(),
    )
    assert "eventscope.ttl" in metrics_of(reader)
    store = scope.instrument(RedisEventStore(FakeAsyncRedis(), ttl=60))
    with pytest.raises(ValueError, match="meter_provider"):
        http_app(MCPServer("s"), store, meter_provider=provider)


@pytest.mark.parametrize("verb", ["create_histogram.record", "create_counter.add"])
async def test_meter_provider_that_raises_is_counted(
    scope: Scope, both: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A failing provider does not affect the caller or Prometheus, and is counted."""

    def fail(*_: object, **__: object) -> None:
        msg = "provider"
        raise RuntimeError(msg)

    monkeypatch.setattr(f"mcp_eventscope.telemetry.metrics.otel._{_CLASSES[verb]}", fail)
    appended = await both.append("1", NOTE)
    await both.replay(appended.event_id, ignore, stream_id="1")
    assert (scope.sample("telemetry_failures_total", sink="otel_metrics") or 0) > 0
    assert scope.sample("telemetry_failures_total", sink="metrics") == 0
    assert scope.sample("events_stored_total", message_type="notification") == 1
    (entry,) = scope.log.named("event_store.telemetry_failed")[:1]
    assert entry["sink"] == "otel_metrics"


_CLASSES = {"create_histogram.record": "Histogram.observe", "create_counter.add": "Counter.inc"}


def test_durations_of_the_convention_have_its_names_and_buckets() -> None:
    """As in the semantic conventions for MCP, which dashboards of others query."""
    bounds = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
    official = {metric.otel_name: metric for metric in catalog.METRICS if metric.convention}
    assert set(official) == {"mcp.server.operation.duration", "mcp.server.session.duration"}
    for metric in official.values():
        assert (metric.unit, metric.type, list(metric.buckets)) == ("s", "histogram", bounds)
    operation, session = official["mcp.server.operation.duration"], official["mcp.server.session.duration"]
    assert [label.attribute for label in operation.labels] == ["store", "mcp.method.name", "error.type"]
    assert [label.attribute for label in session.labels] == ["store", "mcp.protocol.version", "error.type"]


def test_otel_names_are_dotted_and_unique() -> None:
    """Without `_total`, and none is a namespace of another."""
    names = [metric.otel_name for metric in catalog.METRICS]
    assert len(set(names)) == len(names)
    for metric in catalog.METRICS:
        assert metric.otel_name == metric.convention or re.fullmatch(
            r"eventscope(\.[a-z]+(_[a-z]+)*)+", metric.otel_name
        )
        assert not metric.otel_name.endswith("total")
        assert metric.unit
        assert not [name for name in names if name.startswith(f"{metric.otel_name}.")]
