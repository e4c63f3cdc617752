"""Exemplars lead from a bucket of a histogram to a trace."""

import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import JSONRPCNotification
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Exemplar

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreUnavailableError
from mcp_eventscope.store.messages import EventMessage
from support.memory_store import MemoryEventStore
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")


async def ignore(_: EventMessage) -> None:
    """A client that accepts everything."""


def exemplars(scope: Scope, name: str) -> list[Exemplar]:
    """The exemplars of a histogram, in bucket order."""
    return [
        sample.exemplar
        for metric in scope.registry.collect()
        for sample in metric.samples
        if sample.name == f"eventscope_{name}_bucket" and sample.exemplar
    ]


def ids(scope: Scope, number: int) -> dict[str, str]:
    """The exemplar labels of a recorded span."""
    context = scope.spans()[number].context
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


@pytest.mark.parametrize("ours", [True, False])
async def test_latency_histograms_have_spans_as_exemplars(scope: Scope, redis: FakeAsyncRedis, *, ours: bool) -> None:
    """Latency histograms have the last span of each bucket as exemplar, with its ids only, and in OpenMetrics only."""
    session = scope.instrument(RedisEventStore(redis, ttl=60) if ours else MemoryEventStore())
    first = (await session.append("1", None)).event_id
    (stored,) = exemplars(scope, "store_duration_seconds")
    assert stored.labels == ids(scope, 0)
    assert stored.value == pytest.approx(scope.sample("store_duration_seconds_sum", outcome="ok"))
    await session.append("1", NOTE)
    await session.replay(first, ignore, stream_id="1")
    (replayed,) = exemplars(scope, "replay_duration_seconds")
    assert replayed.labels == ids(scope, 2)
    for accepted, shown in (("application/openmetrics-text; version=1.0.0", True), ("text/plain", False)):
        encode, _ = choose_encoder(accepted)
        assert (ids(scope, 2)["trace_id"] in encode(scope.registry).decode()) == shown


async def test_exemplar_of_a_bucket_is_its_last_observation(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Each bucket that a batch increases gets its own exemplar."""
    session = scope.instrument(RedisEventStore(redis, ttl=60))
    (meter,) = session._sinks.meters
    for seconds, span in ((0.0001, 1), (0.0001, 2), (0.002, 3), (0.25, 4), (99.0, 5)):
        meter.stored(seconds, JSONRPCNotification, 1, (span, span))
    meter.stored(0.25, JSONRPCNotification, 1)
    found = exemplars(scope, "store_duration_seconds")
    assert [(each.value, int(each.labels["span_id"], 16)) for each in found] == [
        (0.0001, 2),
        (0.002, 3),
        (0.25, 4),
        (99.0, 5),
    ]
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 6


async def test_failed_operation_has_an_exemplar(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed operation is an exemplar, too."""

    async def fail(*_: object, **__: object) -> None:
        msg = "down"
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(RedisEventStore, "append", fail)
    with pytest.raises(StoreUnavailableError):
        await scope.instrument(RedisEventStore(redis, ttl=60)).append("1", NOTE)
    (found,) = exemplars(scope, "store_duration_seconds")
    assert found.labels == ids(scope, 0)


async def test_nothing_that_cannot_be_looked_up(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A span that is not recorded is no exemplar."""
    session = InstrumentedEventStore(
        RedisEventStore(redis, ttl=60), registry=scope.registry, tracer_provider=TracerProvider(sampler=ALWAYS_OFF)
    )
    first = (await session.append("1", None)).event_id
    await session.replay(first, ignore, stream_id="1")
    assert exemplars(scope, "store_duration_seconds") + exemplars(scope, "replay_duration_seconds") == []
