"""A node of Redis Cluster fails: its events are stored later, once and in order."""

from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.redis.limits import STORE_TIMEOUT
from mcp_eventscope.store.events import BatchRetried, EventsLost, FailureReason, StoreDegraded
from support.root_producers import RootProducer, check_all
from support.stores import until_settled
from support.valkeys import OwnValkey, own_valkey
from support.waiting import eventually, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def _whole(server: OwnValkey) -> None:
    """Return when the cluster of this one node is complete."""
    with server.client() as node:
        eventually(lambda: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True))


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """A durable cluster of one node, which has all slots and checks them as any node does."""
    with own_valkey(durable=True, cluster_enabled="yes") as server:
        with server.client() as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        _whole(server)
        yield server


@pytest.fixture
async def cluster(server: OwnValkey) -> AsyncIterator[aioredis.RedisCluster]:
    """A client of the cluster with common options."""
    client = aioredis.RedisCluster(host="127.0.0.1", port=server.port, socket_timeout=1)
    yield client
    await client.aclose()


class Load:
    """Concurrent producers on a store, and the store's events."""

    def __init__(self, cluster: aioredis.RedisCluster, prefix: str) -> None:
        self.store = RedisEventStore(cluster, key_prefix=f"{{{prefix}}}:", ttl=600, store_timeout=STORE_TIMEOUT)
        self.facts: list[object] = []
        self.store.observe(self.facts.append)
        self.producers = [RootProducer(self.store, f"s{n}", stream) for n in range(10) for stream in ("1", "2")]

    async def check_outage(self, server: OwnValkey, outage: Callable[[], object], *, seconds: float) -> None:
        """Append before, in and after an outage; then Redis has exactly the appended numbers."""
        over = anyio.Event()

        async def send(producer: RootProducer) -> None:
            while not over.is_set():
                await producer.append_next()
                await anyio.sleep(0.01)

        late = 0.0

        async def watch_the_loop() -> None:
            nonlocal late
            while not over.is_set():
                began = anyio.current_time()
                await anyio.sleep(0.02)
                late = max(late, anyio.current_time() - began - 0.02)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_the_loop)
            for producer in self.producers:
                tasks.start_soon(send, producer)
            await self.more()
            self.facts.clear()
            outage()
            await until(lambda: any(isinstance(fact, StoreDegraded) for fact in self.facts))
            await anyio.sleep(seconds)
            await self.more()
            await anyio.to_thread.run_sync(self._recover, server)
            await until_settled(self.store)
            await self.more()
            over.set()
        async with aioredis.Redis.from_url(server.url) as direct:
            await check_all(self.producers, direct)
        assert not [fact for fact in self.facts if isinstance(fact, EventsLost)]
        # On a busy machine the event loop itself is late.
        assert max(call.seconds for producer in self.producers for call in producer.calls) < STORE_TIMEOUT + 0.3 + late

    @staticmethod
    def _recover(server: OwnValkey) -> None:
        server.revive()
        _whole(server)

    async def more(self) -> None:
        """Return when each producer has appended more."""
        before = [len(producer.calls) for producer in self.producers]
        await until(lambda: all(len(s.calls) > n + 3 for s, n in zip(self.producers, before, strict=True)))


async def test_appends_while_the_node_is_killed_are_stored_once(
    server: OwnValkey, cluster: aioredis.RedisCluster, key_prefix: str
) -> None:
    """The node is killed, and restarts with its data."""
    await Load(cluster, key_prefix).check_outage(server, server.kill, seconds=0.2)


async def test_appends_while_the_node_is_frozen_are_stored_once(
    server: OwnValkey, cluster: aioredis.RedisCluster, key_prefix: str
) -> None:
    """The node is frozen for longer than clients wait, and executes earlier commands later, not twice."""
    await Load(cluster, key_prefix).check_outage(server, server.freeze, seconds=1.5)


async def test_appends_after_script_flush_load_the_script(
    server: OwnValkey, cluster: aioredis.RedisCluster, key_prefix: str
) -> None:
    """A script that the node has lost is loaded again."""
    load = Load(cluster, key_prefix)
    async with aioredis.Redis.from_url(server.url) as direct:
        for _ in range(3):
            await direct.script_flush()
            async with anyio.create_task_group() as tasks:
                for producer in load.producers:
                    tasks.start_soon(producer.append_many, 5)
        await until_settled(load.store)
        await check_all(load.producers, direct)
    assert {fact.reason for fact in load.facts if isinstance(fact, BatchRetried)} == {FailureReason.NOSCRIPT}


async def test_append_to_a_key_of_another_type_fails_its_caller_only(
    server: OwnValkey, cluster: aioredis.RedisCluster, key_prefix: str
) -> None:
    """An event that is refused for good concerns no other event."""
    load = Load(cluster, key_prefix)
    await load.producers[0].append_next()  # The client has found its nodes: that takes longer than a caller waits.
    await until_settled(load.store)
    victim = RootProducer(load.store, "s0", "taken")
    async with aioredis.Redis.from_url(server.url) as direct:
        await direct.set(victim.keys.stream(victim.stream), "a string", ex=60)
        with pytest.raises(StoreRejectedError, match="WRONGTYPE"):
            await victim.append_next()
        async with anyio.create_task_group() as tasks:
            for producer in load.producers:
                tasks.start_soon(producer.append_many, 5)
        await check_all(load.producers, direct)
