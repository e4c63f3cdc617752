"""The network between clients and workers, which a fault cuts everywhere."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from soak.history import Recorder


class Network:
    """The streams that clients read, and how long they wait for them."""

    def __init__(self) -> None:
        self._reading: set[asyncio.Timeout] = set()
        self._patient: set[asyncio.Timeout] = set()
        self.redis_well_since = 0.0
        """The loop's time since when no fault of Redis lasts; infinite during one."""

    @asynccontextmanager
    async def reading(self, until: float | None, *, cuttable: bool) -> AsyncIterator[None]:
        """Read one event in the block.

        Args:
            until: The time of the event loop at which the client cuts this connection; None: it does not.
            cuttable: Whether the connection is cut with all others.

        Raises:
            TimeoutError: The connection is cut.
        """
        async with asyncio.timeout_at(until) as timeout:
            if cuttable:
                self._reading.add(timeout)
            try:
                yield
            finally:
                self._reading.discard(timeout)

    @asynccontextmanager
    async def patience(self, seconds: float) -> AsyncIterator[None]:
        """Give up after so many seconds in which the event loop of the clients was on time.

        Raises:
            TimeoutError: The client gives up.
        """
        async with asyncio.timeout(seconds) as timeout:
            self._patient.add(timeout)
            try:
                yield
            finally:
                self._patient.discard(timeout)

    def late(self, seconds: float) -> None:
        """The event loop was late: a busy machine is no hang, so all clients wait longer by that."""
        for timeout in self._patient:
            if not timeout.expired() and (when := timeout.when()) is not None:
                timeout.reschedule(when + seconds)

    def cut(self) -> int:
        """Cut all connections of clients that wait for an event; returns their number."""
        now = asyncio.get_running_loop().time()
        reading = [timeout for timeout in self._reading if not timeout.expired()]
        for timeout in reading:
            timeout.reschedule(now)
        return len(reading)


@dataclass(frozen=True)
class Surroundings:
    """What all clients of a run share."""

    urls: Sequence[str]
    """The workers."""
    connections: httpx2.AsyncBaseTransport
    """None is kept alive, so that each request reaches the scheduled worker."""
    network: Network
    recorder: Recorder
