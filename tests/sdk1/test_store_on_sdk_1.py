"""The store and the decorator on mcp 1.x, whose messages have a wrapper."""

import importlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import types
from mcp.server.streamable_http import GET_STREAM_KEY, EventId, EventMessage, EventStore, StreamId
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import IncompatibleSDKError, InstrumentedEventStore, RedisEventStore, SessionsNotIsolatedWarning
from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.instrumentation import instrument
from mcp_eventscope.redis.root import backlog
from mcp_eventscope.store import codec
from mcp_eventscope.store.results import AppendResult, FollowEnd, Miss
from support.logs import Recorder
from support.memory_store import MemoryEventStore

pytestmark = pytest.mark.anyio

wrap: Any = types.JSONRPCMessage
"""The `RootModel`. The type checker reads mcp 2.x, where it is a union."""

MESSAGES: dict[str, types.JSONRPCMessage] = {
    "request": types.JSONRPCRequest(jsonrpc="2.0", id="7", method="ping"),
    "request with null params": types.JSONRPCRequest(jsonrpc="2.0", id=7, method="ping", params=None),
    "notification": types.JSONRPCNotification(jsonrpc="2.0", method="note", params={"a": None, "b": [1.5, "é"]}),
    "notification with another member": types.JSONRPCNotification.model_validate(
        {"jsonrpc": "2.0", "method": "note", "extra": {"a": None}}
    ),
    "response": types.JSONRPCResponse(jsonrpc="2.0", id=7, result={"a": None}),
    "error": types.JSONRPCError(jsonrpc="2.0", id="7", error=types.ErrorData(code=-1, message="no", data=None)),
}
NOTE, ANSWER, FAILURE = MESSAGES["notification"], MESSAGES["response"], MESSAGES["error"]


class WrappedOnly(MemoryEventStore):
    """A third-party store that insists on the wrapper, and replays messages as it received them."""

    async def store_event(self, stream_id: StreamId, message: types.JSONRPCMessage | None) -> EventId:
        """Keep an event whose message has the wrapper."""
        assert message is None or type(message) is wrap
        return await super().store_event(stream_id, message)


@pytest.fixture(params=["bare", "decorated", "third-party"])
async def store(
    request: pytest.FixtureRequest, redis_client: aioredis.Redis, registry: CollectorRegistry
) -> AsyncIterator[EventStore]:
    """A store with the SDK's interface."""
    if request.param == "third-party":
        yield instrument(WrappedOnly(), registry=registry)
        return
    root = RedisEventStore(redis_client, ttl=600, store_timeout=30)
    yield root if request.param == "bare" else instrument(root, registry=registry)
    await root.flush()


@pytest.fixture
async def decorated(redis_client: aioredis.Redis, registry: CollectorRegistry) -> AsyncIterator[InstrumentedEventStore]:
    """A decorated root store."""
    root = RedisEventStore(redis_client, ttl=600, store_timeout=30)
    yield instrument(root, registry=registry)
    await root.flush()


class Collected(list[EventMessage]):
    """A callback that collects events."""

    async def __call__(self, event: EventMessage) -> None:
        """Collect one event."""
        self.append(event)

    @property
    def data(self) -> list[str]:
        """The messages as the transport writes them after `data:`."""
        return [each.message.model_dump_json(by_alias=True, exclude_none=True) for each in self]


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.filterwarnings("ignore::mcp_eventscope.SessionsNotIsolatedWarning")
async def test_replay_of_stored_message_returns_it_with_its_wrapper(store: EventStore, name: str) -> None:
    """A replay passes each message to the SDK in the form and with the text in which it was stored."""
    message = wrap(MESSAGES[name])
    first = await store.store_event("7", None)
    stored = await store.store_event("7", message)
    replayed = Collected()
    assert await store.replay_events_after(first, replayed) == "7"
    assert [each.event_id for each in replayed] == [stored]
    assert [type(each.message) for each in replayed] == [wrap]
    assert [type(each.message.root) for each in replayed] == [type(message.root)]  # type: ignore[union-attr]
    assert replayed.data == [message.model_dump_json(by_alias=True, exclude_none=True)]


@pytest.mark.parametrize("name", MESSAGES)
async def test_payload_is_the_text_on_the_wire(redis_client: aioredis.Redis, name: str) -> None:
    """Redis has the bytes that the transport writes, as a worker with mcp-persist expects them."""
    root = RedisEventStore(redis_client, ttl=600, store_timeout=30)
    appended = await root.append("7", MESSAGES[name])
    payload = await redis_client.hget(f"mcp:event:{appended.event_id}", "payload")
    await root.flush()
    assert payload == wrap(MESSAGES[name]).model_dump_json(by_alias=True, exclude_none=True).encode()


@pytest.mark.parametrize("store", ["decorated", "third-party"], indirect=True)
async def test_stored_message_is_counted_by_type(store: EventStore, registry: CollectorRegistry) -> None:
    """The metrics name the message within the wrapper."""
    await store.store_event("7", None)
    for message in MESSAGES.values():
        await store.store_event("7", wrap(message))
    counted = {
        sample.labels["message_type"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "eventscope_events_stored_total"
    }
    assert counted == {"priming": 1, "request": 2, "notification": 2, "response": 1, "error": 1}
    failures = [
        registry.get_sample_value("eventscope_telemetry_failures_total", {"store": "default", "sink": "metrics"})
    ]
    assert failures == [0]


@pytest.mark.parametrize("final", [ANSWER, FAILURE], ids=["response", "error"])
async def test_follow_of_wrapped_response_completes(decorated: InstrumentedEventStore, final: Any) -> None:
    """A response within the wrapper ends the stream of its request: later events are not delivered."""
    first = await decorated.store_event("7", None)
    for message in (NOTE, final, NOTE):
        await decorated.store_event("7", wrap(message))
    followed = Collected()
    facts = await decorated.follow("7", first, followed, limit=60)
    assert (facts.end, facts.delivered) == (FollowEnd.COMPLETED, 2)
    assert (await decorated.replay(first, Collected(), stream_id="7")).completed


async def test_response_on_the_standalone_stream_does_not_complete_it(decorated: InstrumentedEventStore) -> None:
    """The standalone stream, on which messages without `related_request_id` are sent, never ends."""
    first = await decorated.store_event(GET_STREAM_KEY, None)
    for message in (FAILURE, NOTE):
        await decorated.store_event(GET_STREAM_KEY, wrap(message))
    facts = await decorated.replay(first, Collected(), stream_id=GET_STREAM_KEY)
    assert (facts.delivered, facts.completed) == (2, False)


async def test_append_of_bare_store_receives_the_message_without_wrapper(
    redis_client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer marks responses by their type, and replaces those that it drops by an error."""
    kinds = []
    append = RedisEventStore.append

    async def recorded(self: RedisEventStore, stream_id: str, message: Any, traceparent: str = "") -> AppendResult:
        kinds.append(type(message))
        return await append(self, stream_id, message, traceparent)

    monkeypatch.setattr(RedisEventStore, "append", recorded)
    root = RedisEventStore(redis_client, ttl=600, store_timeout=30)
    with pytest.warns(SessionsNotIsolatedWarning):
        await root.store_event("7", wrap(ANSWER))
    await root.flush()
    assert kinds == [types.JSONRPCResponse]


def test_error_in_place_of_dropped_response_keeps_the_request_id() -> None:
    """An error of this package has a form that the SDK can send."""
    replaced = json.loads(backlog._in_place_of(codec.encode(ANSWER)))
    assert (replaced["id"], replaced["error"]["code"]) == (7, -32011)


def test_decode_of_payload_of_mcp_2_returns_its_message() -> None:
    """During an upgrade a worker with mcp 1.x reads the payloads of one with mcp 2.x: other order, explicit nulls."""
    for payload, kind in (
        (b'{"jsonrpc":"2.0","method":"note","params":{"a":null}}', types.JSONRPCNotification),
        (b'{"jsonrpc":"2.0","id":"7","method":"ping","params":null}', types.JSONRPCRequest),
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', types.JSONRPCResponse),
        (b'{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"a","data":null}}', types.JSONRPCError),
    ):
        message = codec.decode(payload)
        assert type(message) is kind
        assert message.model_dump(exclude_unset=True) == json.loads(payload)


def test_decode_of_error_without_id_is_corrupt() -> None:
    """An error without id has no form in mcp 1.x. A replay counts and skips it."""
    with pytest.raises(CorruptEventError):
        codec.decode(b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"a"}}')


async def test_replay_of_unknown_cursor_is_a_miss(decorated: InstrumentedEventStore) -> None:
    """An unknown cursor returns no stream, which the SDK of 1.x answers with an empty stream."""
    replayed = Collected()
    assert await decorated.replay_events_after("1", replayed) is None
    assert replayed == []
    assert (await decorated.replay("x", replayed)).miss is Miss.MALFORMED


@pytest.mark.filterwarnings("ignore::mcp_eventscope.SessionsNotIsolatedWarning")
async def test_callback_that_raises_ends_the_replay(store: EventStore) -> None:
    """The exception of the SDK's callback passes through the conversion unchanged."""

    async def break_off(_: EventMessage) -> None:
        raise ConnectionResetError

    first = await store.store_event("7", None)
    await store.store_event("7", wrap(NOTE))
    with pytest.raises(ConnectionResetError):
        await store.replay_events_after(first, break_off)


async def test_bare_store_warns_that_sessions_are_not_isolated(redis_client: aioredis.Redis) -> None:
    """The warning names the versions with which its advice can be followed."""
    root = RedisEventStore(redis_client, ttl=600, store_timeout=30)
    with pytest.warns(SessionsNotIsolatedWarning, match=r"mcp 1\.30, or 2\.2"):
        await root.store_event("7", None)
    log = Recorder()
    await instrument(root, registry=CollectorRegistry(), logger=log).store_event("7", None)
    assert "mcp 1.30, or 2.2" in log.named("event_store.sessions_not_isolated")[0]["fix"]
    await root.flush()


def test_conformance_suites_are_refused() -> None:
    """The suites pass messages without wrapper, with which a store for mcp 1.x cannot work."""
    with pytest.raises(IncompatibleSDKError, match=r"^mcp must be 2\.2 or a later 2\.x for .*, got 1\."):
        importlib.import_module("mcp_eventscope.testing")
