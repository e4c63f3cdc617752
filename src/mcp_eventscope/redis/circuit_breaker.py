"""The circuit breaker that writer, reader and workers share."""

import asyncio
from collections.abc import Callable

from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.store.events import FailureReason, StoreDegraded, StoreRecovered

PROBED_SECONDS = 1.0
"""Seconds since the last failure after which an open circuit is not up to date. Redis is probed several times a
second, unless a probe is not answered, or this process was suspended."""


class CircuitBreaker:
    """Opens on the first failure and closes on the first reply in time.

    One outage is one degradation: while the circuit is open, further failures change the reason and are not reported.

    On Redis Cluster a failure or a reply is that of one node. There only probes of all nodes open and close the
    circuit, and other failures cause a probe. While a node answers, calls are made: `unreachable` is False.

    Args:
        call_timeout: Maximum seconds that a message or a request waits for Redis. A reply that takes longer does not
            close the circuit.
        observers: Called with `StoreDegraded` when the circuit opens, and with `StoreRecovered` when it closes.
        cluster: Whether Redis has several nodes.
    """

    def __init__(self, call_timeout: float, observers: Observers, *, cluster: bool = False) -> None:
        self.call_timeout = call_timeout
        self._observers = observers
        self.cluster = cluster
        self._partial = False
        """Whether some node answers while the circuit is open."""
        self.reason: FailureReason | None = None
        """Why the circuit is open; None while it is closed."""
        self._opened_at = self._failed_at = 0.0
        self._first_reason: FailureReason | None = None
        self._probes: list[Callable[[], None]] = []

    @property
    def unreachable(self) -> bool:
        """Whether every call to Redis fails, rather than only the writes that it refuses."""
        return self.reason is not None and self.reason.unreachable and not self._partial

    @property
    def slow(self) -> bool:
        """Whether the circuit is open although Redis may answer: too late, or since a moment ago."""
        if self.reason is None or self.reason is FailureReason.TIMEOUT:
            return self.reason is not None
        return asyncio.get_running_loop().time() - self._failed_at > PROBED_SECONDS

    def on_failure(self, probe: Callable[[], None]) -> None:
        """Register a callback for failures, which must probe Redis until it answers."""
        self._probes.append(probe)

    def record_failure(self, reason: FailureReason, error: str) -> None:
        """Open the circuit; on Redis Cluster, probe its nodes.

        Args:
            reason: The kind of failure.
            error: Readable text with the address of Redis, without secrets and payloads.
        """
        if not self.cluster:
            self.open(reason, error)
        for probe in self._probes:
            probe()

    def open(self, reason: FailureReason, error: str, *, partial: bool = False) -> None:
        """Open the circuit, or change the reason.

        Args:
            reason: The kind of failure.
            error: As in `record_failure`.
            partial: Whether other nodes answer.
        """
        opened = self.reason is None
        self.reason, self._partial = reason, partial
        self._failed_at = asyncio.get_running_loop().time()
        if opened:
            self._opened_at = self._failed_at
            self._first_reason = reason
            self._observers.emit(StoreDegraded(reason=reason, error=error))

    def record_success(self, seconds: float, *, probe: bool = False) -> None:
        """Close the circuit if the reply came in time.

        Args:
            seconds: Seconds between the call and its reply.
            probe: Whether it is the reply to a probe, of all nodes of Redis Cluster.
        """
        if self.reason is None or seconds >= self.call_timeout or (self.cluster and not probe):
            return
        first, self.reason, self._first_reason = self._first_reason or self.reason, None, None
        self._observers.emit(StoreRecovered(reason=first, seconds=asyncio.get_running_loop().time() - self._opened_at))

    def reset(self) -> None:
        """Close the circuit without a report: the store is being closed."""
        self.reason = None
