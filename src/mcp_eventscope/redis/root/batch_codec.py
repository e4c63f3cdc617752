"""Encodes a batch of the root store as a command, and parses the reply (`root_append.lua`)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.root.backlog import PendingEvent
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.worker_id import WorkerId

APPEND = Script("root_append.lua")

COMMIT_SECONDS = 24 * 3600
"""How long Redis keeps the last commit of a worker, at least: a batch may be sent again after an outage this long."""
TRIM_CHECKS_PER_TTL = 64
"""How often the index of a stream is checked for expired entries while it is written to."""
TRIM_STREAMS = 8192
"""The most streams whose last check is remembered."""
_COPIED = 1 << 14
"""Payload bytes up to which one more copy costs less than one more piece."""
_FIXED_ARGUMENTS = 10
_ARGUMENTS_OF_EVENT = 3
_NONE: Mapping[int, str] = {}


class Reply(NamedTuple):
    """The outcome of a batch."""

    first_id: int
    """The id of the first event; its successors are the ids of the others."""
    errors: Mapping[int, str] = _NONE
    """By index, why an event is not stored."""
    untrimmed: Sequence[int] = ()
    """The indexes of events whose streams may have more expired entries."""


class BatchCodec:
    """Encodes the batches of one process.

    It packs the commands itself, since the client takes 3.6 µs per event where this takes 0.5.

    Args:
        keys: The store's keys.
        ttl: Seconds that keys are kept; None: without expiry.
        worker: This process.
    """

    def __init__(self, keys: Keys, ttl: int | None, worker: WorkerId) -> None:
        self._keys = keys
        self._ttl = ttl
        self._worker = worker
        self._settings = (
            keys.prefix.encode(),
            b"%d" % (ttl or 0),
            b"%d" % max(ttl or 0, COMMIT_SECONDS),
        )
        self._heads: dict[tuple[str, bool], bytes] = {}
        self._checked: set[str] = set()
        """Streams that were trimmed recently."""
        self._check_again = 0.0

    def expire_checks(self, now: float) -> None:
        """Forget which streams were trimmed, when it is long ago. `now` is in seconds, by any steady clock."""
        if self._ttl is not None and (now >= self._check_again or len(self._checked) > TRIM_STREAMS):
            self._checked.clear()
            self._check_again = now + self._ttl / TRIM_CHECKS_PER_TTL

    def encode(self, first: int, events: Sequence[PendingEvent], floor: int, *, as_eval: bool) -> list[bytes]:
        """The command as bytes for the wire, in pieces.

        Args:
            first: The sequence of the first event.
            events: The events.
            floor: The last id that this process was given, or 0.
            as_eval: Send the script's text, since Redis does not know its digest.
        """
        numbers = b"%d" % first, b"%d" % floor
        pieces = [
            b"*%d\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (
                _FIXED_ARGUMENTS + _ARGUMENTS_OF_EVENT * len(events),
                self._head(as_eval=as_eval),
                len(numbers[0]),
                numbers[0],
                len(numbers[1]),
                numbers[1],
            )
        ]
        append = pieces.append
        for event in events:
            stream, payload, marks = event.stream, event.payload, self._marks(event)
            if len(payload) > _COPIED:
                pieces += (_bulk(stream), b"$%d\r\n" % len(payload), payload, b"\r\n", _bulk(marks))
                continue
            append(
                b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                % (len(stream), stream, len(payload), payload, len(marks), marks)
            )
        return pieces

    def arguments(self, first: int, events: Sequence[PendingEvent], floor: int, *, as_eval: bool) -> list[str | bytes]:
        """The command as the arguments that a client takes. Arguments as in `encode`."""
        command, script = APPEND.call(whole=as_eval)
        arguments: list[str | bytes] = [
            command.decode(),  # A cluster's client knows its commands as text.
            script,
            b"2",
            self._keys.counter.encode(),
            self._keys.commit(self._worker.name).encode(),
            *self._settings,
            b"%d" % first,
            b"%d" % floor,
        ]
        for event in events:
            arguments += (event.stream, event.payload, self._marks(event))
        return arguments

    def _head(self, *, as_eval: bool) -> bytes:
        """The arguments that are the same in each command of this process."""
        worker = self._worker.name
        head = self._heads.get((worker, as_eval))
        if head is None:
            keys = (b"2", self._keys.counter.encode(), self._keys.commit(worker).encode())
            head = b"".join(map(_bulk, (*APPEND.call(whole=as_eval), *keys, *self._settings)))
            self._heads[worker, as_eval] = head
        return head

    def _marks(self, event: PendingEvent) -> bytes:
        marks = b""
        if self._ttl is not None and event.stream_id not in self._checked:
            marks = b"t"
        if event.final or event.placeholder or event.traceparent:
            marks += b"%b%b%b" % (
                b"l" if event.placeholder else b"",
                b"f" if event.final else b"",
                event.traceparent,
            )
        return marks

    def trimmed(self, events: Sequence[PendingEvent], untrimmed: Sequence[int]) -> None:
        """Trim the streams of these events no more for a while: their batch is committed.

        Args:
            events: The events of the batch.
            untrimmed: The places of those whose streams may have more expired entries.
        """
        if self._ttl is not None:
            for event in events:
                self._checked.add(event.stream_id)
            for place in untrimmed:
                self._checked.discard(events[place].stream_id)


def parse_reply(first: int, count: int, reply: bytes) -> Reply:
    """The outcome of each event of a batch.

    Args:
        first: The sequence of the batch's first event.
        count: The number of its events.
        reply: Redis's reply.

    Raises:
        ValueError: This is no reply to this batch.
    """
    if reply.isdigit():
        return Reply(int(reply))
    text = reply.decode("utf-8", "replace")
    if text.startswith("!"):
        return Reply(0, dict.fromkeys(range(count), text[1:]))
    head, *outcomes = text.split(";")
    since, _, first_id = head.rpartition(":")
    skipped = first - int(since) if since else 0
    errors: dict[int, str] = {}
    untrimmed: list[int] = []
    for outcome in outcomes:
        index, is_error, error = outcome.partition("=")
        place = int(index.removesuffix("+")) - skipped
        if not 0 <= place < count:
            continue  # Of another part of a batch that was committed as a whole.
        if is_error:
            errors[place] = error
        else:
            untrimmed.append(place)
    return Reply(int(first_id) + skipped, errors, untrimmed)


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)
