"""What waits to be stored: in order, shared fairly between sessions, and bounded. No I/O."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass

from mcp_eventscope.answers import not_stored
from mcp_eventscope.redis import codec
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.write.batch import BATCH_BYTES
from mcp_eventscope.types import EventId, StreamId

ITEM_BYTES = 512
"""What an event that waits costs beside its payload, for the bound on memory."""
BATCH_EVENTS = 64
"""The most events of one batch: Redis is busy with it for less than a millisecond."""
SMALL_BATCH = 12
"""Where more wait, they go in two batches at least: Redis works on one while the other is packed or unpacked."""
PART_EVENTS = 32
"""The most events of one session in a batch: who says much leaves room for the others."""
_LOST = "lost:"


class Item:
    """One event that waits. `role` is what it is to its stream: see `append.lua`."""

    __slots__ = (
        "deadline",
        "deferred",
        "dropped",
        "lane",
        "later",
        "payload",
        "role",
        "stream_id",
        "under_way",
        "waiter",
    )

    def __init__(self, lane: "Lane", stream_id: StreamId, payload: bytes, role: str) -> None:
        self.lane = lane
        self.stream_id = stream_id
        self.payload = payload
        self.role = role
        self.waiter: asyncio.Future[EventId | None] | None = None
        """Who waits for the id; it is let go with None."""
        self.later: asyncio.Future[EventId] | None = None
        """Gets the id of a deferred event."""
        self.deadline = 0.0
        """When the waiter is let go, by the loop's clock."""
        self.under_way = False
        self.deferred = False
        self.dropped = False

    @property
    def size(self) -> int:
        """Bytes that it takes up while it waits."""
        return len(self.payload) + ITEM_BYTES

    @property
    def stands_for_others(self) -> bool:
        """Whether it is the mark of a stream that was given up."""
        return self.role.startswith(_LOST)


class Lane:
    """One session's queue. Of each, at most one part is under way: so order is kept, whatever becomes of a batch."""

    __slots__ = ("__weakref__", "deferred", "dropped", "items", "keys", "last_id", "packed", "queued")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.items: deque[Item] = deque()
        self.queued = False
        """Whether it has its turn to come, or a part under way."""
        self.deferred = 0
        """Deferred events of it, under way or not: what comes later is behind them."""
        self.dropped = 0
        """Dropped items that are still in the queue."""
        self.last_id = 0
        """The last id that was given out here: ids rise even after Redis has lost its counter."""
        self.packed: tuple[bytes, bytes] | None = None
        """Its keys and prefix as they are sent, kept by whoever sends them."""


@dataclass(slots=True, eq=False)
class Part:
    """One session's events in a batch: committed all at once, and once, under a number that is its own."""

    lane: Lane
    number: int
    items: list[Item]


@dataclass(slots=True, eq=False)
class Group:
    """What goes to Redis together."""

    parts: list[Part]
    events: int = 0
    payload_bytes: int = 0


class Backlog:
    """The queues of a process.

    Args:
        max_bytes: The most bytes that deferred events may take up.
        max_events: The most deferred events.
    """

    def __init__(self, max_bytes: int, max_events: int) -> None:
        self._max_bytes = max_bytes
        self._max_events = max_events
        self.events = 0
        """Deferred events, those under way included."""
        self.bytes = 0
        """What they take up."""
        self.queued = 0
        """Events that are not under way, deferred or not."""
        self.under_way = 0
        """Events that are."""
        self._turns: deque[Lane] = deque()
        self._number = 0
        # By stream, the one that was deferred first in front: what is given up first.
        self._deferred: OrderedDict[tuple[Lane, StreamId], deque[Item]] = OrderedDict()
        # What stands for streams that were given up.
        self._marks: OrderedDict[tuple[Lane, StreamId], Item] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Whether there is an event whose session has none under way."""
        return bool(self._turns)

    def put(self, item: Item) -> None:
        """Queue an event."""
        lane = item.lane
        lane.items.append(item)
        self.queued += 1
        if not lane.queued:
            lane.queued = True
            self._turns.append(lane)

    def take(self, parts: int) -> Group | None:
        """The next batch, of so many sessions at most; None when nothing waits whose session has none under way."""
        batch = Group([])
        most = min(BATCH_EVENTS, max(SMALL_BATCH, (self.queued + self.under_way + 1) // 2))
        while self._turns and len(batch.parts) < parts and batch.events < most:
            lane = self._turns.popleft()
            items = self._take_of(lane, batch, most)
            if items:
                self._number += 1
                batch.parts.append(Part(lane, self._number, items))
            elif lane.items:
                self._turns.appendleft(lane)  # Its event is too large for what is left of this batch.
                break
            else:
                lane.queued = False
        return batch if batch.parts else None

    def _take_of(self, lane: Lane, batch: Group, most: int) -> list[Item]:
        items: list[Item] = []
        waiting = lane.items
        while waiting and len(items) < PART_EVENTS and batch.events < most:
            item = waiting[0]
            if item.dropped:
                waiting.popleft()
                lane.dropped -= 1
                continue
            size = len(item.payload)
            if batch.events and batch.payload_bytes + size > BATCH_BYTES:
                break
            waiting.popleft()
            item.under_way = True
            items.append(item)
            batch.events += 1
            batch.payload_bytes += size
            if item.deferred:
                self._leave(item)
        self.queued -= len(items)
        self.under_way += len(items)
        return items

    def _leave(self, item: Item) -> None:
        key = (item.lane, item.stream_id)
        if item.stands_for_others:
            del self._marks[key]
            return
        stream = self._deferred[key]
        stream.remove(item)  # Mostly the first.
        if not stream:
            del self._deferred[key]

    def settled(self, part: Part) -> None:
        """Of a part it is known what became of it: its session may have another under way."""
        lane = part.lane
        self.under_way -= len(part.items)
        if lane.deferred:
            for item in part.items:
                if item.deferred:
                    self._forget(item)
        if lane.items:
            self._turns.append(lane)
        else:
            lane.queued = False

    def put_back(self, part: Part) -> None:
        """Return a part that will not be sent again."""
        self.under_way -= len(part.items)
        self.queued += len(part.items)
        part.lane.items.extendleft(reversed(part.items))
        self._turns.append(part.lane)

    def _forget(self, item: Item) -> None:
        item.lane.deferred -= 1
        self.events -= 1
        self.bytes -= item.size

    def defer(self, item: Item) -> None:
        """Nobody waits for this event any longer: from now on it counts."""
        item.deferred = True
        item.lane.deferred += 1
        self.events += 1
        self.bytes += item.size
        if item.stands_for_others:
            self._marks[item.lane, item.stream_id] = item
        elif not item.under_way:
            self._deferred.setdefault((item.lane, item.stream_id), deque()).append(item)

    def clear(self) -> list[Item]:
        """Forget everything that waits. Returns it."""
        left = [item for lane in self._turns for item in lane.items if not item.dropped]
        for item in left:
            if item.deferred:
                self._forget(item)
        for lane in self._turns:
            lane.items.clear()
            lane.queued, lane.dropped = False, 0
        self._turns.clear()
        self._deferred.clear()
        self._marks.clear()
        self.queued = 0
        return left

    def overflow(self) -> list[Item]:
        """Give up whole streams, the one that was deferred first first, until the rest is within the bounds.

        Of each a mark stays in its place, so that a resume will tell of a gap, and so that it ends if the response was
        lost; the marks go last.

        Returns:
            Copies of what is given up.
        """
        gone: list[Item] = []
        while self.bytes > self._max_bytes or self.events > self._max_events:
            if self._deferred:
                gone += self._give_up(*self._deferred.popitem(last=False))
            elif self._marks:
                self._drop(self._marks.popitem(last=False)[1])
            else:
                break  # The rest is under way.
        return gone

    def _give_up(self, key: tuple[Lane, StreamId], items: deque[Item]) -> list[Item]:
        """Give a stream up. The first of its events, or the mark that is there, stands for them."""
        gone = [_copy(item) for item in items]
        standing = self._marks.pop(key, items[0])
        mark = _mark_of([*items, standing])
        if standing is not items[0]:
            items.appendleft(standing)
        for item in items:
            if item is standing and mark is not None:
                self._forget(item)
                item.role, item.payload = mark
                self.defer(item)
            else:
                self._drop(item)
        lane = key[0]
        if lane.dropped * 2 > len(lane.items):
            lane.items = deque(item for item in lane.items if not item.dropped)
            lane.dropped = 0
        return gone

    def _drop(self, item: Item) -> None:
        self._forget(item)
        item.dropped, item.payload = True, b""
        item.lane.dropped += 1
        self.queued -= 1


def _mark_of(items: list[Item]) -> tuple[str, bytes] | None:
    """The role and payload of what stands for these events of one stream; None where nothing has to."""
    roles = {item.role.removeprefix(_LOST).partition("@")[0] for item in items if not item.role.startswith("orphaned:")}
    if not roles:
        return None  # Whoever follows the stream gives the request up anew.
    if "final" in roles:
        return f"{_LOST}final", codec.encode(not_stored(items[0].stream_id, "it was dropped"))
    return _LOST + roles.pop(), b""


def _copy(item: Item) -> Item:
    copied = Item(item.lane, item.stream_id, item.payload, item.role)
    copied.later = item.later
    return copied
