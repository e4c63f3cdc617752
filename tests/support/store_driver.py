"""Drives a session store through faults: events go in, and are read through another store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias

from mcp.server.streamable_http import EventMessage
from mcp.types import JSONRPCNotification

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.store.events import BatchCommitted, EventsLost, StoreEvent
from mcp_eventscope.store.results import StoreOutcome
from support.acknowledgements import Acknowledgements
from support.messages import note
from support.stores import patient_client
from support.waiting import until

STORE_TIMEOUT = 0.1
_STREAM = "1"


class StoreDriver(Protocol):
    """A store under test, as an enumeration of faults uses it."""

    ledger: Acknowledgements

    def submit(self, session: str, number: int, size: int = 0) -> None:
        """Hand the store an event of at least so many bytes, and return immediately.

        `ledger` records its id once it is acknowledged.
        """
        ...

    async def settle(self) -> None:
        """Return when the store has acknowledged, or reported as lost, every event."""
        ...

    async def stored(self, session: str) -> list[tuple[str, int]]:
        """The ids and numbers that a second store reads from the same Redis, not through the peer."""
        ...


OpenDriver: TypeAlias = Callable[[str, str, str], AbstractAsyncContextManager[StoreDriver]]
"""Opens a driver: the URL of the peer, that of Redis itself, and the prefix of the keys."""


class SessionDriver:
    """The parts of sessions: `append` returns the id, and the event is stored in the background.

    Args:
        store: The store under test.
        reader: Another one, on the same Redis.
    """

    def __init__(self, store: RedisEventStore, reader: RedisEventStore) -> None:
        self.ledger = Acknowledgements(committed=0)
        self._store = store
        self._reader = reader
        self._parts: dict[str, RedisSessionStore] = {}
        self._first: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        store.observe(self._observe)

    def submit(self, session: str, number: int, size: int = 0) -> None:
        """Hand the store an event; the first of a session is its priming event, from which it is read back."""
        self.ledger.accept(session, number)
        if session not in self._parts:
            self._parts[session] = self._store.for_session(session)
            self._parts[session].begin(_STREAM, 1)
        task = asyncio.create_task(self._append(session, number, size))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def settle(self) -> None:
        """Return when every event has an outcome."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await until(lambda: self._store.backlog.failure is None and not self._store.backlog.events)

    async def stored(self, session: str) -> list[tuple[str, int]]:
        """The priming event and the later events of a session."""
        found: list[tuple[str, int]] = [(self._first[session], 0)]

        async def collect(event: EventMessage) -> None:
            message = event.message
            assert isinstance(message, JSONRPCNotification)
            assert message.params is not None
            found.append((event.event_id or "", message.params["n"]))

        facts = await self._reader.for_session(session).replay(self._first[session], collect, stream_id=_STREAM)
        assert facts.miss is None, facts
        assert not facts.gap, facts
        return found

    async def _append(self, session: str, number: int, size: int) -> None:
        message = note(number, "x" * size) if number else None
        appended = await self._parts[session].append(_STREAM, message)
        assert appended.event_id
        assert appended.pending is not None
        if await appended.pending.acknowledged() is StoreOutcome.STORED:
            self._first.setdefault(session, appended.event_id)
            self.ledger.acknowledge(session, appended.event_id, number)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    def _observe(self, fact: StoreEvent) -> None:
        if isinstance(fact, EventsLost):
            self.ledger.lost += fact.events
        elif isinstance(fact, BatchCommitted):
            assert self.ledger.committed is not None
            self.ledger.committed += fact.events

    async def close(self) -> None:
        """End the appends that are left."""
        for task in tuple(self._tasks):
            task.cancel()
        await self._store.flush(0)


@asynccontextmanager
async def session_driver(peer_url: str, redis_url: str, key_prefix: str) -> AsyncIterator[SessionDriver]:
    """A driver of the parts of sessions."""
    async with connect(peer_url) as client, patient_client(redis_url) as direct:
        driver = SessionDriver(
            RedisEventStore(client, key_prefix=key_prefix, ttl=60, store_timeout=STORE_TIMEOUT),
            RedisEventStore(direct, key_prefix=key_prefix, ttl=60),
        )
        try:
            yield driver
        finally:
            await driver.close()
