"""The conformance suite for one store in one process, through the SDK's interface only."""

import uuid
from collections.abc import Mapping
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from mcp_eventscope.testing.collected import Collected, on_the_wire, replay
from mcp_eventscope.testing.sessions import SessionConformance
from mcp_eventscope.testing.strategies import foreign_event_ids, messages

MEBIBYTE = 1 << 20

_SHARED_FIXTURE = (
    HealthCheck.function_scoped_fixture,  # every example uses a separate stream of the store
    HealthCheck.differing_executors,  # the tests are meant to be inherited
    HealthCheck.too_slow,  # a store may be distant
)
few_examples = settings(max_examples=25, deadline=None, suppress_health_check=_SHARED_FIXTURE)
more_examples = settings(few_examples, max_examples=60)

SENT: Mapping[str, JSONRPCMessage] = {
    "error without id": JSONRPCError(
        jsonrpc="2.0", id=None, error=ErrorData(code=-32700, message="no", data={"at": None})
    ),
    "error data null": JSONRPCError(jsonrpc="2.0", id=1, error=ErrorData(code=0, message="", data=None)),
    "error data unset": JSONRPCError(jsonrpc="2.0", id=1, error=ErrorData(code=-(10**30), message="")),
    "params unset": JSONRPCRequest(jsonrpc="2.0", id=0, method="ping"),
    "params null": JSONRPCRequest(jsonrpc="2.0", id=0, method="ping", params=None),
    "params empty": JSONRPCNotification(jsonrpc="2.0", method="", params={}),
    "nested nulls": JSONRPCResponse(jsonrpc="2.0", id=1, result={"a": None, "b": [None, {"c": None}], "": {}}),
    "text as id": JSONRPCRequest(jsonrpc="2.0", id="1", method="ping"),
    "empty text as id": JSONRPCResponse(jsonrpc="2.0", id="", result={}),
    "negative id": JSONRPCResponse(jsonrpc="2.0", id=-1, result={}),
    "id beyond 64 bits": JSONRPCResponse(jsonrpc="2.0", id=2**64, result={"n": [2**63, -(2**63) - 1, 10**400]}),
    "floats": JSONRPCResponse(
        jsonrpc="2.0", id=1, result={"n": [-0.0, 0.1, 1e22, 1e16, 5e-324, 1.7976931348623157e308, 1.0]}
    ),
    "floats that JSON lacks": JSONRPCResponse(
        jsonrpc="2.0", id=1, result={"n": [float("nan"), float("inf"), float("-inf")]}
    ),
    "separators in text": JSONRPCNotification(
        jsonrpc="2.0", method="log", params={"text": "\u2028\u2029\x85\r\n\0\x1f\x7f\ufeff\uffff\U0001f9ea"}
    ),
    "text like an event stream": JSONRPCNotification(
        jsonrpc="2.0", method="log", params={"text": 'id: 1\ndata: {"jsonrpc"}\n\n'}
    ),
}
"""Messages that some stores change."""


def _nested(depth: int) -> JSONRPCResponse:
    value: object = None
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return JSONRPCResponse(jsonrpc="2.0", id=1, result={"v": value})


EXTREMES: Mapping[str, JSONRPCMessage] = {
    "5000 digits": JSONRPCResponse(jsonrpc="2.0", id=1, result={"n": [10**5000, -(10**5000) + 7]}),
    "nested as deep as the SDK writes": _nested(250),
}
"""Messages that the SDK writes and its parser refuses: more than 4300 digits, nesting above 200."""


class EventStoreConformance(SessionConformance):
    """The contract between an event store and the SDK's transport.

    Inherit it, and override the fixture `store`. See `mcp_eventscope.testing` for an example.

    Attributes:
        ids_increase: Whether event ids are decimal numbers that increase. False for stores whose ids are opaque.
    """

    pytestmark = pytest.mark.anyio

    ids_increase: ClassVar[bool] = True

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The event loop of the tests: asyncio, as in the SDK's servers."""
        return "asyncio"

    @pytest.fixture
    def store(self) -> EventStore:
        """The store under test. Override it."""
        msg = f"{type(self).__name__} must override the fixture `store`; see the docstring of mcp_eventscope.testing"
        raise NotImplementedError(msg)

    # -- order --------------------------------------------------------------------------------------------------------

    async def test_replay_is_what_followed_in_order(self, store: EventStore) -> None:
        """A replay returns the events after the given one, in order, with their ids."""
        stream = new_stream()
        stored = await store_all(store, stream, 10)
        for position, (event_id, _) in enumerate(stored):
            replayed = await replay(store, event_id)
            assert replayed.events == stored[position + 1 :]

    async def test_replay_names_the_stream(self, store: EventStore) -> None:
        """A replay returns the stream, even without later events: the transport continues with it."""
        stream = new_stream()
        first, last = await store.store_event(stream, note(0)), await store.store_event(stream, note(1))
        assert (await replay(store, first)).stream_id == stream
        assert (await replay(store, last)).stream_id == stream

    async def test_replay_takes_nothing_away(self, store: EventStore) -> None:
        """A second replay is the same as the first: the connection may be cut again."""
        stored = await store_all(store, new_stream(), 5)
        assert (await replay(store, stored[0][0])).events == stored[1:]
        assert (await replay(store, stored[0][0])).events == stored[1:]

    async def test_long_streams_are_replayed_whole(self, store: EventStore) -> None:
        """A thousand events come back, each once."""
        stream = new_stream()
        first = await store.store_event(stream, None)
        stored = await store_all(store, stream, 1000)
        assert (await replay(store, first)).events == stored

    # -- ids ----------------------------------------------------------------------------------------------------------

    async def test_ids_are_unique_over_all_streams(self, store: EventStore) -> None:
        """No id is assigned twice: a client resumes with the id alone."""
        streams = [new_stream() for _ in range(5)]
        ids = [await store.store_event(streams[i % 5], note(i)) for i in range(100)]
        assert len(set(ids)) == 100

    async def test_ids_can_be_written_to_a_stream(self, store: EventStore) -> None:
        """An id is not empty, and valid in an SSE field and an HTTP header."""
        for message in (None, note(0)):
            event_id = await store.store_event(new_stream(), message)
            assert event_id
            assert event_id.isascii()
            assert event_id.isprintable()
            assert event_id == event_id.strip()

    async def test_ids_increase(self, store: EventStore) -> None:
        """A later event has a larger id, whatever its stream."""
        if not self.ids_increase:
            pytest.skip("the ids of this store are opaque (ids_increase = False)")
        ids = [int(await store.store_event(new_stream(), note(i))) for i in range(20)]
        assert ids == sorted(ids)

    # -- streams ------------------------------------------------------------------------------------------------------

    async def test_streams_are_replayed_apart(self, store: EventStore) -> None:
        """A replay has only the events of its own stream, however they were interleaved."""
        streams = [new_stream() for _ in range(3)]
        stored: dict[str, list[tuple[str, str]]] = {stream: [] for stream in streams}
        for i in range(30):
            stream = streams[i * i % 3]
            stored[stream].append((await store.store_event(stream, note(i)), on_the_wire(note(i))))
        for events in stored.values():
            if events:
                assert (await replay(store, events[0][0])).events == events[1:]

    async def test_stream_names_are_not_patterns(self, store: EventStore) -> None:
        """A stream is found only by its exact name: no prefixes, patterns or equivalent spellings."""
        base = new_stream()
        ends = ("", "*", "?", "%", "_", "1", "11", " ", ":", ":1", "/", "'", '"', "\u00e9", "e\u0301")
        names = [base + end for end in ends]
        firsts = {name: await store.store_event(name, None) for name in names}
        stored = {name: (await store_all(store, name, 1))[0] for name in names}
        for name, first in firsts.items():
            assert (await replay(store, first)).events == [stored[name]]

    @few_examples
    @given(st.lists(st.tuples(st.integers(0, 2), st.none() | messages()), min_size=1, max_size=12))
    async def test_any_conversation(self, store: EventStore, sent: list[tuple[int, JSONRPCMessage | None]]) -> None:
        """After any event of interleaved streams, a replay returns the stream's later messages."""
        base = new_stream()
        ids = [await store.store_event(f"{base}{number}", message) for number, message in sent]
        for position, (number, _) in enumerate(sent):
            owed = [
                (event_id, on_the_wire(message))
                for event_id, (other, message) in zip(ids[position + 1 :], sent[position + 1 :], strict=True)
                if other == number and message is not None
            ]
            assert (await replay(store, ids[position])).events == owed

    # -- priming events -----------------------------------------------------------------------------------------------

    async def test_priming_events_are_cursors(self, store: EventStore) -> None:
        """A client that has received only the priming event receives all events."""
        stream = new_stream()
        primed = await store.store_event(stream, None)
        stored = await store_all(store, stream, 2)
        assert (await replay(store, primed)).events == stored

    async def test_priming_events_are_never_replayed(self, store: EventStore) -> None:
        """Each reconnection stores a priming event, and no replay returns them."""
        stream = new_stream()
        first = await store.store_event(stream, None)
        stored = []
        for i in range(3):
            await store.store_event(stream, None)
            stored.append((await store.store_event(stream, note(i)), on_the_wire(note(i))))
        await store.store_event(stream, None)
        assert (await replay(store, first)).events == stored

    async def test_stream_of_priming_events_only(self, store: EventStore) -> None:
        """A stream without messages is known, and replays nothing."""
        stream = new_stream()
        first = await store.store_event(stream, None)
        await store.store_event(stream, None)
        assert await replay(store, first) == Collected(stream_id=stream)

    # -- untrusted ids ------------------------------------------------------------------------------------------------

    async def test_ids_that_were_never_given_out(self, store: EventStore) -> None:
        """An invalid `Last-Event-ID` replays nothing, returns no stream, and raises nothing."""
        given_out = await store.store_event(new_stream(), note(0))
        hostile = [
            "",
            " ",
            "0",
            "-1",
            "1.5",
            "1e3",
            "NaN",
            "٣",
            "not an id",
            "9" * 18,
            "9" * 19,
            "9" * 400,
            "x" * 10_000,
            "1" * 10_000,
            "\x00",
            "1\n2",
            "\r\n\x1b[31m",
            "%",
            "%31",
            "100%",
            "%s%d%n",
            "../../etc",
            "*",
            "' OR 1=1 --",
            f" {given_out}",
            f"{given_out} ",
            f"{given_out}\n",
            f"0{given_out}",
            f"+{given_out}",
            f"-{given_out}",
            f"{given_out}0",
        ]
        for last_event_id in hostile:
            if last_event_id == given_out:
                continue
            assert await replay(store, last_event_id) == Collected(), last_event_id[:50]

    @few_examples
    @given(foreign_event_ids())
    async def test_any_text_as_id(self, store: EventStore, last_event_id: str) -> None:
        """Any header value replays nothing, unless it is an assigned id."""
        first = await store.store_event(new_stream(), None)
        if last_event_id != first:
            assert (await replay(store, last_event_id)).events == []

    async def test_ids_larger_than_any_given_out(self, store: EventStore) -> None:
        """A future id replays nothing, and is not treated as the last id."""
        if not self.ids_increase:
            pytest.skip("the ids of this store are opaque (ids_increase = False)")
        stored = await store_all(store, new_stream(), 2)
        for ahead in (1, 10**6, 10**12):
            assert await replay(store, str(int(stored[-1][0]) + ahead)) == Collected()

    # -- fidelity -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", SENT)
    async def test_message_is_kept(self, store: EventStore, name: str) -> None:
        """A message is replayed byte for byte as it was sent live."""
        await assert_kept(store, SENT[name])

    @pytest.mark.parametrize("name", EXTREMES)
    async def test_extreme_message_is_kept(self, store: EventStore, name: str) -> None:
        """Any message that the SDK can write is replayed, even if its parser refuses it."""
        await assert_kept(store, EXTREMES[name])

    async def test_one_mebibyte_is_kept(self, store: EventStore) -> None:
        """A large payload is replayed whole, and so are the events after it."""
        stream = new_stream()
        first = await store.store_event(stream, None)
        large = JSONRPCNotification(jsonrpc="2.0", method="log", params={"text": "aé漢🧪" * (MEBIBYTE // 10)})
        assert len(on_the_wire(large).encode()) >= MEBIBYTE
        for message in (large, note(1), large):
            await store.store_event(stream, message)
        replayed = await replay(store, first)
        # Compared without a diff: printing one of megabytes would take minutes.
        assert [text == on_the_wire(large) for text in replayed.data] == [True, False, True]
        assert replayed.data[1] == on_the_wire(note(1))

    @more_examples
    @given(messages())
    async def test_any_message_is_kept(self, store: EventStore, message: JSONRPCMessage) -> None:
        """Any message is replayed byte for byte."""
        await assert_kept(store, message)

    # -- failures and concurrency -------------------------------------------------------------------------------------

    async def test_callback_that_raises_ends_the_replay(self, store: EventStore) -> None:
        """When the connection breaks, the replay stops with its error, and the store is unchanged."""
        stored = await store_all(store, new_stream(), 5)
        delivered = Collected()

        async def break_off(event: EventMessage) -> None:
            await delivered(event)
            if len(delivered.ids) == 2:
                raise anyio.BrokenResourceError

        with pytest.raises(anyio.BrokenResourceError):
            await store.replay_events_after(stored[0][0], break_off)
        assert delivered.events == stored[1:3]
        assert (await replay(store, stored[0][0])).events == stored[1:]

    async def test_cancelled_replay_leaves_the_store_usable(self, store: EventStore) -> None:
        """A cancelled replay ends, and the next replay is complete."""
        stored = await store_all(store, new_stream(), 5)
        with anyio.CancelScope() as scope:

            async def cancel(_: EventMessage) -> None:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

            await store.replay_events_after(stored[0][0], cancel)
        assert scope.cancelled_caught
        assert (await replay(store, stored[0][0])).events == stored[1:]

    async def test_callback_may_use_the_store(self, store: EventStore) -> None:
        """A callback can store on another stream without waiting for its own replay."""
        stored = await store_all(store, new_stream(), 3)
        other = new_stream()
        first = await store.store_event(other, None)

        async def store_more(event: EventMessage) -> None:
            await store.store_event(other, event.message)

        with anyio.fail_after(10):
            await store.replay_events_after(stored[0][0], store_more)
        assert (await replay(store, first)).data == [data for _, data in stored[1:]]

    async def test_concurrent_writers(self, store: EventStore) -> None:
        """Concurrent tasks lose no events, share no ids, and keep their own order."""
        stream = new_stream()
        first = await store.store_event(stream, None)
        ids: dict[str, str] = {}

        async def write(writer: int) -> None:
            for i in range(20):
                message = note(i, writer=writer)
                ids[await store.store_event(stream, message)] = on_the_wire(message)

        async with anyio.create_task_group() as tasks:
            for writer in range(10):
                tasks.start_soon(write, writer)
        assert len(ids) == 200
        replayed = await replay(store, first)
        assert dict(replayed.events) == ids
        assert len(replayed.ids) == 200
        for writer in range(10):
            own = [data for data in replayed.data if f'"writer":{writer}}}' in data]
            assert own == [on_the_wire(note(i, writer=writer)) for i in range(20)]


def new_stream() -> str:
    """A unique stream id."""
    return uuid.uuid4().hex


def note(number: int, **params: int) -> JSONRPCNotification:
    """A small, distinguishable notification."""
    return JSONRPCNotification(jsonrpc="2.0", method="note", params={"n": number, **params})


async def store_all(store: EventStore, stream: str, count: int) -> list[tuple[str, str]]:
    """Store `count` notes on a stream, and return their ids and texts on the wire."""
    return [(await store.store_event(stream, note(i)), on_the_wire(note(i))) for i in range(count)]


async def assert_kept(store: EventStore, message: JSONRPCMessage) -> None:
    """Check that a stored message is replayed with the same bytes and type."""
    stream = new_stream()
    first = await store.store_event(stream, None)
    kinds: list[type] = []
    collected = Collected()

    async def collect(event: EventMessage) -> None:
        kinds.append(type(event.message))
        await collected(event)

    event_id = await store.store_event(stream, message)
    await store.replay_events_after(first, collect)
    assert collected.events == [(event_id, on_the_wire(message))]
    assert kinds == [type(message)]
