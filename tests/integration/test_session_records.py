"""Records of sessions: owner, end and expiry."""

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


async def test_record_of_another_owner_is_neither_changed_nor_read(workers: Workers) -> None:
    """Recording a session of another owner changes nothing."""
    assert await workers.record(NewRecord(SESSION, "alice", "{}"), ttl=60) == "live"
    assert await workers.record(NewRecord(SESSION, "bob", '{"x":1}'), ttl=60) == "other"
    assert await workers.touch(SESSION, owner="alice", ttl=60) == SessionRecord("live", "{}")
    assert await workers.touch(SESSION, owner="bob", ttl=60) == SessionRecord("other")


async def test_record_of_an_ended_session_stays_ended(workers: Workers) -> None:
    """Neither its owner nor a worker that missed the end revives it."""
    await workers.record(NewRecord(SESSION, "alice", "{}"), ttl=60)
    await workers.end(SESSION, ttl=60)
    assert await workers.record(NewRecord(SESSION, "alice", "{}"), ttl=60) == "ended"
    assert (await workers.touch(SESSION, owner="alice", ttl=60)).state == "ended"


async def test_touch_of_an_expired_record_creates_none(
    workers: Workers, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """A record without an owner would be open to any client."""
    assert (await workers.touch(SESSION, owner="", ttl=60)).state == "absent"
    assert not await redis_client.keys(f"{key_prefix}*")


async def test_end_of_an_expired_record_stays_ended(workers: Workers) -> None:
    """The remains of the ended session let no client take it over."""
    await workers.end(SESSION, ttl=60)
    for owner in ("", "alice"):
        assert (await workers.touch(SESSION, owner=owner, ttl=60)).state == "ended"
        assert await workers.record(NewRecord(SESSION, owner, "{}"), ttl=60) == "ended"


async def test_many_records_are_written_in_few_round_trips(workers: Workers) -> None:
    """All of them are stored; those of other owners and ended ones are unchanged."""
    await workers.record(NewRecord("s1", "bob", "{}"), ttl=60)
    await workers.end("s2", ttl=60)
    await workers.record_all([NewRecord(f"s{number}", "alice", "{}") for number in range(600)], ttl=60)
    states = [(await workers.touch(f"s{number}", owner="alice", ttl=60)).state for number in range(600)]
    assert states[:4] == ["live", "other", "ended", "live"]
    assert set(states[3:]) == {"live"}
