"""The session writer, with the test as its sender: batches and outcomes."""

import asyncio
import gc
import hashlib
from collections import deque

import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import JSONRPCError, JSONRPCNotification, JSONRPCResponse
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.read.cursor import Cursor
from mcp_eventscope.redis.read.delivery import Delivery
from mcp_eventscope.redis.read.run_reader import RunReader
from mcp_eventscope.redis.write.batch import BATCH_BYTES
from mcp_eventscope.redis.write.runs import Run
from mcp_eventscope.redis.write.session_batch import SessionBatch
from mcp_eventscope.redis.write.session_limit import ELEMENT_BYTES
from mcp_eventscope.redis.write.session_writer import (
    BATCH_EVENTS,
    PART_EVENTS,
    REMOVALS,
    RETAINED_BYTES,
    SESSION_BYTES,
    SESSION_EVENTS,
)
from mcp_eventscope.store import codec
from mcp_eventscope.store.events import BatchCommitted, EventsLost, FailureReason, ForeignElementsRemoved, LossReason
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import JSONRPCMessage
from mcp_eventscope.store.results import StoreOutcome
from mcp_eventscope.testing import Collected
from support.messages import answer, note
from support.waiting import until
from support.writer_rig import CALL_TIMEOUT, WriterRig, turns

pytestmark = pytest.mark.anyio


async def test_accept_of_event_that_overflow_drops_reports_it_lost() -> None:
    """A caller that awaits it afterwards gets the outcome, too."""
    rig = WriterRig(max_events=1)
    rig.breaker.record_failure(FailureReason.CONNECTION, "refused")
    run = rig.begin()
    rig.accept(run, note(1))
    event = rig.accept(run, note(2))
    assert await event.acknowledged() is StoreOutcome.LOST
    assert rig.outcomes[run.name, 2] is StoreOutcome.LOST


async def test_flush_stores_a_run_that_needs_several_commits(fake_client: aioredis.Redis) -> None:
    """The flush continues with the events that did not fit in the first commit."""
    store = RedisEventStore(fake_client, ttl=60)
    part = store.for_session("s")
    part.begin("1", 1)
    appended = [await part.append("1", note(number)) for number in range(70)]
    outcomes = [one.pending.acknowledged() for one in appended if one.pending is not None]
    assert await store.flush(10) == 0
    assert {outcome.result() for outcome in outcomes} == {StoreOutcome.STORED}
    assert len(outcomes) == 70


class TestRollback:
    """Redis has lost events that it had acknowledged."""

    async def test_rollback_commits_retained_events_again(self) -> None:
        """They are committed in order, and only those that Redis lacks."""
        rig = WriterRig()
        run = rig.begin()
        for number in range(1, 5):
            rig.accept(run, note(number))
        rig.commit_all()
        rig.accept(run, note(5))
        batch = rig.take()
        assert batch.parts[0].first == 5
        rig.reply(batch, "b2")
        again = rig.take()
        assert [event.seq for event in again.parts[0].events] == [3, 4, 5]
        assert again.parts[0].first == 3
        rig.reply(again)
        assert not rig.writer.ready
        assert (rig.writer.events, rig.writer.bytes) == (0, 0)
        assert not [fact for fact in rig.facts if isinstance(fact, EventsLost)]

    async def test_rollback_past_released_events_is_a_counted_gap(self) -> None:
        """A placeholder fills the numbers of events that are no longer in memory."""
        rig = WriterRig()
        run = rig.begin()
        for number in range(1, 4):
            rig.accept(run, note(number))
        rig.commit_all()
        while run.retained:
            rig.writer._release_oldest()
        rig.accept(run, note(4))
        rig.reply(rig.take(), "b1")
        elements = [element.partition(b"\n") for element in rig.commit_all()]
        assert [header.split(b" ")[0] for header, _, _ in elements] == [b"3", b"4"]
        assert elements[0][0].endswith(b" l2/rollback")
        assert [fact for fact in rig.facts if isinstance(fact, EventsLost)] == [
            EventsLost(reason=LossReason.ROLLBACK, events=2, payload_bytes=0)
        ]

    async def test_rollback_of_a_released_response_stores_an_error(self) -> None:
        """The stream ends, also for a follower that reads from this process's memory."""
        rig = WriterRig()
        run = rig.begin()
        for message in (note(1), note(2), answer()):
            rig.accept(run, message)
        rig.commit_all()
        while run.retained:
            rig.writer._release_oldest()
        rig.writer.runs[run.name] = run  # As if it had been found while Redis's reply was on its way.
        rig.writer._queue_check(run)
        rig.reply(rig.take(), "b1")
        reader = RunReader(FakeAsyncRedis(), rig.breaker, EventClock(), rig.writer.find)
        collected = Collected()
        delivery = Delivery("1", Cursor(1, run.name, {run.name: 1}), collected, standalone=False)
        assert await reader.advance(run.session.keys, delivery, run.name) is None
        assert delivery.completed
        assert delivery.missing == 1
        placeholder, element = rig.commit_all()
        assert placeholder.split(b" ")[::2] == [b"2", b"l2/rollback\n"]
        header, _, payload = element.partition(b"\n")
        assert header.split(b" ")[::2] == [b"3", b"f"]
        assert [data.encode() for data in collected.data] == [payload]
        assert b'"code":-32011' in payload


class TestMemory:
    """A run leaves memory with its last event there."""

    async def test_finished_run_stays_until_its_events_are_released(self) -> None:
        """A run that Redis might lose may have to be committed again."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        rig.accept(run, answer())
        rig.commit_all()
        assert rig.writer.find(run.name) is run
        while rig.writer._retained:
            rig.writer._release_oldest()
        assert rig.writer.find(run.name) is None

    @pytest.mark.parametrize("state", ["x", "e", "!WRONGTYPE"])
    async def test_refused_run_leaves_memory(self, state: str) -> None:
        """No event follows on it, so it must not stay while the process lives."""
        rig = WriterRig()
        session = rig.session()
        run = rig.begin(session)
        rig.accept(run, note(1))
        rig.reply(rig.take(), state)
        assert run.refused
        assert session.runs == {}
        assert rig.writer.find(run.name) is None
        assert (rig.writer.events, rig.writer.bytes, session.events, session.bytes) == (0, 0, 0, 0)

    async def test_standalone_run_leaves_memory_with_its_session(self) -> None:
        """A standalone run has no end of its own."""
        rig = WriterRig()
        session = rig.session()
        name = rig.writer.begin(session, "_GET_stream", None).name
        assert rig.writer.find(name) is not None
        rig.accept(session.runs["_GET_stream"], note(1))
        rig.commit_all()
        del session
        gc.collect()
        assert rig.writer.find(name) is not None, "its event is retained"
        while rig.writer._retained:
            rig.writer._release_oldest()
        gc.collect()
        assert rig.writer.find(name) is None
        assert not rig.writer._sessions


class TestBatches:
    """Which events go together."""

    async def test_batch_is_ready_after_a_moment_or_when_full(self) -> None:
        """Events linger so that later ones can join them."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(0))
        assert not rig.writer.ready
        await rig.due()
        rig.reply(rig.take())
        for number in range(BATCH_EVENTS):
            assert not rig.writer.ready
            rig.accept(rig.begin(request_id=number), note(number))
        assert rig.writer.ready

    async def test_commit_accounts_for_its_parts_once(self) -> None:
        """Each part counts its bytes without the response, and the numbers of its large events."""
        rig = WriterRig()
        run = rig.begin()
        messages: list[JSONRPCMessage] = [note(1), note(2, "x" * 5000), answer()]
        for message in messages:
            rig.accept(run, message)
        rig.commit_all()
        *notes, response = (len(codec.encode(message)) for message in messages)
        assert rig.accounts == [(run.name, 3, sum(notes) + 3 * ELEMENT_BYTES, response, [2])]
        rig.writer.close(run.session)
        assert rig.closed == [run.session.keys.prefix]

    async def test_run_resumed_on_another_worker_does_not_linger(self) -> None:
        """Pending and next events are sent immediately, before a commit has reported the follower."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        assert not rig.writer.ready
        rig.writer.followed(run)
        assert rig.writer.ready
        rig.commit_all()
        run.followed = False
        rig.writer.followed(run)
        rig.accept(run, note(2))
        assert rig.writer.ready

    async def test_run_followed_on_another_worker_does_not_linger(self) -> None:
        """Redis has reported a subscriber of the run's channel."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        rig.reply(rig.take(), "k1w")
        rig.accept(run, note(2))
        assert rig.writer.ready

    async def test_run_has_one_commit_in_flight(self) -> None:
        """Its order is kept, and only that commit's reply bounds the list."""
        rig = WriterRig()
        busy, other = rig.begin(request_id=1), rig.begin(request_id=2)
        for number in range(PART_EVENTS + 1):
            rig.accept(busy, note(number))
        first = rig.take()
        assert [len(part.events) for part in first.parts] == [PART_EVENTS]
        rig.accept(other, note(0))
        second = rig.take()
        assert [part.run for part in second.parts] == [other]
        rig.writer.flush_now()
        assert not rig.writer.ready
        rig.reply(second)
        rig.reply(first)
        third = rig.take()
        assert [(part.run, part.first, len(part.events)) for part in third.parts] == [(busy, PART_EVENTS + 1, 1)]

    async def test_large_payload_has_its_own_batch(self) -> None:
        """A large payload is sent whole and delays no other event in its batch."""
        rig = WriterRig(max_bytes=10 * BATCH_BYTES)
        sizes = [BATCH_BYTES // 2, BATCH_BYTES // 2, BATCH_BYTES * 3, 10]
        runs = [rig.begin(request_id=number) for number in range(4)]
        for run, size in zip(runs, sizes, strict=True):
            rig.accept(run, note(0, "x" * size))
        taken = []
        rig.writer.flush_now()
        while rig.writer.ready:
            taken.append([part.run for part in rig.take().parts])
        assert taken == [[runs[0]], [runs[1]], [runs[2]], [runs[3]]]

    async def test_batch_with_a_whole_run_saves_commands_unless_it_is_followed(self) -> None:
        """The shorter commit wakes no followers, and does not create the index of a session that is new here."""
        rig = WriterRig()
        runs = [rig.begin(request_id=number) for number in range(4)]
        for run in runs:
            rig.accept(run, None)
        for number in range(3):
            rig.accept(runs[number], answer(number))
        rig.writer.followed(runs[2])
        assert [part.whole for part in rig.take().parts] == [False, True, False, False]

    async def test_batch_with_a_whole_run_is_sent_as_an_ordinary_one_once_redis_declines_it(self) -> None:
        """The session has lost its index, or the reply to the first copy was lost."""
        rig = WriterRig()
        first, run = rig.begin(request_id=0), rig.begin(request_id=1)
        for each, number in ((first, 0), (run, 1)):
            rig.accept(each, None)
            rig.accept(each, answer(number))
        batch = rig.take()
        batch.packed(as_eval=False)
        rig.reply(batch, "k2", "o")
        assert rig.writer.events == 2
        again = rig.take()
        assert [(part.run, part.whole, part.renews, part.renews_index) for part in again.parts] == [
            (run, False, True, True)
        ]
        rig.reply(again, "k2")
        assert (rig.writer.events, run.acknowledged) == (0, 2)

    @pytest.mark.parametrize("state", ["b0", "f" + "0" * 40, "!WRONGTYPE", "x", "refused"])
    async def test_batch_after_one_that_redis_did_not_execute_renews_the_index(self, state: str) -> None:
        """The renewal was not executed either. Else the lists would outlive the index, and the end of their session."""
        rig = WriterRig()
        run, later = rig.begin(request_id=1), rig.begin(request_id=2)
        rig.accept(run, note(1))
        batch = rig.take()
        assert [part.renews_index for part in batch.parts] == [True]
        if state == "refused":
            assert batch.refuse("ERR no")
        else:
            rig.reply(batch, state)
        rig.accept(later, note(1))
        again = rig.take()
        assert again.parts[0].renews
        assert again.parts[0].renews_index

    async def test_batch_that_is_sent_again_after_a_rollback_renews_the_index(self) -> None:
        """The older index that Redis has expires sooner."""
        rig = WriterRig()
        rig.accept(rig.begin(request_id=0), note(0))
        rig.commit_all()
        run = rig.begin(request_id=1)
        rig.accept(run, None)
        rig.accept(run, answer())
        batch = rig.take()
        assert b"2 0 n" in batch.arguments(as_eval=False)
        rig.writer.verify()
        assert b"2 0 ni" in batch.arguments(as_eval=False)

    async def test_batch_has_at_most_the_transports_parts(self) -> None:
        """The cluster transport takes one part."""
        rig = WriterRig()
        for number in range(3):
            rig.accept(rig.begin(request_id=number), note(number))
        assert len(rig.take(1).parts) == 1
        assert len(rig.take(16).parts) == 2

    @pytest.mark.parametrize("reply", [b"", b"x", b"1", b"1\nk1\nk1", b"\xff\nk1"])
    async def test_batch_with_unparsable_reply_can_be_sent_again(self, reply: bytes) -> None:
        """The reply is an error, and the batch can be sent again."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        batch = rig.take()
        with pytest.raises(ValueError, match=r".+"):
            batch.acknowledge(reply, 0)
        rig.reply(batch)
        assert run.acknowledged == 1

    async def test_commit_is_reported_with_a_latency_per_event(self) -> None:
        """The report has the message types, and the clock of ids follows Redis's."""
        rig = WriterRig()
        run = rig.begin()
        for message in (None, note(1), answer()):
            rig.accept(run, message)
        batch = rig.take()
        batch.acknowledge(b"1000000\nk3", 0.5)
        (fact,) = rig.facts
        assert isinstance(fact, BatchCommitted)
        assert (fact.events, fact.deferred, fact.seconds, len(fact.latencies)) == (3, 0, 0.5, 3)
        assert list(fact.messages) == [type(None), JSONRPCNotification, JSONRPCResponse]
        assert fact.payload_bytes == len(codec.encode(note(1))) + len(codec.encode(answer()))
        assert 0 <= rig.clock.now() - 1_000_000 < 1_000_000


class TestFlowControl:
    """A caller waits only while too much is not acknowledged, once, and for a bounded time."""

    async def test_full_session_waits_for_an_acknowledgement(self) -> None:
        """Another session does not wait."""
        rig = WriterRig()
        session, other = rig.session("a"), rig.session("b")
        run = rig.begin(session)
        for number in range(SESSION_EVENTS + 1):
            rig.accept(run, note(number))
        assert rig.writer.full(session)
        assert not rig.writer.full(other)
        waiting = asyncio.create_task(rig.writer.wait_for_room(session))
        await turns()
        assert not waiting.done()
        rig.reply(rig.take())
        await waiting
        assert not rig.writer.full(session)

    async def test_session_above_its_byte_limit_is_full(self) -> None:
        """Bytes bound a session as events do."""
        rig = WriterRig(max_bytes=10 * SESSION_BYTES)
        session = rig.session()
        rig.accept(rig.begin(session), note(0, "x" * SESSION_BYTES))
        assert rig.writer.full(session)

    async def test_process_above_half_of_its_bound_is_full(self) -> None:
        """The other half of the bound is for an outage."""
        rig = WriterRig(max_events=10)
        for number in range(6):
            rig.accept(rig.begin(rig.session(str(number))), note(number))
        assert rig.writer.full(rig.session("other"))

    async def test_wait_for_room_after_a_timeout_returns_immediately(self) -> None:
        """Callers wait again once Redis has acknowledged a commit."""
        rig = WriterRig()
        session = rig.session()
        run = rig.begin(session)
        for number in range(SESSION_EVENTS + 1):
            rig.accept(run, note(number))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(rig.writer.wait_for_room(session) for _ in range(5)))
        assert loop.time() - began >= CALL_TIMEOUT * 0.9
        assert not rig.writer.full(session)
        while session.events > SESSION_EVENTS - PART_EVENTS:
            rig.reply(rig.take())
        for number in range(2 * PART_EVENTS):
            rig.accept(run, note(number))
        assert rig.writer.full(session)

    async def test_wait_for_room_in_an_outage_returns_immediately(self) -> None:
        """Redis is known to be unreachable."""
        rig = WriterRig()
        rig.breaker.record_failure(FailureReason.CONNECTION, "")
        session = rig.session()
        run = rig.begin(session)
        for number in range(SESSION_EVENTS + 1):
            rig.accept(run, note(number))
        waiting = asyncio.create_task(rig.writer.wait_for_room(session))
        await turns()
        assert waiting.done()


class TestOverflow:
    """Beyond the bounds, whole runs are dropped, oldest first."""

    async def test_overflow_drops_the_oldest_run_first(self) -> None:
        """One placeholder fills its numbers; the other runs are whole."""
        rig = WriterRig(max_events=6)
        rig.breaker.record_failure(FailureReason.CONNECTION, "")
        runs = [rig.begin(request_id=number) for number in range(3)]
        for run in runs:
            for number in range(2):
                rig.accept(run, note(number))
        rig.accept(runs[2], note(2))
        assert [rig.outcomes.get((runs[0].name, seq)) for seq in (1, 2)] == [StoreOutcome.LOST] * 2
        assert len(rig.outcomes) == 2
        assert [fact for fact in rig.facts if isinstance(fact, EventsLost)] == [
            EventsLost(reason=LossReason.OVERFLOW, events=2, payload_bytes=2 * len(codec.encode(note(0))))
        ]
        elements = rig.commit_all()
        assert sorted(len(element) > 40 for element in elements) == [False] + [True] * 5
        assert [run.acknowledged for run in runs] == [2, 2, 3]

    async def test_overflow_of_a_response_stores_an_error(self) -> None:
        """Every stream has an end."""
        rig = WriterRig(max_events=3)
        rig.breaker.record_failure(FailureReason.CONNECTION, "")
        run = rig.begin(request_id="7")
        for message in (note(1), note(2), answer("7")):
            rig.accept(run, message)
        rig.accept(rig.begin(request_id=2), note(1))
        placeholder, error, _ = rig.commit_all()
        assert placeholder.split(b"\n")[0].split(b" ")[::2] == [b"2", b"l1/overflow"]
        header, _, payload = error.partition(b"\n")
        assert header.split(b" ")[::2] == [b"3", b"f"]
        decoded = codec.decode(payload)
        assert isinstance(decoded, JSONRPCError)
        assert (decoded.id, decoded.error.code) == ("7", EVENTS_GONE)
        assert [rig.outcomes[run.name, seq] for seq in (1, 2, 3)] == [StoreOutcome.LOST] * 3

    async def test_overflow_of_one_run_extends_its_range(self) -> None:
        """However often a run is dropped, each event is reported once."""
        rig = WriterRig(max_events=2)
        rig.breaker.record_failure(FailureReason.CONNECTION, "")
        run = rig.begin()
        for number in range(50):
            rig.accept(run, note(number))
        lost = sum(fact.events for fact in rig.facts if isinstance(fact, EventsLost))
        assert list(rig.outcomes.values()) == [StoreOutcome.LOST] * lost
        assert len(run.pending) <= 2
        rig.commit_all()
        assert run.acknowledged == 50
        assert len(rig.outcomes) == 50

    async def test_overflow_keeps_batches_in_flight(self) -> None:
        """Redis may have them, so their numbers are taken."""
        rig = WriterRig(max_events=2)
        run = rig.begin()
        rig.accept(run, note(1))
        rig.accept(run, note(2))
        batch = rig.take()
        rig.breaker.record_failure(FailureReason.CONNECTION, "")
        for number in range(5):
            rig.accept(run, note(number))
        assert not {1, 2} & {seq for _, seq in rig.outcomes}
        rig.reply(batch)
        assert [rig.outcomes[run.name, seq] for seq in (1, 2)] == [StoreOutcome.STORED] * 2

    async def test_overflow_releases_retained_events_first(self) -> None:
        """Retained events are stored already."""
        rig = WriterRig(max_bytes=4000)
        run = rig.begin()
        rig.accept(run, note(1, "x" * 1000))
        rig.commit_all()
        assert run.retained
        rig.breaker.record_failure(FailureReason.CONNECTION, "")
        rig.accept(run, note(2, "x" * 2000))
        assert not run.retained
        assert not [fact for fact in rig.facts if isinstance(fact, EventsLost)]


class TestRefusal:
    """Redis refuses a batch, and would refuse it again: the one event is found, and the others are stored."""

    @pytest.mark.parametrize("culprit", [0, 4, 9])
    async def test_refusal_of_one_event_isolates_it(self, culprit: int) -> None:
        """A placeholder takes its number, and the others are stored."""
        rig = WriterRig()
        others = [rig.begin(request_id=number) for number in range(2)]
        run = rig.begin(request_id=2)
        for each in others:
            rig.accept(each, note(0))
        for number in range(10):
            rig.accept(run, note(number, "poison" if number == culprit else ""))
        stored = self.refuse_poison(rig)
        assert len(stored) == 12
        outcomes = [rig.outcomes[run.name, seq] for seq in range(1, 11)]
        assert outcomes == [StoreOutcome.LOST if number == culprit else StoreOutcome.STORED for number in range(10)]
        assert run.acknowledged == 10
        assert run.limit == 0
        assert [(fact.reason, fact.events) for fact in rig.facts if isinstance(fact, EventsLost)] == [
            (LossReason.REJECTED, 1)
        ]
        assert (rig.writer.events, rig.writer.bytes) == (0, 0)

    async def test_refusal_of_a_response_stores_an_error(self) -> None:
        """The error is small, and carries the request's id."""
        rig = WriterRig()
        run = rig.begin(request_id="ü 1")
        rig.accept(run, note(1))
        rig.accept(run, JSONRPCResponse(jsonrpc="2.0", id="ü 1", result={"text": "poison"}))
        error = codec.decode(self.refuse_poison(rig)[-1].partition(b"\n")[2])
        assert isinstance(error, JSONRPCError)
        assert (error.id, error.error.code) == ("ü 1", EVENTS_GONE)
        assert rig.outcomes[run.name, 2] is StoreOutcome.LOST

    async def test_refusal_of_a_placeholder_is_retried_later(self) -> None:
        """A refused placeholder shows that the event is not the reason."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        assert rig.take().refuse("ERR no")
        again = rig.take()
        assert again.parts[0].events[0].lost
        assert not again.refuse("ERR no")
        rig.reply(again)
        assert run.acknowledged == 1

    @staticmethod
    def refuse_poison(rig: WriterRig) -> list[bytes]:
        """Refuse each batch with poison in it, and acknowledge the others. Returns the stored elements."""
        stored: list[bytes] = []
        for _ in range(30):
            rig.writer.flush_now()
            if not rig.writer.ready:
                return stored
            batch = rig.take()
            elements = [event.element() for part in batch.parts for event in part.events]
            if any(b"poison" in element for element in elements):
                assert batch.refuse("ERR poison")
            else:
                rig.reply(batch)
                stored += elements
        raise AssertionError(stored)


class TestFences:
    """A commit finds that the request was answered elsewhere, or that the session has ended."""

    async def test_fence_of_an_answered_run_refuses_its_events(self) -> None:
        """Its session is called back once, and other runs continue."""
        rig = WriterRig()
        session = rig.session()
        fenced: list[str] = []
        session.on_fenced = fenced.append
        run, other = rig.begin(session, 1), rig.begin(session, 2)
        rig.accept(run, note(1))
        batch = rig.take()
        rig.accept(run, note(2))
        rig.accept(other, note(1))
        rig.reply(batch, "x")
        assert fenced == ["1"]
        late = rig.accept(run, answer())
        assert await late.acknowledged() is StoreOutcome.REFUSED
        rig.commit_all()
        assert rig.outcomes == {
            **{(run.name, seq): StoreOutcome.REFUSED for seq in (1, 2, 3)},
            (other.name, 1): StoreOutcome.STORED,
        }
        assert fenced == ["1"]

    async def test_fence_of_an_ended_session_calls_back_once(self) -> None:
        """All of its runs are refused."""
        rig = WriterRig()
        session = rig.session()
        ended: list[int] = []
        session.on_ended = lambda: ended.append(1)
        for request_id in (1, 2):
            rig.accept(rig.begin(session, request_id), note(1))
        rig.reply(rig.take(), "e", "e")
        assert ended == [1]
        assert session.ended
        assert set(rig.outcomes.values()) == {StoreOutcome.REFUSED}

    async def test_key_of_another_type_rejects_its_run_only(self) -> None:
        """The events of that run are reported as rejected."""
        rig = WriterRig()
        run, other = rig.begin(request_id=1), rig.begin(request_id=2)
        rig.accept(run, note(1))
        rig.accept(other, note(1))
        rig.reply(rig.take(), "!WRONGTYPE", "k1")
        assert [rig.outcomes[each.name, 1] for each in (run, other)] == [StoreOutcome.LOST, StoreOutcome.STORED]
        assert [fact.reason for fact in rig.facts if isinstance(fact, EventsLost)] == [LossReason.REJECTED]

    async def test_element_of_another_program_is_removed_by_the_next_commit(self) -> None:
        """It is reported, and the events are sent again, in order; a check is repeated."""
        rig = WriterRig()
        run = rig.begin()
        for number in (1, 2):
            rig.accept(run, note(number))
        rig.reply(rig.take(), "f0123")
        rig.accept(run, note(3))
        again = rig.take()
        assert b"0123" in again.arguments(as_eval=False)
        rig.reply(again)
        assert run.acknowledged == 3
        rig.writer._queue_check(run)
        rig.reply(rig.take(), "f4567")
        check = rig.take()
        assert (check.events, b"4567" in check.arguments(as_eval=False)) == (0, True)
        rig.reply(check)
        assert b"4567" not in _checked(rig, run).arguments(as_eval=False)
        assert rig.facts.count(ForeignElementsRemoved(elements=1)) == 2
        assert (rig.writer.events, rig.writer.bytes, run.pending) == (0, 0, deque())

    async def test_own_element_beyond_the_last_number_is_not_removed(self) -> None:
        """The client of a cluster repeats a commit by itself, and the repetition finds the events of the first."""
        rig = WriterRig()
        run = rig.begin()
        event = rig.accept(run, note(1))
        batch = rig.take()
        batch.arguments(as_eval=False)
        own = hashlib.sha1(event.element(), usedforsecurity=False).hexdigest()
        rig.reply(batch, f"f{own}")
        assert (run.foreign, run.sent) == (b"", 1), "the next commit knows of the event"
        rig.commit_all()
        assert run.acknowledged == 1
        assert not [fact for fact in rig.facts if isinstance(fact, ForeignElementsRemoved)]

    async def test_endless_elements_of_another_program_drop_the_run(self) -> None:
        """The events are reported as lost, and other runs are stored."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        for _ in range(REMOVALS):
            rig.reply(rig.take(), "f0123")
        assert run.pending
        rig.reply(rig.take(), "f0123")
        assert rig.outcomes[run.name, 1] is StoreOutcome.LOST
        assert [fact.reason for fact in rig.facts if isinstance(fact, EventsLost)] == [LossReason.REJECTED]
        assert (rig.writer.events, rig.writer.ready) == (0, False)


def _checked(rig: WriterRig, run: Run) -> SessionBatch:
    """The batch of a check of a run."""
    rig.writer._queue_check(run)
    return rig.take()


class TestRetention:
    """Acknowledged events are kept for a while."""

    async def test_retention_beyond_its_bound_releases_the_oldest(self) -> None:
        """The oldest event is released, of whichever run."""
        rig = WriterRig(max_bytes=10 * RETAINED_BYTES)
        runs = [rig.begin(request_id=number) for number in range(6)]
        for run in runs:
            rig.accept(run, note(0, "x" * (RETAINED_BYTES // 4)))
            rig.commit_all()
        assert [len(run.retained) for run in runs] == [0, 0, 0, 1, 1, 1]
        assert rig.writer._retained_bytes <= RETAINED_BYTES

    async def test_retention_past_the_ttl_finds_no_events(self) -> None:
        """Redis has expired them too, so every worker answers the same cursor alike."""
        rig = WriterRig(ttl=1)
        run = rig.begin()
        rig.accept(run, note(1))
        rig.accept(run, answer())
        rig.commit_all()
        assert rig.writer.find(run.name) is run
        rig.clock.synchronize(rig.clock.now() + 2_000_000)
        assert rig.writer.find(run.name) is None

    async def test_verify_asks_for_recent_and_open_runs(self) -> None:
        """The question has no event; the reply has the last number of the list."""
        rig = WriterRig()
        finished, silent, fresh = (rig.begin(request_id=number) for number in range(3))
        rig.accept(finished, answer())
        rig.accept(silent, None)
        rig.commit_all()
        rig.writer.verify()
        batch = rig.take()
        assert [(part.run, part.first, part.events) for part in batch.parts] == [(finished, 2, []), (silent, 2, [])]
        assert fresh.acknowledged == 0
        rig.reply(batch)
        assert not rig.writer.ready
        assert len([fact for fact in rig.facts if isinstance(fact, BatchCommitted)]) == 1, (
            "an empty commit is no commit"
        )

    async def test_renew_of_a_silent_run_keeps_its_keys(self) -> None:
        """A finished run is left to expire."""
        rig = WriterRig(ttl=4)
        silent, finished = rig.begin(request_id=1), rig.begin(request_id=2)
        rig.accept(silent, note(1))
        rig.accept(finished, answer())
        rig.commit_all()
        rig.writer.renew()
        assert not rig.writer.ready
        rig.clock.synchronize(rig.clock.now() + 3_000_000)
        rig.writer.renew()
        (part,) = rig.take().parts
        assert (part.run, part.events, part.renews) == (silent, [], True)


class TestClear:
    """The store is closed."""

    async def test_clear_reports_pending_events_lost_once(self) -> None:
        """It includes those of a batch that was not acknowledged."""
        rig = WriterRig()
        session = rig.session()
        run = rig.begin(session)
        rig.accept(run, note(1))
        batch = rig.take()
        rig.accept(run, note(2))
        batch.abandon()
        assert rig.writer.clear() == 2
        assert rig.outcomes == {(run.name, seq): StoreOutcome.LOST for seq in (1, 2)}
        assert [(fact.reason, fact.events) for fact in rig.facts if isinstance(fact, EventsLost)] == [
            (LossReason.SHUTDOWN, 2)
        ]
        assert (rig.writer.events, rig.writer.bytes, session.events, session.bytes) == (0, 0, 0, 0)
        assert rig.writer.find(run.name) is None
        assert rig.writer.clear() == 0

    async def test_clear_keeps_runs_without_pending_events(self) -> None:
        """The store may be used again."""
        rig = WriterRig()
        run = rig.begin()
        rig.accept(run, note(1))
        rig.commit_all()
        assert rig.writer.clear() == 0
        rig.accept(run, answer())
        batch = rig.take()
        assert batch.parts[0].first == 2
        rig.reply(batch)
        assert rig.outcomes[run.name, 2] is StoreOutcome.STORED

    async def test_clear_releases_waiting_callers(self) -> None:
        """Nothing will be acknowledged any more."""
        rig = WriterRig()
        session = rig.session()
        run = rig.begin(session)
        for number in range(SESSION_EVENTS + 1):
            rig.accept(run, note(number))
        waiting = asyncio.create_task(rig.writer.wait_for_room(session))
        await turns()
        rig.writer.clear()
        await turns(5)
        assert waiting.done()


@pytest.mark.parametrize("state", ["x", "e", "!ERR no"])
async def test_refused_run_with_a_due_batch_wakes_the_sender_for_the_next_event(state: str) -> None:
    """Its due events are dropped, and the next event wakes the sender."""
    rig = WriterRig()
    run = rig.begin()
    rig.accept(run, None)
    batch = rig.take()
    rig.accept(run, note(1))
    woken = rig.wakes
    await until(lambda: rig.wakes > woken)
    assert not rig.writer.ready
    rig.reply(batch, state)
    assert not rig.writer.ready
    woken = rig.wakes
    rig.accept(rig.begin(rig.session("other")), None)
    await until(lambda: rig.wakes > woken and rig.writer.ready, within=1)
