"""The root store's reading scripts, one typed function each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.scripts import Client, Script

_read = Script("root_read.lua")
_peek = Script("root_peek.lua")

PRODUCERS = 32
"""Maximum number of events of a chunk whose producers are reported."""

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Row: TypeAlias = tuple[str, str, bytes]
"""One event of a chunk: its id; "" or its fault (`missing`, `corrupt`, or `misplaced`: its score in the
index is not its id, so it cannot be a cursor); its payload."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The reply of `root_read.lua`: the state of the cursor, and the rows after it."""

    named_stream: str | None
    """The stream of the cursor's event; None if that event is not stored."""
    cursor_final: bool
    cursor_held: bool
    last_given: int
    trimmed: int
    oldest: str
    clock: int
    """Redis's time in microseconds: ages must not depend on a worker's clock."""
    after: str
    """The score after which to read the next chunk; "" after the last chunk."""
    rows: list[Row]
    traceparents: dict[str, str]
    """By event id, the producers of the first `PRODUCERS` events that have one."""


async def read(  # noqa: PLR0913 - the script's arguments
    client: Client, keys: Keys, cursor: str, stream_id: str | None, *, max_events: int, max_bytes: int
) -> Chunk:
    """Read at most `max_events` events, or about `max_bytes` payload bytes, after a cursor.

    Args:
        client: The client.
        keys: The store's keys.
        cursor: An event id, or `Chunk.after`.
        stream_id: The stream, or None for the stream of the cursor's event.
        max_events: Maximum number of events to return.
        max_bytes: Payload bytes after which no further event is returned; the first one always is.

    Returns:
        The chunk.
    """
    optional = [] if stream_id is None else [stream_id]
    reply = await _read(
        client, [keys.counter, keys.event(cursor)], [keys.prefix, cursor, max_events, max_bytes, *optional]
    )
    named, numbers, oldest, sizes, payloads = reply
    final, held, given, trimmed, clock, after = numbers.decode("ascii").split(" ")
    rows, traceparents = _rows(sizes.decode("utf-8", "replace").split(), payloads)
    return Chunk(
        named_stream=None if named is None else named.decode("utf-8", "replace"),
        cursor_final=final == "1",
        cursor_held=held == "1",
        last_given=int(given),
        trimmed=int(trimmed),
        oldest=oldest.decode("utf-8", "replace"),
        clock=int(clock),
        after="" if after == "0" else after,
        rows=rows,
        traceparents=traceparents,
    )


def _rows(fields: list[str], payloads: bytes) -> tuple[list[Row], dict[str, str]]:
    """Parse the rows of a chunk and their producers from the reply of `root_read.lua`."""
    rows: list[Row] = []
    traceparents: dict[str, str] = {}
    start = 0
    for event_id, size in zip(fields[::2], fields[1::2], strict=True):
        length, _, producer = size.partition("@")
        if not length.isdigit():
            rows.append((unquote(event_id[1:]) if event_id.startswith("%") else event_id, size, b""))
            continue
        end = start + int(length)
        rows.append((event_id, "", payloads[start:end]))
        if producer and start < end and len(traceparents) < PRODUCERS and _TRACEPARENT.fullmatch(producer):
            traceparents[event_id] = producer
        start = end + 1
    return rows, traceparents


async def peek(client: Client, keys: Keys, stream_ids: Sequence[str]) -> list[str]:
    """Read the last event ids of streams.

    Args:
        client: The client.
        keys: The store's keys.
        stream_ids: The streams.

    Returns:
        The last event id of each stream, "" for none.
    """
    last = await _peek(client, [keys.stream(stream_id) for stream_id in stream_ids], [])
    return [text.decode("ascii", "replace") for text in last]
