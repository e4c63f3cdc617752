"""Redis loses acknowledged events: they are stored again, or are a counted gap."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.element import LARGE_PAYLOAD
from mcp_eventscope.redis.write import session_writer
from mcp_eventscope.store.events import BatchCommitted, EventsLost, LossReason, StoreDegraded, StoreRecovered
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import GET_STREAM_KEY, JSONRPCError
from mcp_eventscope.store.results import Gap, StoreOutcome
from support.messages import answer, note
from support.session_producers import Facts, Received, SessionProducer, appending, observed, run_of
from support.stores import patient_client, until_settled
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TTL = 600
LEASE = 0.6


async def nothing() -> None:
    """Nothing is published."""


@pytest.fixture
def server() -> Iterator[OwnValkey]:
    """A Valkey of this test's own, which forgets all writes since its last snapshot."""
    with own_valkey() as server:
        yield server


@dataclass
class World:
    """A worker with a lease, and a store that has nothing of it in memory."""

    store: RedisEventStore
    reader: RedisEventStore
    facts: Facts
    client: aioredis.Redis

    def producers(self, count: int = 4) -> list[SessionProducer]:
        """Streams of as many sessions."""
        return [SessionProducer(self.store, session=f"s{number}") for number in range(count)]

    async def check(self, producers: list[SessionProducer]) -> None:
        """Every event is there, and no loss was reported."""
        for producer in producers:
            await producer.check(self.reader)
        assert not self.facts.of(EventsLost)
        assert sum(fact.events for fact in self.facts.of(BatchCommitted)) == sum(
            len(each.appended) for each in producers
        )


@asynccontextmanager
async def worker(url: str, lease: float = 30) -> AsyncIterator[World]:
    """A worker on a server."""
    async with connect(url) as client, patient_client(url) as direct:
        store = RedisEventStore(client, ttl=TTL)
        async with store.coordinator.hold_lease(lease, lambda _: None, nothing):
            yield World(store, RedisEventStore(direct, ttl=TTL), observed(store), direct)
        await store.flush(1)


@pytest.fixture
async def world(server: OwnValkey) -> AsyncIterator[World]:
    """A worker on the server."""
    async with worker(server.url) as world:
        yield world


@pytest.fixture
def nothing_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No acknowledged event stays in memory."""
    monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)


def restart(server: OwnValkey) -> None:
    """Kill Redis and start it: it loads the last snapshot, if there is one."""
    server.kill()
    server.start()


async def primed(producers: list[SessionProducer], count: int = 3) -> None:
    """Some events of each, acknowledged."""
    for producer in producers:
        await producer.append(None)
        await producer.append_next(count)
    for producer in producers:
        await producer.outcomes()


async def test_rollback_by_an_empty_restart_stores_events_again(server: OwnValkey, world: World) -> None:
    """Earlier acknowledged events are stored again, finished requests included."""
    producers, finished = world.producers(), SessionProducer(world.store, session="f")
    await primed([*producers, finished])
    await finished.append(answer())
    await finished.outcomes()
    async with appending(world.store, producers):
        await anyio.to_thread.run_sync(restart, server)
    await world.check([*producers, finished])
    facts, _ = await finished.replayed(world.reader)
    assert facts.completed
    assert await world.client.hlen(f"{finished.part.key_prefix}requests") == 0
    assert (len(world.facts.of(StoreDegraded)), len(world.facts.of(StoreRecovered))) in {(0, 0), (1, 1)}


async def test_rollback_to_an_older_snapshot_loses_nothing(server: OwnValkey, world: World) -> None:
    """A6: cursors from before and after the snapshot are served without a gap."""
    producer = SessionProducer(world.store)
    await primed([producer], 6)
    await anyio.to_thread.run_sync(server.save)
    await producer.append_next(3)
    await producer.outcomes()
    await anyio.to_thread.run_sync(restart, server)
    await producer.append_next(2)
    await producer.append(answer())
    assert set(await producer.outcomes()) == {StoreOutcome.STORED}
    await until_settled(world.store)
    for after in (0, 5, 6, 7, 9, 11):
        facts, received = await producer.replayed(world.reader, after=after)
        assert (facts.gap, facts.miss, facts.completed) == (False, None, True)
        assert received.ids == producer.ids[after + 1 :]
    assert not world.facts.of(EventsLost)


async def test_rollback_to_a_snapshot_with_the_current_lease_is_noticed_by_an_idle_worker(
    server: OwnValkey, world: World
) -> None:
    """It commits nothing, and its lease is as it wrote it. But another process answers."""
    producer = SessionProducer(world.store)
    await primed([producer])
    await anyio.to_thread.run_sync(server.save)
    await producer.append(answer())
    await producer.outcomes()
    await anyio.to_thread.run_sync(restart, server)
    workers = world.store.coordinator
    assert await workers._has_lease()
    await workers._check()

    async def stored_again() -> bool:
        facts, _ = await producer.replayed(world.reader)
        return facts.completed

    await until(stored_again)
    await world.check([producer])


async def test_worker_that_may_not_read_the_process_of_redis_asks_once(server: OwnValkey) -> None:
    """A Redis user without INFO, or a proxy."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-info")
        async with worker(server.url) as world:
            for _ in range(3):
                await world.store.coordinator._check()
            refused = [entry["object"] for entry in admin.acl_log()]
        assert refused == ["info"]
        assert not world.facts.of(StoreDegraded)


async def test_rollback_to_an_index_that_soon_expires_renews_it(server: OwnValkey, world: World) -> None:
    """The lists that are stored again do not outlive it: the end of the session deletes them."""
    producer = SessionProducer(world.store)
    await primed([producer])
    index = f"{producer.part.key_prefix}index"
    await world.client.expire(index, TTL // 2)
    await anyio.to_thread.run_sync(server.save)
    calls = [SessionProducer(world.store, request_id=number) for number in range(2, 6)]
    for number, call in enumerate(calls, start=2):
        await call.append(None)
        await call.append(answer(number))
    await calls[-1].outcomes()
    await anyio.to_thread.run_sync(restart, server)
    await producer.append_next()
    await producer.outcomes()
    keys = [each.key for each in (producer, *calls)]

    async def stored_again() -> bool:
        return await world.client.exists(*keys) == len(keys)

    await until(stored_again)
    await until_settled(world.store)
    kept = [await world.client.ttl(key) for key in keys]
    assert min(kept) > TTL // 2
    assert await world.client.ttl(index) >= max(kept)


@pytest.mark.usefixtures("nothing_retained")
@pytest.mark.parametrize("saved", [False, True], ids=["empty", "snapshot"])
async def test_rollback_of_released_events_is_a_counted_gap(server: OwnValkey, world: World, *, saved: bool) -> None:
    """A lost range keeps its numbers: clients get the exact gap, and later events follow."""
    producer = SessionProducer(world.store)
    await primed([producer], 3)
    if saved:
        await anyio.to_thread.run_sync(server.save)
    await producer.append_next(4)
    await producer.outcomes()
    await anyio.to_thread.run_sync(restart, server)
    await until(world.client.ping)
    await producer.append_next(2)
    await until_settled(world.store)
    lost = 4 if saved else 8
    assert [(fact.reason, fact.events) for fact in world.facts.of(EventsLost)] == [(LossReason.ROLLBACK, lost)]
    facts, received = await producer.replayed(world.reader)
    assert (facts.gap, facts.missing) == (True, 4 if saved else 7)
    assert facts.gaps == {Gap.ROLLBACK: facts.missing}
    assert received.ids == [*(producer.ids[1:4] if saved else []), *producer.ids[8:]]
    for after in (5, 7):  # In the lost range, and behind it.
        facts, received = await producer.replayed(world.reader, after=after)
        assert (facts.missing, facts.miss, received.ids) == (7 - after, None, producer.ids[8:])


async def test_rollback_of_a_released_response_is_answered_with_an_error(world: World) -> None:
    """Without the error its client would resume for ever."""
    producer, finished = SessionProducer(world.store), SessionProducer(world.store, session="f", request_id="7")
    await primed([producer, finished], 3)
    await finished.append(answer("7"))
    await finished.outcomes()
    run = world.store._session_writer.runs[run_of(finished.ids[0])]
    await world.client.flushall()
    world.store._session_writer.verify()
    while run.retained:  # Released while the question is on its way, as when the bounds are reached.
        world.store._session_writer._release_oldest()
    await until(lambda: world.facts.of(EventsLost))
    await until_settled(world.store)
    for after in (0, 2, 3):
        facts, received = await finished.replayed(world.reader, after=after)
        (message,) = received.messages
        assert isinstance(message, JSONRPCError)
        assert (message.id, message.error.code) == ("7", EVENTS_GONE)
        assert (facts.completed, facts.missing) == (True, 3 - after)
    assert {fact.reason for fact in world.facts.of(EventsLost)} == {LossReason.ROLLBACK}


@pytest.mark.parametrize("how", ["restart", "flushall", "snapshot"])
async def test_rollback_without_traffic_is_found_by_the_lease(server: OwnValkey, how: str) -> None:
    """No request sends anything: the worker finds its lease changed, and stores again."""
    async with worker(server.url, LEASE) as world:
        producers = world.producers(2)
        await primed(producers)
        if how == "restart":
            await anyio.to_thread.run_sync(restart, server)
            await until(world.client.ping)
        elif how == "flushall":
            await world.client.flushall()
        else:  # As after a failover behind a proxy: an older value of the lease, and no events.
            lease = world.store._keys.worker(world.store._worker.name)
            await world.client.flushall()
            await world.client.set(lease, "0", px=int(LEASE * 1000))

        async def whole() -> bool:
            found = [await producer.replayed(world.reader) for producer in producers]
            return all(
                received.ids == producer.ids[1:] for producer, (_, received) in zip(producers, found, strict=True)
            )

        await until(whole, within=5, every=0.05)
        await world.check(producers)


async def test_rollback_of_a_standalone_stream_stores_it_again(server: OwnValkey, world: World) -> None:
    """The standalone stream is stored again, too."""
    part = world.store.for_session("s")
    appended = [await part.append(GET_STREAM_KEY, note(number)) for number in range(5)]
    await until_settled(world.store)
    await anyio.to_thread.run_sync(restart, server)
    appended.append(await part.append(GET_STREAM_KEY, note(5)))
    await until_settled(world.store)
    received = Received()
    await world.reader.for_session("s").replay(appended[0].event_id, received, stream_id=GET_STREAM_KEY)
    assert received.contents == [1, 2, 3, 4, 5]


async def test_rollback_during_a_follow_on_another_worker_delivers_each_once(server: OwnValkey, world: World) -> None:
    """The follower gets each event once, across the restart."""
    producer, received = SessionProducer(world.store), Received()
    await primed([producer])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: world.reader.for_session("s").follow("1", producer.ids[0], received, limit=30))
        await received.has(3)
        await anyio.to_thread.run_sync(server.kill)
        await producer.append_next(3)
        await anyio.to_thread.run_sync(server.start)
        await producer.append_next(2)
        await received.has(8)
        await producer.append(answer())
    assert received.ids == producer.ids[1:]


class FlushedBetween(aioredis.Redis):
    """A reader's client: before its first read of large payloads all data of Redis is lost."""

    flushed = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command."""
        if args[0] == "MGET" and not self.flushed:
            self.flushed = True
            await super().execute_command("FLUSHALL")  # type: ignore[no-untyped-call]
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


async def test_rollback_between_a_list_and_its_large_payloads_loses_nothing(server: OwnValkey) -> None:
    """The reader has the list already, and waits until the worker has committed the payloads again."""
    flushing = FlushedBetween(unix_socket_path=str(server.socket))
    async with worker(server.url, LEASE) as world, flushing as client:
        producer = SessionProducer(world.store, size=2 * LARGE_PAYLOAD)
        await primed([producer], 5)
        reader, received = RedisEventStore(client, ttl=TTL).for_session("s"), Received()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: reader.follow("1", producer.ids[0], received, limit=60))
            await received.has(5)
            await producer.append(answer())
        assert flushing.flushed
        assert received.ids == producer.ids[1:]


# -- failover ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retained", [True, False], ids=["in memory", "not in memory"])
async def test_failover_without_the_tail_loses_nothing_in_memory(
    server: OwnValkey, monkeypatch: pytest.MonkeyPatch, *, retained: bool
) -> None:
    """Events that were not replicated are stored again, or are a counted gap."""
    if not retained:
        monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)
    with own_valkey() as replica:
        await anyio.to_thread.run_sync(replica.follow, server)
        async with worker(server.url) as world:
            producers = world.producers()
            await primed(producers)
            await until(lambda: in_step(server, replica))
            replica.follow(None)  # Promoted, unknown to the primary's clients.
            for producer in producers:
                await producer.append_next(4)
            for producer in producers:
                await producer.outcomes()
            await anyio.to_thread.run_sync(take_over, server, replica)
            assert {await world.client.llen(producer.key) for producer in producers} == {4}
            for producer in producers:
                await producer.append_next(2)
                await producer.outcomes()
            await until_settled(world.store)
            assert len(world.facts.of(StoreDegraded)) <= 1
            if retained:
                await world.check(producers)
                return
            assert sum(fact.events for fact in world.facts.of(EventsLost)) == 4 * len(producers)
            assert {fact.reason for fact in world.facts.of(EventsLost)} == {LossReason.ROLLBACK}
            for producer in producers:
                facts, received = await producer.replayed(world.reader)
                assert (facts.missing, facts.gap) == (4, True)
                assert received.ids == [*producer.ids[1:4], *producer.ids[8:]]


def in_step(primary: OwnValkey, replica: OwnValkey) -> bool:
    """Whether the replica has all that the primary has."""
    with primary.client() as one, replica.client() as two:
        return bool(one.info("replication")["master_repl_offset"] == two.info("replication")["slave_repl_offset"])


def take_over(old: OwnValkey, new: OwnValkey) -> None:
    """Clients of the old primary are disconnected, and find the data of the new one at its address."""
    old.follow(new)  # It drops events that the new one does not have, and is read-only.
    old.follow(None)
    with old.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
