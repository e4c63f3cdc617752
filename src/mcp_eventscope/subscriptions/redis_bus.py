"""A bus for `subscriptions/listen` streams on any worker, on Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from mcp.server.subscriptions import ServerEvent

from mcp_eventscope.cancellation import LoopLock, cancel_task, is_cancelling
from mcp_eventscope.errors import CorruptEventError, StoreRejectedError
from mcp_eventscope.options import Number, check_type
from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.store.coordination import LEAVE_SECONDS
from mcp_eventscope.subscriptions.change_log import KEPT_BATCHES, ChangeLog
from mcp_eventscope.subscriptions.event_codec import Change, EverythingChanged, decode, encode, is_supported
from mcp_eventscope.subscriptions.facts import (
    GapFound,
    GapReason,
    NotRunning,
    PendingChanged,
    Published,
    PublishFailed,
    PublishFailure,
    Signalled,
    SignalPath,
    SubscriptionFact,
)
from mcp_eventscope.subscriptions.listeners import Listeners
from mcp_eventscope.subscriptions.pending import PendingChanges
from mcp_eventscope.subscriptions.protocol import Listener, Observer

MAX_PENDING = 1024
REPAIR_SECONDS = 2.0

_RETRY_SECONDS = 0.25
"""Seconds until a failed call of Redis is retried."""
_MICROSECONDS = 1_000_000

_LIMITS: Mapping[str, Number] = {
    "max_pending": Number("changes", 1, 1_000_000, whole=True),
    "kept_batches": Number("batches", 1, 1_000_000, whole=True),
    "repair_seconds": Number("seconds", 0, 300),
}


class RedisSubscriptionBus:
    """Delivers each change to the open streams of every worker that uses the same Redis and key prefix.

    `MCPServer(subscriptions=bus)` publishes to it and subscribes the streams of its clients. Within `running()` each
    open stream on any worker receives at least one signal after each change. A change may be signalled twice.
    When signals may have been missed (Redis has lost data, or this worker was frozen), each stream is signalled that
    everything that it listens to has changed, as a change means "refetch" (SEP-2575).

    Outside of `running()` it behaves as the SDK's `InMemorySubscriptionBus`.

    Args:
        backend: The Redis, for example `RedisEventStore(client, key_prefix="shop:").backend`.
        max_pending: Maximum number of distinct changes that wait for Redis. Beyond it one change of everything replaces
            them.
        kept_batches: Approximate number of batches of changes that Redis keeps for workers that are cut off.
        repair_seconds: Seconds over which streams are signalled after a gap, at random: each client may refetch
            everything.

    Raises:
        TypeError: `backend` is no `RedisBackend`, or an argument has another type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        backend: RedisBackend,
        *,
        max_pending: int = MAX_PENDING,
        kept_batches: int = KEPT_BATCHES,
        repair_seconds: float = REPAIR_SECONDS,
    ) -> None:
        check_type("backend", backend, RedisBackend, "a RedisBackend", "pass RedisEventStore(client).backend")
        given = {"max_pending": max_pending, "kept_batches": kept_batches, "repair_seconds": repair_seconds}
        for option, value in given.items():
            _LIMITS[option].check(option, value)
        self._backend = backend
        self._log = ChangeLog(backend, kept_batches)
        self._pending = PendingChanges(max_pending)
        self._listeners = Listeners(lambda path, streams: self._emit(Signalled(path, streams)))
        self._spread = repair_seconds
        self._observers: list[Observer] = []
        self._users = 0
        """How many `running()` blocks are open."""
        self._tasks: list[asyncio.Task[None]] = []
        self._warned = False
        self._changing = LoopLock()
        """Held while the tasks start or stop."""
        self._filled = asyncio.Event()
        self._positioned = asyncio.Event()

    def observe(self, observer: Observer) -> None:
        """Register a callback for facts about signals, gaps and failures.

        Args:
            observer: Called with each fact. It must not block; its exceptions are dropped.
        """
        self._observers.append(observer)

    async def publish(self, event: ServerEvent) -> None:
        """Deliver an event to the streams of this worker, and to those of the others in the background.

        It does not wait for Redis, and raises nothing but a cancellation, after which the event is delivered anyway.

        Args:
            event: The change.
        """
        if not is_supported(event):
            self._emit(PublishFailed(PublishFailure.UNSUPPORTED, 1))
        elif self._tasks:
            self._add(event)
        else:
            self._warn()
        self._emit(Signalled(SignalPath.LOCAL, self._listeners.deliver(event)))
        # As in the SDK: streams send between the events of a burst, instead of overflowing.
        await anyio.lowlevel.checkpoint()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Register a listener.

        Args:
            listener: Called with each event, in the event loop. Its exceptions are logged.

        Returns:
            The function that removes it, which may be called twice.
        """
        if not self._tasks:
            self._warn()
        return self._listeners.add(listener)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            self._emit(NotRunning())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Exchange changes with other workers within the block.

        It waits for Redis for at most the store's `store_timeout`. Streams that are opened before Redis was reached are
        served, and repaired when it is. At the end pending changes are sent for at most two seconds. Several blocks may
        be open: the bus runs until the last one ends.
        """
        self._users += 1
        changing = self._changing()
        try:
            async with changing:
                if not self._tasks:
                    self._start()
            with anyio.move_on_after(self._backend.breaker.call_timeout):
                await self._positioned.wait()
            yield
        finally:
            self._users -= 1
            with anyio.CancelScope(shield=True):
                async with changing:
                    if not self._users:
                        await self._stop()

    def _start(self) -> None:
        # Of this event loop: the bus may have run in another one.
        self._filled, self._positioned = asyncio.Event(), asyncio.Event()
        self._tasks = [
            asyncio.create_task(task, name=f"eventscope-changes-{name}")
            for name, task in (("read", self._read_loop()), ("send", self._send_loop()))
        ]

    async def _stop(self) -> None:
        for task in self._tasks:  # All of them, also if this is cancelled while one ends.
            task.cancel()
        try:
            for task in self._tasks:
                await cancel_task(task)
            with anyio.move_on_after(LEAVE_SECONDS), contextlib.suppress(Exception):
                while self._pending:
                    await self._send()
        finally:
            self._tasks = []
            if lost := self._pending.clear():
                self._emit(PublishFailed(PublishFailure.SHUTDOWN, lost))
                self._emit(PendingChanged(0))
            self._log.forget()
            self._listeners.repair_now()

    # -- to other workers ---------------------------------------------------------------------------------------------

    def _add(self, change: Change) -> None:
        self._report_replaced(self._pending.add(change, self._backend.clock.now()))
        self._emit(PendingChanged(len(self._pending)))
        self._filled.set()

    def _report_replaced(self, events: int) -> None:
        if events:
            self._emit(PublishFailed(PublishFailure.OVERFLOW, events))

    async def _send_loop(self) -> None:
        while not is_cancelling():
            await self._filled.wait()
            self._filled.clear()
            while self._pending:
                try:
                    await self._send()
                except Exception as error:  # noqa: BLE001 - the changes stay pending, and are sent later
                    refused = isinstance(error, StoreRejectedError)
                    reason = PublishFailure.REFUSED if refused else PublishFailure.UNREACHABLE
                    self._emit(PublishFailed(reason, len(self._pending)))
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _send(self) -> None:
        """Send a batch of the pending changes.

        A change is removed first: one that is published while the batch is on its way is another change, which the
        readers of this batch may not see. A batch whose fate is unknown is sent again.
        """
        batch = self._pending.take()
        try:
            await self._log.append(encode(batch))
        except BaseException:  # A cancellation, too.
            self._report_replaced(self._pending.put_back(batch))
            raise
        oldest = min(batch.values())
        self._emit(Published(len(batch), max(0, self._backend.clock.now() - oldest) / _MICROSECONDS))
        self._emit(PendingChanged(len(self._pending)))

    # -- from other workers -------------------------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        more = True
        while not is_cancelling():
            try:
                if not more:
                    await self._log.wait()
                more = await self._read()
            except Exception:  # noqa: BLE001 - nothing else reads; the position stays, so that nothing is missed
                more = True
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read(self) -> bool:
        """Handle the changes behind the position; return whether there may be more."""
        first = self._log.position is None
        reading = await self._log.read()
        if reading.gap is not None:
            self._repair(reading.gap)
        elif first and self._listeners:
            self._repair(GapReason.LATE)
        for name, batch in reading.batches:
            if not self._log.is_own(name):
                await self._deliver(batch)
        self._log.position = reading.position
        self._positioned.set()
        return reading.more

    async def _deliver(self, batch: bytes) -> None:
        """Deliver the changes of another worker."""
        try:
            changes = decode(batch)
        except CorruptEventError:
            self._repair(GapReason.DAMAGED)
            return
        for change, published in changes:
            if isinstance(change, EverythingChanged):
                self._repair(GapReason.OVERFLOW)
                continue
            lag = max(0, self._backend.clock.now() - published) / _MICROSECONDS
            self._emit(Signalled(SignalPath.REMOTE, self._listeners.deliver(change), lag))
            await anyio.lowlevel.checkpoint()

    def _repair(self, reason: GapReason) -> None:
        """Signal all streams, because signals may have been missed."""
        self._emit(GapFound(reason, len(self._listeners), self._listeners.unknown()))
        self._listeners.repair(self._spread)

    def _emit(self, fact: SubscriptionFact) -> None:
        for observer in self._observers:
            # A failing observer must not keep signals from streams.
            with contextlib.suppress(Exception):
                observer(fact)
