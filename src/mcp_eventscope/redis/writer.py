"""The writer of the root store: each caller gets its event's id once Redis has acknowledged it."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from weakref import WeakValueDictionary

from mcp_eventscope.errors import StoreRejectedError
from mcp_eventscope.redis.backlog import Backlog, Group, Item, Lane
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.commits import Commits, Outcome, outcomes, refusal
from mcp_eventscope.redis.connection import AnyRedis, address_of
from mcp_eventscope.redis.identity import Identity
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.write.batch import Batch
from mcp_eventscope.types import Committed, EventId, LossReason, Lost, StoreFact, StreamId, Trouble, WentAway

LOOP_LATE = 0.05
"""Seconds by which a timer may be late before the loop, and not Redis, is taken for what was slow."""


class Writer:
    """Stores events in groups: each caller gets its id once Redis has acknowledged it.

    A caller waits for at most the circuit breaker's `call_timeout`, and not at all while the circuit is open: the event
    is then deferred, and stored when Redis is back, in its order.

    Args:
        redis: The client.
        worker: This process.
        ttl: Seconds that keys are kept; None: for ever.
        breaker: Records the time-outs.
        backlog: The queues.
        observers: Called with what is committed and lost.
        wake: Called when there is something to send.
        stored: Called with the keys and streams of what was stored.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place
        self,
        redis: AnyRedis,
        worker: Identity,
        ttl: int | None,
        breaker: CircuitBreaker,
        backlog: Backlog,
        observers: Observers,
        wake: Callable[[], None],
        stored: Callable[[Keys, set[StreamId]], None],
    ) -> None:
        self._redis = redis
        self._breaker = breaker
        self._backlog = backlog
        self._observers = observers
        self._wake = wake
        self._stored = stored
        self._commits = Commits(ttl, worker)
        self._lanes: WeakValueDictionary[str, Lane] = WeakValueDictionary()
        self._waiting: deque[Item] = deque()
        self._timer: asyncio.TimerHandle | None = None
        observers.subscribe(self._observed)

    @property
    def deferred(self) -> tuple[int, int]:
        """The deferred events, and the bytes that they take up."""
        return self._backlog.events, self._backlog.bytes

    @property
    def ready(self) -> bool:
        """Whether there is something to send (`BatchSource`)."""
        return self._backlog.ready

    def take(self, parts: int) -> "RootBatch | None":
        """The next batch (`BatchSource`)."""
        group = self._backlog.take(parts)
        return None if group is None else RootBatch(self, self._commits, group)

    def lane(self, keys: Keys) -> Lane:
        """The queue of a session, or of the root."""
        lane = self._lanes.get(keys.prefix)
        if lane is None:
            lane = self._lanes[keys.prefix] = Lane(keys)
        return lane

    def submit(self, item: Item) -> "asyncio.Future[EventId | None] | None":
        """Store an event, or have it stored.

        Returns:
            What to wait for: its id, "" when it was refused, None when it is deferred after all; it raises
            `StoreRejectedError` when Redis refused it for good. None: it is deferred, there is nothing to wait for.
        """
        loop = asyncio.get_running_loop()
        self._backlog.put(item)
        if self._breaker.reason is not None or item.lane.deferred:
            self._defer(item)
            self._wake()
            return None
        item.waiter = waiter = loop.create_future()
        item.deadline = loop.time() + self._breaker.call_timeout
        self._waiting.append(item)
        if self._timer is None:
            self._timer = loop.call_at(item.deadline, self._look_at_waiting, loop, item.deadline)
        self._wake()
        return waiter

    def clear(self) -> int:
        """Give up what is not stored: the store is being closed.

        Returns:
            The events that were given up.
        """
        left = self._backlog.clear()
        for item in left:
            self._answer(item, None)
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._lose(left, LossReason.SHUTDOWN)

    # -- who waits ----------------------------------------------------------------------------------------------------

    def _look_at_waiting(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Let go who has waited for long enough: if one has, Redis is slow, and nobody shall wait."""
        waiting, now = self._waiting, loop.time()
        self._timer = None
        while waiting and waiting[0].waiter is None:
            waiting.popleft()
        if not waiting:
            return
        deadline = waiting[0].deadline
        if deadline <= now:
            if now - due < LOOP_LATE:
                text = f"Redis at {address_of(self._redis)}: no reply within {self._breaker.call_timeout} seconds"
                self._breaker.record_failure(Trouble.TIMEOUT, text)
                return
            deadline = now + LOOP_LATE  # The reply may be there, and nobody has had the time to read it.
        self._timer = loop.call_at(deadline, self._look_at_waiting, loop, deadline)

    def _observed(self, fact: StoreFact) -> None:
        """From now on nobody waits, until a batch is answered in time."""
        if isinstance(fact, WentAway):
            waiting, self._waiting = self._waiting, deque()
            for item in waiting:
                if item.waiter is not None:
                    self._defer(item)

    def _defer(self, item: Item) -> None:
        """Nobody waits for this one any longer."""
        item.later = asyncio.get_running_loop().create_future()
        self._answer(item, None)
        self._backlog.defer(item)
        if lost := self._backlog.overflow():
            self._lose(lost, LossReason.OVERFLOW)

    @staticmethod
    def _answer(item: Item, event_id: EventId | None) -> None:
        """Tell who waits, if anybody does, and who has been told that it will be stored."""
        waiter, item.waiter = item.waiter, None
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(event_id)
        elif event_id is not None and item.later is not None and not item.later.done():
            item.later.set_result(event_id)

    def _lose(self, items: list[Item], reason: LossReason) -> int:
        lost = [item for item in items if not item.stands_for_others]
        for item in items:
            if item.later is not None:
                item.later.cancel()
        if lost:
            size = sum(len(item.payload) for item in lost)
            self._observers.emit(Lost(reason=reason, events=len(lost), payload_bytes=size))
        return len(lost)

    def settled(self, batch: Group, outcomes: list[Outcome], seconds: float) -> None:
        """A batch was answered."""
        deferred = sum(part.lane.deferred and sum(item.deferred for item in part.items) for part, *_ in outcomes)
        rejected: list[Item] = []
        for part, first, turned_down in outcomes:
            if turned_down or part.lane.deferred:
                self._tell_each(part.items, first, turned_down, rejected)
            else:
                for event_id, item in enumerate(part.items, first):  # As it mostly is, and so without detours.
                    waiter, item.waiter = item.waiter, None
                    if waiter is not None and not waiter.done():
                        waiter.set_result(str(event_id))
            if first:
                part.lane.last_id = first + len(part.items) - 1
                self._stored(part.lane.keys, {item.stream_id for item in part.items})
            self._backlog.settled(part)
        waiting = self._waiting
        while waiting and waiting[0].waiter is None:
            waiting.popleft()
        if self._observers and batch.events:
            events, size = batch.events - len(rejected), batch.payload_bytes
            self._observers.emit(Committed(events=events, payload_bytes=size, deferred=deferred, seconds=seconds))
        self._lose(rejected, LossReason.REJECTED)

    def _tell_each(self, items: list[Item], first: int, turned_down: Mapping[int, str], rejected: list[Item]) -> None:
        for index, item in enumerate(items):
            error = turned_down.get(index)
            if error:
                self._reject(item, error, rejected)
            else:
                self._answer(item, str(first + index) if error is None else "")

    def _reject(self, item: Item, error: str, rejected: list[Item]) -> None:
        """An event was not stored, and will not be."""
        waiter, item.waiter = item.waiter, None
        if waiter is None:
            rejected.append(item)
        elif not waiter.done():
            waiter.set_exception(
                StoreRejectedError(f"could not append to Redis at {address_of(self._redis)}: it answered {error}")
            )

    def put_back(self, group: Group) -> None:
        """Return the events of a batch that will not be sent again."""
        for part in group.parts:
            self._backlog.put_back(part)


class RootBatch(Batch):
    """A batch of the root store."""

    __slots__ = ("_commits", "_group", "_writer")

    def __init__(self, writer: Writer, commits: Commits, group: Group) -> None:
        super().__init__()
        self._writer = writer
        self._commits = commits
        self._group = group
        self.events = group.events
        self.payload_bytes = group.payload_bytes

    def packed(self, *, as_eval: bool) -> list[bytes]:
        """The command as bytes for the wire."""
        return self._commits.packed(self._group, whole=as_eval)

    def arguments(self, *, as_eval: bool) -> list[str | bytes]:
        """The command as arguments."""
        return self._commits.arguments(self._group, whole=as_eval)

    def acknowledge(self, reply: bytes, seconds: float) -> None:
        """Take Redis's reply."""
        self._writer.settled(self._group, outcomes(self._group, reply), seconds)

    def refuse(self, error: str) -> bool:
        """Reject the events."""
        self._writer.settled(self._group, refusal(self._group, error), 0.0)
        return True

    def abandon(self) -> None:
        """Return the events."""
        self._writer.put_back(self._group)
