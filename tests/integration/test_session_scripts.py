"""Each script touches declared keys only, on Valkey, Redis 7 and a cluster."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import redis
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.coordination import NewRecord
from mcp_eventscope.store.events import EventsLost, FailureReason, LossReason
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import FollowEnd, StoreOutcome
from support.key_guard import GUARD, guard_scripts
from support.messages import answer, note
from support.session_producers import Received, SessionProducer, observed
from support.stores import until_settled
from support.valkeys import OwnValkey, own_valkey
from support.waiting import eventually, in_time, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script refuses a key that was not declared."""
    guard_scripts(monkeypatch)


@pytest.fixture(params=["valkey_url", pytest.param("redis_url", marks=pytest.mark.slow)])
async def client(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[aioredis.Redis]:
    """A client of Valkey, and of Redis 7."""
    async with connect(request.getfixturevalue(request.param)) as client:
        yield client
        keys = [key async for key in client.scan_iter(match=f"{key_prefix}*", count=1000)]
        lasting = [key for key in keys if await client.ttl(key) < 0]
        if keys:
            await client.delete(*keys)
        assert not lasting


async def nothing() -> None:
    """Nothing is published."""


@pytest.mark.usefixtures("guarded")
async def test_key_guard_refuses_undeclared_keys_only(client: aioredis.Redis, key_prefix: str) -> None:
    """The guard refuses undeclared keys, and no others."""
    text = GUARD + "return redis.call('GET', KEYS[1])"
    assert await client.eval(text, 1, key_prefix) is None
    with pytest.raises(ResponseError, match="undeclared key"):
        await client.eval(GUARD + "return redis.call('GET', KEYS[1] .. 'x')", 1, key_prefix)
    with pytest.raises(ResponseError, match="undeclared key"):
        await client.eval(GUARD + "return redis.pcall('GET', 'x')", 1, key_prefix)


async def check_life(  # noqa: PLR0915 - one life, from beginning to end
    one: aioredis.Redis | aioredis.RedisCluster, two: aioredis.Redis | aioredis.RedisCluster, prefix: str
) -> None:
    """Every operation on a session: store, trim, read, follow, answer, lose, store again, end."""
    store, other = (RedisEventStore(client, key_prefix=prefix, ttl=2) for client in (one, two))
    facts = observed(store)
    async with (
        store.coordinator.hold_lease(20, lambda _: None, nothing),
        other.coordinator.hold_lease(20, lambda _: None, nothing),
    ):
        for name in ("a", "b{x}", "c:{}"):
            record = NewRecord(name, "o", "{}")
            assert await store.coordinator.record(record, ttl=60) == "live"
            producer = SessionProducer(store, name)
            await producer.append(None)
            await producer.append_next(3)
            await producer.append(note(4, "x" * 10_000))
            await producer.outcomes()
            await producer.check(other)
            cursor = await producer.part.open_standalone()
            for part in (producer.part, other.for_session(name)):
                await part.append(GET_STREAM_KEY, note(0))
            await until_settled(store)
            await until_settled(other)
            received = Received()
            await other.for_session(name).replay(cursor, received, stream_id=GET_STREAM_KEY)
            assert received.contents == [0, 0]
            received = Received()
            async with anyio.create_task_group() as tasks:
                part = other.for_session(name)
                tasks.start_soon(lambda: part.follow("1", producer.ids[-1], received, limit=20))  # noqa: B023
                await producer.append_next(2)
                await received.has(2)
                await producer.append(answer())
            assert received.contents == [5, 6, "JSONRPCResponse"]
        dead = RedisEventStore(one, key_prefix=prefix, ttl=2)
        orphan = SessionProducer(dead, "a", 2)
        await orphan.append(None)
        await orphan.outcomes()
        followed = await other.for_session("a").follow("2", orphan.ids[0], Received(), limit=20)
        assert (followed.end, followed.orphaned) == (FollowEnd.COMPLETED, True)
        await orphan.append_next()
        assert (await orphan.outcomes())[-1] is StoreOutcome.REFUSED
        old = SessionProducer(store, "b{x}", 3)
        await old.append_next(3)
        await old.outcomes()
        await one.execute_command("EXPIRE", old.key, 60)
        await anyio.sleep(2.1)
        await old.append_next()
        await old.outcomes()
        assert await one.execute_command("LLEN", old.key) == 2
        await one.execute_command("DEL", old.key)
        await old.append_next()
        await old.outcomes()
        assert not [fact for fact in facts.of(EventsLost) if fact.reason is not LossReason.ROLLBACK]
        await store.coordinator.end("a", ttl=60)
        ended = SessionProducer(store, "a", 4)
        await ended.append_next()
        assert await ended.outcomes() == [StoreOutcome.REFUSED]
    for each in (store, other, dead):
        await each.flush()


@pytest.mark.usefixtures("guarded")
async def test_scripts_of_a_session_touch_declared_keys_only(client: aioredis.Redis, key_prefix: str) -> None:
    """No script of a session's life touches a key that was not declared."""
    await check_life(client, client, key_prefix)


# -- a cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[OwnValkey, OwnValkey]]:
    """A cluster of two nodes, each with half of the slots."""
    options: dict[str, Any] = {"cluster_enabled": "yes", "cluster_node_timeout": 1000}
    with (
        own_valkey(durable=True, **options) as one,
        own_valkey(durable=True, **options) as two,
    ):
        with one.client() as first, two.client() as second:
            first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
            second.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)

            def met() -> bool:
                # Again and again: nodes that do not answer within a node time-out forget that they were to meet.
                first.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port, two.bus)
                return _knows_all(first) and _knows_all(second)

            eventually(met)
        yield one, two


def _knows_all(node: redis.Redis) -> bool:
    """Whether a node knows that the cluster is complete."""
    info: bytes = node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)  # type: ignore[no-untyped-call]
    return b"cluster_state:ok" in info and b"cluster_known_nodes:2" in info


def _whole(node: OwnValkey) -> None:
    """Return when a node knows that the cluster is complete."""
    with node.client() as client:
        eventually(lambda: _knows_all(client))


@pytest.fixture
async def cluster(nodes: tuple[OwnValkey, OwnValkey]) -> AsyncIterator[aioredis.RedisCluster]:
    """A client of the cluster."""
    client = aioredis.RedisCluster(host="127.0.0.1", port=nodes[0].port, socket_timeout=1)
    yield client
    await client.aclose()


@pytest.mark.slow
@pytest.mark.usefixtures("guarded")
async def test_scripts_of_sessions_on_a_cluster_never_cross_slots(
    cluster: aioredis.RedisCluster, key_prefix: str
) -> None:
    """Sessions of different slots live on a cluster, and no script crosses slots."""
    await check_life(cluster, cluster, key_prefix)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "freeze"])
async def test_session_appends_while_a_node_fails_are_stored_once(
    nodes: tuple[OwnValkey, OwnValkey], cluster: aioredis.RedisCluster, key_prefix: str, way: str
) -> None:
    """All events keep their ids, and are stored afterwards, once and in order."""
    store = RedisEventStore(cluster, key_prefix=key_prefix, ttl=600)
    reader = RedisEventStore(cluster, key_prefix=key_prefix, ttl=600)
    facts = observed(store)
    producers = [SessionProducer(store, f"s{number}") for number in range(8)]
    with in_time(50):
        for producer in producers:
            await producer.append(None)
        await until_settled(store)
        await anyio.to_thread.run_sync(getattr(nodes[1], way))
        try:
            for _ in range(5):
                for producer in producers:
                    await producer.append_next(2)
                await anyio.sleep(0.02)
            await until(lambda: store.backlog.failure)
        finally:
            await anyio.to_thread.run_sync(nodes[1].revive)
            await anyio.to_thread.run_sync(_whole, nodes[0])
            await anyio.to_thread.run_sync(_whole, nodes[1])
        await until_settled(store, within=20)
        for producer in producers:
            assert "" not in producer.ids
            await producer.check(reader)
    assert not facts.of(EventsLost)
    assert max(seconds for producer in producers for seconds in producer.seconds) < 0.25 + 0.3
    await store.flush()


@pytest.mark.slow
async def test_session_appends_after_a_node_flushed_scripts_are_stored(
    nodes: tuple[OwnValkey, OwnValkey], cluster: aioredis.RedisCluster, key_prefix: str
) -> None:
    """The script is loaded again on that node."""
    store = RedisEventStore(cluster, key_prefix=key_prefix, ttl=600)
    producers = [SessionProducer(store, f"s{number}") for number in range(8)]
    for _ in range(3):
        with nodes[0].client() as node:
            node.script_flush()
        for producer in producers:
            await producer.append_next(3)
        for producer in producers:
            assert set(await producer.outcomes()) == {StoreOutcome.STORED}
    for producer in producers:
        await producer.check(RedisEventStore(cluster, key_prefix=key_prefix, ttl=600))
    await store.flush()


@pytest.mark.slow
async def test_idle_store_on_a_cluster_finds_its_recovery(cluster: aioredis.RedisCluster, key_prefix: str) -> None:
    """A store that has nothing to send finds out that the cluster has recovered."""
    store = RedisEventStore(cluster, key_prefix=key_prefix, ttl=600)
    store._breaker.open(FailureReason.TIMEOUT, "no reply in time")
    assert store.backlog.failure
    store._sender.wake()
    await until_settled(store, within=5)
    await store.flush()
