"""What workers know of each other: who lives, who has which session, and what one has to tell the others."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from math import inf
from typing import TypeVar

import anyio
from redis import asyncio as aioredis

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.errors import StoreError, StoreUnavailableError
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, address_of, call, failure_reason, failure_text, map_redis_errors
from mcp_eventscope.redis.clock import EventClock, boot_microseconds
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.pubsub import Subscriptions
from mcp_eventscope.redis.worker_id import WorkerId
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE, LEAVE_SECONDS, NewRecord, Notice, SessionRecord
from mcp_eventscope.store.events import FailureReason, StoreEvent, StoreRecovered

_RETRY_SECONDS = 0.25
"""How soon a renewal that failed is tried again."""
_RECORD_SECONDS = 2.0
"""How long `initialize` waits for a slow Redis."""
_LOOK_SECONDS = 0.05
"""How often it looks meanwhile whether Redis is unreachable."""
_MICROSECONDS = 1_000_000
_RECORDS_AT_ONCE = 256
"""Records that are written in one round trip."""

T = TypeVar("T")


class Workers:
    """The worker that this process is, among the others.

    Args:
        redis: Where they meet.
        keys: The root's.
        worker: This process.
        clock: The clock of event ids.
        subscriptions: Its subscriptions.
        breaker: Whether Redis can be called.
        observers: Call back when it can be called again.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place
        self,
        redis: AnyRedis,
        keys: Keys,
        worker: WorkerId,
        clock: EventClock,
        subscriptions: Subscriptions,
        breaker: CircuitBreaker,
        observers: Observers,
    ) -> None:
        self._breaker = breaker
        observers.subscribe(self._observed)
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self.clock = clock
        """Nearly the same on all workers: Redis's."""
        self._subscriptions = subscriptions
        self.lease = DEFAULT_WORKER_LEASE
        """Seconds after which a worker that does not renew counts as gone."""
        self._blind_until = 0.0
        self._leased = False
        self._began = -inf
        """When this worker began, by the monotonic clock."""
        self._written = self._attempted = 0
        """The value of the lease: as Redis has acknowledged it last, and as it was last sent."""
        self._renewed_at = 0
        """When the lease was last renewed, by a clock that includes suspend, in microseconds."""
        self._recovered = False
        self._sooner = asyncio.Event()
        self._republish = asyncio.Event()
        self._tick: Callable[[], None] = _nothing
        self._state_lost: Callable[[], None] = _nothing

    def on_tick(self, tick: Callable[[], None], state_lost: Callable[[], None]) -> None:
        """Call back with each renewal of the lease, and when Redis has lost or rolled back what it held.

        Args:
            tick: Called after each renewal. It must not block.
            state_lost: Called when the lease is gone, or holds a value that this worker did not write last.
        """
        self._tick, self._state_lost = tick, state_lost

    @property
    def now(self) -> int:
        """Microseconds since 1970, by Redis's clock."""
        return self.clock.now()

    @property
    def lapsed(self) -> bool:
        """Whether this worker's lease may have expired: other workers may have answered for it."""
        return self._leased and boot_microseconds() - self._renewed_at > self.lease * _MICROSECONDS

    @contextmanager
    def best_effort(self) -> Iterator[None]:
        """Let nobody wait for Redis for long, nor at all while it is known to be away, or be hurt by it."""
        try:
            with anyio.move_on_after(self._breaker.call_timeout) as scope:
                yield
            if scope.cancelled_caught:
                self._breaker.record_failure(FailureReason.TIMEOUT, failure_text(TimeoutError(), self._redis))
        except StoreUnavailableError as error:
            if not self._breaker.unreachable:
                cause = error.__cause__ or error
                self._breaker.record_failure(failure_reason(cause), failure_text(cause, self._redis))
        except StoreError:
            pass

    async def wait_for_record(self, task: "asyncio.Task[None]") -> None:
        """Wait until a session is recorded, also while Redis is slow: requests to other workers depend on it.

        Args:
            task: Records the session. It goes on when this returns early: after two seconds, or when Redis is
                unreachable.
        """
        until = time.monotonic() + _RECORD_SECONDS
        while not task.done() and time.monotonic() < until:
            if self._breaker.unreachable and self._breaker.reason is not FailureReason.TIMEOUT:
                return
            await asyncio.wait({task}, timeout=_LOOK_SECONDS)

    async def _call(self, operation: str, function: Callable[[], Awaitable[T]]) -> T:
        """Call Redis, unless it is known to be unreachable.

        Raises:
            StoreError: Redis was not reached, or replied with an error.
        """
        if self._breaker.unreachable:
            msg = f"did not {operation} Redis at {address_of(self._redis)}: it is unreachable ({self._breaker.reason})"
            raise StoreUnavailableError(msg)
        return await call(operation, self._redis, self._breaker, function)

    def _observed(self, fact: StoreEvent) -> None:
        if isinstance(fact, StoreRecovered):
            self._recovered = True
            self._sooner.set()

    @asynccontextmanager
    async def hold_lease(
        self, lease: float, on_message: Callable[[Notice], None], republish: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Hold a lease, and hear what others tell, until the block ends.

        Args:
            lease: Seconds after which this worker counts as gone when it does not renew.
            on_message: Called with each notice of another worker; with `lost` after some may have been lost.
            republish: Called when Redis has recovered or lost data, to publish again the state that it may lack.
        """
        self.lease = lease
        self._began = time.monotonic()

        def on_published(content: bytes | None) -> None:
            if content is None:
                on_message({"lost": True})
                return
            with contextlib.suppress(ValueError):
                notice = json.loads(content)
                if isinstance(notice, dict) and notice.get("worker") != self._worker.name:
                    on_message(notice)

        self._subscriptions.subscribe(self._keys.workers, on_published)
        with contextlib.suppress(StoreError):
            await self._renew()
            self._leased = True
        renewing = asyncio.create_task(self._lease_loop(), name="eventscope-lease")
        republishing = asyncio.create_task(self._republish_loop(republish), name="eventscope-republish")
        try:
            yield
        finally:
            await cancel_task(republishing)
            await cancel_task(renewing)
            self._subscriptions.unsubscribe(self._keys.workers, on_published)
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_SECONDS), contextlib.suppress(StoreError):
                await self._leave()

    async def publish(self, **notice: object) -> None:
        """Tell the other workers. Who is not listening does not hear it.

        Raises:
            StoreError: Redis did not take it.
        """
        content = json.dumps({"worker": self._worker.name, **notice})
        await self._call("write to", lambda: self._redis.publish(self._keys.workers, content))

    async def record(self, record: NewRecord, *, ttl: int) -> str:
        """Record a session, unless it is another principal's or has ended.

        Args:
            record: The session.
            ttl: Seconds until the record expires.

        Returns:
            `live`; or `other` or `ended`, and nothing was changed.

        Raises:
            StoreError: Redis did not take it.
        """
        keys = self._keys.for_session(record.session_id)
        return await self._call(
            "write to",
            lambda: scripts.record(self._redis, keys, ttl, record.owner, record.handshake),
        )

    async def record_all(self, records: Sequence[NewRecord], *, ttl: int) -> None:
        """Record many sessions, many in a round trip. Arguments and errors as in `record`."""
        if not isinstance(self._redis, aioredis.Redis):  # A cluster's pipeline takes no scripts.
            for record in records:
                await self.record(record, ttl=ttl)
            return
        for start in range(0, len(records), _RECORDS_AT_ONCE):
            first, *others = records[start : start + _RECORDS_AT_ONCE]
            await self.record(first, ttl=ttl)  # It loads the script, should Redis not know it.
            pipeline = self._redis.pipeline(transaction=False)
            for each in others:
                keys = self._keys.for_session(each.session_id)
                scripts.queue_record(pipeline, keys, ttl, each.owner, each.handshake)
            await self._call("write to", pipeline.execute)

    async def touch(self, session_id: str, *, owner: str, ttl: int) -> SessionRecord:
        """Renew a session's record, and read it; see `scripts.touch`.

        Of a session that nobody knows it is not said that it is absent, when Redis has just lost what it knew.
        """
        keys = self._keys.for_session(session_id)
        record = SessionRecord(*await self._call("read from", lambda: scripts.touch(self._redis, keys, ttl, owner)))
        doubtful = record.state == "absent" and self._leased and not self.uncertain
        lease = self._keys.worker(self._worker.name)
        if doubtful and not await self._call("read from", lambda: self._redis.exists(lease)):
            self._blind_until = time.monotonic() + self.lease
            self._sooner.set()
        return record

    @property
    def uncertain(self) -> bool:
        """Whether Redis was unreachable, or has lost data, so recently that workers may not have published again."""
        return self._breaker.reason is not None or time.monotonic() < self._blind_until

    @property
    def young(self) -> bool:
        """Whether this worker began within a lease: it does not know of an outage before."""
        return time.monotonic() - self._began < self.lease

    def republish(self) -> None:
        """Publish again what this worker knows: something could not be published."""
        self._republish.set()

    async def end(self, session_id: str, *, ttl: int) -> None:
        """End a session for all workers, and tell them.

        Raises:
            StoreError: Redis did not take it.
        """
        keys = self._keys.for_session(session_id)
        await self._call("write to", lambda: scripts.end(self._redis, keys, ttl))
        await self.publish(session=session_id, ended=True)

    async def _leave(self) -> None:
        with map_redis_errors("write to", self._redis):
            await self._redis.delete(self._keys.worker(self._worker.name))

    async def expired(self, workers: set[str]) -> set[str]:
        """Those of the workers whose lease has run out.

        Nobody, for as long as a lease after Redis was away or took long to answer: the living have not been able to
        renew theirs.

        Raises:
            StoreError: Redis could not be read.
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
            self._blind_until = time.monotonic() + self.lease
            raise
        missing = not all(alive.values())
        own = self._keys.worker(self._worker.name)
        lost = missing and self._leased and not await self._call("read from", lambda: self._redis.exists(own))
        if lost:  # Redis has lost all leases: the living renew theirs within a lease.
            self._sooner.set()
        if lost or time.monotonic() - began > self.lease / 3:
            self._blind_until = time.monotonic() + self.lease
        return set() if time.monotonic() < self._blind_until else {name for name in alive if not alive[name]}

    async def _renew(self) -> bool:
        """Renew the lease; whether it held what this worker wrote last."""
        key, milliseconds = self._keys.worker(self._worker.name), round(self.lease * 1000)
        self._attempted = value = self._attempted + 1
        began = boot_microseconds()
        with map_redis_errors("write to", self._redis):
            held = await self._redis.execute_command(
                "SET", key, str(value), "PX", milliseconds, "GET", get=True, NEVER_DECODE=True
            )
        # A renewal whose reply was lost may have been carried out.
        expected = held is not None and held.isdigit() and self._written <= int(held) < value
        self._written, self._renewed_at = value, began
        return expected

    async def _lease_loop(self) -> None:
        """Renew in time for one renewal to fail. Nothing else is awaited here, however much has to be published."""
        well = self._leased
        while True:
            with anyio.move_on_after(self.lease / 3 if well else min(self.lease / 3, _RETRY_SECONDS)):
                await self._sooner.wait()
            self._sooner.clear()
            try:
                with anyio.fail_after(self.lease / 3):
                    held = await self._renew()
            except Exception:  # noqa: BLE001 - whatever it is: a lease that is no longer renewed ends all that runs here
                well = False
                self._blind_until = time.monotonic() + self.lease
                continue
            well = well and not self._recovered
            self._recovered = False
            if not held and self._leased:
                self._state_lost()
            if not (held and well):
                self._blind_until = time.monotonic() + self.lease
                self._republish.set()
            self._leased = well = True
            self._tick()

    async def _republish_loop(self, republish: Callable[[], Awaitable[None]]) -> None:
        """Publish again what Redis may have lost, until it is done."""
        while True:
            await self._republish.wait()
            self._republish.clear()
            try:
                await republish()
            except Exception:  # noqa: BLE001 - whatever it is: it is tried again after the next renewal
                self._republish.set()
                await asyncio.sleep(_RETRY_SECONDS)


def _nothing() -> None:
    """Do nothing: there are no sessions."""
