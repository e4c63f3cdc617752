"""Runs, and the elements that their events become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_eventscope.redis.element import LARGE_PAYLOAD
from mcp_eventscope.redis.run_entry import request_id_of
from mcp_eventscope.redis.write.runs import is_run, worker_of
from mcp_eventscope.sessions.event_ids import stream_name
from mcp_eventscope.store.codec import encode
from mcp_eventscope.store.results import Gap, StoreOutcome
from support.messages import answer, note
from support.writer_rig import WriterRig

pytestmark = pytest.mark.anyio


async def test_run_names_are_unique_and_name_their_worker() -> None:
    """Each name is new, whatever the session and stream, and valid in a cursor."""
    rig = WriterRig()
    runs = [rig.begin(rig.session(str(number % 2)), number % 3) for number in range(300)]
    names = {run.name for run in runs}
    assert len(names) == 300
    assert all(map(is_run, names))
    assert {worker_of(name) for name in names} == {runs[0].name[:12]}


@pytest.mark.parametrize(
    "name", ["", "0123456789ab", "0123456789abg", "0123456789AB1", "0" * 29, " 0123456789ab1", "x"]
)
def test_is_run_of_other_text_is_false(name: str) -> None:
    """A name is twelve digits of a worker, and a counter."""
    assert not is_run(name)


@given(st.integers() | st.text())
def test_run_entry_returns_the_request_id_with_its_type(request_id: int | str) -> None:
    """The JSON type and full value survive, with spaces and line breaks."""
    rig = WriterRig()
    run = rig.writer.begin(rig.session(), stream_name(request_id), request_id)
    found = request_id_of(run.entry)
    assert (found, type(found)) == (request_id, type(request_id))
    assert run.entry.startswith(b"r ")


async def test_run_element_has_marks_only_where_needed() -> None:
    """Most elements have no marks."""
    rig = WriterRig()
    run = rig.begin()
    event = rig.accept(run, note(1))
    payload = encode(note(1))
    time = b"%d" % event.time
    assert event.element() == b"1 %b\n%b" % (time, payload)
    assert event.event_id == f"{event.time}-1-{run.name}"
    event.traceparent = "00-a-b-01"
    assert event.element() == b"1 %b t00-a-b-01\n%b" % (time, payload)
    event.payload = b"x" * LARGE_PAYLOAD
    assert event.element() == b"1 %b t00-a-b-01\n%b" % (time, event.payload)
    event.payload += b"x"
    assert event.element() == b"1 %b g%d t00-a-b-01\n" % (time, LARGE_PAYLOAD + 1)
    final = rig.accept(run, answer())
    assert final.element().split(b"\n")[0] == b"2 %d f" % final.time
    placeholder = rig.writer._placeholder(run, 3, 9, Gap.OVERFLOW)
    assert placeholder.lost
    assert placeholder.element() == b"9 %d l3/overflow\n" % placeholder.time


async def test_run_events_in_memory_are_one_ordered_sequence() -> None:
    """Acknowledged, in-flight and pending events form one sequence from the oldest retained."""
    rig = WriterRig()
    run = rig.begin()
    assert not run.next_is_here(0)
    for number in range(1, 4):
        rig.accept(run, note(number))
        rig.commit_all()
    rig.accept(run, note(4))
    batch = rig.take()
    rig.accept(run, note(5))
    assert [len(run.retained), len(run.in_flight), len(run.pending)] == [3, 1, 1]
    assert [event.seq for event in run.after(0)] == [1, 2, 3, 4, 5]
    assert [event.seq for event in run.after(3)] == [4, 5]
    assert [run.next_is_here(number) for number in range(7)] == [True] * 5 + [False] * 2
    rig.writer._release_oldest()
    assert [run.next_is_here(number) for number in range(3)] == [False, True, True]
    rig.reply(batch)


async def test_run_on_each_event_wakes_its_watchers() -> None:
    """A follower in this process needs no Redis."""
    rig = WriterRig()
    run = rig.begin()
    woken: list[int] = []
    watcher = lambda: woken.append(run.last)  # noqa: E731 - it is discarded again, by its identity
    run.watchers.add(watcher)
    rig.accept(run, note(1))
    rig.accept(run, note(2))
    run.watchers.discard(watcher)
    rig.accept(run, note(3))
    assert woken == [1, 2]


async def test_pending_event_settled_twice_keeps_its_first_outcome() -> None:
    """An event that is committed again after a rollback was reported before."""
    rig = WriterRig()
    event = rig.accept(rig.begin(), note(1))
    event.settle(StoreOutcome.STORED)
    event.settle(StoreOutcome.LOST)
    assert await event.acknowledged() is StoreOutcome.STORED
    assert list(rig.outcomes.values()) == [StoreOutcome.STORED]
