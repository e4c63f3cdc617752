"""Latency from one worker's store to a client that follows on another worker."""

import asyncio
import gc
import itertools
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.processes import Worker, resident, until, valkey, worker
from benchmarks.wire import Session, Stream

_AT_ONCE = 8
"""Sessions that are opened at the same time."""
_rounds = itertools.count(1)


async def measure(*, followers: int, rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    """Followers of as many sessions; events spread evenly over them and over time.

    Returns:
        The figures of each round, on another worker and on the same one, and the memory per follower.
    """
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(valkey())
        a = await stack.enter_async_context(worker(url))
        b = await stack.enter_async_context(worker(url))
        await _round(a, b, followers=2, rate=20, seconds=1)
        sessions = await open_sessions(a, followers)
        figures: dict[str, Any] = {"followers": followers, "two_workers": [], "one_worker": []}
        gc.collect()
        before = resident(b.pid)
        for _ in range(rounds):
            figures["two_workers"].append(await _round(a, b, sessions=sessions, rate=rate, seconds=seconds))
            if before:
                figures["http_bytes_per_follower"] = (figures["two_workers"][0].pop("resident") - before) / followers
                before = 0
            figures["one_worker"].append(await _round(a, a, sessions=sessions, rate=rate, seconds=seconds))
        for figure in figures["two_workers"] + figures["one_worker"]:
            figure.pop("resident", None)
        return figures


async def open_sessions(where: Worker, count: int) -> list[Session]:
    """Open sessions on a worker, a few at a time."""
    bound = asyncio.Semaphore(_AT_ONCE)

    async def one() -> Session:
        async with bound:
            return await Session.open(where.port)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def _round(  # noqa: PLR0913 - what a round is
    storing: Worker,
    following: Worker,
    *,
    rate: float,
    seconds: float,
    sessions: Sequence[Session] = (),
    followers: int = 0,
) -> dict[str, Any]:
    sessions = sessions or await open_sessions(storing, followers)
    number = next(_rounds)
    sign, every, times = f"sign-{number}", len(sessions) / rate, max(1, round(seconds * rate / len(sessions)))
    bound = asyncio.Semaphore(_AT_ONCE)

    async def follow(place: int, session: Session) -> Stream:
        async with bound:
            schedule = {"sign": sign, "times": times, "every": every, "first": 0.5 + place * every / len(sessions)}
            cursor = await session.cut_call(storing.port, number, "speak", **schedule)
            return await session.get(following.port, cursor)

    streams = await asyncio.gather(*(follow(place, session) for place, session in enumerate(sessions)))
    size = resident(following.pid)
    gc.collect()
    gc.disable()
    try:
        await sessions[0].call(storing.port, 10_000 + number, "go", sign=sign)
        await until(lambda: all(s.ended.is_set() for s in streams), "the streams to end", seconds=seconds + 30)
    finally:
        gc.enable()
    received = [event for stream in streams for event in stream.progress()]
    return {
        "followers": len(streams),
        "expected": times * len(streams),
        "received": len(received),
        "responses": sum(b'"done"' in stream.text for stream in streams),
        "sent_to_wire_ms": percentiles([(event.received - event.sent) / 1e6 for event in received]),
        "accepted_to_wire_ms": percentiles([(event.received - event.accepted) / 1e6 for event in received]),
        "resident": size,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, the 90th and the 99th of a hundred, and the largest."""
    if len(values) < 2:
        return dict.fromkeys(("p50", "p90", "p99", "max"), values[0] if values else float("nan"))
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "p50": round(cuts[49], 3),
        "p90": round(cuts[89], 3),
        "p99": round(cuts[98], 3),
        "max": round(max(values), 3),
    }
