"""Redis loses acknowledged events, or refuses large ones: a replay has every event once, or reports the gap."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.connection import connect
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.redis.write import session_writer
from mcp_eventscope.testing import Collected
from mcp_eventscope.types import JSONRPCResponse, LossReason, Lost, Replayed, StoreFact
from support.messages import answer, note
from support.proxy import Proxy
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TTL = 600
LEASE = 1.0
TWO_MEBIBYTES = 2 << 20


@pytest.fixture
def server() -> Iterator[OwnValkey]:
    """A Valkey that loses everything that was not saved when it is killed."""
    with own_valkey() as server:
        yield server


@pytest.fixture
async def client(server: OwnValkey) -> AsyncIterator[aioredis.Redis]:
    """A client of it."""
    async with connect(server.url) as client:
        yield client


class Worker:
    """A store, the facts that it emits, and one request that runs."""

    def __init__(self, client: aioredis.Redis) -> None:
        self.store = RedisEventStore(client, ttl=TTL)
        self.facts: list[StoreFact] = []
        self.store.observe(self.facts.append)
        self.part: RedisSessionStore = self.store.for_session("s")
        self.part.begin("1", 1)
        self.ids: list[str] = []

    @property
    def lost(self) -> int:
        """The events that were reported as lost by a rollback."""
        return sum(fact.events for fact in self.facts if isinstance(fact, Lost) and fact.reason is LossReason.ROLLBACK)

    async def say(self, count: int) -> None:
        """Append so many events, the first one a priming event."""
        for _ in range(count):
            number = len(self.ids)
            self.ids.append((await self.part.append("1", note(number) if number else None)).event_id)

    async def finish(self) -> None:
        """Append the response."""
        self.ids.append((await self.part.append("1", answer())).event_id)

    async def settled(self) -> None:
        """Return when Redis has answered, and has everything."""
        await until(lambda: self.store.waiting.away is None and not self.store.waiting.events)

    async def replayed(self, url: str, collected: Collected) -> Replayed:
        """Replay all of it through another worker's store."""
        async with connect(url) as client:
            reader = RedisEventStore(client, ttl=TTL).for_session("s")
            return await reader.replay(self.ids[0], collected, stream_id="1")


async def nothing() -> None:
    """Nothing is published again."""


@pytest.mark.parametrize("retained", [True, False], ids=["in memory", "not in memory"])
@pytest.mark.parametrize("snapshot", [True, False], ids=["older snapshot", "empty"])
async def test_restart_loses_the_tail(
    server: OwnValkey, client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch, *, retained: bool, snapshot: bool
) -> None:
    """Redis is killed, and starts with less than it had acknowledged, while the request goes on."""
    if not retained:
        monkeypatch.setattr(session_writer, "RETAINED_BYTES", 0)
    worker = Worker(client)
    await worker.say(5)
    await worker.settled()
    if snapshot:
        await anyio.to_thread.run_sync(server.save)
    await worker.say(5)
    await worker.settled()
    server.kill()
    await anyio.to_thread.run_sync(server.start)
    await worker.say(3)
    await worker.finish()
    await worker.settled()
    collected = Collected()
    facts = await worker.replayed(server.url, collected)
    missing = 0 if retained else 5 if snapshot else 9
    assert (facts.miss, facts.completed, facts.gap, facts.missing) == (None, True, missing > 0, missing)
    kept = worker.ids[1:] if retained else worker.ids[1:5] + worker.ids[10:] if snapshot else worker.ids[10:]
    assert collected.ids == kept
    assert worker.lost == (0 if retained else 5 if snapshot else 10)
    await worker.store.flush()


async def test_silent_request_is_restored(server: OwnValkey, client: aioredis.Redis) -> None:
    """A request that sends nothing after the restart is stored again, since its worker notices the lost lease."""
    worker = Worker(client)
    async with worker.store.workers.alive(LEASE, lambda _: None, nothing):
        await worker.say(5)
        await worker.settled()
        server.kill()
        await anyio.to_thread.run_sync(server.start)

        async def restored() -> bool:
            collected = Collected()
            await worker.replayed(server.url, collected)
            return collected.ids == worker.ids[1:]

        await until(restored)
    await worker.store.flush()


async def test_replica_is_promoted_without_the_tail(server: OwnValkey) -> None:
    """Asynchronous replication loses acknowledged events: the worker commits them again to the new primary."""
    with own_valkey() as replica:
        proxy = Proxy(server.socket)
        async with proxy.running(), connect(proxy.url) as client:
            worker = Worker(client)
            await anyio.to_thread.run_sync(replica.follow, server)
            await worker.say(5)
            await worker.settled()

            async def replicated() -> bool:
                collected = Collected()
                await worker.replayed(replica.url, collected)
                return collected.ids == worker.ids[1:]

            await until(replicated)
            replica.follow(None)  # From here on it receives nothing.
            await worker.say(5)
            await worker.settled()
            proxy.target = Path(replica.socket)
            server.kill()
            await worker.say(3)
            await worker.finish()
            await worker.settled()
            collected = Collected()
            facts = await worker.replayed(replica.url, collected)
            assert collected.ids == worker.ids[1:]
            assert (facts.miss, facts.gap, facts.completed) == (None, False, True)
            assert worker.lost == 0
            await worker.store.flush()


@pytest.mark.parametrize("response", [True, False], ids=["response", "notification"])
@pytest.mark.parametrize("limit", ["proto-max-bulk-len", "service"])
async def test_event_above_a_limit(server: OwnValkey, limit: str, *, response: bool) -> None:
    """An error, or a gap, stands in its place; earlier and later events are stored, and other requests go on."""
    proxy = Proxy(server.socket)
    async with proxy.running(), connect(proxy.url) as client:
        if limit == "service":
            proxy.largest = 1 << 20
        else:
            server.set(proto_max_bulk_len=1 << 20)
        worker = Worker(client)
        worker.part.begin("2", 2)
        other = [(await worker.part.append("2", None)).event_id]
        await worker.say(3)
        if response:
            large = JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "x" * TWO_MEBIBYTES})
            worker.ids.append((await worker.part.append("1", large)).event_id)
        else:
            worker.ids.append((await worker.part.append("1", note(3, "x" * TWO_MEBIBYTES))).event_id)
            await worker.say(2)
            await worker.finish()
        other += [(await worker.part.append("2", message)).event_id for message in (note(1), answer(2))]
        await until(lambda: worker.store.waiting.away is None and not worker.store.waiting.events, within=20)
        (lost,) = [fact for fact in worker.facts if isinstance(fact, Lost)]
        assert (lost.reason, lost.events) == (LossReason.REJECTED, 1)
        collected = Collected()
        facts = await worker.replayed(server.url, collected)
        assert (facts.miss, facts.completed, facts.missing) == (None, True, 0 if response else 1)
        assert collected.ids == [each for each in worker.ids[1:] if response or each != worker.ids[3]]
        assert ('"error"' in collected.data[-1]) is response
        async with connect(server.url) as direct:
            reader = RedisEventStore(direct, ttl=TTL).for_session("s")
            others = Collected()
            assert (await reader.replay(other[0], others, stream_id="2")).completed
            assert others.ids == other[1:]
        await worker.store.flush()
