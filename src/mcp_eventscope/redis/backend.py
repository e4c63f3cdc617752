"""The objects that all parts on one Redis and prefix share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, address_of, call
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.pubsub import Subscriptions
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.redis.workers.worker_id import WorkerId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RedisBackend:
    """What the event store, the subscription bus, request state and tasks of a server share.

    One outage is one degradation, and a worker has one name and one lease, whichever part notices it.
    """

    redis: AnyRedis
    keys: Keys
    """The keys of the root."""
    worker: WorkerId
    workers: Workers
    """This process as a worker: its lease, and the leases of others."""
    clock: EventClock
    """Synchronized with Redis."""
    breaker: CircuitBreaker
    """Open while Redis is unreachable. The event store probes Redis until it answers again, and closes it."""
    observers: Observers
    """Report outages and recoveries."""
    pubsub: Subscriptions
    ttl: int | None
    """Seconds that events are kept; None: no expiry."""

    @property
    def address(self) -> str:
        """The address of Redis, without credentials."""
        return address_of(self.redis)

    async def call(self, operation: str, function: Callable[[], Awaitable[T]]) -> T:
        """Call Redis with a time limit, and repeat the call once if a pooled connection was stale.

        Args:
            operation: For the error: "read from", "write to", …
            function: Makes the call, and is idempotent.

        Raises:
            StoreUnavailableError: Redis was not reached, or did not answer in time. The circuit breaker records it.
            StoreRejectedError: Redis answered with an error.
        """
        return await call(operation, self.redis, self.breaker, function)
