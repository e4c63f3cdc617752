"""Questions of operators, one test each: create the situation, and read the answer from the signals.

Which worker runs a call and which follows it is a question to real processes: tests/e2e/test_metrics_per_worker.py.
"""

import time

import anyio
import anyio.lowlevel
import fakeredis
import httpx2
import pytest
from fakeredis import FakeAsyncRedis
from redis.exceptions import OutOfMemoryError

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreRejectedError, instrumentation
from mcp_eventscope.redis.client import connect
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store.messages import EventMessage, JSONRPCMessage
from mcp_eventscope.store.results import AppendResult, ReplayResult
from mcp_eventscope.telemetry import catalog
from support.events import change
from support.http_client import VERSION, events
from support.messages import answer, note
from support.waiting import until
from telemetry.conftest import Rig, Scope
from telemetry.test_failing_sinks import RaisingLogger

pytestmark = pytest.mark.anyio

TTL = 60
SUCCESSES = {"resumed", "caught_up"}
REASONS = ("malformed", "unknown", "expired")
OUTCOMES = {"resumed", "caught_up", "gap", "missed", "unavailable", "error", "client_disconnected", "cancelled"}


async def take(_: EventMessage) -> None:
    """A client that accepts everything immediately."""


def resumes(scope: Scope) -> dict[str, float]:
    """Resumes by outcome."""
    counts = {outcome: scope.sample("replay_duration_seconds_count", outcome=outcome) or 0 for outcome in OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


def misses(scope: Scope) -> dict[str, float]:
    """Misses by reason."""
    counts = {
        reason: scope.sample("replay_misses_total", reason=reason) or 0
        for reason in ("malformed", "unknown", "expired")
    }
    return {reason: count for reason, count in counts.items() if count}


@pytest.fixture
def session(scope: Scope, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """One session's part of a decorated store."""
    return scope.instrument(RedisEventStore(redis, ttl=TTL))


async def stored_before(redis: FakeAsyncRedis, seconds: float, message: JSONRPCMessage) -> str:
    """Store an event with an age in the session's stream `1`; returns its id, which contains the time."""
    event_id = str(round((time.time() - seconds) * 1_000_000))
    payload = message.model_dump_json(by_alias=True, exclude_unset=True)
    await redis.hset(f"mcp:event:{event_id}", mapping={"stream_id": "1", "payload": payload})
    await redis.zadd("mcp:stream:1", {event_id: int(event_id)})
    return event_id


async def test_question_do_resumes_work_has_a_success_ratio(scope: Scope, session: InstrumentedEventStore) -> None:
    """The success ratio."""
    first = (await session.append("1", None)).event_id
    last = (await session.append("1", note(1))).event_id
    await session.replay(first, take, stream_id="1")
    await session.replay(last, take, stream_id="1")
    await session.replay("5", take, stream_id="1")
    counts = resumes(scope)
    assert counts == {"resumed": 1, "caught_up": 1, "missed": 1}
    assert sum(counts[outcome] for outcome in SUCCESSES & set(counts)) / sum(counts.values()) == pytest.approx(2 / 3)


async def test_why_do_resumes_not_work(scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis) -> None:
    """Misses, missing events and corrupt events have reasons and a log event."""
    for cursor in ("not an id", "5", str(round((time.time() - TTL - 5) * 1_000_000))):
        await session.replay(cursor, take, stream_id="1")
    assert misses(scope) == {"malformed": 1, "unknown": 1, "expired": 1}
    reasons = [entry["reason"] for entry in scope.log.named("event_store.replay_incomplete")]
    assert reasons == ["malformed", "unknown", "expired"], "one reason hides no other"
    first, gone, corrupt, _ = [(await session.append("1", note(n))).event_id for n in range(4)]
    await redis.delete(f"mcp:event:{gone}")
    await change(redis, f"mcp:event:{corrupt}", payload="{")
    await session.replay(first, take, stream_id="1")
    assert resumes(scope) == {"missed": 3, "gap": 1}
    assert scope.sample("events_missing_total", reason="store_lost") == scope.sample("events_corrupt_total") == 1


async def test_resume_age_is_compared_with_the_ttl(
    scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis
) -> None:
    """The age at resume, and a warning near the TTL before events are lost."""
    cursor = await stored_before(redis, 0.95 * TTL, note(1))
    await session.append("1", note(2))
    await session.replay(cursor, take, stream_id="1")
    assert resumes(scope) == {"resumed": 1}
    assert scope.sample("resume_age_seconds_sum") == pytest.approx(0.95 * TTL, abs=1)
    assert scope.sample("resume_ttl_ratio_sum") == pytest.approx(0.95, abs=0.02)
    near = (scope.sample("resume_ttl_ratio_count") or 0) - (scope.sample("resume_ttl_ratio_bucket", le="0.9") or 0)
    assert near == 1, "what an alert asks"
    (late,) = scope.log.named("event_store.resume_late")
    assert (late["ttl_seconds"], late["age_seconds"]) == (TTL, pytest.approx(0.95 * TTL, abs=1))
    assert "ttl=" in late["fix"]


async def test_replay_for_a_client_that_returns_immediately_is_counted(
    scope: Scope, session: InstrumentedEventStore
) -> None:
    """A quick resume is far from the TTL; without a TTL there is no ratio."""
    first = (await session.append("1", None)).event_id
    await session.replay(first, take, stream_id="1")
    assert scope.sample("resume_ttl_ratio_bucket", le="0.1") == 1
    assert scope.log.entries == []
    lasting = scope.instrument(RedisEventStore(FakeAsyncRedis()), "lasting")
    await lasting.replay((await lasting.append("1", None)).event_id, take, stream_id="1")
    assert scope.registry.get_sample_value("eventscope_resume_ttl_ratio_count", {"store": "lasting"}) == 0


async def test_replay_size_is_measured(scope: Scope, session: InstrumentedEventStore) -> None:
    """Sizes in events and in bytes."""
    first = (await session.append("1", None)).event_id
    sizes = [(await session.append("1", note(n, "x" * 1000))).payload_bytes for n in range(20)]
    await session.replay(first, take, stream_id="1")
    assert (scope.sample("replay_events_sum"), scope.sample("replay_size_bytes_sum")) == (20, sum(sizes))
    assert scope.sample("replay_events_bucket", le="10.0") == 0
    assert scope.sample("replay_size_bytes_bucket", le="65536.0") == 1


@pytest.mark.parametrize("slow", ["client", "store"])
async def test_our_store_or_a_slow_client(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """The send duration is the part of the client."""
    read = RedisEventStore.replay

    async def read_slowly(self: RedisEventStore, *args: object, **options: object) -> ReplayResult:
        await anyio.sleep(0.2)
        return await read(self, *args, **options)  # type: ignore[arg-type]

    async def take_slowly(_: EventMessage) -> None:
        await anyio.sleep(0.1)

    if slow == "store":
        monkeypatch.setattr(RedisEventStore, "replay", read_slowly)
    first = (await session.append("1", None)).event_id
    for number in range(2):
        await session.append("1", note(number))
    await session.replay(first, take_slowly if slow == "client" else take, stream_id="1")
    whole = scope.sample("replay_duration_seconds_sum", outcome="resumed") or 0
    sending = scope.sample("replay_send_duration_seconds_sum") or 0
    assert whole >= 0.19
    assert (sending > whole / 2) == (slow == "client")
    assert scope.sample("replay_send_duration_seconds_count") == 1
    first_event = scope.sample("replay_time_to_first_event_seconds_sum") or 0
    assert 0.09 < first_event < whole


async def test_replay_without_events_has_no_first_event(scope: Scope, session: InstrumentedEventStore) -> None:
    """It has no first event and no send duration."""
    await session.replay((await session.append("1", None)).event_id, take, stream_id="1")
    assert resumes(scope) == {"caught_up": 1}
    assert (
        scope.sample("replay_time_to_first_event_seconds_count")
        == scope.sample("replay_send_duration_seconds_count")
        == 0
    )


async def test_replay_whose_client_leaves_at_the_first_event_is_counted(
    scope: Scope, session: InstrumentedEventStore
) -> None:
    """It has a send duration, but no first event."""

    async def leave(_: EventMessage) -> None:
        await anyio.lowlevel.checkpoint()
        raise anyio.BrokenResourceError

    first = (await session.append("1", None)).event_id
    await session.append("1", note(1))
    with pytest.raises(anyio.BrokenResourceError):
        await session.replay(first, leave, stream_id="1")
    assert resumes(scope) == {"client_disconnected": 1}
    assert (
        scope.sample("replay_time_to_first_event_seconds_count"),
        scope.sample("replay_send_duration_seconds_count"),
    ) == (0, 1)


async def test_is_a_stream_being_followed(scope: Scope, session: InstrumentedEventStore) -> None:
    """The gauge while it is followed, and its outcome."""
    last = (await session.append("1", None)).event_id
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: session.follow("1", last, take, limit=30))
        await until(lambda: scope.sample("streams_followed") == 1)
        await session.append("1", note(1))
        await session.append("1", answer())
    assert scope.sample("streams_followed") == 0
    assert scope.sample("events_followed_total") == 2
    assert scope.sample("follow_duration_seconds_count", outcome="completed") == 1


async def test_is_the_store_degraded_and_what_has_been_lost(scope: Scope) -> None:
    """In an outage: state, reason, duration, backlog, and losses once it overflows."""
    server = fakeredis.FakeServer()
    store = scope.instrument(RedisEventStore(FakeAsyncRedis(server=server), ttl=TTL, backlog_events=5))
    session = store
    await session.append("1", None)
    server.connected = False
    for number in range(5):
        await session.append("1", note(number))
    assert scope.sample("degraded") == 1
    assert scope.sample("degradations_total", reason="connection") == 1
    assert scope.sample("store_duration_seconds_count", outcome="deferred") == 5
    assert scope.sample("backlog_length") == 5
    assert (scope.sample("backlog_size_bytes") or 0) > 5 * len(note(1).model_dump_json())
    assert scope.sample("events_lost_total", reason="overflow") == 0
    await session.append("2", note(6))
    assert scope.sample("events_lost_total", reason="overflow") or 0
    server.connected = True
    await until(lambda: scope.sample("degraded") == 0)
    assert (scope.sample("degradation_duration_seconds_total", reason="connection") or 0) > 0
    await until(lambda: scope.sample("backlog_length") == 0)
    for event in ("degraded", "events_lost", "recovered"):
        assert len(scope.log.named(f"event_store.{event}")) == 1


async def test_pending_events_of_sessions_are_reported_during_the_outage(scope: Scope) -> None:
    """A scrape in an outage reports accepted events, although none has been stored or lost yet."""
    server = fakeredis.FakeServer()
    store = scope.instrument(RedisEventStore(FakeAsyncRedis(server=server), ttl=TTL))
    session = store.for_session("session")
    session.begin("1", 1)
    await session.append("1", None)
    await until(lambda: scope.sample("events_stored_total", message_type="priming") == 1)
    server.connected = False
    await session.append("1", note(1))
    await until(lambda: scope.sample("degraded") == 1)
    for number in range(2, 6):
        await session.append("1", note(number))
    assert scope.sample("backlog_length") == 5
    assert (scope.sample("backlog_size_bytes") or 0) > 5 * len(note(1).model_dump_json())
    server.connected = True
    await until(lambda: scope.sample("backlog_length") == 0)
    assert scope.sample("events_accepted_total") == 6
    assert scope.sample("events_stored_total", message_type="notification") == 5


async def test_resumes_that_wait_for_redis_are_no_errors(scope: Scope) -> None:
    """Clients that resume on another worker in a known outage wait, and count once, as resumed."""
    server = fakeredis.FakeServer()
    running = SessionView(RedisEventStore(FakeAsyncRedis(server=server), ttl=TTL).for_session("s"), follow_timeout=30)
    store = scope.instrument(RedisEventStore(FakeAsyncRedis(server=server), ttl=TTL))
    running.begin(1)
    cursor = await running.store_event("1", None)
    await until(lambda: FakeAsyncRedis(server=server).exists("mcp:{s}:requests"))
    server.connected = False
    other = store.for_session("other")
    other.begin("1", 1)
    await other.append("1", note(1))
    await until(lambda: scope.sample("degraded") == 1)
    view = SessionView(store.for_session("s"), follow_timeout=30)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(view.replay_events_after, cursor, take)
        await anyio.wait_all_tasks_blocked()
        server.connected = True
        await running.store_event("1", answer())
    assert scope.sample("replay_duration_seconds_count", outcome="error") == 0
    assert scope.sample("replay_duration_seconds_count", outcome="unavailable") == 0
    assert scope.sample("errors_total", operation="replay", error_type="unavailable") == 0
    assert scope.sample("errors_total", operation="follow", error_type="unavailable") == 0
    succeeded = [scope.sample("replay_duration_seconds_count", outcome=each) for each in ("resumed", "caught_up")]
    assert sum(count or 0 for count in succeeded) == 3


async def test_is_the_store_slow(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow stores in the histogram, beside fast ones."""
    append, clock = RedisEventStore.append, 0.0

    async def slowly(self: RedisEventStore, *args: object) -> AppendResult:
        nonlocal clock
        clock += 0.06
        return await append(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(instrumentation, "perf_counter", lambda: clock)
    await session.append("1", None)
    monkeypatch.setattr(RedisEventStore, "append", slowly)
    await session.append("1", note(1))
    assert scope.sample("store_duration_seconds_bucket", le="0.05", outcome="ok") == 1
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 2
    assert scope.sample("commit_duration_seconds_count") == 2, "and how much of it was Redis"


async def test_is_the_store_failing(
    scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors by operation and type."""

    async def full(*_: object, **__: object) -> None:
        msg = "command not allowed when used memory > 'maxmemory'."
        raise OutOfMemoryError(msg)

    monkeypatch.setattr(type(redis), "execute_command", full)
    with pytest.raises(StoreRejectedError, match="memory"):
        await session.replay(str(round(time.time() * 1_000_000)), take, stream_id="1")
    assert scope.sample("errors_total", operation="replay", error_type="rejected") == 1
    assert resumes(scope) == {"error": 1}
    (entry,) = scope.log.named("event_store.replay_failed")
    assert (entry["operation"], entry["error_type"]) == ("replay", "rejected")


async def test_is_the_ttl_missing_here(scope: Scope, redis: FakeAsyncRedis) -> None:
    """A store without a TTL."""
    scope.instrument(RedisEventStore(redis))
    assert scope.sample("ttl_seconds") is None
    assert len(scope.log.named("event_store.ttl_missing")) == 1


async def test_is_the_ttl_missing_on_keys(scope: Scope, valkey_url: str, key_prefix: str) -> None:
    """A store with a TTL, and keys of a process without one."""
    async with connect(valkey_url) as redis:
        store = RedisEventStore(redis, key_prefix=key_prefix, ttl=TTL)
        await store.append("1", None)
        lasting = RedisEventStore(redis, key_prefix=key_prefix)
        await lasting.append("1", None)
        instrumented = scope.instrument(store)
        async with instrumented.poll_redis_stats(0.05):
            await until(lambda: scope.sample("redis_keys_without_ttl"))
        (entry,) = scope.log.named("event_store.keys_without_ttl")
        assert entry["keys"] == scope.sample("redis_keys_without_ttl")
        assert "set ttl=" in entry["fix"]
        for name in [name async for name in redis.scan_iter(f"{key_prefix}*")]:
            await redis.delete(name)


async def test_which_requests_cannot_resume(rig: Rig) -> None:
    """Requests by protocol version."""
    client = await rig.serve()
    await client.initialize()
    async with client.call(1, "echo", text="x") as response:
        assert [event async for event in events(response)]
    for revision in ("2026-07-28", "2026-07-28", "1999-01-01"):
        await client.http.post(client.url, json={}, headers={"mcp-protocol-version": revision})
    by_revision = {
        revision: rig.scope.sample("requests_received_total", mcp_protocol_version=revision) or 0
        for revision in catalog.sessions.PROTOCOL_VERSION.values or ()
    }
    assert sum(by_revision[revision] for revision in catalog.sessions.NEVER_RESUMES) == 3
    assert sum(by_revision.values()) == 6
    (inert,) = rig.scope.log.named("event_store.resumption_disabled")
    assert "2026-07-28" in inert["mode"]


async def test_question_are_clients_refused_has_refusals_and_sessions(rig: Rig) -> None:
    """Refusals at the limit, beside the sessions that are served."""
    client = await rig.serve(max_sessions=1)
    await client.initialize()
    async with client.http.stream("POST", client.url, json={}, headers={"accept": "text/event-stream"}) as response:
        assert response.status_code == httpx2.codes.SERVICE_UNAVAILABLE
    assert (rig.live(), rig.refused()) == (1, {"limit": 1})


async def test_which_requests_are_slow_or_fail(rig: Rig) -> None:
    """The durations of requests have their method and error; those of sessions, their protocol version."""
    client = await rig.serve()
    await client.initialize()
    async with client.call(1, "echo") as response:
        await response.aread()
    labels = {"mcp_method_name": "tools/call", "error_type": "tool_error"}
    assert rig.scope.conventional("mcp_server_operation_duration_seconds_count", **labels) == 1
    assert rig.scope.conventional("mcp_server_operation_duration_seconds_bucket", le="300.0", **labels) == 1
    await client.delete()
    await until(lambda: rig.live() == 0)
    labels = {"mcp_protocol_version": VERSION, "error_type": ""}
    assert rig.scope.conventional("mcp_server_session_duration_seconds_count", **labels) == 1


async def test_does_the_telemetry_fail(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Failures by sink; the other sinks continue."""
    store = InstrumentedEventStore(RedisEventStore(redis), registry=scope.registry, logger=RaisingLogger())
    await store.append("1", note(1))
    assert scope.sample("telemetry_failures_total", sink="logs") == 1
    assert scope.sample("telemetry_failures_total", sink="metrics") == 0
    assert scope.sample("events_stored_total", message_type="notification") == 1


async def test_question_what_runs_has_versions_as_labels(scope: Scope, redis: FakeAsyncRedis) -> None:
    """The versions: 1, with labels."""
    scope.instrument(RedisEventStore(redis, ttl=TTL))
    (sample,) = next(m for m in scope.registry.collect() if m.name == "eventscope_build_info").samples
    assert sample.value == 1
    assert set(sample.labels) == {"store", "eventscope", "mcp", "redis", "python"}
    assert all(sample.labels.values())


async def test_which_resume_is_the_log_about(scope: Scope, session: InstrumentedEventStore) -> None:
    """The log event has the ids of the replay's span, in the trace of its request."""
    with scope.provider.get_tracer("test").start_as_current_span("GET /mcp") as request:
        await session.replay("5", take, stream_id="1")
    (span,) = [span for span in scope.spans() if span.name == "event_store.replay"]
    (entry,) = scope.log.named("event_store.replay_incomplete")
    assert entry["trace_id"] == f"{request.get_span_context().trace_id:032x}"
    assert entry["span_id"] == f"{span.context.span_id:016x}"
