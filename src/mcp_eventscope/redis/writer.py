"""The one writer of a process: nobody waits for Redis for long, and what it cannot take yet waits instead."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from weakref import WeakValueDictionary

from mcp_eventscope.errors import StoreRejectedError
from mcp_eventscope.redis.backlog import Backlog, Batch, Item, Lane
from mcp_eventscope.redis.commits import Commits, Outcome
from mcp_eventscope.redis.connection import AnyRedis, address_of
from mcp_eventscope.redis.identity import Identity
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.sending import Sender
from mcp_eventscope.types import (
    CameBack,
    Committed,
    EventId,
    LossReason,
    Lost,
    Retried,
    StoreFact,
    StreamId,
    Trouble,
    Waiting,
    WentAway,
)

LOOP_LATE = 0.05
"""Seconds by which a timer may be late before the loop, and not Redis, is taken for what was slow."""


class Writer:
    """Stores events in groups: each caller gets its id once Redis has acknowledged it.

    Nobody waits for longer than the store's time limit, nor at all while Redis is known to be away: the event is then
    deferred, and stored when Redis is back, in its order.

    Args:
        redis: Where to.
        worker: This process.
        ttl: Seconds that keys are kept; None: for ever.
        store_timeout: Seconds that a caller waits at most.
        backlog: The queues.
        stored: Called with the keys and streams of what was stored.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place
        self,
        redis: AnyRedis,
        worker: Identity,
        ttl: int | None,
        store_timeout: float,
        backlog: Backlog,
        stored: Callable[[Keys, set[StreamId]], None],
    ) -> None:
        self.away: Trouble | None = None
        """Why Redis is known to be away, or too slow; None when it is not."""
        self._redis = redis
        self._patience = store_timeout
        self._backlog = backlog
        self._stored = stored
        self._sender = Sender(redis, Commits(ttl, worker), backlog, self)
        self._observers: list[Callable[[StoreFact], None]] = []
        self._lanes: WeakValueDictionary[str, Lane] = WeakValueDictionary()
        self._waiting: deque[Item] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._away_since = 0.0

    @property
    def waiting(self) -> Waiting:
        """What is deferred."""
        return Waiting(events=self._backlog.events, payload_bytes=self._backlog.bytes, away=self.away)

    @property
    def unreachable(self) -> bool:
        """Whether Redis is known not to answer, whatever it is asked."""
        return self.away is not None and self.away.unreachable

    @property
    def patience(self) -> float:
        """Seconds that anybody waits for Redis at most, while somebody else waits for him."""
        return self._patience

    def suspect(self, trouble: Trouble) -> None:
        """Somebody else has waited for Redis for long enough, or has not reached it."""
        self.failed(trouble, f"asked for something else: {trouble.value}")
        self._sender.work(asyncio.get_running_loop())

    def observe(self, told: Callable[[StoreFact], None]) -> None:
        """Call back with what no caller is told."""
        self._observers.append(told)

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
        if self.away is not None or item.lane.deferred:
            self._defer(item)
            self._sender.work(loop)
            return None
        item.waiter = waiter = loop.create_future()
        item.deadline = loop.time() + self._patience
        self._waiting.append(item)
        if self._timer is None:
            self._timer = loop.call_at(item.deadline, self._look_at_waiting, loop, item.deadline)
        self._sender.work(loop)
        return waiter

    async def flush(self, seconds: float) -> int:
        """Store what waits, for at most so long; give up the rest, and the connection.

        Returns:
            The events that were given up.
        """
        left: list[Item] = []
        for batch in await self._sender.rest(seconds):
            for part in batch.parts:
                left += part.items
                self._backlog.settled(part)
        left += self._backlog.clear()
        for item in left:
            self._answer(item, None)
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.away = None
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
                self.failed(Trouble.TIMEOUT, f"no answer within {self._patience} seconds")
                return
            deadline = now + LOOP_LATE  # The reply may be there, and nobody has had the time to read it.
        self._timer = loop.call_at(deadline, self._look_at_waiting, loop, deadline)

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
            self._tell(Lost(reason=reason, events=len(lost), payload_bytes=sum(len(item.payload) for item in lost)))
        return len(lost)

    def _tell(self, fact: StoreFact) -> None:
        for told in self._observers:
            # Who looks on must not keep what waits from being stored.
            with contextlib.suppress(Exception):
                told(fact)

    # -- what the sender tells ----------------------------------------------------------------------------------------

    def failed(self, trouble: Trouble, error: str) -> None:
        """From now on nobody waits, until a batch is answered in time."""
        loop = asyncio.get_running_loop()
        if self.away is None:
            self._away_since = loop.time()
        if self.away is not trouble:
            self.away = trouble
            self._tell(WentAway(reason=trouble, error=error))
        waiting, self._waiting = self._waiting, deque()
        for item in waiting:
            if item.waiter is not None:
                self._defer(item)

    def retried(self, batch: Batch, trouble: Trouble, error: str) -> None:
        """A batch is sent again."""
        if batch.events:
            self._tell(Retried(reason=trouble, events=batch.events, error=error))

    def settled(self, batch: Batch, outcomes: list[Outcome], seconds: float) -> None:
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
        if self.away is not None and seconds < self._patience:
            trouble, self.away = self.away, None
            self._tell(CameBack(reason=trouble, seconds=asyncio.get_running_loop().time() - self._away_since))
        if self._observers and batch.events:
            events, size = batch.events - len(rejected), batch.payload_bytes
            self._tell(Committed(events=events, payload_bytes=size, deferred=deferred, seconds=seconds))
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
