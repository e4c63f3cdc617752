"""Cursors of sessions are read back from their ids; other texts are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_eventscope.redis.read.cursor import Cursor, parse

WORKERS = st.text("0123456789abcdef", min_size=12, max_size=12)
RUNS = st.builds("{}{:x}".format, WORKERS, st.integers(0, 2**64 - 1))
NUMBERS = st.integers(0, 10**16 - 1)
TIMES = st.integers(1, 10**18 - 1)
RUN, OTHER = "0123456789ab1", "ba98765432102"


@st.composite
def cursors(draw: st.DrawFn) -> Cursor:
    """Any cursor."""
    positions = draw(st.dictionaries(RUNS, NUMBERS, min_size=1, max_size=5))
    return Cursor(draw(TIMES), draw(st.sampled_from(sorted(positions))), positions)


@given(cursors())
def test_parse_of_event_id_returns_the_cursor(cursor: Cursor) -> None:
    """A cursor is read back from its id with every position."""
    text = cursor.event_id()
    assert text.isascii()
    assert text.isprintable()
    assert parse(text) == cursor


@given(cursors(), TIMES, NUMBERS, RUNS)
def test_cursor_suffix_keeps_the_other_positions(cursor: Cursor, time: int, number: int, run: str) -> None:
    """An event's id names the new position of its run, and the positions of the others."""
    before = dict(cursor.positions)
    assert parse(f"{time}-{number}{cursor.suffix(run)}") == Cursor(time, run, before | {run: number})
    assert cursor.positions == before


@given(st.text() | st.text("0123456789abcdef-~", max_size=60))
def test_parse_of_other_text_returns_none(text: str) -> None:
    """An accepted text is exactly the one that would be written."""
    cursor = parse(text)
    assert cursor is None or cursor.event_id() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-1",
        "1-1-",
        "1-1-0123456789ab",
        f"1-1-{'0' * 29}",
        f"1-1-{RUN.upper()}",
        f"1-1-{RUN}g",
        f"0-1-{RUN}",
        f"01-1-{RUN}",
        f"1-01-{RUN}",
        f"+1-1-{RUN}",
        f"1--1-{RUN}",
        f"-1-1-{RUN}",
        f"{'9' * 19}-1-{RUN}",
        f"1-{'9' * 17}-{RUN}",
        f"{'9' * 5000}-1-{RUN}",
        f"1-1-{RUN}\n",
        f" 1-1-{RUN}",
        f"1-1-{RUN}~",
        f"1-1-{RUN}~1",
        f"1-1-{RUN}~1-",
        f"1-1-{RUN}~1-{RUN}",
        f"1-1-{RUN}~1-{OTHER}~2-{OTHER}",
        f"1-1-{RUN}~01-{OTHER}",
        f"1-1-{RUN}~~1-{OTHER}",
        f"1-1-{RUN}~1-x",
        f"\u0661-1-{RUN}",
        f"1-1-{RUN}" + f"~1-{OTHER}" * 1000,
    ],
)
def test_parse_of_hostile_text_returns_none(text: str) -> None:
    """An id has one spelling, and names each run once."""
    assert parse(text) is None


def test_parse_of_merged_cursor_has_the_events_number() -> None:
    """The other positions are those of other writers of the stream."""
    cursor = parse(f"5-7-{RUN}~3-{OTHER}")
    assert cursor is not None
    assert (cursor.number, cursor.run, cursor.time) == (7, RUN, 5)
    assert cursor.positions == {RUN: 7, OTHER: 3}
