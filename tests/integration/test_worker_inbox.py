"""The messages between workers: sent once Redis is reachable, received once."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import fakeredis
import pydantic_core
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.workers import inbox, outbox
from mcp_eventscope.redis.workers.inbox import Inbox
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.store.coordination import MessageKind, NewRecord, WorkerMessage, session_digest
from mcp_eventscope.store.events import DropReason, MessagesDropped, StoreEvent
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

LEASE = 10.0
KEYS = Keys("mcp:")


@pytest.fixture
def server() -> fakeredis.FakeServer:
    """A Redis that can be disconnected."""
    return fakeredis.FakeServer()


@asynccontextmanager
async def worker(server: fakeredis.FakeServer | OwnValkey) -> AsyncIterator[tuple[Workers, list[WorkerMessage]]]:
    """One more worker, and the messages that it has received."""
    received: list[WorkerMessage] = []
    client = (
        aioredis.Redis(port=server.port) if isinstance(server, OwnValkey) else fakeredis.FakeAsyncRedis(server=server)
    )
    async with client:
        store = RedisEventStore(client, ttl=60)
        async with store.coordinator.hold_lease(LEASE, received.append, nothing):
            yield store.coordinator, received


async def nothing() -> None:
    """Publish nothing."""


def record_drops(worker: Workers) -> list[StoreEvent]:
    """The messages that a worker reports as dropped from now on."""
    dropped: list[StoreEvent] = []
    worker._outbox._observers.subscribe(dropped.append)
    return dropped


def dropped_as(reason: DropReason, messages: int = 1) -> MessagesDropped:
    """The report of dropped messages."""
    return MessagesDropped(reason=reason, messages=messages)


async def serve(session_id: str, *servers: Workers) -> None:
    """Record a session that some workers serve."""
    for each in servers:
        await each.record(NewRecord(session_id, "", "{}"), ttl=60)


async def paused_worker(one: Workers, session_id: str) -> str:
    """Add a worker to a session that has a lease and an inbox, and does not read. Return its name."""
    name = "paused"
    await serve(session_id, one)
    await one._redis.hset(KEYS.for_session(session_id).session, f"worker:{name}", "")
    await one._redis.set(KEYS.worker(name), 1)
    await one._redis.xadd(KEYS.inbox(name), {"m": ""})
    return name


async def texts_in(one: Workers, name: str) -> list[str]:
    """The contents of the messages in an inbox."""
    entries: Any = await one._redis.xrange(KEYS.inbox(name))
    return [str(pydantic_core.from_json(fields[b"m"])[4]) for _, fields in entries if fields[b"m"]]


def hour_ahead() -> str:
    """The id of an entry that Redis writes while its clock is an hour ahead."""
    return f"{round(time.time() + 3600) * 1000}-0"


STOP = b'["x",1,"stop","d","c",0]'
"""A message as JSON."""


def stop_entry(number: int, content: str, sender: str = "x", delay: int = 0) -> dict[Any, Any]:
    """An entry of another worker with a delay in microseconds."""
    return {"m": pydantic_core.to_json([sender, number, "stop", "d", content, 0]), "delay": delay}


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
            entry = stop_entry(number, f"{sender}{number}", sender)
            await one._redis.xadd(KEYS.inbox(one._worker.name), entry)
        await until(lambda: len(received) == 3)
        assert contents(received) == ["x1", "x2", "y1"]


@pytest.mark.parametrize("skew", [-2_000_000, 2_000_000], ids=["slow", "fast"])
async def test_age_of_a_message_does_not_depend_on_the_clocks_of_workers(
    server: fakeredis.FakeServer, skew: int
) -> None:
    """Their estimates of Redis's time differ by the delays of replies. An age that is too large stops nothing."""
    async with worker(server) as (one, _), worker(server) as (two, received):
        await serve("s", one, two)
        one._clock._offset += skew
        began = time.monotonic()
        one.send("s", MessageKind.STOP, "a")
        await until(lambda: contents(received) == ["a"])
        (stop,) = (each for each in received if each.kind is MessageKind.STOP)
        elapsed = time.monotonic() - began
        # The id of its entry has milliseconds, and Redis's clock was read at some time within the read.
        assert 0 <= stop.age <= elapsed + 0.001 + elapsed


@pytest.mark.parametrize(
    ("delay", "least", "most"),
    [(0, 1.0, 1 + CEILING), (2_000_000, 3.0, 3 + CEILING), (60_000_000, 0, 0), (-60_000_000, 0, 0)],
)
async def test_age_of_a_message_includes_its_delays_before_and_in_redis(
    server: fakeredis.FakeServer, delay: int, least: float, most: float
) -> None:
    """An age that no message can have is a step of Redis's clock, and ignored."""
    async with worker(server) as (one, _):
        received: list[WorkerMessage] = []
        own = Inbox(one._redis, KEYS, WorkerId(), one._clock, one._observers)
        key = KEYS.inbox(own._worker.name)
        written = time.time_ns() // 1_000_000 - 1_010
        await one._redis.xadd(key, stop_entry(1, "a", delay=delay), id=f"{written}-0")
        await own._receive(key, KEYS.announcements, received.append)
        (message,) = (each for each in received if each.content == "a")
        assert least <= message.age <= most


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
        await until(lambda: not one._outbox._pending)  # The record's own message.
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
        await two._check()
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


async def test_message_after_a_data_loss_waits_for_inbox_and_record(server: fakeredis.FakeServer) -> None:
    """The receiver opens its inbox and registers again within a lease."""
    async with worker(server) as (one, _), worker(server) as (two, received):
        await one._redis.flushall()
        dropped = record_drops(one)
        one.send("s", MessageKind.DELIVER, "a")
        one.send("s", MessageKind.WANTED, "b", to=two._worker.name)
        await until(lambda: len(one._outbox._later) == 2)
        await serve("s", one, two)
        await two._check()
        await until(lambda: contents(received, MessageKind.DELIVER) == ["a"])
        await until(lambda: contents(received, MessageKind.WANTED) == ["b"])
        assert dropped == []


async def test_message_of_a_young_record_reaches_workers_that_register_later(server: fakeredis.FakeServer) -> None:
    """Another worker may have written a lost record first, in which the receiver is not named yet."""
    async with worker(server) as (one, _), worker(server) as (two, early), worker(server) as (three, late):
        await serve("s", one, two)
        one.send("s", MessageKind.DELIVER, "a")
        await until(lambda: contents(early, MessageKind.DELIVER) == ["a"])
        await serve("s", three)
        await until(lambda: contents(late, MessageKind.DELIVER) == ["a"])
        assert contents(early, MessageKind.DELIVER) == ["a"]


async def test_message_of_a_complete_record_is_not_kept(server: fakeredis.FakeServer) -> None:
    """A session of one worker has no receivers, which is no loss."""
    async with worker(server) as (one, _):
        await serve("s", one)
        await one._redis.hset(KEYS.for_session("s").session, "since", 1)
        one._blind_until = 0.0
        dropped = record_drops(one)
        one.send("s", MessageKind.DELIVER, "a")
        await until(lambda: not one._outbox._pending and not one._outbox._sending)
        assert one._outbox._later == []
        assert dropped == []


async def test_live_worker_without_inbox_stays_in_the_record(server: fakeredis.FakeServer) -> None:
    """Only a worker without a lease is dead."""
    async with worker(server) as (one, _), worker(server) as (two, received):
        await serve("s", one, two)
        await one._redis.delete(KEYS.inbox(two._worker.name))
        one.send("s", MessageKind.DELIVER, "a")
        await until(lambda: one._outbox._later)
        assert await one._redis.hexists(KEYS.for_session("s").session, f"worker:{two._worker.name}")
        await two._check()
        await until(lambda: contents(received, MessageKind.DELIVER) == ["a"])


async def test_message_without_a_record_expires_and_is_counted(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that all named workers have received is no loss."""
    monkeypatch.setattr(outbox, "MESSAGE_SECONDS", 0.3)
    monkeypatch.setattr(outbox, "_LOOK_SECONDS", 0.1)
    async with worker(server) as (one, _), worker(server) as (two, received):
        await serve("recorded", one, two)
        dropped = record_drops(one)
        one.send("recorded", MessageKind.DELIVER, "a")
        one.send("unknown", MessageKind.DELIVER, "b")
        await until(lambda: dropped and not one._outbox._later)
        assert dropped == [dropped_as(DropReason.EXPIRED)]
        assert contents(received, MessageKind.DELIVER) == ["a"]


async def test_messages_that_a_stopping_worker_could_not_send_are_counted(server: fakeredis.FakeServer) -> None:
    """No other worker sends them."""
    async with worker(server) as (one, _):
        dropped = record_drops(one)
        one.send("unknown", MessageKind.DELIVER, "a")
        await until(lambda: one._outbox._later)
    assert dropped == [dropped_as(DropReason.EXPIRED)]


async def test_message_to_a_record_of_another_type_is_counted() -> None:
    """No worker replaces that key, so the message is not retried."""
    with own_valkey() as valkey:
        async with worker(valkey) as (one, _):
            await one._redis.set(KEYS.for_session("s").session, "x")
            dropped = record_drops(one)
            one.send("s", MessageKind.DELIVER, "a")
            await until(lambda: dropped == [dropped_as(DropReason.REFUSED)])
            await until(lambda: not one._outbox._sending)
            assert one._outbox._later == []


async def test_full_inbox_delays_further_messages_and_displaces_none(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One session cannot push the answer of another one out of the inbox of a paused worker."""
    monkeypatch.setattr(outbox, "_INBOX_LENGTH", 6)
    async with worker(server) as (one, _):
        name = await paused_worker(one, "victim")
        assert await paused_worker(one, "flood") == name
        held = await one._redis.xlen(KEYS.inbox(name))
        one.send("victim", MessageKind.DELIVER, "first")
        for number in range(20):
            one.send("flood", MessageKind.DELIVER, f"flood {number}")
        one.send("victim", MessageKind.DELIVER, "second")
        await until(lambda: len(one._outbox._later) == 22)
        in_turns = ["first", "flood 0", "second", "flood 1", "flood 2", "flood 3"]
        assert await texts_in(one, name) == in_turns[: 6 - held]

        arrived: list[str] = []
        with anyio.fail_after(CEILING):
            while len(arrived) < 22:
                arrived += await texts_in(one, name)
                await one._redis.xtrim(KEYS.inbox(name), maxlen=0, approximate=False)
                await anyio.sleep(0.05)
        assert sorted(arrived) == sorted(["first", "second", *(f"flood {number}" for number in range(20))])


async def test_messages_that_flood_a_frozen_worker_are_retried_less_often(server: fakeredis.FakeServer) -> None:
    """Each retry costs this worker CPU time. The few messages of other sessions are retried as before."""
    async with worker(server) as (one, _):
        sent = one._outbox
        frozen = await paused_worker(one, "flood")
        await serve("other", one)
        for _ in range(outbox._INBOX_LENGTH):
            await one._redis.xadd(KEYS.inbox(frozen), stop_entry(1, "a"))
        for number in range(20_000):
            one.send("flood", MessageKind.WANTED, str(number), to=frozen)
        await until(lambda: len(sent._later) == 20_000)
        one.send("other", MessageKind.WANTED, "x", to=frozen)
        await until(lambda: sent._retried["other"] == 1)
        now = time.monotonic()
        waits = {each.session_id: at - now for at, _, each in sorted(sent._later, key=lambda row: row[0])}
        assert waits["other"] <= outbox._RETRY_SECONDS
        assert waits["flood"] > 1 / 2
        assert sent._retried.total() == len(sent._later)


async def test_messages_beyond_the_bound_drop_those_of_the_largest_session(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of another session is older, and kept."""
    monkeypatch.setattr(outbox, "_PENDING_BYTES", 2000)
    async with worker(server) as (one, _), worker(server) as (two, received):
        await serve("victim", one, two)
        await serve("flood", one, two)
        dropped = record_drops(one)
        server.connected = False
        one.send("victim", MessageKind.DELIVER, "answer")
        for number in range(300):
            one.send("flood", MessageKind.DELIVER, str(number))
        server.connected = True
        await until(lambda: "299" in contents(received, MessageKind.DELIVER))
        await until(lambda: "answer" in contents(received, MessageKind.DELIVER))
        overflown = [each for each in dropped if isinstance(each, MessagesDropped)]
        assert overflown
        assert set(overflown) == {dropped_as(DropReason.OVERFLOW)}


@pytest.mark.parametrize(
    ("body", "delay"),
    [
        (STOP, b"1" + b"0" * 400),
        (STOP, b"-1" + b"0" * 400),
        (STOP, b"1e400"),
        (STOP, b""),
        (b'["x",1,{"a":1},"d","c",0]', b"0"),
        (b'["x",1,["stop"],"d","c",0]', b"0"),
        (b'["x",1,"stop","d","c",0,0]', b"0"),
        (b"[" * 100_000, b"0"),
        (b"\xff", b"0"),
    ],
    ids=[
        "huge delay",
        "huge negative delay",
        "infinite delay",
        "no delay",
        "object",
        "list",
        "too long",
        "deep",
        "no text",
    ],
)
async def test_forged_entry_is_counted_and_delays_no_message(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, body: bytes, delay: bytes
) -> None:
    """However its parsing fails, the entries behind it are read."""
    monkeypatch.setattr(inbox, "_RETRY_SECONDS", 3600.0)
    async with worker(server) as (one, received):
        dropped = record_drops(one)
        key = KEYS.inbox(one._worker.name)
        await one._redis.xadd(key, {"m": body, "delay": delay})
        await one._redis.xadd(key, stop_entry(2, "a"))
        await until(lambda: contents(received) == ["a"])
        assert dropped == [dropped_as(DropReason.MALFORMED)]


async def test_message_that_a_holder_fails_to_handle_is_counted(
    server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other holders receive it, and later messages are read."""
    monkeypatch.setattr(inbox, "_RETRY_SECONDS", 3600.0)

    def fail(_: WorkerMessage) -> None:
        raise LookupError

    received: list[WorkerMessage] = []
    store = RedisEventStore(fakeredis.FakeAsyncRedis(server=server), ttl=60)
    one = store.coordinator
    async with one.hold_lease(LEASE, fail, nothing), one.hold_lease(LEASE, received.append, nothing):
        dropped = record_drops(one)
        for number in range(2):
            await one._redis.xadd(KEYS.inbox(one._worker.name), stop_entry(number, str(number)))
        await until(lambda: contents(received) == ["0", "1"])
        assert dropped == [dropped_as(DropReason.MALFORMED)] * 2


async def test_keys_of_another_type_are_replaced_and_counted() -> None:
    """A string in place of the announcements would keep all workers from reading their inboxes."""
    with own_valkey() as valkey:
        async with worker(valkey) as (one, _), worker(valkey) as (two, received):
            dropped = record_drops(two)
            for key in (KEYS.inbox(two._worker.name), KEYS.announcements):
                await one._redis.set(key, "x")
            one.send("s", MessageKind.WANTED, "a", to=two._worker.name)
            await serve("t", one)
            await until(lambda: len(one._outbox._later) == 2)
            await two._check()
            assert dropped == [dropped_as(DropReason.MALFORMED, 2)]
            assert MessageKind.LOST in {each.kind for each in received}
            await until(lambda: contents(received, MessageKind.WANTED) == ["a"])
            await until(lambda: len(contents(received, MessageKind.BEGAN)) == 1)


async def test_entries_deleted_before_they_were_read_are_reported(server: fakeredis.FakeServer) -> None:
    """Redis may restore an older inbox. Sessions then renew their records."""
    async with worker(server) as (one, _):
        dropped = record_drops(one)
        received: list[WorkerMessage] = []
        own = Inbox(one._redis, KEYS, WorkerId(), one._clock, one._observers)
        key = KEYS.inbox(own._worker.name)
        await own.open(60_000)
        read = partial(own._receive, key, KEYS.announcements, received.append)
        for number in range(2):
            await one._redis.xadd(key, stop_entry(number, str(number)))
            await read()
        assert contents(received) == ["0", "1"]
        assert dropped == []
        for number in (2, 3):
            await one._redis.xadd(key, stop_entry(number, str(number)))
        await one._redis.xtrim(key, maxlen=1, approximate=False)
        for _ in range(2):
            await read()
        assert [each.kind for each in received[2:]] == [MessageKind.LOST, MessageKind.STOP]
        assert contents(received)[-1] == "3"
        assert dropped == [dropped_as(DropReason.LOST)]


async def test_announcements_after_a_data_loss_and_a_step_of_the_clock_arrive() -> None:
    """As after a failover to a replica whose clock is behind: the ids of new entries are below those that were read."""
    with own_valkey() as valkey:
        async with worker(valkey) as (one, _), worker(valkey) as (two, received):
            body = pydantic_core.to_json(["x", 1, MessageKind.BEGAN, session_digest("s"), "[]", 0])
            await one._redis.xadd(KEYS.announcements, {"m": body, "delay": 0}, id=hour_ahead())
            await until(lambda: len(contents(received, MessageKind.BEGAN)) == 1)
            valkey.flush()
            await serve("t", one)
            await two._check()
            await until(lambda: len(contents(received, MessageKind.BEGAN)) == 2)


@pytest.mark.parametrize("woken", [False, True], ids=["renewed", "woken"])
async def test_message_in_a_restored_inbox_after_a_step_of_the_clock_arrives(*, woken: bool) -> None:
    """Redis restores an inbox without the last entry that was read, whose id is above those of new ones.

    The worker finds that at its next renewal; or at its next read, which an announcement causes.
    """
    with own_valkey() as valkey:
        async with worker(valkey) as (one, _), worker(valkey) as (two, received):
            dropped = record_drops(two)
            key = KEYS.inbox(two._worker.name)
            for number, content in enumerate("xa"):
                await one._redis.xadd(key, stop_entry(number, content))
                await until(lambda content=content: contents(received)[-1:] == [content])  # type: ignore[misc]
            older = await one._redis.dump(key)
            assert older is not None
            await one._redis.xadd(key, stop_entry(2, "b"), id=hour_ahead())
            await until(lambda: contents(received) == ["x", "a", "b"])
            await one._redis.restore(key, 60_000, older, replace=True)
            await one._redis.xadd(key, stop_entry(3, "c"))
            if woken:
                await serve("t", one)
            else:
                await two._check()
            await until(lambda: contents(received) == ["x", "a", "b", "c"])
            assert dropped == [dropped_as(DropReason.LOST)]
            assert [each.kind for each in received].count(MessageKind.LOST) == 1
