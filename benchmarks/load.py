"""What is stored: sessions in which calls run, each of them a stream of notifications that ends with its response."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

from benchmarks.competitors import Opened
from benchmarks.latency import percentiles
from mcp_eventscope.types import JSONRPCMessage, JSONRPCNotification, JSONRPCResponse

StoreEvent: TypeAlias = Callable[[str, JSONRPCMessage | None], Awaitable[str]]

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


def _calls(requests: "itertools.count[int]") -> Iterator[tuple[str, JSONRPCMessage]]:
    """What one writer says: a call after the other, numbered within its session as a client numbers them."""
    while True:
        stream = str(next(requests))
        for number in range(CALL):
            yield stream, RESPONSE if number == CALL - 1 else NOTIFICATION


class Load:
    """Writers that are spread over the sessions, in a closed loop: each stores its next event once it has its last id.

    Args:
        store: Where to.
        writers: How many store at the same time.
        sessions: Of how many sessions.
    """

    def __init__(self, store: Opened, *, writers: int, sessions: int) -> None:
        parts = [(store.session(), itertools.count()) for _ in range(min(sessions, writers))]
        self._writers = [
            (part.store_event, _calls(requests)) for part, requests in itertools.islice(itertools.cycle(parts), writers)
        ]

    async def run(self, *, count: int, seconds: float) -> dict[str, Any]:
        """Store until so many are stored, or the time is over.

        Returns:
            How many per second, latencies, and the processor time of this process per store.
        """
        writers = len(self._writers)
        left = count
        told: list[float] = []
        used, began = time.process_time(), time.perf_counter()
        deadline, last = began + seconds, began + seconds * _PATIENCE
        each = [0] * writers

        # Nothing between a writer and the store: at ten microseconds a store it would be seen.
        async def write(place: int, store_event: StoreEvent, said: Iterator[tuple[str, JSONRPCMessage]]) -> None:
            nonlocal left
            while left > 0:
                before = time.perf_counter()
                if before > deadline and (len(told) >= _PATIENCE * writers or before > last):
                    return
                left -= 1
                stream, message = next(said)
                await store_event(stream, message)
                told.append(time.perf_counter() - before)
                each[place] += 1

        await asyncio.gather(*(write(place, *writer) for place, writer in enumerate(self._writers)))
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
