"""Reads the lists of runs: one bounded chunk as rows, large payloads included."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic_core import from_json

from mcp_eventscope.redis.client import parsing
from mcp_eventscope.redis.element import parse_marks
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.scripts import Client, Script
from mcp_eventscope.store.results import Gap

_read = Script("read_run.lua")
REASONS = frozenset(Gap)
"""The notes of rows that name the reason of a loss."""
_PLAIN = re.compile(rb"(?:(?:0|[1-9][0-9]{0,15}) [1-9][0-9]{0,17}\n)*+(?:0|[1-9][0-9]{0,15}) [1-9][0-9]{0,17}")
"""The headers of elements whose payloads are messages or priming events, without keys of their own or a `traceparent`.
"""
_TIMES = 10**18
"""Times are below, in microseconds since 1970."""
_NUMBER = re.compile(rb"[0-9]{1,16}(?![0-9])")
"""An element's number, as a script reads it; a longer one is none of ours."""

Row: TypeAlias = tuple[int, int, int, str, bytes | None]
"""One element: its number; when it was accepted, in microseconds since 1970; the first number that it stands for; the
`traceparent` of its producer or "", or the reason of its loss (`Gap`); its payload, None where it is missing."""


@dataclass(slots=True)
class Chunk:
    """The reply of `read_run.lua`."""

    clock: int
    """Redis's clock in microseconds since 1970."""
    first: int
    """The number of the list's first element; 0 when there is no list."""
    last: int
    """The number of its last element; 0 when there is no list."""
    ended: bool
    """Whether that one ends the run."""
    entry: bytes | None
    """The run's entry in `requests`."""
    origin: str
    """The `traceparent` of the producer of the list's first element; "": unknown."""
    numbers: list[int] = field(default_factory=list)
    """With the next four, the columns of the rows; see `Row`."""
    times: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    payloads: list[bytes | None] = field(default_factory=list)
    incomplete: bool = False
    """Whether large payloads were absent that were not evicted."""

    def rows(self) -> Iterator[Row]:
        """Return the rows, in order."""
        return zip(self.numbers, self.times, self.firsts, self.notes, self.payloads, strict=True)

    def append(self, row: Row) -> None:
        """Append a row."""
        number, time, first, note, payload = row
        self.numbers.append(number)
        self.times.append(time)
        self.firsts.append(first)
        self.notes.append(note)
        self.payloads.append(payload)


async def read_run(  # noqa: PLR0913 - the script's arguments, one by one
    client: Client, keys: Keys, stream: str, run: str, after: int, *, max_events: int, max_bytes: int
) -> Chunk:
    """Read the elements of a run after a number: at most `max_events` elements or about `max_bytes` payload bytes.

    Redis returns fewer if they are large: see `MOST_BYTES` in `read_run.lua`.

    Large payloads are read after their list. If some are absent, Redis may have lost the list, too, and its worker
    commits both again: only a second read that finds the list without them shows that they are lost.

    Args:
        client: The client.
        keys: The session's keys.
        stream: The stream.
        run: The run.
        after: The number.
        max_events: The most elements.
        max_bytes: Payload bytes after which no further large payload is taken; the first one always is.

    Returns:
        The chunk. It is the last one when its last row's number is `Chunk.last`.
    """
    with parsing("EVALSHA"):
        chunk = await _read_chunk(client, keys, stream, run, after, max_events=max_events, max_bytes=max_bytes)
        if chunk.incomplete:
            chunk = await _read_chunk(client, keys, stream, run, after, max_events=max_events, max_bytes=max_bytes)
    return chunk


async def _read_chunk(  # noqa: PLR0913 - the arguments of `read_run`
    client: Client, keys: Keys, stream: str, run: str, after: int, *, max_events: int, max_bytes: int
) -> Chunk:
    """Read the elements once."""
    key = keys.run(stream, run)
    numbers, entry, texts = await _read(client, [key, keys.requests], [run, after, max_events])
    words = numbers.split(b" ")
    clock, first, last, ended, count = map(int, words[:5])
    origin = words[5].decode("ascii") if len(words) > 5 else ""
    chunk = Chunk(clock, first, last, ended == 1, entry, origin)
    if not count:
        return chunk
    lines = b"\n".join(texts).split(b"\n")
    plain = b"\n".join(lines[::2]).removesuffix(b" f")
    if len(lines) == 2 * count and _PLAIN.fullmatch(plain):  # As in most chunks.
        values = from_json(b"[%b]" % plain.replace(b" ", b",").replace(b"\n", b","))  # Faster than `int` by half.
        chunk.numbers = chunk.firsts = values[::2]
        chunk.times, chunk.notes, chunk.payloads = values[1::2], [""] * count, [*lines[1::2]]
        return chunk
    if len(lines) != 2 * count:  # Another writer's doing: ours writes no newline into a payload.
        _, _, elements = await _read(client, [key, keys.requests], [run, after, max_events, 1])
        lines = [part for element in elements for part in element.partition(b"\n")[::2]]
    large: list[int] = []
    size = 0
    for header, payload in zip(lines[::2], lines[1::2], strict=True):
        row, large_size = _row(header, payload, clock)
        if row is None:
            continue
        size += len(payload) if large_size is None else large_size
        if large_size is not None:
            if size > max_bytes and chunk.numbers:
                break
            large.append(len(chunk.numbers))
        chunk.append(row)
    if large:
        await _read_large(client, keys, stream, run, chunk, large)
    return chunk


async def _read_large(  # noqa: PLR0913, PLR0917 - the arguments of `read_run`
    client: Client, keys: Keys, stream: str, run: str, chunk: Chunk, large: list[int]
) -> None:
    """Add the payloads that have keys of their own, or the reason of their absence, to rows of a chunk."""
    names = [keys.large(stream, run, chunk.numbers[index]).encode() for index in large]
    payloads = await client.execute_command("MGET", *names, NEVER_DECODE=True)
    for index, payload in zip(large, payloads, strict=True):
        chunk.payloads[index] = payload
    if None in payloads:
        await _explain_absence(client, keys.run(stream, run), chunk)


async def _explain_absence(client: Client, key: str, chunk: Chunk) -> None:
    """Add the reason to the rows whose payload has disappeared: evicted since the list was read, or lost."""
    head = await client.execute_command("LINDEX", key.encode(), 0, NEVER_DECODE=True)
    found = _NUMBER.match(head or b"")
    first = int(found[0]) if found else 0
    for index, (number, _, _, note, payload) in enumerate(chunk.rows()):
        if payload is None and note not in REASONS:
            reason = Gap.EVICTED if number < first else Gap.STORE_LOST
            chunk.notes[index] = reason.value
            chunk.incomplete |= reason is Gap.STORE_LOST


def _row(header: bytes, payload: bytes, clock: int) -> tuple[Row | None, int | None]:
    """The row of an element, and the size of its payload, where that has its own key.

    An element with a number, and damage behind it, is a row that no message can be decoded from: a reader has to report
    it, and to get past it. One without a number is none of ours.
    """
    found = _NUMBER.match(header)
    if found is None:
        return None, None
    seq = int(found[0])
    try:
        return _parsed(seq, header.split(b" "), payload)
    except ValueError:
        return (seq, clock, seq, "", b"damaged"), None


def _parsed(seq: int, words: list[bytes], payload: bytes) -> tuple[Row, int | None]:
    number, text, *marks = words
    # With another time an id would be no cursor.
    if int(number) != seq or not 0 < (time := int(text)) < _TIMES:
        raise ValueError
    first, large_size, note = parse_marks(seq, marks)
    if first is not None:
        return (seq, time, max(1, first), note, None), large_size
    return (seq, time, seq, note, payload), large_size
