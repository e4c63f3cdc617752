"""Runs: the numbered events of one request, or of one worker on a standalone stream."""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import ClassVar

from mcp_eventscope.redis import element
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.messages import EventId, StreamId
from mcp_eventscope.store.results import Gap, StoreOutcome

EVENT_BYTES = 512
"""Bytes of memory that an event counts for beside its payload."""
WORKER_DIGITS = 12
"""Hexadecimal digits of a worker's name, with which the names of its runs begin."""

_RUN = re.compile(rf"[0-9a-f]{{{WORKER_DIGITS}}}[0-9a-f]{{1,16}}", re.ASCII)


class PendingEvent:
    """An accepted event. It is kept until it is acknowledged, and for a while after."""

    lost: ClassVar[bool] = False
    """Whether it stands for events that were lost."""
    __slots__ = (
        "_callbacks",
        "accepted",
        "final",
        "message",
        "outcome",
        "payload",
        "run",
        "seq",
        "size",
        "time",
        "traceparent",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place
        self,
        run: "Run",
        seq: int,
        time: int,
        accepted: int,
        message: type,
        payload: bytes,
        traceparent: str,
        final: bool,  # noqa: FBT001 - faster by position
    ) -> None:
        self.run = run
        self.seq = seq
        self.time = time
        """When it was accepted, by Redis's clock, in microseconds since 1970."""
        self.accepted = accepted
        """The same, by `boot_nanoseconds`."""
        self.message = message
        """The type of the message."""
        self.payload = payload
        self.size = len(payload) + EVENT_BYTES
        """Bytes of memory that it counts for."""
        self.traceparent = traceparent
        self.final = final
        self._callbacks: list[Callable[[StoreOutcome], None]] | None = None
        self.outcome: StoreOutcome | None = None
        """Its outcome; None until it is known."""

    @property
    def event_id(self) -> EventId:
        """The id that a client has of it, without the stream."""
        return f"{self.time}-{self.seq}-{self.run.name}"

    @property
    def first(self) -> int:
        """The first number that it stands for: less than `seq` for a placeholder."""
        return self.seq

    def add_done_callback(self, callback: Callable[[StoreOutcome], None]) -> None:
        """Call back with the outcome of the event, immediately if it is known already."""
        if self.outcome is not None:  # The caller has waited for room meanwhile.
            callback(self.outcome)
            return
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def acknowledged(self) -> "asyncio.Future[StoreOutcome]":
        """A future of the outcome of the event."""
        future: asyncio.Future[StoreOutcome] = asyncio.get_running_loop().create_future()
        self.add_done_callback(lambda outcome: None if future.done() else future.set_result(outcome))
        return future

    def settle(self, outcome: StoreOutcome) -> None:
        """Report the outcome of the event; the first report counts."""
        if self.outcome is None:
            self.outcome = outcome
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback(outcome)

    def element(self) -> bytes:
        """The element of the run's list."""
        payload = self.payload
        if not (self.final or self.traceparent or len(payload) > element.LARGE_PAYLOAD):  # As most are.
            return element.PLAIN % (self.seq, self.time, payload)
        return element.encode(self.seq, self.time, payload, final=self.final, traceparent=self.traceparent)


class Placeholder(PendingEvent):
    """Stands for a range of lost events, up to its own number.

    Args:
        run: The run.
        first: The first number of the range.
        last: The last number of the range.
        time: As in `PendingEvent`.
        accepted: As in `PendingEvent`.
        reason: Why the events were lost.
    """

    lost = True
    __slots__ = ("_first", "reason")

    def __init__(self, run: "Run", first: int, last: int, time: int, accepted: int, reason: Gap) -> None:  # noqa: PLR0913, PLR0917 - made in one place
        super().__init__(run, last, time, accepted, type(self), b"", "", final=False)
        self._first = first
        self.reason = reason

    @property
    def first(self) -> int:
        """The first number that it stands for."""
        return self._first

    def element(self) -> bytes:
        """The element of the run's list."""
        return element.encode(self.seq, self.time, b"", first=self.first, reason=self.reason)


class SessionQueue:
    """A session in this process: its open runs, and its unacknowledged events.

    Args:
        keys: The session's keys.
    """

    __slots__ = (
        "__weakref__",
        "bound",
        "bytes",
        "ended",
        "events",
        "index_renewed",
        "keys",
        "on_ended",
        "on_fenced",
        "pieces",
        "runs",
        "sent_recorded",
        "standalone_sent",
        "unaccounted",
        "unrecorded",
    )

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.runs: dict[StreamId, Run] = {}
        """The open runs."""
        self.events = 0
        """Events that are not acknowledged."""
        self.bytes = 0
        """The bytes that they take up."""
        self.ended = False
        """Whether the session was ended, here or elsewhere."""
        self.index_renewed = 0
        """When the TTL of its index was last renewed, in microseconds."""
        self.standalone_sent = False
        """Whether a message of its standalone stream was sent to a client here."""
        self.sent_recorded = False
        """Whether Redis knows."""
        self.bound: object = None
        """The store whose callbacks are called."""
        self.on_ended: Callable[[], None] | None = None
        """Called when a commit finds that the session was ended elsewhere."""
        self.on_fenced: Callable[[StreamId], None] | None = None
        """Called with a stream whose request was answered in this worker's place."""
        self.pieces: list[tuple[int, bytes]] = []
        """The stored parts of its runs that are not accounted for, with their bytes (`SessionLimit`)."""
        self.unrecorded: dict[Run, int] = {}
        """The runs with stored events that `pieces` lacks, each with the last number."""
        self.unaccounted = 0
        """Bytes of the stored events that are not accounted for."""


class Run:
    """A run, with its events in memory: acknowledged ones first, then in flight, then pending."""

    __slots__ = (
        "__weakref__",
        "acknowledged",
        "closed",
        "dirty",
        "entry",
        "followed",
        "foreign",
        "in_flight",
        "key",
        "larges",
        "larges_accounted",
        "last",
        "limit",
        "name",
        "origin",
        "pending",
        "queued",
        "refused",
        "removals",
        "renewed",
        "retained",
        "sent",
        "session",
        "standalone",
        "stream",
        "unaccounted",
        "watchers",
    )

    def __init__(self, session: SessionQueue, stream: StreamId, name: str, entry: bytes, *, standalone: bool) -> None:
        self.session = session
        self.stream = stream
        self.name = name
        self.entry = entry
        """Its entry in `requests` while it is open (`run_entry`)."""
        self.standalone = standalone
        self.key = session.keys.run(stream, name)
        self.last = 0
        """The last number that was assigned."""
        self.origin = ""
        """The `traceparent` of its first event that has one."""
        self.acknowledged = 0
        """The last number that Redis has acknowledged."""
        self.sent = 0
        """The largest number that was sent to Redis."""
        self.foreign = b""
        """The SHA-1 of an element of another program at the end of the list, which its next commit removes."""
        self.removals = 0
        """How many such elements were found since its last commit."""
        self.retained: deque[PendingEvent] = deque()
        """Acknowledged events that are kept, in case Redis loses them."""
        self.in_flight: list[PendingEvent] = []
        self.pending: deque[PendingEvent] = deque()
        self.queued = False
        """Whether it is queued for a batch, or has a commit in flight."""
        self.dirty = False
        """Whether Redis may have lost acknowledged events."""
        self.closed = False
        """Whether its last event was accepted: no number is assigned any more."""
        self.refused = False
        """Whether nothing of it will be committed any more."""
        self.followed = False
        """Whether another process follows it."""
        self.limit = 0
        """The most events of its next commit while an event that Redis refuses is searched for; 0: no search."""
        self.renewed = 0
        """When its keys were last renewed, in microseconds."""
        self.larges: list[int] = []
        """The numbers of the acknowledged events whose payload has a key of its own."""
        self.larges_accounted = 0
        """How many of them are accounted for (`SessionLimit`)."""
        self.unaccounted = 0
        """Bytes of acknowledged events that are not."""
        self.watchers: set[Callable[[], None]] = set()
        """Followers in this process, called when an event was accepted."""

    def next_is_here(self, seq: int) -> bool:
        """Whether the event after a number is in memory."""
        oldest = self._oldest
        return oldest is not None and oldest.first <= seq + 1 <= self.last

    @property
    def _oldest(self) -> PendingEvent | None:
        for events in (self.retained, self.in_flight, self.pending):
            if events:
                return events[0]
        return None

    def after(self, seq: int) -> Iterator[PendingEvent]:
        """The events in memory after a number, in order. Not to be used across a turn of the loop."""
        return (event for event in chain(self.retained, self.in_flight, self.pending) if event.seq > seq)

    def wake(self) -> None:
        """Call the followers in this process."""
        for watcher in tuple(self.watchers):
            watcher()


def is_run(name: str) -> bool:
    """Whether a text has the form of a run's name."""
    return _RUN.fullmatch(name) is not None


def worker_of(run: str) -> str:
    """The worker that a run's name names."""
    return run[:WORKER_DIGITS]
