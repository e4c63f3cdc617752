"""Followers of streams: woken when something was stored, by whichever worker, and told when nobody will store more."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import anyio
from redis import asyncio as aioredis

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.connection import AnyRedis, told_as
from mcp_eventscope.redis.identity import Identity
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.signals import Signals
from mcp_eventscope.redis.workers import Workers
from mcp_eventscope.tasks import ending
from mcp_eventscope.types import GET_STREAM_KEY, EventId, StreamId

LOOK_SECONDS = 0.5
"""How often a process looks for what its followers have not been woken for: a lost wake-up costs at most this, and a
request whose worker is gone is answered at most this after the lease."""
LOOKS_TO_BE_SURE = 20
"""Every so many looks the standalone streams are looked at too, although their wake-ups are heard: whoever stored may
lack the right to publish."""
LOOK_STREAMS = 256
"""Streams looked at in one round trip."""
GIVEN_UP = "!"
"""Stands for the worker of a request that was given up."""


class Watch:
    """One follower: where it stands, and its bell."""

    __slots__ = ("_rung", "cursor", "keys", "orphan_of", "stream_id", "tracked", "unclaimed_since")

    def __init__(self, keys: Keys, stream_id: StreamId, cursor: EventId, *, tracked: bool) -> None:
        self.keys = keys
        self.stream_id = stream_id
        self.cursor = cursor
        self.orphan_of: str | None = None
        """The worker that ran the request and is gone; "" where none is named; None while there is one."""
        self.tracked = tracked
        """Whether it is known who runs the request."""
        self.unclaimed_since: float | None = None
        """Since when nobody is named who runs it, by the monotonic clock."""
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
        worker: This process.
        workers: What is known of the others.
        signals: Its subscriptions.
    """

    def __init__(self, redis: AnyRedis, worker: Identity, workers: Workers, signals: Signals) -> None:
        self._redis = redis
        self._worker = worker
        self._workers = workers
        self._signals = signals
        self._watches: dict[str, set[Watch]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looks = 0

    @contextmanager
    def watching(self, keys: Keys, stream_id: StreamId, cursor: EventId, *, tracked: bool) -> Iterator[Watch]:
        """Be woken for a stream until the block ends. Enter before reading, or a wake-up is missed.

        Args:
            keys: The session's.
            stream_id: The stream.
            cursor: How far it has been read.
            tracked: Whether it is known who runs the request: within sessions, and not of the standalone stream.
        """
        watch, index = Watch(keys, stream_id, cursor, tracked=tracked), keys.stream(stream_id)
        self._watches.setdefault(index, set()).add(watch)

        def heard(worker: bytes | None) -> None:
            if worker is None or worker.decode() != self._worker.name:
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

    def notify(self, keys: Keys, stream_ids: Iterable[StreamId]) -> None:
        """This process has stored something on these streams."""
        if self._watches:
            for stream_id in stream_ids:
                for watch in self._watches.get(keys.stream(stream_id), ()):
                    watch.ring()

    async def _look_now_and_then(self) -> None:
        try:
            while self._watches and not ending():
                await asyncio.sleep(LOOK_SECONDS)
                with contextlib.suppress(StoreError, ValueError):
                    await self._look()
        finally:
            self._looking = None

    async def _look(self) -> None:
        self._looks += 1
        heard = self._signals.probe() and self._looks % LOOKS_TO_BE_SURE != 0
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
            gone = await self._workers.gone({worker for _, worker in told} - {"", GIVEN_UP, self._worker.name})
            for watch, (last, worker) in zip(group, told, strict=True):
                self._judge(watch, last, worker, gone)

    def _judge(self, watch: Watch, last: str, worker: str, gone: set[str]) -> None:
        if last.isdigit() and int(last) > int(watch.cursor):
            watch.ring()
        elif worker or not watch.tracked:
            watch.unclaimed_since = None
            if worker in gone:
                watch.orphan_of = worker
                watch.ring()
        elif watch.unclaimed_since is None:
            # Its worker, if it lives, says so again within its lease, should Redis have lost it.
            watch.unclaimed_since = time.monotonic()
        elif time.monotonic() - watch.unclaimed_since > self._workers.lease:
            watch.orphan_of = ""
            watch.ring()
