"""Leases, session records and messages between the workers of a store."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TypeVar

import anyio
import pydantic_core
from redis import asyncio as aioredis

from mcp_eventscope.cancellation import LoopLock, cancel_task
from mcp_eventscope.errors import StoreError, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import (
    ANSWER_TIMEOUT,
    AnyRedis,
    address_of,
    call,
    failure_reason,
    failure_text,
    is_refusal,
    map_redis_errors,
)
from mcp_eventscope.redis.clock import EventClock, boot_microseconds
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.masters import processes
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.run_entry import is_open
from mcp_eventscope.redis.workers.inbox import Inbox
from mcp_eventscope.redis.workers.outbox import Outbox
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.runs import worker_of
from mcp_eventscope.store.coordination import (
    DEFAULT_WORKER_LEASE,
    LEAVE_SECONDS,
    MESSAGE_SECONDS,
    RECORD_SECONDS,
    MessageKind,
    NewRecord,
    SessionRecord,
    WorkerMessage,
)
from mcp_eventscope.store.events import DropReason, FailureReason, MessagesDropped, StoreEvent, StoreRecovered

_RETRY_SECONDS = 0.25
"""Seconds until a failed renewal is retried."""
_LOOK_SECONDS = 0.05
"""Seconds between checks, during that wait, whether Redis is unreachable."""
_MICROSECONDS = 1_000_000
_RECORDS_AT_ONCE = 256
"""Maximum number of records written in one round trip."""

_INBOX_LEASES = 6
"""Leases for which the inbox of a worker is kept that does not renew it."""
_ANNOUNCED_BYTES = 2048
"""Maximum size of the handshake of a session that is announced to all workers."""

_release_lease = scripts.Script("release.lua")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Holder:
    """A part of this process that relies on its lease."""

    on_message: Callable[[WorkerMessage], None]
    republish: Callable[[], Awaitable[None]]


class Workers:
    """This process as a worker: its lease, and its messages to and from others.

    Args:
        redis: The client.
        keys: The keys of the root store.
        worker: The id of this worker.
        clock: The clock of event ids.
        breaker: The circuit breaker of the store.
        observers: Report when Redis has recovered.
        released: Called when the lease was given up: nothing judges Redis from then on.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        redis: AnyRedis,
        keys: Keys,
        worker: WorkerId,
        clock: EventClock,
        breaker: CircuitBreaker,
        observers: Observers,
        released: Callable[[], Awaitable[None]],
    ) -> None:
        self._breaker = breaker
        self._released = released
        observers.subscribe(self._observed)
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._clock = clock
        """Synchronized with Redis, hence nearly equal on all workers."""
        self._inbox = Inbox(redis, keys, worker, clock, observers)
        self._outbox = Outbox(
            redis, keys, worker, clock, observers, self._call, expired=self.expired, complete=self._complete
        )
        self._observers = observers
        self.lease = DEFAULT_WORKER_LEASE
        """Seconds without a renewal after which a worker is declared dead."""
        self._blind_until = 0.0
        self._leased = False
        self._began = -inf
        """The start of this worker, on the monotonic clock."""
        self._written = self._attempted = 0
        """The values of the lease that Redis acknowledged last, and that was sent last."""
        self._renewed_at = 0
        """The last renewal of the lease, in microseconds of a clock that includes suspend."""
        self._recovered = False
        self._processes: frozenset[str] | None = None
        """The processes of Redis at the last check; None: unknown."""
        self._may_identify = True
        """Whether this user may read them."""
        self._sooner = asyncio.Event()
        self._republish = asyncio.Event()
        self._holders: list[_Holder] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changing = LoopLock()
        """Held while the tasks start or stop."""
        self._tick: Callable[[], None] = _nothing
        self._state_lost: Callable[[], None] = _nothing

    def on_tick(self, tick: Callable[[], None], state_lost: Callable[[], None]) -> None:
        """Register callbacks for renewals of the lease and for data loss in Redis.

        Args:
            tick: Called after each renewal. It must not block.
            state_lost: Called when the lease is missing, or has a value that this worker did not write last.
        """
        self._tick, self._state_lost = tick, state_lost

    @property
    def now(self) -> int:
        """Microseconds since 1970, on Redis's clock."""
        return self._clock.now()

    @property
    def holding(self) -> bool:
        """Whether this worker is within `hold_lease`. Redis may not have its lease yet, or no longer."""
        return bool(self._holders)

    @property
    def leased(self) -> bool:
        """Whether this worker has held a lease. Other workers cannot judge one that has not."""
        return self._leased

    @property
    def lapsed(self) -> bool:
        """Whether this worker's lease may have expired, so that others may have answered its requests."""
        return self._leased and boot_microseconds() - self._renewed_at > self.lease * _MICROSECONDS

    @contextmanager
    def best_effort(self) -> Iterator[None]:
        """Limit a call to `call_timeout` and suppress its failure, which the circuit breaker records."""
        with contextlib.suppress(StoreError), anyio.move_on_after(self._breaker.call_timeout) as scope:
            yield
        if scope.cancelled_caught:
            self._breaker.record_failure(FailureReason.TIMEOUT, failure_text(TimeoutError(), self._redis))

    async def wait_for_record(self, task: "asyncio.Task[None]") -> None:
        """Wait until a session is recorded, even if Redis is slow.

        Requests to other workers depend on the record.

        Args:
            task: Records the session. It continues when this returns early: after two seconds, or when Redis is
                unreachable.
        """
        until = time.monotonic() + RECORD_SECONDS
        while not task.done() and time.monotonic() < until:
            if self._breaker.unreachable and not self.slow:
                return
            await asyncio.wait({task}, timeout=_LOOK_SECONDS)

    async def _call(self, operation: str, function: Callable[[], Awaitable[T]]) -> T:
        """Call Redis, unless it is known to be unreachable.

        Raises:
            StoreError: Redis was not reached, or answered with an error.
        """
        if self._breaker.unreachable:
            msg = f"could not {operation} Redis at {address_of(self._redis)}: unreachable ({self._breaker.reason})"
            raise StoreUnavailableError(msg)
        return await call(operation, self._redis, self._breaker, function)

    @property
    def _renewal_limit(self) -> float:
        """Seconds of contact with Redis after which every live worker has renewed its lease.

        On Redis Cluster a worker may find the successor of a failed master later than this one, by the time of a call.
        """
        return self.lease + (ANSWER_TIMEOUT if self._breaker.cluster else 0.0)

    def _doubt(self) -> None:
        """Declare no worker dead until all have renewed their leases."""
        self._blind_until = time.monotonic() + self._renewal_limit

    def _observed(self, fact: StoreEvent) -> None:
        if isinstance(fact, StoreRecovered):
            self._recovered = True
            self._doubt()  # Records may be missing until the workers republish.
            self._sooner.set()

    @asynccontextmanager
    async def hold_lease(
        self, lease: float, on_message: Callable[[WorkerMessage], None], republish: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Hold a lease, and receive the messages of other workers; see `Coordinator.hold_lease`."""
        self.lease = lease
        holder = _Holder(on_message, republish)
        self._holders.append(holder)
        changing = self._changing()
        try:
            async with changing:  # Else a holder that begins during the release of the last one would lose its lease.
                if not self._tasks:
                    await self._acquire()
            yield
        finally:
            self._holders.remove(holder)
            with anyio.CancelScope(shield=True):
                async with changing:
                    if not self._holders:
                        await self._release()

    async def _acquire(self) -> None:
        self._sooner, self._republish = asyncio.Event(), asyncio.Event()  # Of this event loop.
        self._began = time.monotonic()
        try:
            await self._renew()
            self._leased = True
            await self._inbox.open(self._inbox_milliseconds)
            await self._identify()
        except StoreError as error:
            self._record_failure(error)
        self._tasks = [
            asyncio.create_task(task, name=f"eventscope-{name}")
            for name, task in (
                ("lease", self._lease_loop()),
                ("inbox", self._inbox.run(self._arrived)),
                ("outbox", self._outbox.run()),
                ("republish", self._republish_loop()),
            )
        ]

    async def _release(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:  # All of them, also if this is cancelled while one ends.
            task.cancel()
        for task in reversed(tasks):
            await cancel_task(task)
        with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_SECONDS), contextlib.suppress(StoreError):
            await self._outbox.close()
        with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_SECONDS), contextlib.suppress(StoreError):
            await self._leave()
        await self._released()

    def _arrived(self, message: WorkerMessage) -> None:
        """Handle what was read from the inbox."""
        if message.kind is MessageKind.LOST:
            self._sooner.set()  # The inbox may have to be opened again, without which others send nothing.
        self._received(message)

    def _received(self, message: WorkerMessage) -> None:
        for holder in tuple(self._holders):
            try:
                holder.on_message(message)
            except Exception:  # noqa: BLE001 - a forged message must neither stop the lease nor hide later messages
                self.drop(DropReason.MALFORMED)

    def _complete(self, age: int) -> bool:
        """Whether a record names all workers that serve its session. Redis may have lost an earlier one.

        Args:
            age: Microseconds since the record was written first. Within a lease, all workers renew the records of their
                running calls.
        """
        return not self.uncertain and age > self.lease * _MICROSECONDS

    @property
    def _inbox_milliseconds(self) -> int:
        return round(max(_INBOX_LEASES * self.lease, MESSAGE_SECONDS) * 1000)

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Send a message to other workers in the background; see `Coordinator.send`."""
        self._outbox.put(session_id, kind, content, to=to)

    def drop(self, reason: DropReason) -> None:
        """Count a message that is dropped; see `Coordinator.drop`."""
        self._observers.emit(MessagesDropped(reason=reason, messages=1))

    async def record(self, record: NewRecord, *, ttl: int) -> str:
        """Record a session, also in a slow Redis; see `Coordinator.record`."""
        function = partial(scripts.record, self._redis, self._keys, record, ttl, self._worker.name)
        if self.slow:
            state = await call("write to", self._redis, self._breaker, function)
        else:
            state = await self._call("write to", function)
        if state == "live" and len(record.handshake) <= _ANNOUNCED_BYTES:
            content = pydantic_core.to_json([record.owner, record.server, record.handshake]).decode()
            self._outbox.put(record.session_id, MessageKind.BEGAN, content, announced_for=ttl)
        return state

    async def record_all(self, records: Sequence[NewRecord], *, ttl: int) -> list[str]:
        """Record many sessions in few round trips; see `Coordinator.record_all`."""
        if not isinstance(self._redis, aioredis.Redis):  # The pipeline of a cluster does not support scripts.
            return [await self.record(record, ttl=ttl) for record in records]
        states: list[str] = []
        for start in range(0, len(records), _RECORDS_AT_ONCE):
            first, *others = records[start : start + _RECORDS_AT_ONCE]
            states.append(await self.record(first, ttl=ttl))  # Loads the script if Redis does not have it.
            pipeline = self._redis.pipeline(transaction=False)
            for each in others:
                scripts.queue_record(pipeline, self._keys, each, ttl, self._worker.name)
            states += [state.decode("ascii") for state in await self._call("write to", pipeline.execute)]
        return states

    async def touch(self, records: Sequence[NewRecord], *, ttl: int) -> list[str]:
        """Renew the records of many sessions in few round trips; see `Coordinator.touch`."""
        # The sessions of a cluster are on different nodes.
        at_once = _RECORDS_AT_ONCE if isinstance(self._redis, aioredis.Redis) else 1
        states: list[str] = []
        for start in range(0, len(records), at_once):
            some = records[start : start + at_once]
            function = partial(scripts.touch, self._redis, self._keys, some, ttl, self._worker.name)
            states += await self._call("write to", function)
        return states

    async def claim(self, server: str, *, ttl: int) -> str:
        """Name the server that uses the prefix; see `Coordinator.claim`."""
        return await self._call("write to", lambda: scripts.claim(self._redis, self._keys, server, ttl))

    async def read(self, session_id: str, *, owner: str, server: str, ttl: int) -> SessionRecord:
        """Renew and read a session's record; see `Coordinator.read`.

        When a record is absent, also check for a recent data loss in Redis: the absence is then `uncertain`. While a
        live worker runs a request of the session, only its record is lost.
        """
        caller, worker = NewRecord(session_id, owner, "", server), self._worker.name
        record = await self._call("read from", lambda: scripts.read(self._redis, self._keys, caller, ttl, worker))
        doubtful = record.state == "absent" and self._leased and not self.uncertain
        if doubtful and not await self._has_lease():
            self._doubt()
            self._sooner.set()
        elif doubtful and await self._runs(session_id):
            return SessionRecord("lost")
        return record

    async def _runs(self, session_id: str) -> bool:
        """Whether a live worker runs a request of a session."""
        key = self._keys.for_session(session_id).requests.encode()
        function = partial(self._redis.execute_command, "HGETALL", key, NEVER_DECODE=True)
        entries: dict[bytes, bytes] = await self._call("read from", function)
        workers = {worker_of(run.decode("ascii", "replace")) for run, entry in entries.items() if is_open(entry)}
        return bool(workers - await self.expired(workers))

    @property
    def uncertain(self) -> bool:
        """Whether records may be missing after a recent outage or data loss of Redis."""
        return self._breaker.reason is not None or time.monotonic() < self._blind_until

    @property
    def slow(self) -> bool:
        """Whether Redis is degraded, but may still answer, late or now."""
        return self._breaker.slow

    @property
    def started_recently(self) -> bool:
        """Whether this worker started less than a lease ago, and cannot know of earlier outages."""
        return time.monotonic() - self._began < self._renewal_limit

    def republish(self) -> None:
        """Schedule another publication of this worker's state, after one has failed."""
        self._republish.set()

    async def end(self, session_id: str, *, ttl: int) -> None:
        """End a session, notify all workers, and delete its keys.

        Raises:
            StoreError: A write failed.
        """
        keys = self._keys.for_session(session_id)
        remains = await self._call("write to", lambda: scripts.end(self._redis, keys, ttl))
        self._outbox.put(session_id, MessageKind.ENDED, "", announced_for=ttl)
        while remains.next:
            remains = await self._call("write to", partial(scripts.end, self._redis, keys, ttl, remains))

    async def _leave(self) -> None:
        lease = self._keys.worker(self._worker.name)
        with map_redis_errors("write to", self._redis):
            # A frozen Redis may carry this out late, when this process holds its lease again, with a larger value.
            await _release_lease(self._redis, [lease], [self._attempted])
            await self._redis.delete(self._keys.inbox(self._worker.name))

    async def expired(self, workers: set[str]) -> set[str]:
        """Return the workers whose lease has expired.

        The result is empty for one lease after Redis was unreachable or slow, because live workers could not renew
        their leases.

        Raises:
            StoreError: The read failed.
        """
        began = time.monotonic()
        try:
            alive = {
                worker: await call(
                    "read from", self._redis, self._breaker, partial(self._redis.exists, self._keys.worker(worker))
                )
                for worker in workers
            }
        except StoreError:
            self._doubt()
            raise
        missing = not all(alive.values())
        lost = missing and self._leased and not await self._has_lease()
        if lost:  # Redis has lost the other leases, too; live workers renew theirs within a lease.
            self._sooner.set()
        if lost or time.monotonic() - began > self.lease / 3:
            self._doubt()
        return set() if time.monotonic() < self._blind_until else {name for name in alive if not alive[name]}

    async def _has_lease(self) -> bool:
        """Whether Redis has the lease as this worker wrote it last. An older value shows a rollback or a failover."""
        key, written = self._keys.worker(self._worker.name), self._written
        held = await self._call("read from", lambda: self._redis.execute_command("GET", key, NEVER_DECODE=True))
        return held is not None and held.isdigit() and written <= int(held)

    async def _renew(self) -> bool:
        """Renew the lease; return whether it had the value that this worker wrote last."""
        key, milliseconds = self._keys.worker(self._worker.name), round(self.lease * 1000)
        self._attempted = value = self._attempted + 1
        began = boot_microseconds()
        held = await call(
            "write to",
            self._redis,
            self._breaker,
            lambda: self._redis.execute_command(
                "SET", key, str(value), "PX", milliseconds, "GET", get=True, NEVER_DECODE=True
            ),
        )
        # A renewal whose reply was lost may have succeeded, also this one if it was repeated.
        expected = held is not None and held.isdigit() and self._written <= int(held) <= value
        self._written, self._renewed_at = value, began
        return expected

    async def _lease_loop(self) -> None:
        """Renew the lease often enough that one renewal may fail. Publication has its own task, and cannot delay it."""
        well = self._leased
        while True:
            with anyio.move_on_after(self.lease / 3 if well else min(self.lease / 3, _RETRY_SECONDS)):
                await self._sooner.wait()
            self._sooner.clear()
            try:
                with anyio.fail_after(self.lease / 3):
                    held = await self._renew()
            except Exception as error:  # noqa: BLE001 - without renewals all calls of this worker end
                self._record_failure(error)
                well = False
                self._doubt()
                if isinstance(error, StoreRejectedError) and is_refusal(error.__cause__ or error):
                    # A probe may succeed, and its recovery would renew the lease immediately, which is refused again.
                    await asyncio.sleep(self.lease / 3)
                continue
            well = well and not self._recovered
            self._recovered = False
            if not held and self._leased:
                self._state_lost()
            if not (held and well):
                self._doubt()
                self._republish.set()
            self._leased = well = True
            self._tick()
            await self._check()

    def _record_failure(self, error: Exception) -> None:
        """Open the circuit after a failed renewal: an idle worker makes no other call.

        `call` has recorded an unreachable Redis. Left are one that is too slow, and one that refuses the lease, as it
        will refuse events.
        """
        if isinstance(error, TimeoutError):
            # A renewal waits for a third of the lease, too short for a judgement if `store_timeout` is longer.
            if self.lease / 3 >= self._breaker.call_timeout and not self._breaker.unreachable:
                self._breaker.record_failure(FailureReason.TIMEOUT, failure_text(error, self._redis))
        elif isinstance(error, StoreRejectedError) and self._breaker.reason is None:
            cause = error.__cause__ or error
            self._breaker.record_failure(failure_reason(cause), failure_text(cause, self._redis))

    async def _check(self) -> None:
        """Keep the inbox, and notice a restart of Redis. A failure must not stop the renewals of the lease."""
        with contextlib.suppress(StoreError, TimeoutError), anyio.fail_after(self.lease / 3):
            if await self._inbox.open(self._inbox_milliseconds):
                self._received(WorkerMessage(MessageKind.LOST))
            before = self._processes
            await self._identify()
            if before is not None and self._processes != before:
                self._state_lost()

    async def _identify(self) -> None:
        """Read which processes Redis consists of.

        A process that has restarted or taken over may lack the last events, although it has the lease: that of a
        snapshot or a replica that was newer than the last renewal.
        """
        if not self._may_identify:
            return
        try:
            # Limited here, too, because a worker that starts waits for it.
            with anyio.move_on_after(self.lease / 3), map_redis_errors("read from", self._redis):
                self._processes = await processes(self._redis)
        except StoreRejectedError:
            self._may_identify = False

    async def _republish_loop(self) -> None:
        """Republish the state that Redis may have lost, until it succeeds."""
        while True:
            await self._republish.wait()
            self._republish.clear()
            try:
                for holder in tuple(self._holders):
                    await holder.republish()
            except Exception:  # noqa: BLE001 - retried after any failure
                self._republish.set()
                await asyncio.sleep(_RETRY_SECONDS)


def _nothing(_: object = None) -> None:
    """Do nothing: there are no sessions."""
