"""The Lua scripts, one typed function each."""

import hashlib
import re
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import repeat
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote

from redis.exceptions import NoScriptError

from mcp_eventscope.redis.keys import Keys


class Client(Protocol):
    """What is asked of a client: `redis.asyncio.Redis`, or its cluster counterpart."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """Send one command and return its reply."""
        ...


class Script:
    """One Lua script, called by its digest; Redis is sent the text only when it does not know it."""

    def __init__(self, filename: str) -> None:
        text = resources.files(__package__).joinpath("lua", filename).read_text("utf-8")
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, *, whole: bool) -> tuple[bytes, bytes]:
        """The command and its first argument: by digest, or with the whole text, which also loads it."""
        return (b"EVAL", self._text.encode()) if whole else (b"EVALSHA", self._sha.encode())

    async def __call__(self, client: Client, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run the script and return its reply, text as bytes whatever the client's `decode_responses`.

        Replies are never decoded by the client: one row that is not UTF-8 would fail the whole reply. Nor is text
        encoded by it: its `encoding` is the application's, and another client of the same store may have another.
        """
        sent = [len(keys), *(text.encode() if isinstance(text, str) else text for text in (*keys, *args))]
        try:
            return await client.execute_command("EVALSHA", self._sha, *sent, NEVER_DECODE=True)
        except NoScriptError:
            # EVAL also loads it: after a restart or SCRIPT FLUSH one call pays, not every worker's start.
            return await client.execute_command("EVAL", self._text, *sent, NEVER_DECODE=True)


_read = Script("read.lua")

PRODUCERS = 32
"""The most events of one chunk of which it is told who produced them."""

_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_FINAL = b"final"

Row: TypeAlias = tuple[str, str, bytes]
"""One event of a chunk, as Redis has it: its id; what is wrong with it, "" for nothing, else `missing`, `corrupt` or
`misplaced` (the index has it at a place that is not its id, so nobody can go on from there); its payload."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What `read.lua` says: where the cursor stands, and the rows after it."""

    named_stream: str | None
    """The stream that the cursor's own event names; None when that event is gone."""
    cursor_final: bool
    cursor_held: bool
    last_given: int
    trimmed: int
    oldest: str
    clock: int
    """Redis's own time in microseconds: ages must not depend on a worker's clock."""
    restored: int
    """When the session was recorded anew, for Redis had lost it, by the same clock; 0: never, or it does not matter."""
    after: str
    """The score to read the next chunk after; "" when nothing is left."""
    rows: list[Row]
    traceparents: dict[str, str]
    """By event id, who produced it: of those that have it, the first of the chunk."""


async def read(  # noqa: PLR0913 - the script's arguments, one by one
    client: Client, keys: Keys, cursor: str, stream_id: str | None, *, max_events: int, max_bytes: int
) -> Chunk:
    """Read what was stored after a cursor: at most `max_events` events or about `max_bytes` payload bytes.

    Args:
        client: Where from.
        keys: The prefix, as keys.
        cursor: An event id, or `Chunk.after`.
        stream_id: The stream, or None for the one that the cursor's event names.
        max_events: The most events to look at.
        max_bytes: Payload bytes after which no further event is taken; the first one always is.

    Returns:
        The chunk.
    """
    optional = [] if stream_id is None else [stream_id]
    reply = await _read(
        client,
        [keys.counter, keys.event(cursor), keys.session],
        [keys.prefix, cursor, max_events, max_bytes, "1" if keys.of_session else "", *optional],
    )
    named, numbers, oldest, told, events = reply
    final, held, given, trimmed, clock, restored, after = numbers.decode("ascii").split(" ")
    stream = named if stream_id is None else stream_id.encode()
    rows, traceparents = _rows(told.decode("utf-8", "replace").split(), events, stream or b"")
    return Chunk(
        named_stream=None if named is None else named.decode("utf-8", "replace"),
        cursor_final=final == "1",
        cursor_held=held == "1",
        last_given=int(given),
        trimmed=int(trimmed),
        oldest=oldest.decode("utf-8", "replace"),
        clock=int(clock),
        restored=int(restored),
        after="" if after == "0" else after,
        rows=rows,
        traceparents=traceparents,
    )


def _rows(told: list[str], events: bytes, stream: bytes) -> tuple[list[Row], dict[str, str]]:
    """The rows of a chunk, and who produced them, out of the two texts that `read.lua` returns."""
    ids, sizes = told[::2], told[1::2]
    if "".join(sizes).isdigit():
        # What is mostly so: nothing is wrong with any row, and each is a text of three lines.
        lines = events.split(b"\n")
        if len(lines) == 3 * len(ids) and lines[2::3].count(stream) == len(ids):
            return list(zip(ids, repeat(""), lines[::3])), _traceparents(ids, lines[::3], lines[1::3])
    rows: list[Row] = []
    marks: list[bytes] = []
    start = 0
    for event_id, size in zip(ids, sizes, strict=True):
        length, _, producer = size.removeprefix("=").partition("@")
        if not length.isdigit():
            rows.append((unquote(event_id[1:]) if event_id.startswith("%") else event_id, size, b""))
            marks.append(b"")
            continue
        event = events[start : start + int(length)]
        start += len(event) + 1
        if size.startswith("="):
            rows.append((event_id, "", event))
            marks.append(producer.encode())
        else:
            row, marked = _row(event_id, event, stream)
            rows.append(row)
            marks.append(marked)
    return rows, _traceparents(ids, [payload for _, _, payload in rows], marks)


def _row(event_id: str, text: bytes, stream: bytes) -> tuple[Row, bytes]:
    """The row of a small event of a session, and its marks."""
    lines = text.split(b"\n", 2)
    if lines[2:] != [stream]:
        return (event_id, "corrupt", b""), b""
    return (event_id, "", lines[0]), lines[1]


def _traceparents(ids: list[str], payloads: list[bytes], marks: list[bytes]) -> dict[str, str]:
    """Who produced what is not empty, where that is known: the first ones."""
    told: dict[str, str] = {}
    if any(marks):
        for event_id, payload, marked in zip(ids, payloads, marks, strict=True):
            if payload and marked and (found := _TRACEPARENT.fullmatch(marked.removeprefix(_FINAL))):
                told[event_id] = found[0].decode("ascii")
                if len(told) == PRODUCERS:
                    break
    return told


_peek = Script("peek.lua")
_record = Script("record.lua")
_touch = Script("touch.lua")
_end = Script("end.lua")
_claim = Script("claim.lua")


async def peek(client: Client, streams: Sequence[tuple[Keys, str]]) -> list[tuple[str, str]]:
    """How far streams have got, and who runs their requests.

    Args:
        client: Where from.
        streams: Of each, the session's prefix, as keys, and the stream id. On a cluster: of one session only.

    Returns:
        Of each, the last event id, "" for none; and the worker, "" for none, "!" once the request was given up.
    """
    names = [key for keys, stream_id in streams for key in (keys.stream(stream_id), keys.running)]
    told = [text.decode("ascii", "replace") for text in await _peek(client, names, [name for _, name in streams])]
    return list(zip(told[::2], told[1::2], strict=True))


async def record(  # noqa: PLR0913 - the script's arguments, one by one
    client: Client, keys: Keys, ttl: int, owner: str, handshake: str, *, again: bool
) -> str:
    """Record a session, unless it is another's or has ended.

    Args:
        client: Where to.
        keys: The session's prefix, as keys.
        ttl: Seconds until the record expires.
        owner: Whose session it is.
        handshake: What another worker needs to serve it.
        again: It was recorded before: if it is not there, Redis has lost it, and that is noted.

    Returns:
        `live`; or `other` or `ended`, and nothing was changed.
    """
    state: bytes = await _record(client, [keys.session], [ttl, owner, handshake, "1" if again else ""])
    return state.decode("ascii")


def queue_record(  # noqa: PLR0913 - the script's arguments, one by one
    pipeline: Client, keys: Keys, ttl: int, owner: str, handshake: str, *, again: bool
) -> None:
    """Queue a `record` on a pipeline. Redis must know the script; arguments as in `record`."""
    _, sha = _record.call(whole=False)
    arguments = [1, keys.session.encode(), ttl, owner.encode(), handshake.encode(), b"1" if again else b""]
    pipeline.execute_command("EVALSHA", sha, *arguments)


async def touch(client: Client, keys: Keys, ttl: int, owner: str) -> tuple[str, str]:
    """Renew a session's record, for its owner, and read it; one that is not there is not made.

    Args:
        client: Where from.
        keys: The session's prefix, as keys.
        ttl: Seconds until the record expires.
        owner: Who asks.

    Returns:
        `live`, `ended`, `other` (somebody else's) or `absent`; and the handshake, when it is live.
    """
    state, handshake = await _touch(client, [keys.session], [ttl, owner])
    return state.decode("ascii"), handshake.decode("utf-8", "replace")


async def end(client: Client, keys: Keys, ttl: int) -> None:
    """End a session for all workers.

    Args:
        client: Where to.
        keys: The session's prefix, as keys.
        ttl: Seconds for which it is remembered that it has ended.
    """
    await _end(client, [keys.session], [ttl])


_survey = Script("survey.lua")


@dataclass(frozen=True, slots=True)
class Survey:
    """What `survey.lua` says of some keys."""

    cursor: str
    keys: int
    weighed: int
    bytes: int
    lasting: dict[str, int]
    """Keys without TTL, by what they are."""


async def survey(client: Client, cursor: str, prefix: str, pattern: str, *, keys: int, events: int) -> Survey:  # noqa: PLR0913 - the script's arguments
    """Look at some of the keys of a database. Not for a cluster: it names no keys.

    Args:
        client: Where.
        cursor: "0", or `Survey.cursor` of the call before.
        prefix: The prefix of the store.
        pattern: The same, as a pattern.
        keys: How many keys to look at, about.
        events: How many events to weigh, at most.

    Returns:
        What is there.
    """
    cursor_then, found, weighed, size, *lasting = await _survey(client, [], [cursor, prefix, pattern, keys, events])
    return Survey(
        cursor=cursor_then.decode("ascii"),
        keys=found,
        weighed=weighed,
        bytes=size,
        lasting={
            kind.decode("ascii", "replace"): number for kind, number in zip(lasting[::2], lasting[1::2], strict=True)
        },
    )


async def claim(client: Client, keys: Keys, ttl: int | None, worker: str, stream_ids: Iterable[str]) -> None:
    """Say again who runs the requests of streams, where nobody is named.

    Args:
        client: Where to.
        keys: The session's prefix, as keys.
        ttl: Seconds until it expires; None: never.
        worker: Who runs them.
        stream_ids: The streams.
    """
    await _claim(client, [keys.running], [ttl or 0, worker, *stream_ids])
