"""One pass over a stream: deliveries, gaps, and the position of the next pass."""

import anyio
import pytest

from mcp_eventscope.redis.read.cursor import Cursor
from mcp_eventscope.redis.read.delivery import PRODUCERS, Delivery
from mcp_eventscope.redis.read.elements import Row
from mcp_eventscope.store.codec import encode
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import Gap
from mcp_eventscope.testing import Collected, on_the_wire
from support.messages import answer, failure, note

pytestmark = pytest.mark.anyio

RUN, OTHER = "0123456789ab1", "0123456789ab2"


def row(number: int, payload: bytes | None = None, *, first: int = 0, producer: str = "") -> Row:
    """An element; a note with its number, unless a payload is given."""
    return number, number * 10, first or number, producer, encode(note(number)) if payload is None else payload


def lost(first: int, last: int) -> Row:
    """A placeholder of a range."""
    return last, last * 10, first, "", b""


def gone(number: int) -> Row:
    """An element whose large payload has expired."""
    return number, number * 10, number, "", None


def delivery(after: int, collected: Collected, *, standalone: bool = False) -> Delivery:
    """A pass from a number."""
    return Delivery("1", Cursor(after * 10, RUN, {RUN: after}), collected, standalone=standalone)


@pytest.mark.parametrize(
    ("after", "rows", "numbers", "missing"),
    [
        (0, [row(1), row(2)], [1, 2], 0),
        (1, [row(1), row(2)], [2], 0),
        (2, [row(1), row(2)], [], 0),
        (1, [row(4), row(5)], [4, 5], 2),
        (1, [row(2), row(5)], [2, 5], 2),
        (1, [lost(2, 4), row(5)], [5], 3),
        (3, [lost(2, 4), row(5)], [5], 1),
        (4, [lost(2, 4), row(5)], [5], 0),
        (0, [lost(2, 4), row(5)], [5], 4),
        (1, [lost(3, 3), row(4)], [4], 1),
        (1, [gone(2), row(3)], [3], 1),
        (1, [row(2, b""), row(3)], [3], 0),
    ],
)
async def test_delivery_counts_missing_numbers_exactly(
    after: int, rows: list[Row], numbers: list[int], missing: int
) -> None:
    """Each number after the position is delivered, counted as missing, or a priming event."""
    collected = Collected()
    one = delivery(after, collected)
    await one.take(RUN, rows, start=rows[0][2])
    assert collected.events == [(f"{n * 10}-{n}-{RUN}", on_the_wire(note(n))) for n in numbers]
    assert (one.missing, one.delivered, one.corrupt) == (missing, len(numbers), [])
    assert one.payload_bytes == sum(len(encode(note(n))) for n in numbers)
    assert one.cursor.positions == {RUN: max(after, rows[-1][0])}


@pytest.mark.parametrize(
    ("rows", "head", "horizon", "reason"),
    [
        ([row(4)], 4, 5, Gap.EVICTED),
        ([row(4)], 4, 11, Gap.TRIMMED),
        ([row(4)], 1, 11, Gap.STORE_LOST),
        ([lost(2, 3), row(4)], 1, 5, Gap.STORE_LOST),
        ([(3, 30, 2, "rollback", None), row(4)], 1, 5, Gap.ROLLBACK),
        ([(3, 30, 2, "overflow", None), row(4)], 1, 99, Gap.OVERFLOW),
        ([(3, 30, 2, "of a later version", None), row(4)], 1, 5, Gap.STORE_LOST),
        ([(3, 30, 2, "", None), row(4)], 1, 31, Gap.TRIMMED),
    ],
)
async def test_delivery_names_the_reason_of_a_gap(rows: list[Row], head: int, horizon: int, reason: Gap) -> None:
    """Two events are missing: before the head of the list, in its middle, or with a placeholder."""
    cursor = Cursor(10, RUN, {RUN: 1})
    one = Delivery("1", cursor, Collected(), standalone=False, horizon=lambda: horizon)
    await one.take(RUN, rows, start=rows[0][2], head=head)
    assert (one.gaps, one.missing) == ({reason: 2}, 2)


async def test_delivery_at_a_response_ends() -> None:
    """Elements after the response are not delivered, and the position is the response's."""
    for message in (answer(), failure()):
        collected = Collected()
        one = delivery(0, collected)
        await one.take(RUN, [row(1), row(2, encode(message)), row(3)], start=1)
        assert collected.data == [on_the_wire(note(1)), on_the_wire(message)]
        assert one.completed
        assert one.cursor.event_id() == f"20-2-{RUN}"


async def test_delivery_on_a_standalone_stream_does_not_end_at_a_response() -> None:
    """A response on a standalone stream is a message like any other."""
    collected = Collected()
    one = delivery(0, collected, standalone=True)
    await one.take(RUN, [row(1, encode(answer())), row(2)], start=1)
    assert len(collected.data) == 2
    assert not one.completed


async def test_delivery_of_a_corrupt_row_skips_and_names_it() -> None:
    """A corrupt row is not missing, and the next one is delivered."""
    collected = Collected()
    one = delivery(0, collected)
    await one.take(RUN, [row(1, b"{no json"), row(2)], start=1)
    assert collected.data == [on_the_wire(note(2))]
    assert one.corrupt == [f"10-1-{RUN}"]
    assert one.missing == 0


async def test_delivery_when_callback_raises_keeps_the_position() -> None:
    """The next pass sends that event again, and none before it."""
    collected = Collected()

    async def break_off(event: EventMessage) -> None:
        if len(collected.ids) == 1:
            raise anyio.BrokenResourceError
        await collected(event)

    one = Delivery("1", Cursor(1, RUN, {RUN: 0}), break_off, standalone=False)
    with pytest.raises(anyio.BrokenResourceError):
        await one.take(RUN, [row(1), row(2), row(3)], start=1)
    assert one.cursor.event_id() == f"10-1-{RUN}"
    assert one.delivered == 1


async def test_delivery_of_several_runs_keeps_a_position_for_each() -> None:
    """The ids of a standalone stream name a position in every run."""
    collected = Collected()
    one = delivery(1, collected, standalone=True)
    await one.take(OTHER, [row(5), row(6)], start=5)
    await one.take(RUN, [row(2)], start=2)
    assert collected.ids == [
        f"50-5-{OTHER}~1-{RUN}",
        f"60-6-{OTHER}~1-{RUN}",
        f"20-2-{RUN}~6-{OTHER}",
    ]
    assert one.missing == 0, "a run that the client did not know of begins where it begins"


async def test_delivery_of_an_answer_for_a_dead_worker_has_no_id() -> None:
    """The client keeps its position, since nothing can follow the answer."""
    collected = Collected()
    one = delivery(3, collected)
    await one.answer(encode(failure()))
    assert collected.events == [(None, on_the_wire(failure()))]
    assert one.completed
    assert one.cursor.event_id() == f"30-3-{RUN}"


async def test_delivery_names_a_bounded_number_of_producers() -> None:
    """Each producer is named once, up to a limit."""
    one = delivery(0, Collected())
    await one.take(RUN, [row(n, producer=f"p{n // 2}") for n in range(1, 4 * PRODUCERS)], start=1)
    assert list(one.producers) == [f"p{n}" for n in range(PRODUCERS)]
