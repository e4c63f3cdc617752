"""Followers of streams: woken when something was stored, by whichever worker, and told when nobody will store more."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import anyio
from redis import asyncio as aioredis

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.connection import AnyRedis, told_as
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.signals import Signals
from mcp_eventscope.types import GET_STREAM_KEY, EventId, StreamId

LOOK_SECONDS = 0.5
"""How often a process looks for what its followers have not been woken for: a lost wake-up costs at most this, and a
request whose worker is gone is answered at most this after the lease."""
UNCLAIMED_LOOKS = 20
"""After so many looks in a row that find nobody who runs a request, it counts as given up."""
LOOK_STREAMS = 256
"""Streams looked at in one round trip."""
GIVEN_UP = "!"
"""Stands for the worker of a request that was given up."""


class Watch:
    """One follower: where it stands, and its bell."""

    __slots__ = ("_rung", "cursor", "keys", "orphan_of", "stream_id", "unclaimed")

    def __init__(self, keys: Keys, stream_id: StreamId, cursor: EventId) -> None:
        self.keys = keys
        self.stream_id = stream_id
        self.cursor = cursor
        self.orphan_of: str | None = None
        """The worker that ran the request and is gone; "" where none is named; None while there is one."""
        self.unclaimed = 0
        """How many looks in a row have found nobody who runs the request."""
        self._rung = anyio.Event()

    def ring(self) -> None:
        """There may be something to do."""
        self._rung.set()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - running out is an answer here, not an error
        """Return when it rang since the last wait, or after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            await self._rung.wait()
        self._rung = anyio.Event()


class Followers:
    """The followers of one process. Wake-ups only wake: the truth is read from the index.

    Args:
        redis: Where the streams are.
        keys: The root's, where workers have their leases.
        worker: This process.
        signals: Its subscriptions.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: str, signals: Signals) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._signals = signals
        self._watches: dict[str, set[Watch]] = {}
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, keys: Keys, stream_id: StreamId, cursor: EventId) -> Iterator[Watch]:
        """Be woken for a stream until the block ends. Enter before reading, or a wake-up is missed."""
        watch, index = Watch(keys, stream_id, cursor), keys.stream(stream_id)
        self._watches.setdefault(index, set()).add(watch)

        def heard(worker: bytes | None) -> None:
            if worker is None or worker.decode() != self._worker:
                watch.ring()

        self._signals.listen(index, heard)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_now_and_then(), name="eventscope-followers")
        try:
            yield watch
        finally:
            self._signals.ignore(index, heard)
            watches = self._watches[index]
            watches.discard(watch)
            if not watches:
                del self._watches[index]

    def notify(self, index: str) -> None:
        """This process has stored something under this index key."""
        for watch in self._watches.get(index, ()):
            watch.ring()

    async def _look_now_and_then(self) -> None:
        try:
            while self._watches:
                await asyncio.sleep(LOOK_SECONDS)
                with contextlib.suppress(StoreError):
                    await self._look()
        finally:
            self._looking = None

    async def _look(self) -> None:
        heard = self._signals.probe()
        watches = iter(
            [
                watch
                for index, watches in self._watches.items()
                for watch in watches
                # Nobody runs the standalone stream: while what is published is heard, there is nothing to look for.
                if not (heard and watch.stream_id == GET_STREAM_KEY and self._signals.confirmed(index))
            ]
        )
        # On a cluster a script sees one slot, so one session, at a time.
        size = LOOK_STREAMS if isinstance(self._redis, aioredis.Redis) else 1
        while group := list(islice(watches, size)):
            with told_as("read from", self._redis):
                told = await scripts.peek(self._redis, [(watch.keys, watch.stream_id) for watch in group])
                gone = await self._gone({worker for _, worker in told})
            for watch, (last, worker) in zip(group, told, strict=True):
                self._judge(watch, last, worker, gone)

    def _judge(self, watch: Watch, last: str, worker: str, gone: set[str]) -> None:
        if last.isdigit() and int(last) > int(watch.cursor):
            watch.ring()
        elif worker in gone:
            watch.orphan_of = worker
            watch.ring()
        elif not worker and watch.stream_id != GET_STREAM_KEY:
            # Perhaps its worker is about to say so again, after Redis has lost it.
            watch.unclaimed += 1
            if watch.unclaimed >= UNCLAIMED_LOOKS:
                watch.orphan_of = ""
                watch.ring()
        else:
            watch.unclaimed = 0

    async def _gone(self, workers: set[str]) -> set[str]:
        """Those whose lease has run out."""
        others: Sequence[str] = sorted(workers - {"", GIVEN_UP, self._worker})
        alive = [await self._redis.exists(self._keys.worker(worker)) for worker in others]
        return {worker for worker, lives in zip(others, alive, strict=True) if not lives}
