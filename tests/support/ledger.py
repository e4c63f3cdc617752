"""What was said on streams, and whether Redis has exactly that: each once, in order, under ids that rise."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.types import Appended
from support.messages import note
from support.waiting import until


@dataclass(frozen=True)
class Call:
    """One append."""

    began: float
    """By the monotonic clock."""
    seconds: float
    deferred: bool


@dataclass
class Speaker:
    """Says numbers on one stream of one session, one after the other, and remembers what it was told.

    Args:
        root: The store.
        session: The session.
        stream: Its stream.
        size: Characters of each message, beside the number.
    """

    root: RedisEventStore
    session: str
    stream: str = "1"
    size: int = 0
    calls: list[Call] = field(default_factory=list)
    answers: list[Appended | None] = field(default_factory=list)
    """For each number what `append` returned; None for one that was cancelled."""

    def __post_init__(self) -> None:
        self.part = self.root.for_session(self.session)
        self.keys = Keys(self.root.key_prefix).for_session(self.session)

    async def say(self) -> Appended:
        """Say the next number."""
        number = len(self.answers)
        self.answers.append(None)
        began = time.monotonic()
        appended = await self.part.append(self.stream, note(number, "x" * self.size))
        self.calls.append(Call(began, time.monotonic() - began, appended.deferred))
        self.answers[number] = appended
        return appended

    async def say_until(self, over: asyncio.Event, *, pause: float = 0.01) -> None:
        """Say number after number until it is over."""
        while not over.is_set():
            await self.say()
            await asyncio.sleep(pause)

    async def say_all(self, count: int) -> None:
        """Say so many."""
        for _ in range(count):
            await self.say()

    async def stored(self, client: aioredis.Redis) -> list[tuple[str, int]]:
        """Ids and numbers that Redis has, in the order of the index; what is no number of ours is left out."""
        members: list[Any] = await client.zrange(self.keys.stream(self.stream), 0, -1)
        index = [_text(member) for member in members]
        async with client.pipeline(transaction=False) as pipeline:
            for event_id in index:
                pipeline.get(self.keys.event(event_id))
                pipeline.hget(self.keys.event(event_id), "payload")
            told = await pipeline.execute(raise_on_error=False)
        # One of the two is an error: an event is a text, or a hash when it is large.
        payloads = [
            hashed if isinstance(text, ResponseError) else text and _text(text).partition("\n")[0]
            for text, hashed in zip(told[::2], told[1::2], strict=True)
        ]
        assert None not in payloads, f"{self.session}: the index names events that are not there"
        found = [(event_id, _number(payload)) for event_id, payload in zip(index, payloads, strict=True)]
        return [(event_id, number) for event_id, number in found if number is not None]

    def told(self, number: int) -> str | None:
        """The id that was told for a number, at once or later; None while it is not known, or was lost."""
        appended = self.answers[number]
        if appended is None:
            return None
        if not appended.deferred:
            return appended.event_id
        later = appended.later
        return later.result() if later is not None and later.done() and not later.cancelled() else None

    async def check(self, client: aioredis.Redis) -> None:
        """Redis has all that was said, and what was told of it was true. What was cancelled may be there or not."""
        stored = await self.stored(client)
        numbers = [number for _, number in stored]
        assert numbers == sorted(set(numbers)), f"{self.session}: out of order or twice: {_around(numbers)}"
        owed = {number for number, appended in enumerate(self.answers) if appended is not None}
        assert not (missing := sorted(owed - set(numbers))), f"{self.session}: missing: {missing[:20]}"
        assert set(numbers) <= set(range(len(self.answers)))
        ids = {number: event_id for event_id, number in stored}
        for number in sorted(owed):
            assert self.told(number) == ids[number], f"{self.session}: {number} has another id than was told"


async def check_all(speakers: Sequence[Speaker], client: aioredis.Redis) -> None:
    """Redis has all that was said, exactly, and nothing beside."""
    for speaker in speakers:
        await speaker.check(client)
    indexed = sum([await client.zcard(speaker.keys.stream(speaker.stream)) for speaker in speakers])
    prefix = speakers[0].root.key_prefix
    events = [key async for key in client.scan_iter(match=f"{prefix}*event:*", count=1000)]
    assert len(events) == indexed, "there are events that no index names"


async def settled(store: RedisEventStore) -> None:
    """Return when Redis is back, and nothing waits for it any longer."""
    await until(lambda: store.waiting.away is None and not store.waiting.events)


def _number(payload: bytes | str) -> int | None:
    """Of one of our messages; None for a priming event, or a response."""
    params = (json.loads(payload) if payload else {}).get("params")
    return int(params["n"]) if params else None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _around(numbers: list[int]) -> str:
    place = next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), 0)
    return f"… {numbers[max(0, place - 5) : place + 5]} …"
