"""Followers of streams: woken when any worker stores an event, and when a worker is declared dead."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

from mcp_eventscope.cancellation import is_cancelling
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, call, is_cluster, node_of
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.pubsub import Subscriptions
from mcp_eventscope.redis.read.delivery import Delivery
from mcp_eventscope.redis.run_entry import ANSWERED
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.runs import worker_of
from mcp_eventscope.store.messages import StreamId

POLL_SECONDS = 0.5
"""Seconds between polls. A lost wake-up delays a follower by at most this, and the request of a dead worker is answered
at most this after its lease."""
STANDALONE_POLLS = 20
"""Polls after which standalone streams are read although their channel is subscribed: a worker may lack the permission
to publish."""
POLL_STREAMS = 256
"""Streams per round trip."""
_CALLS = 16
"""Maximum number of concurrent calls to each node of a cluster."""

_peek = Script("peek_runs.lua")


class Follower:
    """One follower, its position, and the reasons to wake it."""

    __slots__ = ("_waiter", "_woken", "delivery", "keys", "orphaned", "run", "unclaimed_since")

    def __init__(self, keys: Keys, delivery: Delivery, run: str | None) -> None:
        self.keys = keys
        self.delivery = delivery
        self.run = run
        """The run of a request; None on a standalone stream, which has several."""
        self.orphaned = False
        """Whether the worker of the request is dead, or Redis has named no such request for as long as a lease."""
        self.unclaimed_since: float | None = None
        """Since when Redis has named no such run although its worker is alive, by the monotonic clock."""
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None

    def wake(self, _: object = None) -> None:
        """Wake the follower. A published message may be passed, and is ignored."""
        self._woken = True
        self._release()

    async def wait(self, seconds: float) -> None:
        """Return when the follower was woken since the last wait, or after `seconds`."""
        if self._woken:
            await asyncio.sleep(0)
        else:
            # Thousands may wait, and a future and a timer take a quarter of the memory of an event and a timeout.
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, self._release)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._woken = False

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RunFollowers:
    """The followers of one process that read from Redis. A wake-up carries no data; followers read the lists.

    Args:
        redis: The client.
        breaker: Whether Redis can be called.
        worker: This process.
        workers: Knows which workers are alive.
        subscriptions: The subscriptions.
    """

    def __init__(
        self, redis: AnyRedis, breaker: CircuitBreaker, worker: WorkerId, workers: Workers, subscriptions: Subscriptions
    ) -> None:
        self._redis = redis
        self._breaker = breaker
        self._worker = worker
        self._workers = workers
        self._subscriptions = subscriptions
        self._followers: set[Follower] = set()
        self._polled: dict[Follower, asyncio.Task[None]] = {}
        """The calls in progress on a cluster."""
        self._calls: defaultdict[str, asyncio.Semaphore] = defaultdict(partial(asyncio.Semaphore, _CALLS))
        """The limits of calls, by node."""
        self._polling: asyncio.Task[None] | None = None
        self._polls = 0

    @contextmanager
    def following(self, follower: Follower, stream: StreamId) -> Iterator[None]:
        """Wake a follower until the block ends. Enter it before the first read, or a wake-up is missed."""
        channel = follower.keys.stream(stream)
        self._followers.add(follower)
        self._subscriptions.subscribe(channel, follower.wake)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll_loop(), name="eventscope-followers")
        try:
            yield
        finally:
            self._subscriptions.unsubscribe(channel, follower.wake)
            self._followers.discard(follower)

    async def _poll_loop(self) -> None:
        try:
            while self._followers and not is_cancelling():
                await asyncio.sleep(POLL_SECONDS)
                with contextlib.suppress(StoreError, ValueError):
                    await self._poll()
        finally:
            self._polling = None
            for task in self._polled.values():
                task.cancel()
            self._polled.clear()
            self._calls.clear()  # Of this event loop.

    async def _poll(self) -> None:
        self._polls += 1
        answering = self._subscriptions.probe() and self._polls % STANDALONE_POLLS != 0
        if self._breaker.unreachable:
            return
        requests: list[tuple[Follower, str]] = []
        for follower in self._followers:
            if follower.run is not None:
                requests.append((follower, follower.run))
            elif not (answering and self._subscriptions.confirmed(follower.keys.stream(follower.delivery.stream))):
                follower.wake()  # It reads all runs of the stream.
        pending = iter(requests)
        if not is_cluster(self._redis):
            while group := list(islice(pending, POLL_STREAMS)):
                await self._poll_group(group)
            return
        # A script sees one slot, so one session. A node that fails holds up the followers of its own sessions only.
        for follower, run in requests:
            if follower not in self._polled:
                task = asyncio.create_task(self._poll_session(follower, run), name="eventscope-followers-poll")
                self._polled[follower] = task
                task.add_done_callback(partial(self._poll_ended, follower))

    def _poll_ended(self, follower: Follower, task: "asyncio.Task[None]") -> None:
        if self._polled.get(follower) is task:
            del self._polled[follower]

    async def _poll_session(self, follower: Follower, run: str) -> None:
        """Check a stream on a cluster, with a bounded number of calls to each node."""
        with contextlib.suppress(StoreError, ValueError):
            async with self._calls[node_of(self._redis, follower.keys.requests)]:
                await self._poll_group([(follower, run)])

    async def _poll_group(self, group: Sequence[tuple[Follower, str]]) -> None:
        """Check streams by one script."""
        keys = [
            key
            for follower, run in group
            for key in (follower.keys.run(follower.delivery.stream, run), follower.keys.requests)
        ]
        runs = [run for _, run in group]
        states = await call("read from", self._redis, self._breaker, partial(_peek, self._redis, keys, runs))
        waiting: list[tuple[Follower, str, bytes]] = []
        for (follower, run), last, entry in zip(group, states[::2], states[1::2], strict=True):
            if int(last) > follower.delivery.cursor.positions.get(run, 0) or entry == ANSWERED:
                follower.wake()
            else:
                waiting.append((follower, run, entry))
        # Last, because the leases of a cluster may be on a node that fails.
        expired = await self._workers.expired({worker_of(run) for _, run, _ in waiting} - {self._worker.name})
        # Runs that this worker still executes are followed in memory: a run of its own that is seen here has ended.
        expired.add(self._worker.name)
        for follower, run, entry in waiting:
            self._check(follower, run, entry, expired)

    def _check(self, follower: Follower, run: str, entry: bytes, expired: set[str]) -> None:
        """Wake a follower if its worker is dead, or Redis has named no such request for as long as a lease."""
        if worker_of(run) in expired:
            follower.orphaned = True
            follower.wake()
        elif entry:
            follower.unclaimed_since = None
        elif follower.unclaimed_since is None:
            # If Redis has lost the entry, a live worker writes it again within its lease.
            follower.unclaimed_since = time.monotonic()
        elif time.monotonic() - follower.unclaimed_since > self._workers.lease:
            follower.orphaned = True
            follower.wake()
