"""Buffered observations of stored events are exact, and never lost."""

import asyncio
import gc
import subprocess
import sys
import threading

import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import JSONRPCNotification

from mcp_eventscope import RedisEventStore
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.metrics import observations
from mcp_eventscope.telemetry.metrics.prometheus import prometheus_sink
from mcp_eventscope.telemetry.metrics.store import MetricsSink
from support.waiting import CEILING
from telemetry.conftest import Scope


def unexpected(error: Exception) -> None:
    """Fail."""
    raise AssertionError from error


def sink(scope: Scope, failures: list[Exception] | None = None) -> MetricsSink:
    """A sink that records its failures."""
    return prometheus_sink("default", scope.registry, (failures if failures is not None else []).append)


@pytest.mark.anyio
async def test_scrape_includes_buffered_observations(scope: Scope) -> None:
    """A scrape within an iteration of the event loop includes all events stored before it."""
    metrics = sink(scope)
    for number in range(10):
        metrics.stored(0.001, JSONRPCNotification, 5)
        assert scope.sample("store_duration_seconds_count", outcome="ok") == number + 1
        assert scope.sample("events_stored_total", message_type="notification") == number + 1
        assert scope.sample("payload_stored_bytes_total") == 5 * (number + 1)


@pytest.mark.anyio
async def test_buffer_is_flushed_at_the_end_of_the_iteration() -> None:
    """In multiprocess mode."""
    written: list[observations.ObservationBatch] = []
    kept = observations.ObservationBuffer(written.append, unexpected, flush_each_turn=True)
    kept.add(0.001, JSONRPCNotification, 5)
    kept.add(0.002, type(None), 0)
    assert written == []
    await asyncio.sleep(0)
    assert written == [observations.ObservationBatch([0.001, 0.002], [JSONRPCNotification, type(None)], 5, [])]


def test_buffer_without_an_event_loop_is_flushed_immediately() -> None:
    """Without an event loop it is flushed immediately."""
    written: list[observations.ObservationBatch] = []
    observations.ObservationBuffer(written.append, unexpected, flush_each_turn=True).add(0.001, type(None), 0)
    assert len(written) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("every_turn", [True, False])
async def test_buffer_in_a_long_turn_of_the_loop_is_bounded(*, every_turn: bool) -> None:
    """The buffer is bounded."""
    written: list[observations.ObservationBatch] = []
    kept = observations.ObservationBuffer(written.append, unexpected, flush_each_turn=every_turn)
    for _ in range(observations.FLUSH_SIZE):
        kept.add(0.001, type(None), 0)
    assert [len(noted.seconds) for noted in written] == [observations.FLUSH_SIZE]


def test_batch_fills_the_buckets_of_single_observations(scope: Scope) -> None:
    """A batch fills the same buckets as single observations."""
    other = Scope()
    bounds = catalog.store.STORE_SECONDS
    amounts = [*bounds, *(bound * 1.01 for bound in bounds), 0.0, 100.0]
    metrics = sink(scope)
    metrics._write(observations.ObservationBatch(amounts[::-1], [JSONRPCNotification] * len(amounts), len(amounts), []))
    single = sink(other)
    for amount in amounts:
        single._store_seconds["ok"].observe(amount)
    for bound in (*bounds, float("inf")):
        le = "+Inf" if bound == float("inf") else str(bound)
        one = scope.sample("store_duration_seconds_bucket", outcome="ok", le=le)
        assert one is not None
        assert one == other.sample("store_duration_seconds_bucket", outcome="ok", le=le)
    assert scope.sample("store_duration_seconds_sum", outcome="ok") == pytest.approx(sum(amounts))


def test_scrapes_of_another_thread_are_exact(scope: Scope) -> None:
    """Scrapes from another thread lose nothing, and count nothing twice."""
    metrics = sink(scope)
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            scope.sample("payload_stored_bytes_total")

    async def store() -> None:
        for number in range(20_000):
            metrics.stored(0.001, JSONRPCNotification, 1)
            if number % 50 == 0:
                await asyncio.sleep(0)

    reader = threading.Thread(target=scrape)
    reader.start()
    asyncio.run(store())
    done.set()
    reader.join()
    assert scope.sample("payload_stored_bytes_total") == 20_000
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 20_000


async def stored_somewhere(scope: Scope, redis: FakeAsyncRedis, count: int) -> None:
    """Store events with a store that is collected afterwards."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    for _ in range(count):
        await store.append("1", None)


@pytest.mark.anyio
async def test_observations_of_a_deleted_store_are_exposed(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Buffered observations of a collected store are counted, and added to those of a store of the same name."""
    for number in range(1, 4):
        await stored_somewhere(scope, redis, 10)
        gc.collect()
        assert scope.sample("events_stored_total", message_type="priming") == 10 * number


def test_buffer_of_a_loop_that_does_not_turn_is_flushed() -> None:
    """An event loop that was stopped early does not block flushes of others."""
    written: list[observations.ObservationBatch] = []
    kept = observations.ObservationBuffer(written.append, unexpected, flush_each_turn=True)
    stopped = asyncio.new_event_loop()

    def note_and_stop() -> None:
        kept.add(0.001, type(None), 0)
        stopped.stop()

    stopped.call_soon(note_and_stop)
    stopped.run_forever()
    stopped.close()

    async def another() -> None:
        kept.add(0.002, type(None), 0)
        await asyncio.sleep(0)

    asyncio.run(another())
    assert [noted.seconds for noted in written] == [[0.001, 0.002]]


FORKED = """
import os
from mcp_eventscope.telemetry.metrics.observations import ObservationBuffer

written = []
kept = ObservationBuffer(written.append, print)
kept.add(1.0, type(None), 0)
with kept._one_at_a_time:
    child = os.fork()
    if not child:
        kept.add(2.0, type(None), 0)
        kept.flush()
        print([noted.seconds for noted in written], flush=True)
        os._exit(0)
os.waitpid(child, 0)
kept.flush()
print([noted.seconds for noted in written])
"""


def test_forked_child_discards_the_observations_of_its_parent() -> None:
    """After a fork the child discards the observations of the parent, and a lock held by another thread."""
    ran = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, check=True, text=True, timeout=CEILING)
    assert ran.stdout.splitlines() == ["[[2.0]]", "[[1.0]]"]


def test_failure_callback_that_flushes_does_not_deadlock() -> None:
    """A logger may read the registry without a deadlock."""

    def fail(_: observations.ObservationBatch) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    raised: list[Exception] = []

    def failed(error: Exception) -> None:
        raised.append(error)
        kept.flush()

    kept = observations.ObservationBuffer(fail, failed)
    kept.add(0.001, type(None), 0)
    kept.flush()
    assert len(raised) == 1


@pytest.mark.anyio
async def test_batch_that_cannot_be_written_is_counted(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed flush is counted and logged as a failure of the metrics, not raised."""

    def fail(*_: object) -> None:
        msg = "metrics"
        raise RuntimeError(msg)

    monkeypatch.setattr("mcp_eventscope.telemetry.metrics.prometheus._Histogram.observe_all", fail)
    (metrics,) = scope.instrument(RedisEventStore(redis, ttl=60))._sinks.meters
    metrics.stored(0.001, JSONRPCNotification, 1)
    assert scope.sample("telemetry_failures_total", sink="metrics") == 1
    assert len(scope.log.named("event_store.telemetry_failed")) == 1
