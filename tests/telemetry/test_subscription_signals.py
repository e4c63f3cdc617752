"""Signals of subscriptions: each fact is a metric, and a log event where an operator can act."""

from collections.abc import AsyncIterator

import pytest
from mcp.server.subscriptions import InMemorySubscriptionBus, ServerEvent, ToolsListChanged
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedSubscriptionBus, RedisEventStore, RedisSubscriptionBus
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.subscriptions.facts import (
    GapFound,
    GapReason,
    NotRunning,
    PendingChanged,
    Published,
    PublishFailed,
    PublishFailure,
    Signalled,
    SignalPath,
)
from mcp_eventscope.telemetry import catalog
from support.waiting import until
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio


def instrument(scope: Scope, bus: object, **options: object) -> InstrumentedSubscriptionBus:
    """Decorate a bus."""
    arguments = {"registry": scope.registry, "logger": scope.log, **options}
    return InstrumentedSubscriptionBus(bus, **arguments)  # type: ignore[arg-type]


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the Valkey of the run."""
    async with aioredis.Redis.from_url(valkey_url) as client:
        yield client


async def test_every_child_of_subscriptions_is_there_before_anything_happens(scope: Scope) -> None:
    """Every child is exposed at 0."""
    instrument(scope, InMemorySubscriptionBus())
    shown = {metric.name: metric for metric in scope.registry.collect()}
    for metric in catalog.subscriptions.METRICS:
        children = 1
        for label in metric.labels[1:]:
            children *= len(label.values or ())
        family = shown[metric.name.removesuffix("_total")]
        name = metric.name + ("_count" if metric.buckets else "")
        found = [sample for sample in family.samples if sample.name == name]
        assert len(found) == children, metric.name
        assert {sample.value for sample in found} == {0}
        assert family.documentation == metric.help


async def test_signals_of_any_bus_are_counted(scope: Scope) -> None:
    """Of the SDK's bus: open streams, and signals once for each stream."""
    bus = instrument(scope, InMemorySubscriptionBus())
    received: list[ServerEvent] = []
    unsubscribe = bus.subscribe(received.append)
    bus.subscribe(received.append)
    assert scope.sample("subscriptions_open") == 2
    await bus.publish(ToolsListChanged())
    assert scope.sample("subscriptions_signals_delivered_total", path="local") == 2
    unsubscribe()
    unsubscribe()
    assert scope.sample("subscriptions_open") == 1
    assert len(received) == 2


async def test_signals_of_another_task_of_a_third_party_bus_are_remote(scope: Scope) -> None:
    """Deliveries outside of a publication come from elsewhere."""
    inner = InMemorySubscriptionBus()
    bus = instrument(scope, inner)
    bus.subscribe(lambda _: None)
    await inner.publish(ToolsListChanged())
    assert scope.sample("subscriptions_signals_delivered_total", path="remote") == 1
    assert scope.sample("subscriptions_signals_delivered_total", path="local") == 0


async def test_signals_between_workers_are_measured(scope: Scope, client: aioredis.Redis, key_prefix: str) -> None:
    """Lag on the receiver; publications, their duration and the pending ones on the publisher."""
    buses = [
        instrument(
            scope,
            RedisSubscriptionBus(RedisEventStore(client, key_prefix=key_prefix, ttl=60).backend, repair_seconds=0.01),
            name=name,
        )
        for name in ("here", "there")
    ]
    here, there = buses
    value = scope.registry.get_sample_value

    def of(store: str, name: str, **labels: str) -> float:
        return value(f"eventscope_subscriptions_{name}", {"store": store, **labels}) or 0

    received: list[ServerEvent] = []
    async with here.running(), there.running():
        here.subscribe(received.append)
        await there.publish(ToolsListChanged())
        await until(lambda: received)
        await until(lambda: of("there", "changes_published_total") == 1)
        assert of("here", "signals_delivered_total", path="remote") == 1
        assert of("here", "signal_lag_seconds_count") == 1
        assert of("there", "publish_duration_seconds_count") == 1
        assert of("there", "changes_pending") == 0
        await client.delete(Keys(key_prefix).changes)
        await until(lambda: of("here", "gaps_total", reason="lost") == 1)
        await until(lambda: of("here", "signals_delivered_total", path="repair") == 3)
    (entry,) = [each for each in scope.log.named("subscriptions.gap_repaired") if each["store"] == "here"]
    assert entry["reason"] == "lost"
    assert entry["streams"] == entry["unknown_streams"] == 1
    assert "fix" in entry
    await client.delete(Keys(key_prefix).changes)


async def test_facts_of_subscriptions_are_metrics_and_log_events(scope: Scope) -> None:
    """Each reason has its own series, and an entry with a remedy."""
    bus = instrument(scope, InMemorySubscriptionBus())
    record = bus._record
    for reason in GapReason:
        record(GapFound(reason, 3))
        assert scope.sample("subscriptions_gaps_total", reason=reason.value) == 1
    for failure in PublishFailure:
        record(PublishFailed(failure, 5))
        expected = 1 if failure.repeated else 5
        assert scope.sample("subscriptions_publish_failures_total", reason=failure.value) == expected
    record(PendingChanged(7))
    assert scope.sample("subscriptions_changes_pending") == 7
    record(Published(3, 0.5))
    assert scope.sample("subscriptions_changes_published_total") == 3
    assert scope.sample("subscriptions_publish_duration_seconds_sum") == 0.5
    record(Signalled(SignalPath.REMOTE, 4, 0.25))
    assert scope.sample("subscriptions_signal_lag_seconds_sum") == 0.25
    record(NotRunning())
    names = [entry["event"] for entry in scope.log.entries]
    assert names.count("subscriptions.gap_repaired") == len(GapReason)
    assert names.count("subscriptions.publish_failed") == len(PublishFailure)
    assert names.count("subscriptions.not_running") == 1
    assert all(entry["fix"] and entry["level"] == "warning" for entry in scope.log.entries)
    declared = {event.name: set(event.fields) for event in catalog.subscriptions.LOG_EVENTS}
    for entry in scope.log.entries:
        assert set(entry) - {"event", "level"} <= declared[entry["event"]]


async def test_bus_on_redis_that_does_not_run_is_logged_once(scope: Scope, client: aioredis.Redis) -> None:
    """The remedy is named; the in-memory bus needs none."""
    bus = instrument(scope, RedisSubscriptionBus(RedisEventStore(client, ttl=60).backend))
    for _ in range(3):
        await bus.publish(ToolsListChanged())
    (entry,) = scope.log.named("subscriptions.not_running")
    assert "running()" in entry["fix"]


async def test_open_telemetry_has_the_same_subscription_metrics(scope: Scope) -> None:
    """A meter provider receives them, too."""
    reader = InMemoryMetricReader()
    bus = instrument(scope, InMemorySubscriptionBus(), registry=None, meter_provider=MeterProvider([reader]))
    bus.subscribe(lambda _: None)
    await bus.publish(ToolsListChanged())
    data = reader.get_metrics_data()
    assert data is not None
    found = {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert {"eventscope.subscriptions.open", "eventscope.subscriptions.signals_delivered"} <= found


def test_bus_that_is_no_bus_is_refused(scope: Scope) -> None:
    """The error names what to pass."""
    for wrong in (object(), InMemorySubscriptionBus, "redis://localhost"):
        with pytest.raises(TypeError, match=r"bus must be an mcp\.server\.subscriptions\.SubscriptionBus, got"):
            instrument(scope, wrong)
    bus = instrument(scope, InMemorySubscriptionBus())
    with pytest.raises(ValueError, match="bus must not be instrumented already"):
        instrument(scope, bus)
