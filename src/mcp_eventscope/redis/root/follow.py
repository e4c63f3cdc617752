"""Followers of the root store's streams, woken when any worker stores an event."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import anyio

from mcp_eventscope.cancellation import is_cancelling
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.client import AnyRedis, map_redis_errors
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.pubsub import Subscriptions
from mcp_eventscope.redis.root import scripts
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.store.messages import EventId, StreamId

POLL_SECONDS = 0.5
"""Seconds between polls of the followed streams: the maximum delay after a lost wake-up, or with a writer that does not
publish, such as mcp-persist."""
POLL_STREAMS = 256
"""Maximum number of streams polled in one round trip."""


class Follower:
    """One follower and its position."""

    __slots__ = ("_woken", "cursor")

    def __init__(self, cursor: EventId) -> None:
        self.cursor = cursor
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Wake the follower to read the stream."""
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Return when the follower was woken since the last wait, or after `seconds`."""
        with anyio.move_on_after(seconds):
            await self._woken.wait()
        self._woken = anyio.Event()


class Followers:
    """The followers of one process. A wake-up carries no events: they are read from the stream.

    Args:
        redis: The client.
        keys: The store's keys.
        worker: The id of this worker.
        subscriptions: The subscriptions of this process.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: WorkerId, subscriptions: Subscriptions) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._subscriptions = subscriptions
        self._followers: dict[StreamId, set[Follower]] = {}
        self._polling: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._followers.values()))

    @contextmanager
    def following(self, stream_id: StreamId, cursor: EventId) -> Iterator[Follower]:
        """Register a follower until the block ends. Enter before reading, or wake-ups are missed.

        Args:
            stream_id: The stream.
            cursor: The last event read from the stream.
        """
        if not self._followers:
            self._subscriptions.subscribe(self._keys.stored, self._on_message)
        follower = Follower(cursor)
        self._followers.setdefault(stream_id, set()).add(follower)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll_loop(), name="eventscope-followers")
        try:
            yield follower
        finally:
            followers = self._followers[stream_id]
            followers.discard(follower)
            if not followers:
                del self._followers[stream_id]
            if not self._followers:
                self._subscriptions.unsubscribe(self._keys.stored, self._on_message)

    def notify(self, stream_ids: Iterable[StreamId]) -> None:
        """Wake the followers of these streams."""
        if self._followers:
            for stream_id in stream_ids:
                for follower in self._followers.get(stream_id, ()):
                    follower.wake()

    def _on_message(self, message: bytes | None) -> None:
        """Handle a notice of stored events, or None when messages may have been lost."""
        worker, *streams = (message or b"").split(b"\n")
        if worker == self._worker.name.encode():
            return
        # A notice without streams may concern any stream.
        self.notify([stream.decode("utf-8", "replace") for stream in streams] or tuple(self._followers))

    async def _poll_loop(self) -> None:
        try:
            while self._followers and not is_cancelling():
                await asyncio.sleep(POLL_SECONDS)
                with contextlib.suppress(StoreError, ValueError):
                    await self._poll()
        finally:
            self._polling = None

    async def _poll(self) -> None:
        streams = list(self._followers)
        for start in range(0, len(streams), POLL_STREAMS):
            group = streams[start : start + POLL_STREAMS]
            with map_redis_errors("read from", self._redis):
                last = await scripts.peek(self._redis, self._keys, group)
            for stream_id, event_id in zip(group, last, strict=True):
                if not event_id.isdigit():
                    continue
                for follower in self._followers.get(stream_id, ()):
                    if int(event_id) > int(follower.cursor):
                        follower.wake()
