"""On Redis Cluster, no operation on a session crosses slots."""

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreRejectedError
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store.coordination import NewRecord
from mcp_eventscope.store.events import BatchCommitted
from mcp_eventscope.store.results import FollowEnd
from mcp_eventscope.testing import Collected
from support.messages import answer, note
from support.servers import cluster_of_one
from support.session_producers import observed
from support.stores import PATIENCE, until_settled
from support.waiting import CEILING

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster_port() -> Iterator[int]:
    """The port of a cluster of one node, which has all slots and checks them as any node does."""
    with cluster_of_one() as port:
        yield port


@pytest.fixture
async def cluster(cluster_port: int) -> AsyncIterator[aioredis.RedisCluster]:
    """A client of the cluster."""
    client = aioredis.RedisCluster(host="127.0.0.1", port=cluster_port)
    yield client
    await client.aclose()


async def test_session_on_a_cluster_never_crosses_slots(cluster: aioredis.RedisCluster) -> None:
    """Append, trim, replay, follow, give up, record, renew and end, without crossing slots."""
    root = RedisEventStore(cluster, ttl=60)
    for name in ("a", "b{x}", "c:{}"):
        store = root.for_session(name)
        store.begin("1", 1)
        first = await store.append("1", None)
        await store.append("1", note(1))
        collected = Collected()
        facts = await store.replay(first.event_id, collected, stream_id="1")
        assert (facts.delivered, facts.gap, facts.completed) == (1, False, False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: store.append("1", answer()))  # noqa: B023 - within this turn of the loop
            followed = await store.follow("1", facts.last_event_id, collected, limit=10)
        assert followed.end is FollowEnd.COMPLETED
        store.begin("2", 2)
        second = await store.append("2", None)
        await store.give_up("2", 2)
        await root.flush(5)
        other = RedisEventStore(cluster, ttl=60).for_session(name)
        for event in (first, second):
            facts = await other.replay(event.event_id, Collected(), stream_id="1" if event is first else "2")
            assert facts.completed
        assert await root.coordinator.record(NewRecord(name, "o", "{}"), ttl=60) == "live"
        assert (await root.coordinator.read(name, owner="o", server="", ttl=60)).state == "live"
        assert (await root.coordinator.read(name, owner="x", server="", ttl=60)).state == "other"
        await root.coordinator.end(name, ttl=60)
        assert (await root.coordinator.read(name, owner="o", server="", ttl=60)).state == "ended"
    await root.flush()


async def test_short_calls_on_a_cluster_are_stored_once_and_deleted_with_their_session(
    cluster: aioredis.RedisCluster,
) -> None:
    """As whole runs, one in each command, also where Redis has lost the index of the session."""
    root = RedisEventStore(cluster, ttl=60)
    facts = observed(root)
    stores = [root.for_session(f"short{number}") for number in range(3)]
    first: dict[tuple[str, int], str] = {}
    for turn in range(3):
        for store in stores:
            for number in range(turn * 4, turn * 4 + 4):
                store.begin(str(number), number)
                first[store.session_id, number] = (await store.append(str(number), None)).event_id
                await store.append(str(number), note(0, "x" * 5000))
                await store.append(str(number), answer(number))
        await until_settled(root)
        await cluster.delete(f"{stores[turn].key_prefix}index")
    assert sum(fact.events for fact in facts.of(BatchCommitted)) == 3 * len(first)
    reader = RedisEventStore(cluster, ttl=60)
    for (session, number), event_id in first.items():
        read = await reader.for_session(session).replay(event_id, Collected(), stream_id=str(number))
        assert (read.delivered, read.completed) == (2, True)
    for store in stores[:2]:
        store.begin("again", "again")
        await store.append("again", answer("again"))
    await until_settled(root)
    lists = await cluster.lrange(f"{stores[0].key_prefix}index", 0, -1)
    assert len(lists) == 8 * 2 + 1, "the rows of the first turn were deleted with the index"
    await root.coordinator.end(stores[0].session_id, ttl=60)
    names = [str(row, "ascii").partition(" ")[2] for row in lists if isinstance(row, bytes)]
    assert len(names) == len(lists)
    assert not any([await cluster.exists(stores[0].key_prefix + name) for name in names])


async def test_follower_on_a_cluster_finds_an_orphaned_request(cluster: aioredis.RedisCluster) -> None:
    """A follower on one worker finds that the other worker, which ran the request, has expired."""

    async def nothing() -> None:
        """There is nothing to publish again."""

    dead, follower = RedisEventStore(cluster, ttl=60), RedisEventStore(cluster, ttl=60)
    part = dead.for_session("orphan")
    part.begin("1", 1)
    first = await part.append("1", None)
    await dead.flush(5)
    collected = Collected()
    async with follower.coordinator.hold_lease(0.3, lambda _: None, nothing):
        with anyio.fail_after(CEILING):
            facts = await follower.for_session("orphan").follow("1", first.event_id, collected, limit=10)
    assert (facts.end, facts.orphaned, facts.delivered) == (FollowEnd.COMPLETED, True, 1)


async def test_view_on_a_cluster_stores_and_resumes(cluster: aioredis.RedisCluster) -> None:
    """A session's view stores and resumes with short ids and separate streams."""
    root = RedisEventStore(cluster, ttl=60)
    store = InstrumentedEventStore(root, registry=None)
    view = SessionView(store.for_session("view"), follow_timeout=5)
    cursor = await view.store_event("1", None)
    await view.store_event("2", note(2))
    await view.store_event("1", answer())
    collected = Collected()
    await view.replay_events_after(cursor, collected)
    assert len(collected.data) == 1
    await root.flush()


async def test_root_store_on_a_cluster_needs_a_hash_tag(cluster: aioredis.RedisCluster) -> None:
    """Without a hash tag in its prefix the cluster refuses the append, and the error names the slot."""
    with pytest.raises(StoreRejectedError, match="slot"):
        await RedisEventStore(cluster, ttl=60).append("1", None)
    tagged = RedisEventStore(cluster, key_prefix="{mcp}:", ttl=60, store_timeout=PATIENCE)
    assert (await tagged.append("1", None)).event_id
