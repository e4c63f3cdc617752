"""How late followers are, how old and idle sessions become, and how close they come to their size limit."""

import asyncio
from functools import partial

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.types import JSONRPCNotification, JSONRPCResponse

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.write.session_limit import ENTRY_RUNS
from mcp_eventscope.sessions.telemetry import SessionTelemetry
from mcp_eventscope.store.messages import GET_STREAM_KEY, EventMessage
from mcp_eventscope.store.results import FollowEnd
from mcp_eventscope.telemetry.facts import Origin, SessionEnd
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.measurements import Counted
from support.memory_store import MemoryEventStore
from support.waiting import until
from telemetry.conftest import Rig, Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")
RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})
HOUR = 3600.0
LIMIT = 1 << 24


async def ignore(_: EventMessage) -> None:
    """A client that accepts everything."""


async def test_event_followed_on_another_worker_has_a_lag(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event counts once, on the worker that delivers it."""
    monkeypatch.setattr(EventClock, "synchronize", lambda *_: None)  # Both have the same clock: lags are exact.
    writer = scope.instrument(RedisEventStore(redis, ttl=60), "writer").for_session("s")
    reader = scope.instrument(RedisEventStore(redis, ttl=60)).for_session("s")
    writer.begin("1", 1)
    first = await writer.append("1", None)
    following = asyncio.create_task(reader.follow("1", first.event_id, ignore, limit=60))
    await until(lambda: scope.sample("streams_followed") == 1)
    await writer.append("1", NOTE)
    await writer.append("1", RESPONSE)
    assert (await following).end is FollowEnd.COMPLETED
    assert scope.sample("events_followed_total") == 2
    assert scope.sample("follow_lag_seconds_count") == 2
    assert scope.registry.get_sample_value("eventscope_follow_lag_seconds_count", {"store": "writer"}) == 0


@pytest.mark.parametrize(
    ("event_id", "lag", "counted"), [("a", 0.0, 0.0), ("a", HOUR, None), ("a", None, None), (None, 0.0, None)]
)
async def test_lag_of_an_event_that_is_older_than_the_following_is_unknown(
    event_id: str | None, lag: float | None, counted: float | None
) -> None:
    """A first standalone stream begins at the start of the session: what was sent meanwhile is late by design."""
    lags: list[float | None] = []
    follower = Counted(ignore, lambda _: lag, lags.append)
    await follower(EventMessage(NOTE, event_id))
    assert (lags, follower.delivered) == ([counted], 1)


async def test_event_followed_on_its_own_worker_has_no_lag(scope: Scope, redis: FakeAsyncRedis) -> None:
    """It is delivered from memory."""
    session = scope.instrument(RedisEventStore(redis, ttl=60)).for_session("s")
    session.begin("1", 1)
    first = await session.append("1", None)
    following = asyncio.create_task(session.follow("1", first.event_id, ignore, limit=60))
    await until(lambda: scope.sample("streams_followed") == 1)
    await session.append("1", RESPONSE)
    await following
    assert scope.sample("events_followed_total") == 1
    assert scope.sample("follow_lag_seconds_count") == 0


@pytest.mark.parametrize("standalone", [False, True])
async def test_lag_with_another_clock_is_measured_by_that_of_redis(
    redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch, *, standalone: bool
) -> None:
    """A worker whose clock is decades behind, and that stores nothing, learns Redis's time as it reads."""
    writer = RedisEventStore(redis, ttl=60).for_session("s")
    monkeypatch.setattr("mcp_eventscope.redis.clock.time.time_ns", lambda: 1_000_000_000)  # In 1970.
    reader = RedisEventStore(redis, ttl=60).for_session("s")
    monkeypatch.undo()
    stream = GET_STREAM_KEY if standalone else "1"
    if not standalone:
        writer.begin(stream, 1)
    event = await writer.append(stream, NOTE)
    assert event.pending is not None
    await event.pending.acknowledged()
    assert reader.lag(event.event_id) == 0
    await reader.replay(event.event_id, ignore, stream_id=stream)
    assert 0 < (reader.lag(event.event_id) or 0) < HOUR
    assert writer.lag(event.event_id) is None


async def test_size_of_a_session_is_a_share_of_its_limit(scope: Scope, redis: FakeAsyncRedis) -> None:
    """It is observed when a worker has accounted for the requests of a session."""
    store = scope.instrument(RedisEventStore(redis, ttl=60, max_session_bytes=LIMIT))
    session = store.for_session("s")
    for number in range(ENTRY_RUNS):
        session.begin(f"{number}", number)
        await session.append(f"{number}", JSONRPCResponse(jsonrpc="2.0", id=number, result={"text": "x" * 1000}))
    await store.flush(60)
    await until(lambda: scope.sample("sessions_size_ratio_count") == 1)
    size = (scope.sample("sessions_size_ratio_sum") or 0) * LIMIT
    assert 1000 * ENTRY_RUNS < size < 2000 * ENTRY_RUNS
    assert scope.log.named("event_store.events_lost") == []


class Sessions:
    """Sessions under a clock that the test sets."""

    def __init__(self, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("mcp_eventscope.sessions.telemetry.monotonic", lambda: self.now)
        self.telemetry = SessionTelemetry(scope.instrument(MemoryEventStore()), Log(scope.log))

    def end(self, session_id: str) -> None:
        """End a session as its client does."""
        self.telemetry.ends(session_id, SessionEnd.DELETED)
        self.telemetry.ended(session_id, StreamableHTTPServerTransport(session_id), stopping=False)


def test_duration_of_a_session_is_counted_by_its_end(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buckets reach days: sessions last as long as clients stay."""
    sessions = Sessions(scope, monkeypatch)
    sessions.telemetry.began("a", Origin.OPENED, None)
    sessions.now += 2 * HOUR
    sessions.end("a")
    assert scope.sample("sessions_duration_seconds_sum", reason="deleted") == 2 * HOUR
    assert scope.sample("sessions_duration_seconds_bucket", reason="deleted", le="3600.0") == 0
    assert scope.sample("sessions_duration_seconds_count", reason="idle") == 0


def test_session_with_a_request_is_not_idle(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause is observed when it ends, by a request or with the session, and requests may overlap."""
    sessions = Sessions(scope, monkeypatch)
    sessions.telemetry.began("a", Origin.OPENED, None)
    sessions.now += 10
    with sessions.telemetry.using("a"):
        assert scope.sample("sessions_idle_seconds_sum") == 10
        sessions.now += HOUR
        with sessions.telemetry.using("a"):
            sessions.now += HOUR
        sessions.telemetry.measure()
        assert scope.sample("sessions_longest_idle_seconds") == 0
    sessions.now += 20
    sessions.end("a")
    assert (scope.sample("sessions_idle_seconds_count"), scope.sample("sessions_idle_seconds_sum")) == (2, 30)


def test_oldest_and_most_idle_session_are_gauges(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the sessions that are served now, and 0 without any."""
    sessions = Sessions(scope, monkeypatch)
    for session_id in ("a", "b", "c"):
        sessions.telemetry.began(session_id, Origin.OPENED, None)
        sessions.now += 10
    with sessions.telemetry.using("a"):
        sessions.now += 100
    sessions.telemetry.measure()
    assert scope.sample("sessions_oldest_age_seconds") == 130
    assert scope.sample("sessions_longest_idle_seconds") == 120, "that of b: a had a request"
    sessions.end("a")
    sessions.telemetry.measure()
    assert scope.sample("sessions_oldest_age_seconds") == 120
    with sessions.telemetry.using("b"), sessions.telemetry.using("c"):
        sessions.end("b")
        sessions.end("c")
    sessions.telemetry.measure()
    assert (scope.sample("sessions_oldest_age_seconds"), scope.sample("sessions_longest_idle_seconds")) == (0, 0)


@pytest.mark.parametrize("foreign", [False, True])
async def test_requests_over_http_end_pauses(rig: Rig, monkeypatch: pytest.MonkeyPatch, *, foreign: bool) -> None:
    """The session manager reports requests and the gauges, with any store."""
    monkeypatch.setattr("mcp_eventscope.sessions.manager._MEASURE_SECONDS", 0.01)
    client = await rig.serve(store=MemoryEventStore() if foreign else None)
    await client.initialize()
    assert (rig.scope.sample("sessions_idle_seconds_count") or 0) >= 1
    for gauge in ("oldest_age", "longest_idle"):
        await until(partial(rig.scope.sample, f"sessions_{gauge}_seconds"))
