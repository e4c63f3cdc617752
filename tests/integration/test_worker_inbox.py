"""The messages between workers: sent once Redis is reachable, received once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fakeredis
import pydantic_core
import pytest

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis import inbox, outbox
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.workers import Workers
from mcp_eventscope.store.coordination import MessageKind, NewRecord, WorkerMessage, session_digest
from mcp_eventscope.store.events import DropReason, MessagesDropped, StoreEvent
from support.waiting import until

pytestmark = pytest.mark.anyio

LEASE = 10.0
KEYS = Keys("mcp:")


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be disconnected."""
    return fakeredis.FakeServer()


@asynccontextmanager
async def worker(server: fakeredis.FakeServer) -> AsyncIterator[tuple[Workers, list[WorkerMessage]]]:
    """One more worker, and the messages that it has received."""
    received: list[WorkerMessage] = []
    store = RedisEventStore(fakeredis.FakeAsyncRedis(server=server), ttl=60)
    async with store.coordinator.hold_lease(LEASE, received.append, nothing):
        yield store.coordinator, received


async def nothing() -> None:
    """Publish nothing."""


def contents(received: list[WorkerMessage], kind: MessageKind = MessageKind.STOP) -> list[str]:
    """The contents of the messages of a kind."""
    return [each.content for each in received if each.kind is kind]


async def test_message_reaches_only_workers_that_serve_the_session(server: fakeredis.FakeServer) -> None:
    """Its sender gets none, and it does not contain the session id."""
    async with worker(server) as (one, own), worker(server) as (two, received), worker(server) as (_, others):
        await one.record(NewRecord("secret", "", "{}"), ttl=60)
        await two.touch([NewRecord("secret", "", "")], ttl=60)
        one.send("secret", MessageKind.STOP, "a")
        one.send("secret", MessageKind.STOP, "b", to=two._worker.name)
        await until(lambda: len(contents(received)) == 2)
        assert contents(received) == ["a", "b"]
        assert {each.session for each in received} == {session_digest("secret")}
        assert contents(own) == contents(others) == []
        assert len(contents(others, MessageKind.BEGAN)) == 1
        entries = await one._redis.xrange(KEYS.announcements)
        assert "secret" not in str(entries)


async def test_message_that_arrives_twice_is_received_once(server: fakeredis.FakeServer) -> None:
    """A sender repeats what it has seen no reply for; another sender's numbers are its own."""
    async with worker(server) as (one, received):
        for sender, number in (("x", 1), ("x", 2), ("x", 1), ("y", 1)):
            entry = pydantic_core.to_json([sender, number, "stop", "d", f"{sender}{number}", 0])
            await one._redis.xadd(KEYS.inbox(one._worker.name), {"m": entry})
        await until(lambda: len(received) == 3)
        assert contents(received) == ["x1", "x2", "y1"]


async def test_message_in_an_outage_arrives_afterwards(server: fakeredis.FakeServer) -> None:
    """It is kept, and sent when Redis is reachable."""
    async with worker(server) as (one, _), worker(server) as (two, received):
        await one.record(NewRecord("s", "", "{}"), ttl=60)
        await two.touch([NewRecord("s", "", "")], ttl=60)
        server.connected = False
        one.send("s", MessageKind.DELIVER, "a")
        await until(lambda: one._outbox._sending)
        server.connected = True
        await until(lambda: contents(received, MessageKind.DELIVER) == ["a"])


async def test_message_that_expires_in_an_outage_is_dropped(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late stop would end a newer connection."""
    monkeypatch.setattr(outbox, "_STOP_SECONDS", 0.01)
    dropped: list[StoreEvent] = []
    async with worker(server) as (one, _):
        one._outbox._observers.subscribe(dropped.append)
        server.connected = False
        one.send("s", MessageKind.STOP, "a")
        await until(lambda: MessagesDropped(reason=DropReason.EXPIRED, messages=1) in dropped)


async def test_messages_beyond_the_bound_drop_the_oldest(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage does not fill the memory."""
    monkeypatch.setattr(outbox, "_PENDING_BYTES", 1000)
    async with worker(server) as (one, _), worker(server) as (two, received):
        await one.record(NewRecord("s", "", "{}"), ttl=60)
        await two.touch([NewRecord("s", "", "")], ttl=60)
        dropped: list[StoreEvent] = []
        one._outbox._observers.subscribe(dropped.append)
        for number in range(10):
            one.send("s", MessageKind.STOP, f"{number}" * 200)
        await until(lambda: contents(received)[-1:] == ["9" * 200])
        assert dropped == [MessagesDropped(reason=DropReason.OVERFLOW, messages=1)] * (10 - len(contents(received)))
        assert dropped


async def test_inbox_that_redis_lost_is_opened_again_and_reported(server: fakeredis.FakeServer) -> None:
    """Messages may have been lost; later ones arrive."""
    async with worker(server) as (one, _), worker(server) as (two, received):
        await one._redis.flushall()
        await two._keep_inbox()
        assert [each.kind for each in received] == [MessageKind.LOST]
        one.send("s", MessageKind.STOP, "a", to=two._worker.name)
        await until(lambda: contents(received) == ["a"])


async def test_more_messages_than_one_read_arrive_in_order(server: fakeredis.FakeServer) -> None:
    """All of them, and Redis keeps none that was handled."""
    count = 2 * inbox._ENTRIES + 50
    async with worker(server) as (one, _), worker(server) as (two, received):
        for number in range(count):
            one.send("s", MessageKind.STOP, str(number), to=two._worker.name)
        await until(lambda: len(contents(received)) == count)
        assert contents(received) == [str(number) for number in range(count)]
        one.send("s", MessageKind.STOP, "last", to=two._worker.name)
        await until(lambda: contents(received)[-1] == "last")

        # The next read deletes what was handled before.
        assert await two._redis.xlen(KEYS.inbox(two._worker.name)) <= 2
