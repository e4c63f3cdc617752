"""Redis is killed or frozen while fifty sessions append to session stores."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import pytest

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import EventsLost, StoreDegraded, StoreRecovered
from support.session_producers import Facts, SessionProducer, appending, observed
from support.stores import patient_client
from support.valkeys import OwnValkey, fail_repeatedly, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SESSIONS = 50
OUTAGE_SECONDS = 2.0


@dataclass
class World:
    """A Redis that may be killed, a store on it, one that has nothing in memory, and the first one's reports."""

    server: OwnValkey
    store: RedisEventStore
    reader: RedisEventStore
    facts: Facts

    async def check_outage(self, outage: Callable[[], Awaitable[None]]) -> None:
        """Fifty sessions append before, in and after an outage, and nothing is missing afterwards."""
        producers = [SessionProducer(self.store, f"s{number}") for number in range(SESSIONS)]
        async with appending(self.store, producers):
            before = [len(producer.appended) for producer in producers]
            await outage()
            during = [len(producer.appended) for producer in producers]
        assert all(more > less for more, less in zip(during, before, strict=True)), "a session stood still"
        assert all(all(producer.ids) for producer in producers), "an event has no id"
        for producer in producers:
            await producer.check(self.reader)
        assert self.facts.of(EventsLost) == []
        assert len(self.facts.of(StoreRecovered)) == len(self.facts.of(StoreDegraded)) >= 1


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A Redis that keeps its data, and both stores."""
    with own_valkey(durable=True) as server:
        async with connect(server.url) as client, patient_client(server.url) as other:
            store, reader = RedisEventStore(client, ttl=600), RedisEventStore(other, ttl=600)
            yield World(server, store, reader, observed(store))
            await store.flush()


async def test_session_appends_while_redis_is_killed_are_stored_once(world: World) -> None:
    """Redis is killed, and restarted with its data."""

    async def outage() -> None:
        world.server.kill()
        await anyio.sleep(OUTAGE_SECONDS)
        await until(lambda: world.facts.of(StoreDegraded))
        await anyio.to_thread.run_sync(world.server.start)

    await world.check_outage(outage)


async def test_session_appends_while_redis_is_frozen_are_stored_once(world: World) -> None:
    """Earlier commits are executed after the thaw, and not twice."""

    async def outage() -> None:
        world.server.freeze()
        await anyio.sleep(OUTAGE_SECONDS)
        await until(lambda: world.facts.of(StoreDegraded))  # A busy loop is late to look.
        world.server.thaw()

    await world.check_outage(outage)


async def test_session_appends_while_redis_is_killed_repeatedly_are_stored_once(world: World) -> None:
    """Redis is killed and frozen at any moment of its recovery."""
    await world.check_outage(partial(fail_repeatedly, world.server))
