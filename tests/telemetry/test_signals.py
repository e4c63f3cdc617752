"""What a store tells: each operation once, in metrics, spans and logs."""

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
from mcp_eventscope.redis.write.session_writer import LINGER_SECONDS
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.telemetry.logs import REPEAT_SECONDS
from support.events import change
from support.memory_store import MemoryEventStore
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")
RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


async def ignore(_: EventMessage) -> None:
    """A client that takes everything."""


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
async def test_stored(scope: Scope, session: InstrumentedEventStore, message: JSONRPCMessage, kind: str) -> None:
    """An event that is stored counts by its kind, with its size and latency, and is a span."""
    appended = await session.append("1", message)
    assert scope.sample("stored_events_total", kind=kind) == 1
    assert scope.sample("stored_bytes_total") == appended.payload_bytes
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 1
    (span,) = scope.spans()
    assert span.name == "event_store.store"
    attributes = dict(span.attributes or {})
    assert attributes == {
        "eventscope.store": "default",
        "eventscope.stream.id": "1",
        "eventscope.outcome": "ok",
        "eventscope.event.id": appended.event_id,
        "eventscope.message.kind": kind,
        "eventscope.payload.bytes": appended.payload_bytes,
    }
    assert scope.log.entries == []


async def test_stored_in_the_background(scope: Scope, redis: FakeAsyncRedis) -> None:
    """An event of a session counts as accepted when it has its id, and as stored when Redis has acknowledged it."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    session = store.for_session("session")
    session.begin("1", 1)
    appended = await session.append("1", NOTE)
    assert scope.sample("events_accepted_total") == 1
    assert scope.sample("store_wait_seconds_count") == 1
    assert scope.sample("stored_events_total", kind="notification") == 0
    assert scope.spans() == []
    assert appended.pending is not None
    await appended.pending.acknowledged()
    await store.flush(1)
    assert scope.sample("stored_events_total", kind="notification") == 1
    assert scope.sample("stored_bytes_total") == appended.payload_bytes
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 1
    assert scope.sample("backlog_events") == 0
    (span,) = scope.spans()
    attributes = dict(span.attributes or {})
    assert len(str(attributes["eventscope.session.hash"])) == 12
    assert attributes["eventscope.event.id"] == appended.event_id
    assert attributes["eventscope.outcome"] == "ok"
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 >= LINGER_SECONDS


async def test_resumed_and_caught_up(scope: Scope, session: InstrumentedEventStore) -> None:
    """A replay that delivers is `resumed`, one that owes nothing is `caught_up`; both are successes."""
    first = await session.append("1", None)
    last = await session.append("1", NOTE)
    await session.replay(first.event_id, ignore, stream_id="1")
    await session.replay(last.event_id, ignore, stream_id="1")
    assert scope.sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert scope.sample("replay_duration_seconds_count", outcome="caught_up") == 1
    assert scope.sample("replay_events_sum") == 1
    assert scope.sample("replay_bytes_sum") == last.payload_bytes
    assert scope.sample("resume_age_seconds_count") == 2
    resumed = scope.spans()[2]
    assert resumed.name == "event_store.replay"
    assert (resumed.attributes or {})["eventscope.replay.events"] == 1
    assert (resumed.attributes or {})["eventscope.outcome"] == "resumed"
    assert scope.log.entries == []


@pytest.mark.parametrize(("cursor", "reason"), [("x", "malformed"), ("5", "unknown"), ("1" + "0" * 15, "expired")])
async def test_missed(scope: Scope, session: InstrumentedEventStore, cursor: str, reason: str) -> None:
    """A replay that finds nothing to resume from says why, and does not blur the sizes of those that did."""
    await session.replay(cursor, ignore, stream_id="1")
    assert scope.sample("replay_duration_seconds_count", outcome="missed") == 1
    assert scope.sample("replay_misses_total", reason=reason) == 1
    assert scope.sample("replay_events_count") == 0
    (entry,) = scope.log.named("event_store.replay_incomplete")
    assert (entry["outcome"], entry["reason"]) == ("missed", reason)
    assert (scope.spans()[0].attributes or {})["eventscope.replay.miss_reason"] == reason


async def test_corrupt_and_missing(scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis) -> None:
    """Events that are owed and cannot be delivered make a gap, which is counted and told."""
    first, corrupt, gone, _ = [(await session.append("1", NOTE)).event_id for _ in range(4)]
    await change(redis, f"mcp:event:{corrupt}", payload="{}")
    await redis.delete(f"mcp:event:{gone}")
    facts = await session.replay(first, ignore, stream_id="1")
    assert facts.delivered == 1
    assert scope.sample("replay_duration_seconds_count", outcome="gap") == 1
    assert scope.sample("replay_corrupt_events_total") == 1
    assert scope.sample("replay_missing_events_total") == 1
    (entry,) = scope.log.named("event_store.replay_incomplete")
    assert entry["event_ids"] == (corrupt,)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreUnavailableError("no Redis at host:1"), "unavailable"),
        (StoreRejectedError("READONLY"), "rejected"),
        (RuntimeError("payload"), "other"),
    ],
)
async def test_failed(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    """A failure passes through as it is; it is counted by its type, and told without what an outsider may have sent."""

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
    assert scope.sample("stored_events_total", kind="notification") == 0
    assert scope.sample("followers") == 0
    for span in scope.spans():
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == type(error).__qualname__
        assert span.events == ()
    (entry,) = scope.log.named("event_store.store_failed")
    assert entry["error_type"] == kind
    assert "payload" not in str(scope.log.entries)


async def test_client_that_left(scope: Scope, session: InstrumentedEventStore) -> None:
    """A client that leaves in the middle is no failure of the store; what it got before is known."""
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
    assert scope.sample("replay_duration_seconds_count", outcome="client_gone") == 1
    assert scope.sample("errors_total", operation="replay", error_type="other") == 0
    assert (scope.spans()[-1].attributes or {})["eventscope.replay.events"] == 1
    assert scope.log.entries == []


async def test_cancelled(scope: Scope, session: InstrumentedEventStore) -> None:
    """What is cancelled is its own outcome, and no longer counted as being followed."""
    first = (await session.append("1", None)).event_id
    following = asyncio.create_task(session.follow("1", first, ignore, limit=60))
    await anyio.wait_all_tasks_blocked()
    assert scope.sample("followers") == 1
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert scope.sample("followers") == 0
    assert scope.sample("follow_duration_seconds_count", outcome="cancelled") == 1
    assert scope.log.entries == []


async def test_spans_nest_and_logs_name_them(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """The span of a store is a child of the caller's, and the parent of what a store of others does within it."""
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


async def test_failure_is_told_in_the_trace_of_the_call(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours does its I/O for many at once, so its span is not current; it is in the caller's trace all the same."""

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
    """Within a call that is not sampled no store makes a span, nor a trace of its own; it is counted all the same."""
    session = scope.instrument(RedisEventStore(redis, ttl=60))
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with unsampled.start_as_current_span("call"):
        await session.append("1", NOTE)
    assert scope.spans() == []
    assert scope.sample("stored_events_total", kind="notification") == 1


async def test_context_of_another_type(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A mapping that cannot be remembered is looked at each time."""
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
    """That a call is not sampled is remembered, for as long as its context lives; the next one is asked anew."""
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


async def test_repeated_failures_are_told_seldom(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage does not flood the log: the next entry says how many were left out."""

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
    """A store of others is told as far as it lets on: latency, sizes and outcomes."""
    store = scope.instrument(MemoryEventStore())
    session = store
    first = await session.append("1", None)
    await session.append("1", NOTE)
    await session.replay(first.event_id, ignore, stream_id="1")
    await session.replay("nothing", ignore, stream_id="1")
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 2
    assert scope.sample("stored_bytes_total") == len('{"jsonrpc":"2.0","method":"note"}')
    assert scope.sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert scope.sample("replay_duration_seconds_count", outcome="missed") == 1
    assert scope.log.named("event_store.ttl_missing") == []
    assert [span.name for span in scope.spans()] == ["event_store.store"] * 2 + ["event_store.replay"] * 2


async def test_unscoped_is_told_once(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A root store that is used as the SDK uses it says so; a session's part does not."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    await store.for_session("s").store_event("1", NOTE)
    assert scope.log.named("event_store.unscoped") == []
    for _ in range(2):
        await store.store_event("1", NOTE)
    (entry,) = scope.log.named("event_store.unscoped")
    assert "http_app" in entry["fix"]


async def test_missing_ttl_is_told_once(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A store without TTL says so when it is decorated, and shows 0; its sessions do not say it again."""
    store = scope.instrument(RedisEventStore(redis))
    store.for_session("a")
    store.for_session("b")
    (entry,) = scope.log.named("event_store.ttl_missing")
    assert entry["level"] == "warning"
    assert scope.sample("ttl_seconds") == 0


async def test_two_stores_on_one_registry(scope: Scope, redis: FakeAsyncRedis) -> None:
    """They are told apart by the label `store`."""
    first = scope.instrument(RedisEventStore(redis, ttl=60), "first")
    scope.instrument(RedisEventStore(redis, ttl=90), "second")
    await first.append("1", NOTE)
    value = scope.registry.get_sample_value
    assert value("eventscope_stored_events_total", {"store": "first", "kind": "notification"}) == 1
    assert value("eventscope_stored_events_total", {"store": "second", "kind": "notification"}) == 0
    assert value("eventscope_ttl_seconds", {"store": "second"}) == 90


async def test_decorated_twice_is_refused(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Everything would be counted twice."""
    store = scope.instrument(RedisEventStore(redis, ttl=60))
    with pytest.raises(ValueError, match="already"):
        InstrumentedEventStore(store)


async def test_without_metrics(redis: FakeAsyncRedis, scope: Scope) -> None:
    """No registry, no metrics; the store works."""
    store = InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=None, logger=scope.log)
    first = await store.append("1", None)
    await store.append("1", RESPONSE)
    assert (await store.replay(first.event_id, ignore, stream_id="1")).delivered == 1
    assert scope.log.entries == []
