"""The writer of sessions, which numbers events and stores them in the background."""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Protocol
from weakref import WeakValueDictionary

from mcp_eventscope.redis import run_entry
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.clock import EventClock, boot_nanoseconds
from mcp_eventscope.redis.element import LARGE_PAYLOAD
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.run_entry import request_id_of
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.batch import BATCH_BYTES
from mcp_eventscope.redis.write.runs import EVENT_BYTES, PendingEvent, Placeholder, Run, SessionQueue
from mcp_eventscope.redis.write.session_batch import RunPart, SessionBatch
from mcp_eventscope.redis.write.session_limit import ELEMENT_BYTES
from mcp_eventscope.store.events import BatchCommitted, EventsLost, ForeignElementsRemoved, LossReason
from mcp_eventscope.store.messages import GET_STREAM_KEY, JSONRPCError, RequestId, StreamId
from mcp_eventscope.store.results import Gap, StoreOutcome

BATCH_EVENTS = 384
"""Events after which a batch is closed: Redis executes it in about half a millisecond."""
PART_EVENTS = 32
"""Maximum number of events of one run in a batch, so that one busy run leaves room for the others."""
LINGER_SECONDS = 0.005
"""Seconds for which events are collected before a commit. This halves the load of Redis, and delays followers on other
workers; a run that another process follows is committed immediately."""
SESSION_EVENTS, SESSION_BYTES = 256, 1 << 20
"""Unacknowledged events of a session, and their bytes, beyond which callers wait for room."""
RETAINED_BYTES = 4 << 20
"""Bytes of acknowledged events that a process retains in case Redis loses them."""
REMOVALS = 100
"""Elements of another program that are removed in a row before a run is dropped."""
RENEWALS_PER_TTL = 64
_SECONDS = 1_000_000


class Account(Protocol):
    """Accounts for stored events (`SessionLimit`)."""

    def stored(self, run: Run, last: int, size: int, response: int, larges: Sequence[int]) -> None:
        """Record acknowledged events of a run."""
        ...

    def account(self, session: SessionQueue) -> None:
        """Account for the remaining events of a session that is no longer served here."""
        ...


class SessionWriter:
    """Accepts the events of all sessions of a process, and commits them in batches.

    Each run has at most one commit in flight. This preserves the order, and the commit's reply determines the position
    of the list.

    Args:
        worker: The id of this worker.
        clock: The clock of event ids.
        ttl: Seconds that keys are kept; None: no expiry.
        breaker: The circuit breaker of the store.
        observers: Called with commits and losses.
        wake: Called when a batch is ready.
        account: Accounts for stored events.
        error_for: Creates the error that replaces a response, from the request id and the reason.
        max_bytes: Maximum bytes of events in memory.
        max_events: Maximum number of events in memory.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        worker: WorkerId,
        clock: EventClock,
        ttl: int | None,
        breaker: CircuitBreaker,
        observers: Observers,
        wake: Callable[[], None],
        account: Account,
        error_for: Callable[[RequestId, str], bytes],
        max_bytes: int,
        max_events: int,
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._ttl = ttl or 0
        self._breaker = breaker
        self._observers = observers
        self._wake = wake
        self._account = account
        self._error_for = error_for
        self._max_bytes = max_bytes
        self._max_events = max_events
        self.events = 0
        """Number of unacknowledged events."""
        self.bytes = 0
        """Memory of the unacknowledged events, in bytes."""
        self.runs: dict[str, Run] = {}
        """The runs of requests that are open or have events in memory."""
        # A standalone run never closes: it lives as long as the session's store and its events in memory.
        self._standalone: WeakValueDictionary[str, Run] = WeakValueDictionary()
        self._counter = 0
        self._sessions: WeakValueDictionary[str, SessionQueue] = WeakValueDictionary()
        self._ready: deque[Run] = deque()
        self._queued = 0
        """Number of pending events."""
        self._due = False
        self._linger: asyncio.TimerHandle | None = None
        self._flushing = False
        # The runs with pending events, oldest first.
        self._pending: OrderedDict[Run, None] = OrderedDict()
        self._in_flight_bytes = 0
        self._in_flight_events = 0
        # The last event of each acknowledged part.
        self._retained: deque[tuple[Run, PendingEvent]] = deque()
        self._retained_bytes = 0
        self._may_wait = True
        self._room: deque[asyncio.Future[None]] = deque()

    # -- accepting ----------------------------------------------------------------------------------------------------

    def session(self, keys: Keys) -> SessionQueue:
        """Return the queue of a session in this process."""
        queue = self._sessions.get(keys.prefix)
        if queue is None:
            queue = self._sessions[keys.prefix] = SessionQueue(keys)
        return queue

    def begin(self, session: SessionQueue, stream: StreamId, request_id: RequestId | None) -> Run:
        """Open a run.

        Args:
            session: The session.
            stream: The stream.
            request_id: The request id; None for a standalone stream.
        """
        self._counter += 1
        standalone = request_id is None
        entry = run_entry.STANDALONE if request_id is None else run_entry.open_request(stream, request_id)
        run = Run(session, stream, f"{self._worker.name}{self._counter:x}", entry, standalone=standalone)
        session.runs[stream] = run
        if standalone:
            self._standalone[run.name] = run
        else:
            self.runs[run.name] = run
        return run

    def close(self, session: SessionQueue) -> None:
        """Release a session. Only this ends its standalone run and the renewal of its keys."""
        session.bound = session.on_ended = session.on_fenced = None
        self._account.account(session)
        run = session.runs.pop(GET_STREAM_KEY, None)
        if run is not None:
            run.closed = True
            self._forget_run(run)

    def accept(self, run: Run, message: type, payload: bytes, traceparent: str = "", *, final: bool) -> PendingEvent:
        """Number an event and queue it.

        Args:
            run: The open run.
            message: The type of the message.
            payload: The message as JSON; b"" for a priming event.
            traceparent: The producer's W3C traceparent; "": none.
            final: Whether the event ends the run.
        """
        run.last = seq = run.last + 1
        if traceparent and not run.origin:
            run.origin = traceparent
        now = boot_nanoseconds()
        event = PendingEvent(run, seq, self._clock.at(now), now, message, payload, traceparent, final)
        session, size = run.session, event.size  # As `_count`, without its call.
        session.events += 1
        session.bytes += size
        self.events += 1
        self.bytes += size
        if final:
            self._close(run)
        if run.refused:
            self._forget(event, StoreOutcome.REFUSED)
            self._forget_run(run)
            return event
        if not run.pending:
            self._pending[run] = None
        run.pending.append(event)
        if run.watchers:
            run.wake()
        self._queued += 1
        if not run.queued:
            run.queued = True
            self._ready.append(run)
        if self._linger is None or run.followed or self._queued >= BATCH_EVENTS:
            self._schedule(urgent=run.followed)
        if not self._may_wait or self._breaker.reason is not None:
            self._overflow()  # Else the caller waits for room first.
        return event

    def followed(self, run: Run) -> None:
        """Commit a run's events without lingering while another process follows it."""
        run.followed = True
        if run.pending:
            self.flush_now()

    def find(self, name: str) -> Run | None:
        """Return a run by name, if it is open or has unexpired events in memory."""
        if self._ttl:
            horizon = self._clock.now() - self._ttl * _SECONDS
            while self._retained and self._retained[0][1].time < horizon:
                self._release_oldest()
        return self.runs.get(name) or self._standalone.get(name)

    def _known(self) -> list[Run]:
        return [*self.runs.values(), *self._standalone.values()]

    @staticmethod
    def _close(run: Run) -> None:
        """Close a run, so that it accepts no further events."""
        run.closed = True
        if run.session.runs.get(run.stream) is run:
            del run.session.runs[run.stream]

    def full(self, session: SessionQueue) -> bool:
        """Whether a caller must wait for room."""
        return self._may_wait and (
            session.events > SESSION_EVENTS
            or session.bytes > SESSION_BYTES
            or self.bytes > self._max_bytes // 2
            or self.events > self._max_events // 2
        )

    async def wait_for_room(self, session: SessionQueue) -> None:
        """Wait for room for at most `call_timeout`.

        After a timeout no caller waits until a commit is acknowledged.
        """
        if self._breaker.reason is not None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + self._breaker.call_timeout
        while self.full(session) and self._breaker.reason is None:
            room: asyncio.Future[None] = loop.create_future()
            self._room.append(room)
            try:
                async with asyncio.timeout_at(until):
                    await room
            except TimeoutError:
                self._may_wait = False
                self._release_room()
                self._overflow()
                return
            finally:
                with suppress(ValueError):
                    self._room.remove(room)

    def _release_room(self) -> None:
        for room in self._room:
            if not room.done():
                room.set_result(None)

    def _schedule(self, *, urgent: bool) -> None:
        if self._due:
            if len(self._ready) == 1:  # The sender may have found nothing ready, and be idle.
                self._wake()
            return  # Else the sender takes all ready events before it becomes idle.
        if urgent or self._flushing or self._queued >= BATCH_EVENTS:
            self._end_linger()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end_linger)

    def _end_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._due = True
        self._wake()

    # -- sending (`BatchSource`) --------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is a batch to send."""
        return self._due and bool(self._ready)

    def take(self, parts: int) -> SessionBatch | None:
        """Take the next batch, of at most `parts` runs."""
        taken: list[RunPart] = []
        events = payload_bytes = 0
        now = self._clock.now()
        while self._ready and len(taken) < parts and events < BATCH_EVENTS:
            run = self._ready[0]
            if run.limit and taken:
                break  # Redis refuses one of the run's events: it is sent alone until that event is found.
            part = self._part(run, now, BATCH_BYTES - payload_bytes if taken else None)
            if part is None:
                break
            self._ready.popleft()
            taken.append(part)
            events += len(part.events)
            payload_bytes += part.payload_bytes
            if run.limit:
                break
        if not self._ready:
            self._due = False
        return SessionBatch(self, self._ttl, taken) if taken else None

    def _part(self, run: Run, now: int, room: int | None) -> RunPart | None:
        """Take a run's events for a batch; None if the first exceeds `room`."""
        pending = run.pending
        sizes = [len(event.payload) for event in islice(pending, run.limit or PART_EVENTS)]
        size, most = sum(sizes), BATCH_BYTES if room is None else room
        while size > most and len(sizes) > (room is None):  # Without `room` the first is taken, whatever its size.
            size -= sizes.pop()
        events = [pending.popleft() for _ in sizes]
        large = sizes and max(sizes) > LARGE_PAYLOAD
        larges = [event for event in events if len(event.payload) > LARGE_PAYLOAD] if large else []
        if not events and pending:
            return None
        self._queued -= len(events)
        if not pending:
            self._pending.pop(run, None)
        run.in_flight = events
        memory = size + EVENT_BYTES * len(events)
        self._in_flight_events += len(events)
        self._in_flight_bytes += memory
        run.dirty = False
        # On the clock of ids, which includes suspend, because the TTL elapses in Redis meanwhile.
        horizon = now - self._ttl * _SECONDS // RENEWALS_PER_TTL
        # The index of a session that is new here may be missing, and only an ordinary part creates it.
        indexed = run.session.index_renewed > 0
        whole = indexed and not (run.sent or run.followed) and bool(events) and events[-1].final
        renews = run.renewed < horizon
        if renews:
            run.renewed = now
        # Renewals, of which a run's first part is one, and large payloads add rows to the index.
        renews_index = run.session.index_renewed < horizon and bool(renews or larges)
        if renews_index:
            run.session.index_renewed = now
        return RunPart(run, run.acknowledged + 1, events, memory, larges, renews, renews_index, whole)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def acknowledged(self, batch: SessionBatch, clock: int, states: list[str], seconds: float) -> None:
        """Handle Redis's reply to a batch.

        Args:
            batch: The batch.
            clock: Redis's clock, in microseconds since 1970.
            states: The state of each part; see `commit.lua`.
            seconds: Seconds between sending and the reply.
        """
        self._clock.synchronize(clock)
        self._may_wait = True
        now = boot_nanoseconds()
        latencies: list[float] = []
        messages: list[type] = []
        payload_bytes = 0
        for part, state in zip(batch.parts, states, strict=True):
            run, events = part.run, part.events
            kind = state[0]
            self._clear_in_flight(part, executed=kind == "k")
            run.foreign = b""
            if kind == "k":
                run.limit = run.removals = 0
                run.followed = state.endswith("w")
                if events:
                    # Stored for the first time: repeated ones were counted before Redis lost them.
                    stored = [event for event in events if event.outcome is None and not event.lost]
                    latencies += [(now - event.accepted) / 1e9 for event in stored]
                    messages += [event.message for event in stored]
                    size = part.size if len(stored) == len(events) else sum([event.size for event in stored])
                    size -= EVENT_BYTES * len(stored)
                    payload_bytes += size
                    if size:
                        self._report_stored(part, size)
                    self._acknowledge(part)
            elif kind == "b":
                self._rolled_back(run, events, int(state[1:]))
            elif kind == "f":
                self._remove_foreign(part, state[1:])
            elif kind == "o":
                run.session.index_renewed = 0  # Redis may not have it.
                self._take_back(part)
            elif kind == "!":
                self._drop_run(run, events, LossReason.REJECTED)
            else:
                self._refuse_run(run, events, ended=kind == "e")
            self._settle(run)
        self._release_room()
        if batch.events:
            self._observers.emit(
                BatchCommitted(
                    events=len(latencies),
                    payload_bytes=payload_bytes,
                    deferred=0,
                    seconds=seconds,
                    latencies=latencies,
                    messages=messages,
                )
            )

    def _report_stored(self, part: RunPart, size: int) -> None:
        """Account for an acknowledged part with `size` new payload bytes."""
        events, final = part.events, part.events[-1]
        response = len(final.payload) if final.final else 0
        larges = [event.seq for event in part.larges]
        self._account.stored(
            part.run, final.seq, max(0, size - response) + ELEMENT_BYTES * len(events), response, larges
        )

    def _clear_in_flight(self, part: RunPart, *, executed: bool) -> None:
        """Record that a part is no longer in flight; one that was not executed has renewed no TTL."""
        part.run.in_flight = []
        self._in_flight_events -= len(part.events)
        self._in_flight_bytes -= part.size
        if part.renews and not executed:
            part.run.renewed = 0
        if part.renews_index and not executed:
            part.run.session.index_renewed = 0

    def _acknowledge(self, part: RunPart) -> None:
        """Retain the events of an acknowledged part for a while, in case Redis loses them."""
        run, events = part.run, part.events
        run.acknowledged = events[-1].seq
        self._uncount(run.session, len(events), part.size)
        stored, lost = StoreOutcome.STORED, StoreOutcome.LOST
        for event in events:
            event.settle(lost if event.lost else stored)
        run.retained += events
        self._retained.append((run, events[-1]))
        self._retained_bytes += part.size
        while self._retained_bytes > RETAINED_BYTES:
            self._release_oldest()

    def _release_oldest(self) -> None:
        """Release the oldest retained part."""
        run, last = self._retained.popleft()
        retained, size = run.retained, 0
        if retained and retained[-1].seq <= last.seq:
            size = sum([event.size for event in retained])
            retained.clear()
        while retained and retained[0].seq <= last.seq:
            size += retained.popleft().size
        if size:
            self._retained_bytes -= size
            self._forget_run(run)

    def _settle(self, run: Run) -> None:
        """Queue a run again after its commit, or release it."""
        if run.pending or run.dirty:
            self._ready.append(run)
            if run.followed or self._queued >= BATCH_EVENTS or run.limit:
                self._end_linger()
            else:
                self._schedule(urgent=False)
        else:
            run.queued = False
            self._forget_run(run)

    def _forget_run(self, run: Run) -> None:
        if run.closed and not (run.retained or run.in_flight or run.pending or run.queued):
            self.runs.pop(run.name, None)

    def _count(self, event: PendingEvent) -> None:
        """Count an unacknowledged event."""
        session, size = event.run.session, event.size
        session.events += 1
        session.bytes += size
        self.events += 1
        self.bytes += size

    def _uncount(self, session: SessionQueue, events: int, size: int) -> None:
        """Uncount events that were acknowledged or dropped."""
        session.events -= events
        session.bytes -= size
        self.events -= events
        self.bytes -= size

    def _forget(self, event: PendingEvent, outcome: StoreOutcome) -> None:
        self._uncount(event.run.session, 1, event.size)
        event.settle(outcome)

    def renew(self) -> None:
        """Renew the keys of open runs, which may be silent for longer than the TTL."""
        horizon = self._clock.now() - self._ttl * _SECONDS // 4
        for run in self._known():
            if self._ttl and not run.closed and run.acknowledged and run.renewed < horizon:
                self._queue_check(run)
        self.flush_now()

    def _queue_check(self, run: Run) -> None:
        """Queue a commit of a run, even without events, to renew and verify its keys."""
        run.dirty = True
        if not run.queued and not run.refused:
            run.queued = True
            self._ready.append(run)

    # -- rollback -----------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Check whether Redis still has the acknowledged events after a restart or failover."""
        horizon = self._clock.now() - self._ttl * _SECONDS if self._ttl else 0
        for session in list(self._sessions.values()):
            session.index_renewed = 0  # Redis may have an older one.
        for run in self._known():
            recent = run.retained and run.retained[-1].time > horizon
            if run.acknowledged and (recent or not run.closed):
                self._queue_check(run)
        self.flush_now()

    def _rolled_back(self, run: Run, events: list[PendingEvent], last: int) -> None:
        """Commit again the retained events that Redis has lost; the others are a gap."""
        resent = deque(event for event in run.retained if event.seq > last)
        for _ in resent:
            event = run.retained.pop()
            self._retained_bytes -= event.size
            self._count(event)
        missing = (resent[0].first if resent else run.acknowledged + 1) - last - 1
        run.acknowledged = last
        run.renewed = 0  # So that the index, which may be older, is renewed, too.
        resent.extend(events)
        if missing > 0:
            # An error replaces a missing response.
            response = run.closed and not run.standalone and last + missing == run.last
            if response:
                error = self._error_for(request_id_of(run.entry), "the event store lost the response")
                resent.appendleft(self._error(run, run.last, self._clock.now(), error))
            if missing > response:
                resent.appendleft(self._placeholder(run, last + 1, last + missing - response, Gap.ROLLBACK))
            self._observers.emit(EventsLost(reason=LossReason.ROLLBACK, events=missing, payload_bytes=0))
        self._queued += len(resent)
        resent.extend(run.pending)
        run.pending = resent
        self._pending[run] = None

    def _placeholder(self, run: Run, first: int, last: int, reason: Gap) -> PendingEvent:
        """Create the placeholder of a range of lost events."""
        now = boot_nanoseconds()
        event = Placeholder(run, first, last, self._clock.at(now), now, reason)
        self._count(event)
        return event

    def _error(self, run: Run, seq: int, time: int, payload: bytes) -> PendingEvent:
        """Create the error that replaces a response."""
        event = PendingEvent(run, seq, time, boot_nanoseconds(), JSONRPCError, payload, "", final=True)
        self._count(event)
        return event

    # -- events that are not stored -----------------------------------------------------------------------------------

    def _refuse_run(self, run: Run, events: list[PendingEvent], *, ended: bool) -> None:
        """Stop storing a run that another worker has answered, or whose session has ended."""
        first = not run.refused
        run.refused = True
        self._close(run)
        self._take_pending(run, events)
        for event in events:
            self._forget(event, StoreOutcome.REFUSED)
        run.wake()
        session = run.session
        if ended and not session.ended:
            session.ended = True
            if session.on_ended is not None:
                session.on_ended()
        elif not ended and first and session.on_fenced is not None:
            session.on_fenced(run.stream)

    def _take_pending(self, run: Run, events: list[PendingEvent]) -> None:
        """Append the pending events of a run to `events`."""
        events.extend(run.pending)
        self._queued -= len(run.pending)
        run.pending.clear()
        self._pending.pop(run, None)

    def _drop_run(self, run: Run, events: list[PendingEvent], reason: LossReason) -> None:
        """Drop a run that Redis refuses permanently, because one of its keys has another type."""
        run.refused = True
        self._close(run)
        self._take_pending(run, events)
        self._report_lost(events, reason)
        for event in events:
            self._forget(event, StoreOutcome.LOST)
        run.wake()

    def _report_lost(self, events: list[PendingEvent], reason: LossReason) -> None:
        lost = [event for event in events if not event.lost]
        if lost:
            size = sum(len(event.payload) for event in lost)
            self._observers.emit(EventsLost(reason=reason, events=len(lost), payload_bytes=size))

    def _take_back(self, part: RunPart) -> None:
        """Make the events of a part pending again, or have the check repeated."""
        run = part.run
        if not part.events:
            run.dirty = True
            return
        if not run.pending:
            self._pending[run] = None
        run.pending.extendleft(reversed(part.events))
        self._queued += len(part.events)

    def _remove_foreign(self, part: RunPart, digest: str) -> None:
        """Repeat a commit that removes another program's element from the end of the list."""
        run = part.run
        # A cluster's client may have repeated the commit by itself, and found its events.
        own = any(hashlib.sha1(event.element(), usedforsecurity=False).hexdigest() == digest for event in part.events)
        if not own:
            if run.removals == REMOVALS:
                self._drop_run(run, part.events, LossReason.REJECTED)
                return
            run.foreign = digest.encode()
            run.removals += 1
            self._observers.emit(ForeignElementsRemoved(elements=1))
        self._take_back(part)

    def refused(self, batch: SessionBatch, error: str) -> bool:
        """Bisect a batch that Redis refuses, down to the refused event, and replace that event.

        Returns:
            Whether the batch was replaced.
        """
        parts = batch.parts
        if len(parts) == 1 and len(parts[0].events) <= 1:
            # If Redis refuses a placeholder, too, the event is not the cause.
            return bool(parts[0].events) and self._replace(parts[0])
        for part in parts:
            run = part.run
            self._clear_in_flight(part, executed=False)
            self._take_back(part)
            if part.events:
                run.limit = max(1, len(part.events) // 2) if len(parts) == 1 else len(part.events)
            self._ready.append(run)
        self._end_linger()
        return True

    def _replace(self, part: RunPart) -> bool:
        """Replace the only event of a part with an error or placeholder."""
        run, event = part.run, part.events[0]
        if event.lost or (event.message is JSONRPCError and len(event.payload) < EVENT_BYTES):
            return False
        self._clear_in_flight(part, executed=False)
        self._report_lost([event], LossReason.REJECTED)
        reason = "the response was too large for the event store, or was refused by it"
        self._substitute(run, [event], reason, Gap.REJECTED)
        self._ready.append(run)
        self._end_linger()
        return True

    def _substitute(self, run: Run, events: list[PendingEvent], reason: str, gap: Gap) -> None:
        """Replace pending events with a placeholder, and a response with an error."""
        first, last = events[0].first, events[-1]
        kept: list[PendingEvent] = []
        if last.final:
            kept.append(self._error(run, last.seq, last.time, self._error_for(request_id_of(run.entry), reason)))
        end = last.seq - len(kept)
        if end >= first:
            kept.insert(0, self._placeholder(run, first, end, gap))
        for event in events:
            self._forget(event, StoreOutcome.LOST)
        if not run.pending and kept:
            self._pending[run] = None
        run.pending.extendleft(reversed(kept))
        self._queued += len(kept)

    def _overflow(self) -> None:
        """Release retained events, then drop pending events of whole runs, oldest first.

        Stops when the bounds hold.
        """
        if not self._over(self._retained_bytes):
            return
        while self._retained and self._over(self._retained_bytes):
            self._release_oldest()
        for run in list(self._pending):
            if not self._over(0):
                return
            events = list(run.pending)
            if all(event.lost or (event.final and event.message is JSONRPCError) for event in events):
                continue
            self._take_pending(run, [])
            self._report_lost(events, LossReason.OVERFLOW)
            reason = "the response was sent while the event store was unreachable, and dropped"
            self._substitute(run, events, reason, Gap.OVERFLOW)
            self._pending.move_to_end(run)

    def _over(self, retained_bytes: int) -> bool:
        """Whether the bounds are exceeded, not counting the few batches in flight."""
        pending_bytes, pending_events = self.bytes - self._in_flight_bytes, self.events - self._in_flight_events
        return pending_bytes + retained_bytes > self._max_bytes or pending_events > self._max_events

    def abandoned(self, batch: SessionBatch) -> None:
        """Take back the events of a batch when the store is closed."""
        for part in batch.parts:
            run = part.run
            self._clear_in_flight(part, executed=False)
            run.pending.extendleft(reversed(part.events))
            self._queued += len(part.events)
            self._ready.append(run)

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Send all pending events without lingering until the block ends.

        Otherwise the sender would be idle, and seem to have finished, while events are still collected.
        """
        self._flushing = True
        self.flush_now()
        try:
            yield
        finally:
            self._flushing = False

    def flush_now(self) -> None:
        """Send the pending events without lingering."""
        if self._ready:
            self._end_linger()

    def clear(self) -> int:
        """Drop all events when the store is closed.

        Returns:
            The number of events that were not stored.
        """
        left: list[PendingEvent] = []
        for run in self._known():
            events = [*run.in_flight, *run.pending]
            self._in_flight_events -= len(run.in_flight)
            self._in_flight_bytes -= sum(event.size for event in run.in_flight)
            run.in_flight = []
            self._take_pending(run, [])
            run.retained.clear()
            run.queued = run.dirty = False
            if events:  # Later events of the run would follow a gap.
                run.refused = True
                self._close(run)
            left += events
            for event in events:
                self._forget(event, StoreOutcome.LOST)
            self._forget_run(run)
        lost = [event for event in left if not event.lost]
        self._report_lost(left, LossReason.SHUTDOWN)
        self._ready.clear()
        self._retained.clear()
        self._retained_bytes = 0
        self._queued = 0
        self._due = False
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._may_wait = True
        self._release_room()
        return len(lost)
