"""Signals of a store: each operation once, in metrics, spans and logs."""

import asyncio
import gc
import weakref

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.write.runs import WORKER_DIGITS
from mcp_eventscope.redis.write.session_writer import LINGER_SECONDS
from mcp_eventscope.store.events import ForeignElementsRemoved
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import FollowEnd, FollowResult, Gap
from mcp_eventscope.telemetry.logs import REPEAT_SECONDS
from mcp_eventscope.telemetry.metrics import prometheus
from support.events import change
from support.memory_store import MemoryEventStore
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")
RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


async def ignore(_: EventMessage) -> None:
    """A client that accepts everything."""


@pytest.fixture
def session(scope: Scope, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """One session's part of a decorated store."""
    return scope.instrument(RedisEventStore(redis, ttl=60))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (None, "priming"),
        (NOTE, "notification"),
        (JSONRPCRequest(jsonrpc="2.0", id=1, method="ask"), "request"),
        (RESPONSE, "response"),
        (JSONRPCError(jsonrpc="2.0", id=1, error=ErrorData(code=1, message="no")), "error"),
    ],
)
async def test_stored_event_counts_and_has_a_span(
    scope: Scope, session: InstrumentedEventStore, message: JSONRPCMessage, kind: str
) -> None:
    """A stored event counts by message type, with size and latency, and has a span."""
    appended = await session.append("1", message)
    assert scope.sample("events_stored_total", message_type=kind) == 1
    assert scope.sample("payload_stored_bytes_total") == appended.payload_bytes
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 1
    (span,) = scope.spans()
    assert span.name == "event_store.store"
    attributes = dict(span.attributes or {})
    assert len(str(attributes.pop("eventscope.worker"))) == WORKER_DIGITS
    assert attributes == {
        "eventscope.store": "default",
        "eventscope.stream_id": "1",
        "eventscope.outcome": "ok",
        "eventscope.event_id": appended.event_id,
        "eventscope.message_type": kind,
        "eventscope.payload_bytes": appended.payload_bytes,
    }
    assert scope.log.entries == []


async def test_stored_in_the_background(scope: Scope, redis: FakeAsyncRedis) -> None:
    """An event of a session counts as accepted when it has an id, and as stored once Redis has acknowledged it."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    session = store.for_session("session")
    session.begin("1", 1)
    appended = await session.append("1", NOTE)
    assert scope.sample("events_accepted_total") == 1
    assert scope.sample("store_wait_seconds_count") == 1
    assert scope.sample("events_stored_total", message_type="notification") == 0
    assert scope.spans() == []
    assert appended.pending is not None
    await appended.pending.acknowledged()
    await store.flush(1)
    assert scope.sample("events_stored_total", message_type="notification") == 1
    assert scope.sample("payload_stored_bytes_total") == appended.payload_bytes
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 1
    assert scope.sample("backlog_length") == 0
    (span,) = scope.spans()
    attributes = dict(span.attributes or {})
    assert len(str(attributes["eventscope.session_hash"])) == 12
    assert attributes["eventscope.event_id"] == appended.event_id
    assert attributes["eventscope.outcome"] == "ok"
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 >= LINGER_SECONDS


async def test_resumed_and_caught_up(scope: Scope, session: InstrumentedEventStore) -> None:
    """A replay that delivers is `resumed`, one with no events due is `caught_up`."""
    first = await session.append("1", None)
    last = await session.append("1", NOTE)
    await session.replay(first.event_id, ignore, stream_id="1")
    await session.replay(last.event_id, ignore, stream_id="1")
    assert scope.sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert scope.sample("replay_duration_seconds_count", outcome="caught_up") == 1
    assert scope.sample("replay_events_sum") == 1
    assert scope.sample("replay_size_bytes_sum") == last.payload_bytes
    assert scope.sample("resume_age_seconds_count") == 2
    resumed = scope.spans()[2]
    assert resumed.name == "event_store.replay"
    assert (resumed.attributes or {})["eventscope.events"] == 1
    assert (resumed.attributes or {})["eventscope.outcome"] == "resumed"
    assert scope.log.entries == []


@pytest.mark.parametrize(("cursor", "reason"), [("x", "malformed"), ("5", "unknown"), ("1" + "0" * 15, "expired")])
async def test_missed_replay_counts_with_its_reason(
    scope: Scope, session: InstrumentedEventStore, cursor: str, reason: str
) -> None:
    """A miss has a reason, and does not distort the sizes of other replays."""
    await session.replay(cursor, ignore, stream_id="1")
    assert scope.sample("replay_duration_seconds_count", outcome="missed") == 1
    assert scope.sample("replay_misses_total", reason=reason) == 1
    assert scope.sample("replay_events_count") == 0
    (entry,) = scope.log.named("event_store.replay_incomplete")
    assert (entry["outcome"], entry["reason"]) == ("missed", reason)
    assert (scope.spans()[0].attributes or {})["eventscope.reason"] == reason


async def test_undeliverable_events_are_counted_as_a_gap(
    scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis
) -> None:
    """Undeliverable events make a gap, which is counted and logged."""
    first, corrupt, gone, _ = [(await session.append("1", NOTE)).event_id for _ in range(4)]
    await change(redis, f"mcp:event:{corrupt}", payload="{}")
    await redis.delete(f"mcp:event:{gone}")
    facts = await session.replay(first, ignore, stream_id="1")
    assert facts.delivered == 1
    assert scope.sample("replay_duration_seconds_count", outcome="gap") == 1
    assert scope.sample("events_corrupt_total") == 1
    assert scope.sample("events_missing_total", reason="store_lost") == 1
    (entry,) = scope.log.named("event_store.replay_incomplete")
    assert (entry["operation"], entry["reason"]) == ("replay", "store_lost")
    assert "noeviction" in entry["fix"]
    assert (scope.spans()[-1].attributes or {})["eventscope.reason"] == "store_lost"
    assert entry["event_ids"] == (corrupt,)


async def test_elements_of_other_programs_are_counted_and_logged(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A worker removes them from a stream, and the log names the remedy."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    for _ in range(2):
        store._on_event(ForeignElementsRemoved(elements=1))
    assert scope.sample("events_corrupt_total") == 2
    (entry,) = scope.log.named("event_store.foreign_elements_removed")
    assert (entry["level"], entry["elements"]) == ("warning", 1)
    assert "other programs" in entry["fix"]


async def test_following_has_a_span(scope: Scope, session: InstrumentedEventStore) -> None:
    """It names the worker, and links to the spans that stored the delivered events."""
    first = await session.append("1", None)
    await session.append("1", RESPONSE)
    await session.follow("1", first.event_id, ignore, limit=60)
    *_, stored, span = scope.spans()
    assert span.name == "event_store.follow"
    attributes = dict(span.attributes or {})
    assert (attributes["eventscope.outcome"], attributes["eventscope.events"]) == ("completed", 1)
    assert attributes["eventscope.worker"] == (stored.attributes or {})["eventscope.worker"]
    assert [link.context.span_id for link in span.links] == [stored.context.span_id]


@pytest.mark.parametrize("reason", list(Gap))
async def test_gap_while_following_has_a_reason(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch, reason: Gap
) -> None:
    """It is counted and logged as that of a replay, with the change that prevents the next one."""

    async def follow(*_: object, **__: object) -> FollowResult:
        return FollowResult(last_event_id="9", end=FollowEnd.COMPLETED, missing=3, gaps={reason: 3})

    monkeypatch.setattr(RedisEventStore, "follow", follow)
    await scope.instrument(RedisEventStore(redis, ttl=60)).follow("1", "5", ignore, limit=1)
    assert scope.sample("events_missing_total", reason=reason) == 3
    (entry,) = scope.log.named("event_store.replay_incomplete")
    assert (entry["operation"], entry["outcome"], entry["reason"]) == ("follow", "gap", reason)
    assert entry["fix"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreUnavailableError("no Redis at host:1"), "unavailable"),
        (StoreRejectedError("READONLY"), "rejected"),
        (RuntimeError("payload"), "other"),
    ],
)
async def test_failed_operation_is_counted_and_logged(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    """A failure is passed on, counted by type, and logged without untrusted text."""

    async def fail(*_: object, **__: object) -> None:
        raise error

    for operation in ("append", "replay", "follow"):
        monkeypatch.setattr(RedisEventStore, operation, fail)
    with pytest.raises(type(error)) as raised:
        await session.append("1", NOTE)
    assert raised.value is error
    with pytest.raises(type(error)):
        await session.replay("1", ignore)
    with pytest.raises(type(error)):
        await session.follow("1", "1", ignore, limit=1)
    for operation in ("store", "replay", "follow"):
        assert scope.sample("errors_total", operation=operation, error_type=kind) == 1
    assert scope.sample("store_duration_seconds_count", outcome="error") == 1
    assert scope.sample("events_stored_total", message_type="notification") == 0
    assert scope.sample("streams_followed") == 0
    for span in scope.spans():
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == kind, "as on the metric"
        assert span.events == ()
    (entry,) = scope.log.named("event_store.store_failed")
    assert entry["error_type"] == kind
    assert "payload" not in str(scope.log.entries)


async def test_disconnected_client_is_no_failure_of_the_store(scope: Scope, session: InstrumentedEventStore) -> None:
    """A disconnect is no failure of the store; deliveries before it are known."""
    first = (await session.append("1", None)).event_id
    for _ in range(2):
        await session.append("1", NOTE)
    taken: list[EventMessage] = []

    async def leave(event: EventMessage) -> None:
        if taken:
            raise anyio.BrokenResourceError
        taken.append(event)

    with pytest.raises(anyio.BrokenResourceError):
        await session.replay(first, leave, stream_id="1")
    assert scope.sample("replay_duration_seconds_count", outcome="client_disconnected") == 1
    assert scope.sample("errors_total", operation="replay", error_type="other") == 0
    assert (scope.spans()[-1].attributes or {})["eventscope.events"] == 1
    assert scope.log.entries == []


async def test_cancelled_operation_has_an_outcome_of_its_own(scope: Scope, session: InstrumentedEventStore) -> None:
    """A cancellation is an outcome of its own, and ends the following."""
    first = (await session.append("1", None)).event_id
    following = asyncio.create_task(session.follow("1", first, ignore, limit=60))
    await anyio.wait_all_tasks_blocked()
    assert scope.sample("streams_followed") == 1
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert scope.sample("streams_followed") == 0
    assert scope.sample("follow_duration_seconds_count", outcome="cancelled") == 1
    assert scope.log.entries == []


async def test_spans_nest_and_logs_name_them(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store span is a child of the caller's span, and the parent of spans of third-party stores."""
    within: list[trace.SpanContext] = []

    async def fail(*_: object, **__: object) -> None:
        within.append(trace.get_current_span().get_span_context())
        msg = "down"
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(MemoryEventStore, "store_event", fail)
    session = scope.instrument(MemoryEventStore()).for_session("session")
    with scope.provider.get_tracer("test").start_as_current_span("call") as call:
        with pytest.raises(StoreUnavailableError):
            await session.append("1", NOTE)
        assert trace.get_current_span() is call
    store = scope.spans()[0]
    assert store.parent == call.get_span_context()
    assert within == [store.context]
    (entry,) = scope.log.named("event_store.store_failed")
    assert entry["trace_id"] == f"{call.get_span_context().trace_id:032x}"


async def test_failure_is_logged_with_the_trace_of_the_call(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span of our store is not current, since it stores in the background, but is in the caller's trace."""

    async def fail(*_: object, **__: object) -> None:
        msg = "down"
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(RedisEventStore, "append", fail)
    with scope.provider.get_tracer("test").start_as_current_span("call") as call:
        with pytest.raises(StoreUnavailableError):
            await session.append("1", NOTE)
        assert trace.get_current_span() is call
    assert scope.spans()[0].parent == call.get_span_context()
    assert scope.spans()[0].status.status_code is StatusCode.ERROR
    (entry,) = scope.log.named("event_store.store_failed")
    assert entry["trace_id"] == f"{call.get_span_context().trace_id:032x}"


async def test_call_that_is_not_sampled(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Within an unsampled call no span or trace is created, but metrics count."""
    session = scope.instrument(RedisEventStore(redis, ttl=60))
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with unsampled.start_as_current_span("call"):
        await session.append("1", NOTE)
    assert scope.spans() == []
    assert scope.sample("events_stored_total", message_type="notification") == 1


async def test_context_of_another_type(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A context that cannot be remembered is inspected each time."""
    session = scope.instrument(RedisEventStore(redis, ttl=60))
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with unsampled.start_as_current_span("call"):
        token = context.attach(dict(context.get_current()))  # type: ignore[arg-type]
        for _ in range(2):
            await session.append("1", NOTE)
        context.detach(token)
    assert scope.spans() == []
    assert scope.sample("telemetry_failures_total", sink="traces") == 0


async def test_calls_that_are_not_sampled_are_not_kept(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Unsampled contexts are remembered for their lifetime only."""
    session = scope.instrument(RedisEventStore(redis, ttl=60))
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    contexts = []
    for _ in range(300):
        with unsampled.start_as_current_span("call"):
            for _ in range(2):
                await session.append("1", NOTE)
            contexts.append(weakref.ref(context.get_current()))
        await session.append("1", NOTE)
    gc.collect()
    # Timers and tasks of the store's, of which there are few, hold on to the one that they were made in.
    assert sum(each() is not None for each in contexts) < 5
    assert len(scope.spans()) == 300


async def test_repeated_failures_are_logged_seldom(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage does not flood the log: the next entry counts the suppressed ones."""

    async def fail(*_: object, **__: object) -> None:
        msg = "down"
        raise StoreUnavailableError(msg)

    now = [1000.0]
    monkeypatch.setattr(RedisEventStore, "append", fail)
    monkeypatch.setattr("mcp_eventscope.telemetry.logs.time.monotonic", lambda: now[0])
    for elapsed in (0, 1, 1, REPEAT_SECONDS):
        now[0] += elapsed
        with pytest.raises(StoreUnavailableError):
            await session.append("1", NOTE)
    first, second = scope.log.named("event_store.store_failed")
    assert "suppressed" not in first
    assert second["suppressed"] == 2
    assert scope.sample("errors_total", operation="store", error_type="unavailable") == 4


async def test_any_store_can_be_wrapped(scope: Scope) -> None:
    """Third-party stores have latency, sizes and outcomes."""
    store = scope.instrument(MemoryEventStore())
    session = store
    first = await session.append("1", None)
    await session.append("1", NOTE)
    await session.replay(first.event_id, ignore, stream_id="1")
    await session.replay("nothing", ignore, stream_id="1")
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 2
    assert scope.sample("payload_stored_bytes_total") == len('{"jsonrpc":"2.0","method":"note"}')
    assert scope.sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert scope.sample("replay_duration_seconds_count", outcome="missed") == 1
    assert scope.log.named("event_store.ttl_missing") == []
    assert [span.name for span in scope.spans()] == ["event_store.store"] * 2 + ["event_store.replay"] * 2


async def test_root_store_behind_the_sdk_is_logged_once(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A root store used through the SDK's interface is logged once; the store of a session is not."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    await store.for_session("s").store_event("1", NOTE)
    assert scope.log.named("event_store.sessions_not_isolated") == []
    for _ in range(2):
        await store.store_event("1", NOTE)
    (entry,) = scope.log.named("event_store.sessions_not_isolated")
    assert "http_app" in entry["fix"]


async def test_missing_ttl_is_logged_once(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A store without TTL is logged once, when it is decorated, and has no `ttl_seconds` series."""
    store = scope.instrument(RedisEventStore(redis))
    store.for_session("a")
    store.for_session("b")
    (entry,) = scope.log.named("event_store.ttl_missing")
    assert entry["level"] == "warning"
    assert scope.sample("ttl_seconds") is None


async def test_stores_on_one_registry_differ_by_label(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Stores on one registry differ in the label `store`."""
    first = scope.instrument(RedisEventStore(redis, ttl=60), "first")
    scope.instrument(RedisEventStore(redis, ttl=90), "second")
    await first.append("1", NOTE)
    value = scope.registry.get_sample_value
    assert value("eventscope_events_stored_total", {"store": "first", "message_type": "notification"}) == 1
    assert value("eventscope_events_stored_total", {"store": "second", "message_type": "notification"}) == 0
    assert value("eventscope_ttl_seconds", {"store": "second"}) == 90


async def test_decorated_twice_is_refused(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Decorating twice is refused, since everything would count twice."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    with pytest.raises(ValueError, match="already"):
        InstrumentedEventStore(store)


async def test_store_without_a_registry_works(redis: FakeAsyncRedis, scope: Scope) -> None:
    """It has no metrics."""
    store = InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=None, logger=scope.log)
    first = await store.append("1", None)
    await store.append("1", RESPONSE)
    assert (await store.replay(first.event_id, ignore, stream_id="1")).delivered == 1
    assert scope.log.entries == []


def test_prometheus_client_without_a_private_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prometheus_client that has changed inside is refused with its version, not met by an error in a scrape."""
    prometheus.check_prometheus_client()
    monkeypatch.setattr(prometheus, "_PRIVATE", (*prometheus._PRIVATE, "_moved"))
    with pytest.raises(ImportError, match=r"prometheus_client \d.* has no _moved; install"):
        prometheus.check_prometheus_client()
