import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.workers import Workers
from mcp_eventscope.store.coordination import NewRecord, SessionRecord

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]

SESSION = "s"


@pytest.fixture
def workers(redis_client: aioredis.Redis, key_prefix: str) -> Workers:
    """A worker."""
    return RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60).coordinator


async def test_record_is_the_owners(workers: Workers) -> None:
    """Who records a session that is another's changes nothing, and does not read it."""
    assert await workers.record(NewRecord(SESSION, "alice", "{}"), ttl=60) == "live"
    assert await workers.record(NewRecord(SESSION, "bob", '{"x":1}'), ttl=60) == "other"
    assert await workers.touch(SESSION, owner="alice", ttl=60) == SessionRecord("live", "{}")
    assert await workers.touch(SESSION, owner="bob", ttl=60) == SessionRecord("other")


async def test_ended_stays_ended(workers: Workers) -> None:
    """A session that has ended is not revived by its owner either, nor by a worker that has not heard of the end."""
    await workers.record(NewRecord(SESSION, "alice", "{}"), ttl=60)
    await workers.end(SESSION, ttl=60)
    assert await workers.record(NewRecord(SESSION, "alice", "{}"), ttl=60) == "ended"
    assert (await workers.touch(SESSION, owner="alice", ttl=60)).state == "ended"


async def test_touch_makes_no_record(workers: Workers, redis_client: aioredis.Redis, key_prefix: str) -> None:
    """A record that has expired is not made anew, without an owner, by who asks for it."""
    assert (await workers.touch(SESSION, owner="", ttl=60)).state == "absent"
    assert not await redis_client.keys(f"{key_prefix}*")


async def test_end_of_an_expired_record(workers: Workers) -> None:
    """What is left by the end of a session whose record had expired lets nobody take the session over."""
    await workers.end(SESSION, ttl=60)
    for owner in ("", "alice"):
        assert (await workers.touch(SESSION, owner=owner, ttl=60)).state == "ended"
        assert await workers.record(NewRecord(SESSION, owner, "{}"), ttl=60) == "ended"


async def test_many_records_are_written_in_few_round_trips(workers: Workers) -> None:
    """All of them are there afterwards, those of other owners and ended ones as they were."""
    await workers.record(NewRecord("s1", "bob", "{}"), ttl=60)
    await workers.end("s2", ttl=60)
    await workers.record_all([NewRecord(f"s{number}", "alice", "{}") for number in range(600)], ttl=60)
    states = [(await workers.touch(f"s{number}", owner="alice", ttl=60)).state for number in range(600)]
    assert states[:4] == ["live", "other", "ended", "live"]
    assert set(states[3:]) == {"live"}
