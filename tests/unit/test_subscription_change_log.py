"""Reads of the log of changes: which continue from a position, and which reveal a gap."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.subscriptions import PromptsListChanged, ResourcesListChanged, ResourceUpdated, ToolsListChanged

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.subscriptions.change_log import Position, Reading, judge
from mcp_eventscope.subscriptions.event_codec import Change, EverythingChanged, decode, encode, is_supported
from mcp_eventscope.subscriptions.facts import GapReason

AT = Position(b"e", 7, b"w-7")


def entry(number: int, *, epoch: bytes = b"e", name: bytes | None = None) -> list[Any]:
    """A batch in the log."""
    fields = [b"e", epoch, b"n", name or f"w-{number}".encode(), b"b", f"[{number}]".encode()]
    return [f"{number}-0".encode(), fields]


def reply(
    *entries: list[Any], lost: int = 0, first: int = 1, last: Position = AT, at_position: bytes = b"w-7"
) -> list[Any]:
    """A reply of the script."""
    return [b"1", lost, str(first).encode(), str(last.number).encode(), last.epoch, last.name, at_position, [*entries]]


@pytest.mark.parametrize(
    ("position", "answer", "expected"),
    [
        (None, reply(last=Position(b"e", 9, b"x-9")), Reading(Position(b"e", 9, b"x-9"), None)),
        (AT, reply(), Reading(AT, None)),
        (
            AT,
            reply(entry(8), entry(9), last=Position(b"e", 9, b"w-9")),
            Reading(Position(b"e", 9, b"w-9"), None, ((b"w-8", b"[8]"), (b"w-9", b"[9]"))),
        ),
        (AT, reply(lost=1, last=Position(b"f", 99, b"f")), Reading(Position(b"f", 99, b"f"), GapReason.ROLLED_BACK)),
        (AT, reply(entry(8), last=Position(b"f", 8, b"f")), Reading(Position(b"f", 8, b"f"), GapReason.LOST)),
        (
            AT,
            reply(entry(40), first=40, last=Position(b"e", 50, b"w-50"), at_position=b""),
            Reading(Position(b"e", 50, b"w-50"), GapReason.TRIMMED),
        ),
        (
            AT,
            reply(entry(8), last=Position(b"e", 8, b"w-8"), at_position=b""),
            Reading(Position(b"e", 8, b"w-8"), GapReason.DAMAGED),
        ),
        (
            AT,
            reply(entry(8), entry(10), last=Position(b"e", 10, b"w-10")),
            Reading(Position(b"e", 10, b"w-10"), GapReason.DAMAGED),
        ),
        (
            AT,
            reply([b"8-1", entry(8)[1]], last=Position(b"e", 8, b"w-8")),
            Reading(Position(b"e", 8, b"w-8"), GapReason.DAMAGED),
        ),
        (
            AT,
            reply([b"8-0", [b"x", b"1"]], last=Position(b"e", 9, b"w-9")),
            Reading(Position(b"e", 9, b"w-9"), GapReason.DAMAGED),
        ),
        (
            AT,
            reply(entry(8, epoch=b"f"), last=Position(b"e", 9, b"w-9")),
            Reading(Position(b"e", 9, b"w-9"), GapReason.LOST),
        ),
    ],
    ids=[
        *("first read", "nothing new", "new batches", "lost tail", "other epoch", "trimmed", "position missing"),
        *("hole", "id of another program", "fields of another program", "other epoch within"),
    ],
)
def test_read_from_a_position_continues_or_reveals_a_gap(
    position: Position | None, answer: list[Any], expected: Reading
) -> None:
    """After a gap the position is the end of the log, since a repair covers everything before it."""
    assert judge(position, answer) == expected


def test_full_read_is_followed_by_another() -> None:
    """More batches than one read returns are read at once, without waiting."""
    many = [entry(number) for number in range(8, 8 + 64)]
    assert judge(AT, reply(*many, last=Position(b"e", 99, b"w-99"))).more


changes = st.one_of(
    st.sampled_from([ToolsListChanged(), PromptsListChanged(), ResourcesListChanged(), EverythingChanged()]),
    st.builds(ResourceUpdated, st.text(st.characters())),
)


@given(st.dictionaries(changes, st.integers(0, 2**53)))
def test_batch_of_any_changes_is_kept(batch: dict[Change, int]) -> None:
    """Each change has a form of its own, with any text as its URI."""
    assert dict(decode(encode(batch))) == batch


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}x",
        "7",
        "null",
        "[7]",
        "[[]]",
        '["x"]',
        '[[1,"resource",7]]',
        '[[1,"resource"]]',
        '[["x","tools"]]',
        "[" * 100_000,
    ],
)
def test_batch_of_another_program_is_refused(text: str) -> None:
    """Anything else than a list of changes is an error of one type."""
    with pytest.raises(CorruptEventError):
        decode(text.encode())


def test_change_of_a_later_version_may_be_anything() -> None:
    """A worker that does not know the kind signals everything, instead of nothing."""
    assert decode(b'[[5,"shape","x"]]') == [(EverythingChanged(), 5)]


@pytest.mark.parametrize(
    ("event", "supported"),
    [
        (ToolsListChanged(), True),
        (ResourceUpdated("a"), True),
        (ResourceUpdated(7), False),  # type: ignore[arg-type]
        (ResourceUpdated(["a"]), False),  # type: ignore[arg-type]
        ("tools", False),
        (None, False),
        ([], False),
    ],
)
def test_event_is_supported_by_its_type(event: object, *, supported: bool) -> None:
    """An event without a form in Redis is recognized before it is pending."""
    assert is_supported(event) is supported
