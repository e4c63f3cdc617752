"""Thousands of followers in one process, without HTTP: their cost and wake-up time.

Run as a program, this is that process: it reads requests from standard input, and writes its counts to standard output.
"""

import asyncio
import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar

from redis import asyncio as aioredis

from benchmarks.idle import commands, per_second
from benchmarks.latency import percentiles
from benchmarks.processes import child, resident, until, valkey
from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.read.run_reader import RunReader
from mcp_eventscope.store.messages import EventMessage, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse
from mcp_eventscope.store.results import FollowEnd

PREFIX = "bench:"
NAME = "crowd"
"""The client name of the crowd's connections."""
TTL = 3600
STREAM = "1"
_GROUP = 500
"""Events that are written concurrently, so that the writer is not the bottleneck."""
_QUIET_SECONDS = 0.3
_NO_EVENT = "1-1-0123456789ab1"
"""A cursor of a worker that does not exist."""

T = TypeVar("T")


# -- the process that starts it, and stores --------------------------------------------------------------------------


async def measure(*, followers: int, idle: float, traced: int) -> dict[str, Any]:
    """One crowd, once.

    Args:
        followers: The number of followers.
        idle: Seconds of idle time in which processor time is counted.
        traced: The size of a second, smaller crowd whose allocations are traced; 0: none.

    Returns:
        Its cost and its counts.
    """
    async with valkey() as url:
        figures = await _crowd(url, followers, idle=idle)
    if traced:
        async with valkey() as url:
            figures["traced_bytes_per_follower"] = (await _crowd(url, traced, trace=True))["traced_bytes_per_follower"]
    return figures


async def _crowd(url: str, count: int, *, idle: float = 0, trace: bool = False) -> dict[str, Any]:
    async with connect(url) as client:
        store = RedisEventStore(client, key_prefix=PREFIX, ttl=TTL)
        # The worker that runs the requests. Without its lease they would be answered with an error.
        async with store.coordinator.hold_lease(30, lambda _: None, lambda: asyncio.sleep(0)):
            cursors = await _write(store, count, None)
            order = {"url": url, "cursors": cursors, "idle": idle, "trace": trace}
            async with _child(order) as ask:
                figures = await ask("")
                clients = await client.client_list()
                figures["connections"] = {
                    kind: sum(row["name"] == NAME and ("P" in row["flags"]) == (kind == "pubsub") for row in clients)
                    for kind in ("pubsub", "normal")
                }
                before = await commands(client)
                figures |= await ask("idle")
                figures["idle_commands_per_second"] = per_second(before, await commands(client), idle)
                ids = await _write(store, count, JSONRPCNotification(jsonrpc="2.0", method="note", params={"n": 1}))
                figures["wake"] = await ask("wake")
                figures["wake"]["writing_seconds"] = round((_microseconds(ids[-1]) - _microseconds(ids[0])) / 1e6, 3)
                await _write(store, count, JSONRPCResponse(jsonrpc="2.0", id=1, result={}))
                figures |= await ask("end")
    return figures


async def _write(store: RedisEventStore, count: int, message: JSONRPCMessage | None) -> list[str]:
    """Store the message on all streams, as the worker that runs their requests; returns the ids.

    Args:
        store: The store of that worker.
        count: The number of streams.
        message: The message; None opens the streams, with a priming event.
    """

    async def write(place: int) -> str:
        session = store.for_session(_session(place))
        if message is None:
            session.begin(STREAM, 1)
        appended = await session.append(STREAM, message)
        if appended.pending is not None:
            await appended.pending.acknowledged()
        return appended.event_id

    ids: list[str] = []
    for start in range(0, count, _GROUP):
        ids += await asyncio.gather(*map(write, range(start, min(start + _GROUP, count))))
    return ids


@asynccontextmanager
async def _child(order: dict[str, Any]) -> AsyncIterator[Callable[[str], Awaitable[dict[str, Any]]]]:
    """Start the following process. Yields a function that sends a request and returns the answer."""
    async with child("the crowd", "-m", "benchmarks.crowd") as started:

        async def ask(word: str) -> dict[str, Any]:
            if word:
                started.send(word)
            answer: dict[str, Any] = json.loads(await started.receive(300))
            return answer

        started.send(json.dumps(order))
        yield ask
        await started.process.wait()


# -- the process that follows ----------------------------------------------------------------------------------------


class _Counting(RunReader):
    """A reader that counts its reads, and those in progress."""

    reading = 0
    reads = 0

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Read, and count."""
        _Counting.reading += 1
        try:
            return await super().call(function)
        finally:
            _Counting.reading -= 1
            _Counting.reads += 1


class _Deliveries:
    """The events of all followers, and their latency."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from now."""
        self.seconds: list[float] = []
        self.first, self.last = sys.maxsize, 0

    async def __call__(self, event: EventMessage) -> None:
        """Take one event."""
        now, stored = time.time_ns(), _microseconds(event.event_id or "") * 1000
        self.seconds.append((now - stored) / 1e9)
        self.first, self.last = min(self.first, stored), now


class _Crowd:
    """All followers of this process."""

    def __init__(self, store: RedisEventStore, monitor: aioredis.Redis, cursors: list[str]) -> None:
        self._store = store
        self._monitor = monitor
        self._cursors = cursors
        self._deliveries = _Deliveries()
        self._tasks: list[asyncio.Task[Any]] = []

    async def follow(self, *, trace: bool) -> dict[str, Any]:
        """Start all of them; returns their cost once they sleep."""
        # Connect, load scripts and import before anything is counted.
        await self._store.for_session("warm").follow(STREAM, _NO_EVENT, self._deliveries, limit=0)
        self._deliveries.begin()
        gc.collect()
        if trace:
            tracemalloc.start()
        before, began, used = resident(os.getpid()), time.monotonic(), time.process_time()
        for place, cursor in enumerate(self._cursors):
            self._tasks.append(asyncio.create_task(self._one(place, cursor)))
            await asyncio.sleep(0)  # They arrive one after the other, like requests.
        subscribed = 0.0

        async def settled() -> bool:
            nonlocal subscribed
            stats = await self._monitor.info("stats")
            if not subscribed and stats["pubsub_channels"] >= len(self._cursors):
                subscribed = time.monotonic() - began
            return bool(subscribed) and _Counting.reading == 0

        await until(settled, "all followers to be subscribed", seconds=240)
        sleeping, cpu = time.monotonic() - began, time.process_time() - used
        await asyncio.sleep(_QUIET_SECONDS)
        gc.collect()
        count = len(self._cursors)
        traced = round(tracemalloc.get_traced_memory()[0] / count) if trace else None
        return {
            "followers": count,
            "rss_bytes_per_follower": round((resident(os.getpid()) - before) / count),
            "traced_bytes_per_follower": traced,
            "subscribe_seconds": round(subscribed, 3),
            "asleep_seconds": round(sleeping, 3),
            "asleep_cpu_seconds": round(cpu, 3),
            "reads_to_sleep": _Counting.reads,
        }

    async def _one(self, place: int, cursor: str) -> Any:
        return await self._store.for_session(_session(place)).follow(STREAM, cursor, self._deliveries, limit=TTL)

    async def idle(self, seconds: float) -> dict[str, Any]:
        """The cost of sleeping."""
        used, began = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        spent = (time.process_time() - used) / (time.monotonic() - began)
        return {"idle_cpu_per_second": round(spent, 4)}

    async def woken(self) -> dict[str, Any]:
        """The wake-up times, once every follower has been woken."""
        deliveries = self._deliveries
        await until(lambda: len(deliveries.seconds) >= len(self._cursors), "all followers to be woken", seconds=240)
        figures = {
            "delivered": len(deliveries.seconds),
            "seconds": round((deliveries.last - deliveries.first) / 1e9, 3),
            "lag_seconds": percentiles(deliveries.seconds),
        }
        self._deliveries.begin()
        return figures

    async def end(self) -> dict[str, Any]:
        """Wait for the responses to end all of them."""
        async with asyncio.timeout(240):
            ended = await asyncio.gather(*self._tasks)
        return {
            "completed": sum(facts.end is FollowEnd.COMPLETED for facts in ended),
            "failed_reads": sum(facts.failures for facts in ended),
            "delivered": sum(facts.delivered for facts in ended),
        }


class _Orders:
    """The standard input, line by line, without blocking the loop."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line: str = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            raise StopAsyncIteration
        return line.strip()


async def _main() -> None:
    orders = _Orders()
    order: dict[str, Any] = json.loads(await anext(orders))
    async with connect(f"{order['url']}?client_name={NAME}") as client, connect(order["url"]) as monitor:
        store = RedisEventStore(client, key_prefix=PREFIX, ttl=TTL)
        shared = store._sessions
        store._sessions = replace(shared, reader=_Counting(client, shared.breaker, shared.clock, shared.writer.find))
        crowd = _Crowd(store, monitor, order["cursors"])
        _print(await crowd.follow(trace=order["trace"]))
        for step in ("idle", "wake", "end"):
            if await anext(orders) != step:
                return
            _print(
                await (
                    crowd.idle(order["idle"]) if step == "idle" else crowd.woken() if step == "wake" else crowd.end()
                )
            )


def _print(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def _microseconds(event_id: str) -> int:
    """When an event was accepted: its id begins with the time."""
    return int(event_id.partition("-")[0])


def _session(place: int) -> str:
    return f"session-{place:06}"


if __name__ == "__main__":
    asyncio.run(_main())
