"""The conformance suite for stores of sessions, which store events in the background."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.streamable_http import EventMessage
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse, RequestId

from mcp_eventscope.sessions.event_ids import stream_name
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from mcp_eventscope.store.messages import FINAL, GET_STREAM_KEY, StreamId
from mcp_eventscope.store.results import FollowEnd, FollowResult, StoreOutcome
from mcp_eventscope.testing.collected import Collected, on_the_wire
from mcp_eventscope.testing.conformance import EXTREMES, MEBIBYTE, SENT, few_examples, more_examples, note
from mcp_eventscope.testing.session_pair import (
    Accepted,
    OpenSessionStore,
    Pair,
    Stream,
    events,
    response,
    secret,
    sized,
)
from mcp_eventscope.testing.sessions import HOSTILE
from mcp_eventscope.testing.strategies import foreign_event_ids, messages, session_ids

PATIENCE = 20.0
"""The time limit of a test, in seconds."""
FLOOD = 40 * MEBIBYTE
"""More payload bytes than a store keeps in memory during an outage."""
BOUNDARY = 4096
"""Payload bytes above which a store may keep a payload in a separate place."""


class SessionStoreConformance:
    """The contract of a store of sessions. Inherit it, and override `open_store`.

    An id is returned before its event is stored, and the writing store may answer from memory. So each test also
    reads through a second store, before and after `settle`. The workers of both stores must stay alive, so that no
    request is answered in their place.
    """

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The event loop of the tests: asyncio, as in the SDK's servers."""
        return "asyncio"

    @pytest.fixture
    def open_store(self) -> OpenSessionStore:
        """Opens a store; each call opens another one on the same data. Override it."""
        msg = f"{type(self).__name__} must override the fixture `open_store`"
        raise NotImplementedError(msg)

    @pytest.fixture
    async def pair(self, open_store: OpenSessionStore) -> AsyncIterator[Pair]:
        """The two stores."""
        async with open_store() as writer, open_store() as reader:
            yield Pair(writer, reader)

    async def settle(self, pair: Pair) -> None:
        """Return when the writing store has stored all accepted events."""
        assert await pair.writer.flush(PATIENCE) == 0

    def outage(self, pair: Pair) -> AbstractAsyncContextManager[None]:
        """Make the data unreachable until the block ends; enter when the writer notices. Override it."""
        pytest.skip("this store is not tested in an outage (`outage` is not overridden)")

    async def declare_dead(self, pair: Pair) -> None:
        """Declare the worker of the writing store dead while its process runs. Override it."""
        pytest.skip("the workers of this store are not declared dead (`declare_dead` is not overridden)")

    # -- ids and order ------------------------------------------------------------------------------------------------

    async def test_replay_is_what_followed_in_order(self, pair: Pair) -> None:
        """The writing store replays later events immediately, the other one once settled."""
        stream = Stream(pair)
        accepted = [await stream.append(None), *await stream.append_all(9)]
        for settled in (False, True):
            for position, one in enumerate(accepted):
                owed = events(accepted[position + 1 :])
                assert (await stream.replay(one.event_id, reads=False))[0].events == owed
                if settled:
                    collected, facts = await stream.replay(one.event_id)
                    assert collected.events == owed
                    assert (facts.stream_id, facts.miss, facts.gap, facts.completed) == (
                        stream.name,
                        None,
                        False,
                        False,
                    )
            await self.settle(pair)

    async def test_other_store_reads_a_part_of_it_before_it_is_settled(self, pair: Pair) -> None:
        """The events stored so far are read in order, without a gap."""
        stream = Stream(pair)
        first = await stream.append(None)
        await self.settle(pair)
        accepted = await stream.append_all(40)
        owed = events(accepted)
        for _ in range(20):
            collected, facts = await stream.replay(first.event_id)
            assert collected.events == owed[: len(collected.events)]
            assert (facts.miss, facts.gap) == (None, False)
            await asyncio.sleep(0.001)
        await self.settle(pair)
        assert (await stream.replay(first.event_id))[0].events == owed

    async def test_ids_are_unique_over_sessions_and_streams(self, pair: Pair) -> None:
        """No two events of a process share an id, in any session or stream."""
        sessions = [uuid.uuid4().hex for _ in range(3)]
        streams = [Stream(pair, number, session) for session in sessions for number in range(3)]
        ids = [(await stream.append(note(number))).event_id for number in range(10) for stream in streams]
        addresses = {event_id.partition("-")[2] for event_id in ids}  # Number and run, which identify an event.
        assert len(addresses) == len(set(ids)) == 90
        assert all(one and one.isascii() and one.isprintable() and not set(one) & set(" .") for one in ids)

    async def test_numbers_are_dense(self, pair: Pair) -> None:
        """Each event has the next number, so a reader detects gaps and their sizes."""
        stream = Stream(pair)
        accepted = [await stream.append(None), *await stream.append_all(5), await stream.append(response())]
        numbers = [int(one.event_id.split("-")[1]) for one in accepted]
        assert numbers == list(range(1, 8))
        times = [int(one.event_id.split("-")[0]) for one in accepted]
        assert times == sorted(times)
        assert len({one.event_id.split("-")[2] for one in accepted}) == 1

    async def test_replay_takes_nothing_away(self, pair: Pair) -> None:
        """A second replay is the same as the first: the connection may be cut again."""
        stream = Stream(pair)
        accepted = await stream.append_all(5)
        await self.settle(pair)
        for _ in range(2):
            assert (await stream.replay(accepted[0].event_id))[0].events == events(accepted[1:])

    async def test_long_streams_are_replayed_whole(self, pair: Pair) -> None:
        """A thousand events come back, each once."""
        stream = Stream(pair)
        first = await stream.append(None)
        accepted = await stream.append_all(1000)
        await self.settle(pair)
        for reads in (True, False):
            assert (await stream.replay(first.event_id, reads=reads))[0].events == events(accepted)

    async def test_concurrent_appends_keep_their_order(self, pair: Pair) -> None:
        """Concurrent tasks share no ids, and each task's events keep their order."""
        stream = Stream(pair)
        first = await stream.append(None)
        ids: dict[str, str] = {}

        async def write(writer: int) -> None:
            for number in range(20):
                message = note(number, writer=writer)
                ids[(await stream.append(message)).event_id] = on_the_wire(message)

        async with anyio.create_task_group() as tasks:
            for writer in range(10):
                tasks.start_soon(write, writer)
        await self.settle(pair)
        replayed, _ = await stream.replay(first.event_id)
        assert len(ids) == len(replayed.ids) == 200
        assert dict(replayed.events) == ids
        for writer in range(10):
            own = [data for data in replayed.data if f'"writer":{writer}}}' in data]
            assert own == [on_the_wire(note(number, writer=writer)) for number in range(20)]

    # -- streams ------------------------------------------------------------------------------------------------------

    async def test_streams_are_replayed_apart(self, pair: Pair) -> None:
        """A replay has only the events of its own stream, however they were interleaved."""
        session = uuid.uuid4().hex
        ids: list[RequestId] = [0, 1, "1", "", -1, "_GET_stream", "0" * 200, "1" * 200]
        streams = [Stream(pair, request_id, session) for request_id in ids]
        accepted: dict[int, list[Accepted]] = {number: [] for number in range(len(ids))}
        for number in range(40):
            index = number * number % len(ids)
            accepted[index].append(await streams[index].append(note(number)))
        await self.settle(pair)
        for index, own in accepted.items():
            if own:
                assert (await streams[index].replay(own[0].event_id))[0].events == events(own[1:])

    async def test_reused_request_ids_never_meet(self, pair: Pair) -> None:
        """A request with a reused id has a separate stream; old cursors read the first."""
        session = uuid.uuid4().hex
        calls = []
        for number in range(3):
            stream = Stream(pair, 1, session)
            calls.append(
                [await stream.append(None), await stream.append(note(number)), await stream.append(response())]
            )
        await self.settle(pair)
        for call in calls:
            for reads in (True, False):
                collected, facts = await stream.replay(call[0].event_id, reads=reads)
                assert collected.events == events(call[1:])
                assert facts.completed

    async def test_request_id_that_is_reused_while_it_runs(self, pair: Pair) -> None:
        """The earlier request ends with an error with its id; the later one is unaffected."""
        session = uuid.uuid4().hex
        earlier = Stream(pair, "7", session)
        first = await earlier.append(note(0))
        later = Stream(pair, "7", session)
        second = await later.append(None)
        answer = await later.append(response("7"))
        await self.settle(pair)
        (error,) = await earlier.replayed_messages(first.event_id)
        assert isinstance(error, JSONRPCError)
        assert error.id == "7"
        assert (await later.replay(second.event_id))[0].events == events([answer])

    @few_examples
    @given(st.lists(st.tuples(st.integers(0, 2), st.none() | messages()), min_size=1, max_size=12))
    async def test_any_conversation(self, pair: Pair, sent: list[tuple[int, JSONRPCMessage | None]]) -> None:
        """After any event of interleaved streams, both stores replay the rest of the run.

        A response ends its run; the next event of that stream begins another.
        """
        session = uuid.uuid4().hex
        runs: list[Stream] = []
        current: dict[int, Stream] = {}
        for number, message in sent:
            if number not in current:
                current[number] = Stream(pair, number, session)
                runs.append(current[number])
            await current[number].append(message)
            if isinstance(message, FINAL):
                del current[number]
        await self.settle(pair)
        for run in runs:
            answered = isinstance(run.accepted[-1].message, FINAL)
            for position, one in enumerate(run.accepted):
                for reads in (True, False):
                    collected, facts = await run.replay(one.event_id, reads=reads)
                    assert collected.events == events(run.accepted[position + 1 :])
                    assert facts.completed is answered

    async def test_standalone_stream_needs_no_request(self, pair: Pair) -> None:
        """Both stores may write to it, and no response or error ends it."""
        session = uuid.uuid4().hex
        cursor = await pair.part(session).open_standalone()
        sent: list[JSONRPCMessage] = [note(1), response(), note(2)]
        for message in sent:
            await pair.append(session, GET_STREAM_KEY, message)
        other = await pair.reading(session).append(GET_STREAM_KEY, note(3))
        assert other.event_id
        await self.settle(pair)
        await pair.reader.flush(PATIENCE)
        for part in (pair.part(session), pair.reading(session)):
            collected = Collected()
            facts = await part.replay(cursor, collected, stream_id=GET_STREAM_KEY)
            assert sorted(collected.data) == sorted(map(on_the_wire, [*sent, note(3)]))
            assert [data for data in collected.data if data != on_the_wire(note(3))] == list(map(on_the_wire, sent))
            assert not facts.completed

    async def test_standalone_cursor_names_a_position_of_each_writer(self, pair: Pair) -> None:
        """A client that alternates between the stores receives each event once."""
        session = uuid.uuid4().hex
        cursor = await pair.part(session).open_standalone()
        seen: list[str] = []
        for number in range(4):
            for part in (pair.part(session), pair.reading(session)):
                await part.append(GET_STREAM_KEY, note(number))
            await self.settle(pair)
            await pair.reader.flush(PATIENCE)
            collected = Collected()
            part = (pair.part(session), pair.reading(session))[number % 2]
            facts = await part.replay(cursor, collected, stream_id=GET_STREAM_KEY)
            seen += collected.data
            cursor = collected.ids[-1] or facts.last_event_id
        assert seen == [on_the_wire(note(number)) for number in range(4) for _ in range(2)]

    # -- ends ---------------------------------------------------------------------------------------------------------

    async def test_response_ends_the_run(self, pair: Pair) -> None:
        """A replay reports that the request was answered, even after the response."""
        stream = Stream(pair)
        first, last = await stream.append(None), await stream.append(response())
        await self.settle(pair)
        for reads in (True, False):
            for cursor, owed in ((first, [last]), (last, [])):
                collected, facts = await stream.replay(cursor.event_id, reads=reads)
                assert (collected.events, facts.completed) == (events(owed), True)

    async def test_nothing_is_accepted_after_the_response(self, pair: Pair) -> None:
        """Such events are refused, have no id, and are not stored."""
        stream = Stream(pair)
        first, last = await stream.append(None), await stream.append(response())
        for message in (None, note(1), response()):
            late = await stream.append(message)
            assert late.appended.refused
            assert not late.event_id
        await self.settle(pair)
        assert (await stream.replay(first.event_id))[0].events == events([last])

    async def test_nothing_is_accepted_before_the_request(self, pair: Pair) -> None:
        """A stream that was not opened accepts no events."""
        appended = await pair.part(uuid.uuid4().hex).append(stream_name(1), note(1))
        assert (appended.refused, appended.event_id) == (True, "")

    async def test_response_without_json_form_is_replaced_by_an_error(self, pair: Pair) -> None:
        """The stream ends with an error, although the transport could not write the response."""
        stream = Stream(pair, "ü")
        first = await stream.append(None)
        await stream.append(JSONRPCResponse(jsonrpc="2.0", id="ü", result={"text": "\ud800"}))
        await self.settle(pair)
        (error,) = await stream.replayed_messages(first.event_id)
        assert isinstance(error, JSONRPCError)
        assert error.id == "ü"

    @pytest.mark.parametrize("request_id", [7, "7", -1, "", "x" * 130, "漢" * 20, 'a "b" \n', 2**64])
    async def test_request_that_is_given_up_is_answered_with_its_id(self, pair: Pair, request_id: RequestId) -> None:
        """The error that replaces the response has exactly the client's id."""
        stream = Stream(pair, request_id)
        first = await stream.append(None)
        await pair.part(stream.session).give_up(stream.name, request_id)
        await self.settle(pair)
        (error,) = await stream.replayed_messages(first.event_id)
        assert isinstance(error, JSONRPCError)
        assert (error.id, type(error.id), error.error.code) == (request_id, type(request_id), REQUEST_ORPHANED)

    # -- following ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("reads", [True, False], ids=["other store", "same store"])
    async def test_follow_delivers_until_the_response(self, pair: Pair, *, reads: bool) -> None:
        """Events accepted meanwhile are delivered once, in order, with their ids."""
        stream = Stream(pair)
        first = await stream.append(None)
        if reads:
            await self.settle(pair)
        part = pair.reading(stream.session) if reads else pair.part(stream.session)
        collected, followed = Collected(), list[FollowResult]()
        accepted = []

        async def follow() -> None:
            followed.append(await part.follow(stream.name, first.event_id, collected, limit=PATIENCE))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                for number in range(10):
                    accepted.append(await stream.append(note(number)))
                    await asyncio.sleep(0.002 * (number % 3))
                accepted.append(await stream.append(response()))
        assert collected.events == events(accepted)
        assert [one.end for one in followed] == [FollowEnd.COMPLETED]
        assert followed[0].last_event_id == accepted[-1].event_id

    async def test_follow_of_the_standalone_stream_across_stores(self, pair: Pair) -> None:
        """A follower receives the events of both stores."""
        session = uuid.uuid4().hex
        cursor = await pair.reading(session).open_standalone()
        collected = Collected()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                follow = pair.reading(session).follow
                tasks.start_soon(lambda: follow(GET_STREAM_KEY, cursor, collected, limit=PATIENCE))
                for number in range(5):
                    await pair.append(session, GET_STREAM_KEY, note(number))
                    await pair.reading(session).append(GET_STREAM_KEY, note(number, here=1))
                while len(collected.ids) < 10:  # noqa: ASYNC110 - the callback is shared with other tests
                    await asyncio.sleep(0.005)
                tasks.cancel_scope.cancel()
        assert sorted(collected.data) == sorted(
            on_the_wire(message) for number in range(5) for message in (note(number), note(number, here=1))
        )

    async def test_callback_that_raises_keeps_the_position(self, pair: Pair) -> None:
        """A broken connection ends the replay, and the store is unchanged."""
        stream = Stream(pair)
        accepted = await stream.append_all(5)
        await self.settle(pair)
        for part in (pair.part(stream.session), pair.reading(stream.session)):
            delivered = Collected()

            async def break_off(event: EventMessage, delivered: Collected = delivered) -> None:
                await delivered(event)
                if len(delivered.ids) == 2:
                    raise anyio.BrokenResourceError

            with pytest.raises(anyio.BrokenResourceError):
                await part.replay(accepted[0].event_id, break_off, stream_id=stream.name)
            assert delivered.events == events(accepted[1:3])
        assert (await stream.replay(accepted[0].event_id))[0].events == events(accepted[1:])

    # -- fidelity -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", [*SENT, *EXTREMES])
    async def test_message_is_kept(self, pair: Pair, name: str) -> None:
        """A message is replayed byte for byte as it was sent live."""
        await self._assert_kept(pair, {**SENT, **EXTREMES}[name])

    @more_examples
    @given(messages())
    async def test_any_message_is_kept(self, pair: Pair, message: JSONRPCMessage) -> None:
        """Any message is replayed byte for byte."""
        await self._assert_kept(pair, message)

    async def _assert_kept(self, pair: Pair, message: JSONRPCMessage) -> None:
        stream = Stream(pair)
        first, accepted = await stream.append(None), await stream.append(message)
        assert accepted.appended.payload_bytes == len(on_the_wire(message).encode())
        assert accepted.appended.pending is not None
        assert accepted.appended.pending.payload.decode() == on_the_wire(message)
        await self.settle(pair)
        for reads in (True, False):
            kinds: list[type] = []
            collected = Collected()

            async def collect(event: EventMessage, kinds: list[type] = kinds, own: Collected = collected) -> None:
                kinds.append(type(event.message))
                await own(event)

            part = pair.reading(stream.session) if reads else pair.part(stream.session)
            await part.replay(first.event_id, collect, stream_id=stream.name)
            assert (collected.events, kinds) == (events([accepted]), [type(message)])

    @pytest.mark.parametrize("size", [BOUNDARY - 1, BOUNDARY, BOUNDARY + 1])
    async def test_payload_around_the_boundary_is_kept(self, pair: Pair, size: int) -> None:
        """A payload that is stored separately is replayed in order."""
        stream = Stream(pair)
        await stream.append(None)
        for number in range(6):
            await stream.append(sized(size, str(number)) if number % 2 else note(number))
        accepted = stream.accepted
        assert accepted[2].appended.payload_bytes == size
        await self.settle(pair)
        for position, one in enumerate(accepted):
            assert (await stream.replay(one.event_id))[0].events == events(accepted[position + 1 :])

    async def test_one_mebibyte_is_kept(self, pair: Pair) -> None:
        """A large payload is replayed whole, and so is a later event."""
        stream = Stream(pair)
        first = await stream.append(None)
        large = JSONRPCNotification(jsonrpc="2.0", method="log", params={"text": "aé漢🧪" * (MEBIBYTE // 10)})
        for message in (large, note(1), large):
            await stream.append(message)
        await self.settle(pair)
        replayed, _ = await stream.replay(first.event_id)
        # Compared without a diff: printing one of megabytes would take minutes.
        assert [text == on_the_wire(large) for text in replayed.data] == [True, False, True]
        assert replayed.data[1] == on_the_wire(note(1))

    # -- untrusted names and ids --------------------------------------------------------------------------------------

    async def test_sessions_with_hostile_names(self, pair: Pair) -> None:
        """Each stream replays its own response, and nothing with the cursors of other streams."""
        base = uuid.uuid4().hex
        streams = {
            (session, request_id): Stream(pair, request_id, base + session)
            for session, request_id in dict.fromkeys(HOSTILE)
        }
        cursors = {names: await stream.append(None) for names, stream in streams.items()}
        answers = {names: await stream.append(secret(*names)) for names, stream in streams.items()}
        await self.settle(pair)
        for names, stream in streams.items():
            assert (await stream.replay(cursors[names].event_id))[0].events == events([answers[names]])
            for other in streams.values():
                if other is not stream:
                    assert (await other.replay(cursors[names].event_id))[0].events == []

    @few_examples
    @given(
        st.lists(st.tuples(session_ids(), st.text(max_size=200) | st.integers()), min_size=2, max_size=4, unique=True)
    )
    async def test_sessions_of_any_names(self, pair: Pair, names: list[tuple[str, RequestId]]) -> None:
        """As with hostile names, for any names."""
        base = uuid.uuid4().hex
        streams = [Stream(pair, request_id, base + session) for session, request_id in names]
        cursors = [await stream.append(None) for stream in streams]
        answers = [await stream.append(secret(*map(str, name))) for name, stream in zip(names, streams, strict=True)]
        await self.settle(pair)
        for cursor, answer, stream in zip(cursors, answers, streams, strict=True):
            for other in streams:
                owed = events([answer]) if other is stream else []
                assert (await other.replay(cursor.event_id))[0].events == owed

    async def test_ids_that_were_never_given_out(self, pair: Pair) -> None:
        """An invalid cursor replays nothing and raises nothing."""
        stream = Stream(pair)
        given_out = (await stream.append(note(0))).event_id
        await stream.append(note(1))
        await self.settle(pair)
        time, number, run = given_out.split("-")
        hostile = [
            *("", " ", "0", "-1", "1-1", "NaN", "٣", "not an id", "9" * 400, "x" * 10_000, "\x00", "\r\n", "*", "%31"),
            *(f" {given_out}", f"{given_out} ", f"{given_out}\n", f"0{given_out}", f"-{given_out}", f"{given_out}~"),
            f"{time}-0{number}-{run}",
            f"{time}-{number}-{run[:5]}",
            f"{time}-{number}-{run.upper()}X",
            f"{time}-{number}-{'0' * len(run)}",
            f"{time}-{10**15}-{run}",
            f"{time}-{number}-{run}~1-{run}",
        ]
        for last_event_id in hostile:
            for reads in (True, False):
                collected, _ = await stream.replay(last_event_id, reads=reads)
                assert collected.events == [], last_event_id[:50]

    @few_examples
    @given(foreign_event_ids() | st.from_regex(r"[1-9][0-9]{0,4}-[0-9]{1,4}-[0-9a-f]{13}(~[0-9]-[0-9a-f]{13})?"))
    async def test_any_text_as_id(self, pair: Pair, last_event_id: str) -> None:
        """Any header value replays nothing, on a request's stream and the standalone stream."""
        stream = Stream(pair)
        await stream.append(note(0))
        await self.settle(pair)
        assert (await stream.replay(last_event_id))[0].events == []
        await pair.reading(stream.session).replay(last_event_id, Collected(), stream_id=GET_STREAM_KEY)

    # -- every event has an outcome, and every stream an end ----------------------------------------------------------

    async def test_every_accepted_event_has_one_outcome(self, pair: Pair) -> None:
        """All events are stored, whether or not their requests were answered."""
        streams = [Stream(pair, number) for number in range(5)]
        for _ in range(30):
            for stream in streams:
                await stream.append_all(2)
        for stream in streams[:3]:
            await stream.append(response())
        await self.settle(pair)
        assert await self.lost_events(pair, streams) == 0

    async def test_outage_is_not_noticed(self, pair: Pair) -> None:
        """An outage affects neither ids nor local replays; all events are stored later, once."""
        streams = [Stream(pair, number) for number in range(3)]
        for stream in streams:
            await stream.append(None)
        await self.settle(pair)
        async with self.outage(pair):
            for stream in streams:
                await stream.append_all(20)
                owed = events(stream.accepted[1:])
                assert (await stream.replay(stream.accepted[0].event_id, reads=False))[0].events == owed
            await streams[0].append(response())
        await self.settle(pair)
        assert await self.lost_events(pair, streams) == 0

    async def test_events_beyond_the_bounds_are_reported_lost(self, pair: Pair) -> None:
        """Each lost event is reported once; the gap is exact; errors replace responses."""
        streams = [Stream(pair, number) for number in range(8)]
        for stream in streams:
            await stream.append(None)
        await self.settle(pair)
        async with self.outage(pair):
            for stream in streams:
                for _ in range(FLOOD // MEBIBYTE // len(streams)):
                    await stream.append(sized(MEBIBYTE))
                await stream.append(response(stream.request_id))
        await self.settle(pair)
        assert await self.lost_events(pair, streams) > 0

    async def test_request_of_a_dead_worker_is_answered_once(self, pair: Pair) -> None:
        """Followers receive an error with the client's id; later events of that worker are refused."""
        stream = Stream(pair, "ü 1")
        await stream.append_all(3)
        await self.settle(pair)
        fenced: list[StreamId] = []
        pair.part(stream.session).bind(ended=lambda: None, fenced=fenced.append)
        await self.declare_dead(pair)
        followers = [Collected() for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for collected in followers:
                tasks.start_soon(self._follow_to_the_end, stream, collected)
        for collected in followers:
            assert collected.events[:2] == events(stream.accepted[1:])
            (error,) = collected.data[2:]
            assert f'"code":{REQUEST_ORPHANED}' in error
            assert '"id":"ü 1"' in error
        late = await stream.append(response("ü 1"))
        await self.settle(pair)
        assert late.outcomes == [StoreOutcome.REFUSED]
        assert fenced == [stream.name]
        for reads in (True, False):
            collected, facts = await stream.replay(stream.accepted[0].event_id, reads=reads)
            assert (collected.data, facts.completed) == (followers[0].data, True)

    async def _follow_to_the_end(self, stream: Stream, collected: Collected) -> None:
        part = stream.pair.reading(stream.session)
        facts = await part.follow(stream.name, stream.accepted[0].event_id, collected, limit=PATIENCE)
        assert facts.end is FollowEnd.COMPLETED

    async def lost_events(self, pair: Pair, streams: Sequence[Stream]) -> int:
        """Compare the reported outcome of each event with the events that the second store reads.

        Args:
            pair: The settled stores.
            streams: All written streams.

        Returns:
            The number of lost events.
        """
        lost = 0
        for stream in streams:
            first, *accepted = stream.accepted
            assert all(len(one.outcomes) == 1 for one in stream.accepted), "an event has no outcome or several"
            collected, facts = await stream.replay(first.event_id)
            read = dict(collected.events)
            assert collected.ids == [one.event_id for one in accepted if one.event_id in read]
            missing = 0
            for one in accepted:
                if one.outcomes == [StoreOutcome.STORED]:
                    assert read.get(one.event_id) == (None if one.message is None else on_the_wire(one.message))
                elif one.event_id in read:
                    assert isinstance(one.message, FINAL), "an event other than a response was replaced"
                    assert '"error":' in read[one.event_id]
                else:
                    missing += 1
            assert (facts.missing, facts.gap) == (missing, missing > 0)
            assert facts.completed is any(isinstance(one.message, FINAL) for one in accepted)
            lost += sum(one.outcomes == [StoreOutcome.LOST] for one in stream.accepted)
        assert lost == sum(fact.events for fact in pair.lost)
        return lost
