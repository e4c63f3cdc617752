"""The writer of sessions, with the test in the place of the sender: which batches, and what becomes of each event."""

import gc

import pytest
from fakeredis import FakeAsyncRedis
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.read.delivery import Delivery
from mcp_eventscope.redis.read.event_ids import Cursor
from mcp_eventscope.redis.read.run_reader import RunReader
from mcp_eventscope.testing import Collected
from mcp_eventscope.types import LossReason, Lost, StoreOutcome, Trouble
from support.messages import answer, note
from support.writers import WriterRig

pytestmark = pytest.mark.anyio


async def test_event_that_overflow_drops_as_it_is_accepted_is_reported_lost() -> None:
    """A caller that asks afterwards is answered, too."""
    rig = WriterRig(max_events=1)
    rig.breaker.record_failure(Trouble.CONNECTION, "refused")
    run = rig.begin()
    rig.accept(run, note(1))
    event = rig.accept(run, note(2))
    assert await event.acknowledged() is StoreOutcome.LOST
    assert rig.outcomes[run.name, 2] is StoreOutcome.LOST


async def test_flush_stores_a_run_that_needs_several_commits(fake_client: aioredis.Redis) -> None:
    """Only some events of a run fit in one commit: the flush goes on with the others, and does not drop them."""
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

    async def test_retained_events_are_committed_again(self) -> None:
        """In order, and only those that Redis does not have."""
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
        assert not [fact for fact in rig.facts if isinstance(fact, Lost)]

    async def test_released_events_are_a_counted_gap(self) -> None:
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
        assert elements[0][0].endswith(b" l2")
        assert [fact for fact in rig.facts if isinstance(fact, Lost)] == [
            Lost(reason=LossReason.ROLLBACK, events=2, payload_bytes=0)
        ]

    async def test_lost_response_is_replaced_by_an_error(self) -> None:
        """Its stream has an end, also for a follower that reads it from this process's memory."""
        rig = WriterRig()
        run = rig.begin()
        for message in (note(1), note(2), answer()):
            rig.accept(run, message)
        rig.commit_all()
        while run.retained:
            rig.writer._release_oldest()
        rig.writer.runs[run.name] = run  # As if it had been found while Redis's reply was on its way.
        rig.writer._ask(run)
        rig.reply(rig.take(), "b1")
        reader = RunReader(FakeAsyncRedis(), rig.breaker, rig.writer.find)
        collected = Collected()
        delivery = Delivery("1", Cursor(1, run.name, {run.name: 1}), collected, standalone=False)
        assert await reader.advance(run.session.keys, delivery, run.name) is None
        assert delivery.completed
        assert delivery.missing == 1
        (element,) = rig.commit_all()
        header, _, payload = element.partition(b"\n")
        assert header.split(b" ")[::2] == [b"3", b"f"]
        assert [data.encode() for data in collected.data] == [payload]
        assert b'"code":-32011' in payload


class TestMemory:
    """A run leaves memory with its last event there."""

    async def test_finished_run_is_kept_until_its_events_are_released(self) -> None:
        """As long as Redis might lose them, it may have to be committed again."""
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
    async def test_refused_run_is_closed_and_forgotten(self, state: str) -> None:
        """No event follows on it, so it must not stay for as long as the process lives."""
        rig = WriterRig()
        session = rig.session()
        run = rig.begin(session)
        rig.accept(run, note(1))
        rig.reply(rig.take(), state)
        assert run.refused
        assert session.runs == {}
        assert rig.writer.find(run.name) is None
        assert (rig.writer.events, rig.writer.bytes, session.events, session.bytes) == (0, 0, 0, 0)

    async def test_standalone_run_goes_with_its_session(self) -> None:
        """It has no end of its own."""
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
