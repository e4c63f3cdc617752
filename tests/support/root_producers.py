"""Producers of numbered events on root streams, and a check that Redis has exactly these."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.results import AppendResult
from support.messages import note
from support.waiting import cpu_aware_clock


@dataclass(frozen=True)
class Call:
    """One append."""

    began: float
    """By the monotonic clock."""
    seconds: float
    """By `cpu_aware_clock`."""
    deferred: bool


@dataclass
class RootProducer:
    """Appends numbers to one stream of the root store, one after the other, and records the results.

    Args:
        root: The store.
        name: The first part of the stream's name.
        suffix: The second.
        size: Characters of each message, beside the number.
    """

    root: RedisEventStore
    name: str
    suffix: str = "1"
    size: int = 0
    calls: list[Call] = field(default_factory=list)
    results: list[AppendResult | None] = field(default_factory=list)
    """For each number the result of `append`; None for a cancelled one."""

    def __post_init__(self) -> None:
        self.stream = f"{self.name}:{self.suffix}"
        self.keys = Keys(self.root.key_prefix)

    async def append_next(self) -> AppendResult:
        """Append the next number."""
        number = len(self.results)
        self.results.append(None)
        began, own = time.monotonic(), cpu_aware_clock()
        appended = await self.root.append(self.stream, note(number, "x" * self.size))
        self.calls.append(Call(began, cpu_aware_clock() - own, appended.deferred))
        self.results[number] = appended
        return appended

    async def append_until(self, over: asyncio.Event, *, pause: float = 0.01) -> None:
        """Append number after number until it is over."""
        while not over.is_set():
            await self.append_next()
            await asyncio.sleep(pause)

    async def append_many(self, count: int) -> None:
        """Append so many numbers."""
        for _ in range(count):
            await self.append_next()

    async def stored(self, client: aioredis.Redis) -> list[tuple[str, int]]:
        """The ids and numbers in Redis, in the order of the index, without other messages."""
        members: list[Any] = await client.zrange(self.keys.stream(self.stream), 0, -1)
        index = [_text(member) for member in members]
        async with client.pipeline(transaction=False) as pipeline:
            for event_id in index:
                pipeline.hget(self.keys.event(event_id), "payload")
            payloads = await pipeline.execute()
        assert None not in payloads, f"{self.stream}: the index names events that are not there"
        found = [(event_id, _number(payload)) for event_id, payload in zip(index, payloads, strict=True)]
        return [(event_id, number) for event_id, number in found if number is not None]

    async def check(self, client: aioredis.Redis) -> None:
        """Redis has every number, under the id that was returned. A cancelled one may be there or not."""
        stored = await self.stored(client)
        numbers = [number for _, number in stored]
        assert numbers == sorted(set(numbers)), f"{self.stream}: out of order or twice: {_around(numbers)}"
        owed = {number for number, appended in enumerate(self.results) if appended is not None}
        assert not (missing := sorted(owed - set(numbers))), f"{self.stream}: missing: {missing[:20]}"
        assert set(numbers) <= set(range(len(self.results)))
        ids = {number: event_id for event_id, number in stored}
        for number, appended in enumerate(self.results):
            if appended is not None and not appended.deferred:
                assert appended.event_id == ids[number], f"{self.stream}: {number} has another id than was returned"


async def check_all(producers: Sequence[RootProducer], client: aioredis.Redis) -> None:
    """Redis has the numbers of all producers, and nothing else."""
    for producer in producers:
        await producer.check(client)
    indexed = sum([await client.zcard(producer.keys.stream(producer.stream)) for producer in producers])
    prefix = producers[0].root.key_prefix
    events = [key async for key in client.scan_iter(match=f"{prefix}*event:*", count=1000)]
    assert len(events) == indexed, "there are events that no index names"


def _number(payload: bytes | str) -> int | None:
    """Of one of our messages; None for a priming event, or a response."""
    params = (json.loads(payload) if payload else {}).get("params")
    return int(params["n"]) if params else None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _around(numbers: list[int]) -> str:
    place = next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), 0)
    return f"… {numbers[max(0, place - 5) : place + 5]} …"
