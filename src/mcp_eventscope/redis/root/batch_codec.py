"""Encode a batch of the root store as a command, and parse the reply (`root_append.lua`)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.root.backlog import PendingEvent
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.workers.worker_id import WorkerId

APPEND = Script("root_append.lua")

COMMIT_SECONDS = 24 * 3600
"""Minimum seconds that Redis keeps a worker's last commit: a batch may be resent after an outage this long."""
TRIM_CHECKS_PER_TTL = 64
"""Checks of a stream's index for expired entries per TTL, while the stream is written to."""
TRIM_STREAMS = 8192
"""Maximum number of streams whose last check is remembered."""
_COPIED = 1 << 14
"""Payload bytes up to which a copy is cheaper than a separate piece."""
_FIXED_ARGUMENTS = 10
_ARGUMENTS_OF_EVENT = 3
_NONE: Mapping[int, str] = {}


class Reply(NamedTuple):
    """The outcome of a batch."""

    first_id: int
    """The id of the first event; its successors are the ids of the others."""
    errors: Mapping[int, str] = _NONE
    """By index, the errors of events that are not stored."""
    untrimmed: Sequence[int] = ()
    """The indexes of events whose streams may have more expired entries."""


class BatchCodec:
    """Encodes the batches of one process.

    It packs the commands itself, in 0.5 µs per event. The client takes 3.6 µs.

    Args:
        keys: The store's keys.
        ttl: Seconds that keys are kept; None: no expiry.
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
        """Let streams be trimmed again after a while. `now` is in seconds of any monotonic clock."""
        if self._ttl is not None and (now >= self._check_again or len(self._checked) > TRIM_STREAMS):
            self._checked.clear()
            self._check_again = now + self._ttl / TRIM_CHECKS_PER_TTL

    def encode(self, first: int, events: Sequence[PendingEvent], floor: int, *, as_eval: bool) -> list[bytes]:
        """Encode the command as pieces of bytes for the wire.

        Args:
            first: The sequence of the first event.
            events: The events.
            floor: The last id that this process received, or 0.
            as_eval: Whether to send the script's text, because Redis does not know its digest.
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
        """Encode the command as arguments for a client. Arguments as in `encode`."""
        command, script = APPEND.call(as_eval=as_eval)
        arguments: list[str | bytes] = [
            command.decode(),  # The cluster client expects the command as text.
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
        """Return the arguments that all commands of this process share."""
        worker = self._worker.name
        head = self._heads.get((worker, as_eval))
        if head is None:
            keys = (b"2", self._keys.counter.encode(), self._keys.commit(worker).encode())
            head = b"".join(map(_bulk, (*APPEND.call(as_eval=as_eval), *keys, *self._settings)))
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
        """Record that a committed batch has trimmed the streams of its events.

        Args:
            events: The events of the batch.
            untrimmed: The indexes of the events whose streams may have more expired entries.
        """
        if self._ttl is not None:
            for event in events:
                self._checked.add(event.stream_id)
            for index in untrimmed:
                self._checked.discard(events[index].stream_id)


def parse_reply(first: int, count: int, reply: bytes) -> Reply:
    """Parse the reply to a batch into the outcome of each event.

    Args:
        first: The sequence of the batch's first event.
        count: The number of its events.
        reply: Redis's reply.

    Raises:
        ValueError: The reply does not belong to this batch.
    """
    if reply.isdigit():
        return Reply(int(reply))
    text = reply.decode("utf-8", "replace")
    if text.startswith("!"):
        return Reply(0, dict.fromkeys(range(count), text[1:]))
    head, *outcomes = text.split(";")
    committed, _, first_id = head.rpartition(":")
    skipped = first - int(committed) if committed else 0
    errors: dict[int, str] = {}
    untrimmed: list[int] = []
    for outcome in outcomes:
        position, is_error, error = outcome.partition("=")
        index = int(position.removesuffix("+")) - skipped
        if not 0 <= index < count:
            continue  # In another part of a batch that was committed as a whole.
        if is_error:
            errors[index] = error
        else:
            untrimmed.append(index)
    return Reply(int(first_id) + skipped, errors, untrimmed)


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)
