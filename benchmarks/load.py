"""The load: sessions with calls, each a stream of notifications that ends with its response."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.competitors import Opened
from benchmarks.latency import percentiles
from benchmarks.processes import BenchmarkError
from mcp_eventscope.store.messages import EventStore, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse

BYTES = 300
CALL = 20
"""Events of a call: few, because FastMCP rewrites the list of a stream's events with each event."""
_UNACKNOWLEDGED = 200
"""Events that one stream appends before it waits: a session has at most 256 unacknowledged ones."""
_PATIENCE = 4
"""By how much the time may be exceeded if fewer than `_PATIENCE` events per writer are stored."""


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


async def write_stream(part: Any, stream: str, messages: Iterable[JSONRPCMessage | None]) -> list[str]:
    """Store the events of one request; return their ids once Redis has acknowledged all of them."""
    if not hasattr(part, "begin"):
        return [await part.store_event(stream, message) for message in messages]
    part.begin(stream, int(stream))
    ids: list[str] = []
    appended: Any = None
    for message in messages:
        appended = await part.append(stream, message)
        ids.append(appended.event_id)
        if len(ids) % _UNACKNOWLEDGED == 0:
            await acknowledged(appended)
    await acknowledged(appended)
    return ids


async def acknowledged(appended: Any) -> None:
    """Return once Redis has acknowledged an event of a session, and all earlier ones on its stream.

    Raises:
        BenchmarkError: It was not stored.
    """
    if (outcome := await appended.pending.acknowledged()) != "stored":
        msg = f"an event was not stored: {outcome}"
        raise BenchmarkError(msg)


_MESSAGES = (*[NOTIFICATION] * (CALL - 1), RESPONSE)


def _calls(requests: Iterator[int]) -> Iterator[tuple[str, JSONRPCMessage]]:
    """The messages of one writer: call after call, numbered within the session as a client does."""
    for request in requests:
        stream = str(request)
        for message in _MESSAGES:
            yield stream, message


class Load:
    """Writers spread over sessions, in a closed loop: each stores its next event once it has the last id.

    If a store returns ids before Redis has the events, a writer starts its next call once Redis has acknowledged the
    last one, and events count from then.

    Args:
        store: The store.
        writers: The number of concurrent writers.
        sessions: The number of sessions.
    """

    def __init__(self, store: Opened, *, writers: int, sessions: int) -> None:
        parts = [(store.session(), itertools.count()) for _ in range(min(sessions, writers))]
        self._writers = [
            (part, requests, _calls(requests)) for part, requests in itertools.islice(itertools.cycle(parts), writers)
        ]

    async def run(self, *, count: int, seconds: float) -> dict[str, Any]:
        """Store until so many events are stored, or the time is over.

        Returns:
            Stores per second, latencies, and processor time of this process per store.
        """
        writers = len(self._writers)
        left = count
        durations: list[float] = []
        calls: list[tuple[list[float], float]] = []
        """When the events of each call were appended, and when the last one was acknowledged."""
        used, began = time.process_time(), time.perf_counter()
        deadline, last = began + seconds, began + seconds * _PATIENCE
        each = [0] * writers

        # Nothing between a writer and the store: at ten microseconds per store it would be measurable.
        async def write(place: int, part: EventStore, messages: Iterator[tuple[str, JSONRPCMessage]]) -> None:
            nonlocal left
            store_event = part.store_event
            while left > 0:
                before = time.perf_counter()
                if before > deadline and (len(durations) >= _PATIENCE * writers or before > last):
                    return
                left -= 1
                stream, message = next(messages)
                await store_event(stream, message)
                durations.append(time.perf_counter() - before)
                each[place] += 1

        async def write_calls(place: int, part: Any, requests: Iterator[int]) -> None:
            nonlocal left
            append, clock = part.append, time.perf_counter
            while left > 0 and clock() < last:
                request = next(requests)
                stream = str(request)
                part.begin(stream, request)
                stamps: list[float] = []
                for message in _MESSAGES:
                    stamps.append(clock())
                    appended = await append(stream, message)
                await acknowledged(appended)
                calls.append((stamps, now := clock()))
                left -= CALL
                each[place] += CALL
                if now > deadline and CALL * len(calls) >= _PATIENCE * writers:
                    return

        await asyncio.gather(
            *(
                write_calls(place, part, requests) if hasattr(part, "begin") else write(place, part, messages)
                for place, (part, requests, messages) in enumerate(self._writers)
            )
        )
        spent, used = time.perf_counter() - began, time.process_time() - used
        durations += [end - stamp for stamps, end in calls for stamp in stamps]
        return {
            "writers": writers,
            "stores": len(durations),
            "seconds": round(spent, 4),
            "stores_per_second": round(len(durations) / spent, 1),
            "cpu_us_per_store": round(used / len(durations) * 1e6, 2),
            "ms": percentiles([took * 1e3 for took in durations]),
            # Stores per writer: with an unfair pool some writers store all the time and others wait.
            "stores_of_a_writer": {"fewest": min(each), "median": statistics.median(each), "most": max(each)},
        }
