"""What is stored: sessions in which calls run, each of them a stream of notifications that ends with its response."""

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.competitors import Opened
from benchmarks.latency import percentiles
from mcp_eventscope.types import EventStore, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse

BYTES = 300
CALL = 20
"""Events of a call: few, for the peers' sake. FastMCP writes the list of a stream's events anew with each event."""
_PATIENCE = 4
"""How many times the bound of time is allowed to those who have not stored `_PATIENCE` events per writer by then."""


def _notification(text: str) -> JSONRPCMessage:
    params = {"progressToken": 1, "progress": 10, "total": CALL, "message": text}
    return JSONRPCNotification(jsonrpc="2.0", method="notifications/progress", params=params)


def _response(text: str) -> JSONRPCMessage:
    result = {"content": [{"type": "text", "text": text}], "isError": False}
    return JSONRPCResponse(jsonrpc="2.0", id=1, result=result)


def _size(message: JSONRPCMessage) -> int:
    return len(message.model_dump_json(by_alias=True, exclude_unset=True))


NOTIFICATION = _notification("x" * (BYTES - _size(_notification(""))))
RESPONSE = _response("x" * (BYTES - _size(_response(""))))


@dataclass
class Session:
    """One session; its calls are numbered as a client numbers them."""

    store: EventStore
    requests: "itertools.count[int]" = field(default_factory=itertools.count)

    def call(self) -> "Call":
        """The next call."""
        return Call(self)


class Call:
    """One writer: a call after the other, without end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next = self._events()

    def _events(self) -> Any:
        while True:
            stream = str(next(self._session.requests))
            for number in range(CALL):
                yield stream, RESPONSE if number == CALL - 1 else NOTIFICATION

    async def store(self) -> None:
        """Store one event."""
        stream, message = next(self._next)
        await self._session.store.store_event(stream, message)


class Load:
    """Writers that are spread over the sessions, in a closed loop: each stores its next event once it has its last id.

    Args:
        store: Where to.
        writers: How many store at the same time.
        sessions: Of how many sessions.
    """

    def __init__(self, store: Opened, *, writers: int, sessions: int) -> None:
        found = [Session(store.session()) for _ in range(min(sessions, writers))]
        self._calls = [found[place % len(found)].call() for place in range(writers)]

    async def run(self, *, count: int, seconds: float) -> dict[str, Any]:
        """Store until so many are stored, or the time is over.

        Returns:
            How many per second, latencies, and the processor time of this process per store.
        """
        writers = len(self._calls)
        left = count
        told: list[float] = []
        used, began = time.process_time(), time.perf_counter()
        deadline, last = began + seconds, began + seconds * _PATIENCE
        each = [0] * writers

        async def write(place: int, call: Call) -> None:
            nonlocal left
            while left > 0:
                before = time.perf_counter()
                if before > deadline and (len(told) >= _PATIENCE * writers or before > last):
                    return
                left -= 1
                await call.store()
                told.append(time.perf_counter() - before)
                each[place] += 1

        await asyncio.gather(*(write(place, call) for place, call in enumerate(self._calls)))
        spent, used = time.perf_counter() - began, time.process_time() - used
        return {
            "writers": writers,
            "stores": len(told),
            "seconds": round(spent, 4),
            "stores_per_second": round(len(told) / spent, 1),
            "cpu_us_per_store": round(used / len(told) * 1e6, 2),
            "ms": percentiles([took * 1e3 for took in told]),
            # Of a writer: where a pool is not fair, some store all the time, and the others wait.
            "stores_of_a_writer": {"fewest": min(each), "median": statistics.median(each), "most": max(each)},
        }
