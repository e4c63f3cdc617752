"""Producers of session streams, and a check that Redis has exactly the accepted events."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp.types import JSONRPCMessage, JSONRPCNotification, RequestId
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.sessions.event_ids import stream_name
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import AppendResult, ReplayResult, StoreOutcome
from support.messages import note
from support.stores import until_settled
from support.waiting import CEILING, cpu_aware_clock, until


@dataclass(frozen=True)
class Element:
    """One element of a run's list."""

    number: int
    time: int
    marks: tuple[str, ...]
    payload: bytes


def run_of(event_id: str) -> str:
    """The run that an event id names."""
    return event_id.partition("~")[0].split("-")[2]


def list_key(part: Any, stream: str, event_id: str) -> str:
    """The key of the list that an event is in."""
    return f"{part.key_prefix}stream:{stream}:{run_of(event_id)}"


async def elements(client: aioredis.Redis, key: str) -> list[Element]:
    """The elements of a list."""
    found = []
    any_client: Any = client
    for element in await any_client.lrange(key, 0, -1):
        header, _, payload = (element.encode() if isinstance(element, str) else element).partition(b"\n")
        number, when, *marks = header.decode().split(" ")
        found.append(Element(int(number), int(when), tuple(marks), payload))
    return found


class Received:
    """A callback that collects events: their ids, and the numbers of notifications or else the types of messages."""

    def __init__(self) -> None:
        self.ids: list[str | None] = []
        self.contents: list[Any] = []
        self.messages: list[JSONRPCMessage] = []

    async def __call__(self, event: EventMessage) -> None:
        """Take an event."""
        message = event.message
        self.ids.append(event.event_id)
        self.messages.append(message)
        numbered = isinstance(message, JSONRPCNotification) and message.params is not None
        self.contents.append(message.params["n"] if numbered else type(message).__name__)  # type: ignore[index,union-attr]

    async def has(self, count: int, *, within: float = CEILING) -> None:
        """Return when so many events were received."""
        await until(lambda: len(self.contents) >= count, within=within)


class SessionProducer:
    """Appends numbers to the stream of one request, and keeps what `append` returned.

    Args:
        store: The root store.
        session: The session.
        request_id: The id of the request.
        size: Characters of each message, beside the number.
    """

    def __init__(self, store: RedisEventStore, session: str = "s", request_id: RequestId = 1, size: int = 0) -> None:
        self.part = store.for_session(session)
        self.session = session
        self.stream = stream_name(request_id)
        self.part.begin(self.stream, request_id)
        self.appended: list[AppendResult] = []
        self.seconds: list[float] = []
        """How long each `append` took, by `cpu_aware_clock`."""
        self._size = size

    @property
    def ids(self) -> list[str]:
        """The ids, the priming event's first if there is one."""
        return [appended.event_id for appended in self.appended]

    @property
    def key(self) -> str:
        """The key of the list."""
        return list_key(self.part, self.stream, self.ids[0])

    async def append(self, message: JSONRPCMessage | None) -> AppendResult:
        """Append one message."""
        began = cpu_aware_clock()
        appended = await self.part.append(self.stream, message)
        self.seconds.append(cpu_aware_clock() - began)
        self.appended.append(appended)
        return appended

    async def append_next(self, count: int = 1) -> AppendResult:
        """Append the next numbers; a number is the place of its event in `appended`."""
        for _ in range(count):
            appended = await self.append(note(len(self.appended), "x" * self._size))
        return appended

    async def append_until(self, over: asyncio.Event, *, pause: float = 0.01) -> None:
        """Append number after number until it is over."""
        while not over.is_set():
            await self.append_next()
            await asyncio.sleep(pause)

    async def outcomes(self) -> list[StoreOutcome]:
        """The outcome of each event that was accepted."""
        return [await each.pending.acknowledged() for each in self.appended if each.pending is not None]

    async def replayed(self, reader: RedisEventStore, after: int = 0) -> tuple[ReplayResult, Received]:
        """Replay through a store after one of the events."""
        received = Received()
        part = reader.for_session(self.session)
        return await part.replay(self.ids[after], received, stream_id=self.stream), received

    async def check(self, reader: RedisEventStore) -> None:
        """A store without these events in memory reads each once, in order, under its id."""
        facts, received = await self.replayed(reader)
        assert (facts.miss, facts.gap, facts.corrupt) == (None, False, ()), facts
        assert received.ids == self.ids[1:]


@dataclass
class Facts:
    """The background events of a store."""

    all: list[StoreEvent]

    def of(self, kind: type) -> list[Any]:
        """Those of one type."""
        return [fact for fact in self.all if isinstance(fact, kind)]


def observed(store: RedisEventStore) -> Facts:
    """The background events of a store from now on."""
    facts = Facts([])
    store.observe(facts.all.append)
    return facts


@asynccontextmanager
async def appending(store: RedisEventStore, producers: Sequence[SessionProducer]) -> AsyncIterator[None]:
    """All append before, in and after the block."""
    over = asyncio.Event()

    async def more() -> None:
        before = [len(producer.appended) for producer in producers]
        await until(lambda: all(len(each.appended) > n + 3 for each, n in zip(producers, before, strict=True)))

    async with asyncio.TaskGroup() as tasks:
        for producer in producers:
            tasks.create_task(producer.append_until(over))
        try:
            await more()
            yield
            # That nothing is pending may be true at no instant while all append on a busy machine.
            await until(lambda: store.backlog.failure is None)
            await more()
        finally:
            over.set()
    await until_settled(store)


def number_in(payload: bytes) -> int:
    """The number in a notification's payload."""
    return int(json.loads(payload)["params"]["n"])
