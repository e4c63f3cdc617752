"""The trace of an event, and the links of a replay to it."""

import contextvars
import json
from collections.abc import Callable

import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import JSONRPCNotification, JSONRPCResponse
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.redis.root.scripts import PRODUCERS
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.telemetry import propagation
from support.events import change, fields_of
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

NOTE = JSONRPCNotification(jsonrpc="2.0", method="note")
RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})
PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


async def ignore(_: EventMessage) -> None:
    """A client that accepts everything."""


@pytest.fixture
def store(redis: FakeAsyncRedis) -> RedisEventStore:
    """A store without telemetry."""
    return RedisEventStore(redis, ttl=60)


@pytest.fixture
def session(scope: Scope, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """One session's part of a decorated store."""
    return scope.instrument(RedisEventStore(redis, ttl=60))


async def row(redis: FakeAsyncRedis, event_id: str) -> dict[str, bytes]:
    """An event as stored in Redis."""
    return await fields_of(redis, f"mcp:event:{event_id}")


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    """The links of a span."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


async def test_replay_span_links_to_the_spans_of_its_events(
    scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis
) -> None:
    """Each event keeps its span, with its payload unchanged; the replay links to the delivered ones.

    It belongs to the trace of the first one, and links to the request that asked for it.
    """
    ids = [(await session.append("1", message)).event_id for message in (None, NOTE, NOTE, RESPONSE)]
    stored = [span.context for span in scope.spans()]
    assert await row(redis, ids[3]) == {
        "stream_id": b"1",
        "payload": b'{"jsonrpc":"2.0","id":1,"result":{}}',
        "final": b"1",
        "traceparent": f"00-{stored[3].trace_id:032x}-{stored[3].span_id:016x}-{stored[3].trace_flags:02x}".encode(),
    }
    with scope.provider.get_tracer("test").start_as_current_span("GET /mcp") as request:
        assert (await session.replay(ids[1], ignore, stream_id="1")).completed
    replay = scope.spans()[-2]
    asked = request.get_span_context()
    assert links(replay) == [(context.trace_id, context.span_id) for context in (asked, *stored[2:])]
    assert replay.parent is not None
    assert (replay.parent.trace_id, replay.parent.span_id) == (stored[2].trace_id, stored[2].span_id)


async def test_span_that_is_not_recorded_is_not_kept(redis: FakeAsyncRedis) -> None:
    """Unrecorded spans are not stored."""
    store = InstrumentedEventStore(
        RedisEventStore(redis, ttl=60), registry=None, tracer_provider=TracerProvider(sampler=ALWAYS_OFF)
    )
    stored = await store.append("1", NOTE)
    assert await row(redis, stored.event_id) == {
        "stream_id": b"1",
        "payload": b'{"jsonrpc":"2.0","method":"note"}',
    }


async def test_links_of_a_replay_are_distinct_and_bounded(store: RedisEventStore) -> None:
    """Events of one span make one link; the links of a long replay are bounded."""
    first = (await store.append("1", None)).event_id
    for number in range(PRODUCERS // 2):
        for _ in range(2):
            await store.append("1", NOTE, f"00-{number + 1:032x}-{number + 1:016x}-01")
    facts = await store.replay(first, ignore, stream_id="1")
    assert facts.producers == tuple(f"00-{n + 1:032x}-{n + 1:016x}-01" for n in range(PRODUCERS // 2))
    for number in range(3 * PRODUCERS):
        await store.append("1", NOTE, f"00-{number + 100:032x}-{number + 1:016x}-01")
    facts = await store.replay(first, ignore, stream_id="1")
    assert facts.delivered == 4 * PRODUCERS
    assert len(facts.producers) <= PRODUCERS


async def test_replay_after_some_events_links_to_the_missed_ones(store: RedisEventStore) -> None:
    """Events without a span and priming events are skipped."""
    ids = []
    for message, parent in ((NOTE, PARENT), (NOTE, ""), (None, PARENT), (RESPONSE, PARENT[:-1] + "0")):
        ids.append((await store.append("1", message, parent)).event_id)
    facts = await store.replay(ids[0], ignore, stream_id="1")
    assert (facts.delivered, facts.producers) == (2, (PARENT[:-1] + "0",))


@pytest.mark.parametrize("written", ["", "x", "1 missing", PARENT + " 5 6", PARENT.replace("-", " "), "00-@", "\xff"])
async def test_malformed_traceparent_in_redis_is_ignored(
    store: RedisEventStore, redis: FakeAsyncRedis, written: str
) -> None:
    """A malformed traceparent in Redis is ignored."""
    first, second = [(await store.append("1", message, PARENT)).event_id for message in (None, NOTE)]
    await change(redis, f"mcp:event:{second}", traceparent=written)
    facts = await store.replay(first, ignore, stream_id="1")
    assert (facts.delivered, facts.producers, facts.corrupt) == (1, (), ())


async def test_traceparent_with_zero_ids_is_ignored(
    scope: Scope, session: InstrumentedEventStore, redis: FakeAsyncRedis
) -> None:
    """The replay is in the trace of its request."""
    first, second = [(await session.append("1", message)).event_id for message in (None, NOTE)]
    await change(redis, f"mcp:event:{second}", traceparent=f"00-{0:032x}-{0:016x}-01")
    with scope.provider.get_tracer("test").start_as_current_span("GET /mcp") as request:
        await session.replay(first, ignore, stream_id="1")
    replay = scope.spans()[-2]
    assert (links(replay), replay.parent) == ([], request.get_span_context())
    assert scope.sample("telemetry_failures_total", sink="traces") == 0


class Request:
    """A request of a client in its own trace, whose messages have its context."""

    def __init__(self, scope: Scope, view: SessionView, stream: str, *, traced: bool = True) -> None:
        self._scope = scope
        self._view = view
        self._stream = stream
        self.context = contextvars.copy_context()
        self.tracer = scope.provider.get_tracer("client")
        self.call = self.tracer.start_span("call") if traced else trace.INVALID_SPAN
        self.context.run(context.attach, trace.set_span_in_context(self.call))

    async def begins(self) -> None:
        """Store the priming event, in the context of the request."""
        token = context.attach(trace.set_span_in_context(self.call))
        await self._view.store_event(self._stream, None)
        context.detach(token)

    async def sends(self, message: JSONRPCNotification | JSONRPCResponse) -> None:
        """Store a message in the task that stores for all calls."""
        self._view.sender = lambda: self.context
        await self._view.store_event(self._stream, message)

    def within(self, name: str) -> trace.SpanContext:
        """Send messages within a span of the tool from now on."""
        span = self.tracer.start_span(name, trace.set_span_in_context(self.call))
        self.context.run(context.attach, trace.set_span_in_context(span))
        return span.get_span_context()


async def test_calls_at_the_same_time(scope: Scope, session: InstrumentedEventStore) -> None:
    """One task stores for all calls, in the context of `initialize`; each event is in the trace of its call."""
    view = SessionView(session, follow_timeout=1)
    with scope.provider.get_tracer("client").start_as_current_span("initialize") as initialize:
        one, two = Request(scope, view, "1"), Request(scope, view, "2")
        for request in (one, two):
            await request.begins()
        for request in (one, two, one, two):
            await request.sends(NOTE)
        tool = one.within("tool")
        await one.sends(NOTE)
        await two.sends(RESPONSE)
        assert trace.get_current_span() is initialize
    parents = [span.parent for span in scope.spans() if span.name == "event_store.store"]
    of_one, of_two = one.call.get_span_context(), two.call.get_span_context()
    assert parents == [of_one, of_two, of_one, of_two, of_one, of_two, tool, of_two]


async def test_response_is_sent_outside_of_the_span_of_the_call(scope: Scope, session: InstrumentedEventStore) -> None:
    """If only the SDK traces, its span has ended when the response is sent: the call's earlier messages identify it."""
    view = SessionView(session, follow_timeout=1)
    with scope.provider.get_tracer("client").start_as_current_span("initialize"):
        request = Request(scope, view, "1", traced=False)
        await request.begins()
        outside = request.context
        tool = request.within("tools/call")
        await request.sends(NOTE)
        request.context = contextvars.Context()
        await request.sends(RESPONSE)
        assert outside is not request.context
        request.context = contextvars.Context()
        await request.sends(NOTE)
    parents = [span.parent for span in scope.spans() if span.name == "event_store.store"]
    assert parents[1:] == [tool, tool, None], "a call that is over is forgotten, and nothing is in the trace of another"


async def test_priming_event_identifies_a_trace_without_a_context(
    scope: Scope, session: InstrumentedEventStore
) -> None:
    """If the SDK passes no context, the call's priming event identifies its trace."""
    view = SessionView(session, follow_timeout=1)
    with scope.provider.get_tracer("client").start_as_current_span("call") as call:
        await view.store_event("1", None)
    with scope.provider.get_tracer("client").start_as_current_span("initialize"):
        await view.store_event("1", NOTE)
    parents = [span.parent for span in scope.spans() if span.name == "event_store.store"]
    assert parents == [call.get_span_context()] * 2


def body(meta: object) -> bytes:
    """A request with a `_meta`."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"_meta": meta}}).encode()


def test_trace_in_meta_is_continued() -> None:
    """As in the SDK, and left again."""
    with propagation.continued(body({"traceparent": PARENT, "progressToken": 1})):
        current = trace.get_current_span().get_span_context()
        assert (f"{current.trace_id:032x}", f"{current.span_id:016x}") == ("a" * 32, "b" * 16)
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"traceparent",
        b'["traceparent"]',
        b'{"params":{"traceparent":1}}',
        b'{"params":"traceparent"}',
        b'{"params":{"_meta":"traceparent"}}',
        body({"traceparent": 5}),
        body({"traceparent": "00-0-0-01"}),
        body({"traceparent": ["a"]}),
    ],
)
def test_other_values_in_meta_are_ignored(sent: bytes) -> None:
    """Anything else in `_meta` is ignored."""
    with propagation.continued(sent):
        assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("verb", ["traceparent", "end_span", "end_stored_span"])
async def test_traces_that_raise_are_counted(
    scope: Scope, session: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Failing traces do not affect the store, and are counted."""

    def fail(*_: object, **__: object) -> None:
        msg = "traces"
        raise RuntimeError(msg)

    monkeypatch.setattr(f"mcp_eventscope.telemetry.tracing.Tracing.{verb}", fail)
    patched: Callable[..., object] | None = None
    if verb == "end_span":
        patched = fail

        async def unstored(*_: object) -> None:
            fail()

        monkeypatch.setattr(RedisEventStore, "append", unstored)
    try:
        assert (await session.append("1", NOTE)).event_id
    except RuntimeError:
        assert patched
    assert scope.sample("telemetry_failures_total", sink="traces") == 1
