"""Whether Redis can be called: one circuit breaker for writer, reader and workers."""

import asyncio
from collections.abc import Callable

from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.store.events import FailureReason, StoreDegraded, StoreRecovered


class CircuitBreaker:
    """Opens on the first failure and closes on the first reply in time.

    One outage is one degradation: while the circuit is open, a further failure changes the reason, and is not reported.

    Args:
        call_timeout: Seconds that a caller waits for Redis at most while a message or a request depends on it; a reply
            that takes longer does not close the circuit.
        observers: Called with `StoreDegraded` when the circuit opens, and with `StoreRecovered` when it closes.
    """

    def __init__(self, call_timeout: float, observers: Observers) -> None:
        self.call_timeout = call_timeout
        self._observers = observers
        self.reason: FailureReason | None = None
        """Why the circuit is open; None while it is closed."""
        self._opened_at = 0.0
        self._first_reason: FailureReason | None = None
        self._probes: list[Callable[[], None]] = []

    @property
    def unreachable(self) -> bool:
        """Whether Redis answers nothing at all: not a write that it refuses, but no call."""
        return self.reason is not None and self.reason.unreachable

    def on_open(self, probe: Callable[[], None]) -> None:
        """Call back on each failure: something has to try Redis until it answers."""
        self._probes.append(probe)

    def record_failure(self, reason: FailureReason, error: str) -> None:
        """Open the circuit.

        Args:
            reason: Why.
            error: The failure in words: with the address, without a secret or a payload.
        """
        opened = self.reason is None
        self.reason = reason
        if opened:
            self._opened_at = asyncio.get_running_loop().time()
            self._first_reason = reason
            self._observers.emit(StoreDegraded(reason=reason, error=error))
        for probe in self._probes:
            probe()

    def record_success(self, seconds: float) -> None:
        """Close the circuit, if the reply came in time.

        Args:
            seconds: Time between the call and its reply.
        """
        if self.reason is None or seconds >= self.call_timeout:
            return
        first, self.reason, self._first_reason = self._first_reason or self.reason, None, None
        self._observers.emit(StoreRecovered(reason=first, seconds=asyncio.get_running_loop().time() - self._opened_at))

    def reset(self) -> None:
        """Close the circuit without a report: the store is being closed."""
        self.reason = None
