"""Records of sessions: owner, server, end and expiry."""

from collections.abc import AsyncIterator

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.store.coordination import NewRecord, SessionRecord
from support.messages import answer
from support.session_producers import SessionProducer
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]

SESSION = "s"
RECORD = NewRecord(SESSION, "alice", "{}", "calc")


async def nothing() -> None:
    """Republish nothing."""


@pytest.fixture
def workers(redis_client: aioredis.Redis, key_prefix: str) -> Workers:
    """A worker."""
    return RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60).coordinator


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
async def many(request: pytest.FixtureRequest, valkey_url: str, key_prefix: str) -> AsyncIterator[Workers]:
    """A worker whose client decodes replies, or does not."""
    options = "?decode_responses=yes" if request.param else ""
    async with connect(f"{valkey_url}{options}") as client:
        yield RedisEventStore(client, key_prefix=key_prefix, ttl=60).coordinator


async def read(workers: Workers, owner: str = "alice", server: str = "calc") -> SessionRecord:
    """The record as a principal reads it through a server."""
    return await workers.read(SESSION, owner=owner, server=server, ttl=60)


@pytest.mark.parametrize(
    ("owner", "server", "state"),
    [("bob", "calc", "other"), ("alice", "mail", "other_server"), ("bob", "mail", "other_server")],
)
async def test_record_of_another_owner_or_server_is_neither_changed_nor_read(
    redis_client: aioredis.Redis, key_prefix: str, owner: str, server: str, state: str
) -> None:
    """Neither recording nor renewing such a session changes or discloses anything."""
    workers = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60).coordinator
    key = f"{key_prefix}{{{SESSION}}}:session"
    assert await workers.record(RECORD, ttl=60) == "live"
    await redis_client.expire(key, 30)
    stranger = NewRecord(SESSION, owner, '{"x":1}', server)
    assert await workers.record(stranger, ttl=60) == "other"
    assert await workers.touch([stranger], ttl=60) == [state]
    assert await read(workers, owner, server) == SessionRecord(state)
    assert await redis_client.ttl(key) <= 30
    assert await read(workers) == SessionRecord("live", "{}")


async def test_record_of_an_ended_session_stays_ended(workers: Workers) -> None:
    """Neither its owner nor a worker that missed the end revives it."""
    await workers.record(RECORD, ttl=60)
    await workers.end(SESSION, ttl=60)
    assert await workers.record(RECORD, ttl=60) == "ended"
    assert await workers.touch([RECORD], ttl=60) == ["ended"]
    assert (await read(workers)).state == "ended"


async def test_touch_of_an_expired_record_creates_none(
    workers: Workers, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """A record without an owner would be open to any client."""
    assert (await read(workers, owner="")).state == "absent"
    assert await workers.touch([RECORD], ttl=60) == ["absent"]
    assert not await redis_client.keys(f"{key_prefix}*")


async def test_end_of_an_expired_record_stays_ended(workers: Workers) -> None:
    """The remains of the ended session let no client take it over."""
    await workers.end(SESSION, ttl=60)
    for owner in ("", "alice"):
        assert (await read(workers, owner)).state == "ended"
        assert await workers.record(NewRecord(SESSION, owner, "{}", "calc"), ttl=60) == "ended"


async def test_absent_record_of_a_session_with_a_running_call_is_lost(store: RedisEventStore) -> None:
    """It is absent only once the call has ended, or its worker's lease."""
    other = RedisEventStore(store._redis, key_prefix=store.key_prefix, ttl=60)
    async with other.coordinator.hold_lease(60, lambda _: None, nothing):
        await until(lambda: not other.coordinator.uncertain)
        async with store.coordinator.hold_lease(60, lambda _: None, nothing):
            for number in range(2):
                producer = SessionProducer(store, SESSION, number)
                await producer.append(None)
                await producer.outcomes()
                assert (await read(other.coordinator)).state == "lost"
                if not number:
                    await producer.append(answer())
                    await producer.outcomes()
                    assert (await read(other.coordinator)).state == "absent"
        assert (await read(other.coordinator)).state == "absent"


async def test_many_records_are_written_and_renewed_in_few_round_trips(
    many: Workers, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """All of them are stored; those of other owners, ended ones, and keys of other programs are unchanged."""
    records = [NewRecord(f"s{number}", "alice", "{}", "calc") for number in range(600)]
    await many.record(NewRecord("s1", "bob", "{}", "calc"), ttl=60)
    await many.end("s2", ttl=60)
    states = ["live", "other", "ended", *["live"] * 597]
    assert await many.record_all(records, ttl=60) == states
    await redis_client.delete(f"{key_prefix}{{s3}}:session")
    await redis_client.set(f"{key_prefix}{{s4}}:session", "another's", ex=60)
    await redis_client.expire(f"{key_prefix}{{s599}}:session", 5)
    calls = (await redis_client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert await many.touch(records, ttl=60) == [*states[:3], "absent", "other", *states[5:]]
    assert (await redis_client.info("commandstats"))["cmdstat_evalsha"]["calls"] - calls < 100
    assert await redis_client.ttl(f"{key_prefix}{{s599}}:session") > 5


async def test_touch_of_a_large_record_does_not_read_it(workers: Workers, redis_client: aioredis.Redis) -> None:
    """Redis would send the handshake again for each request of the session."""
    large = NewRecord(SESSION, "alice", "x" * 1_000_000, "calc")
    await workers.record(large, ttl=60)
    sent = (await redis_client.info("stats"))["total_net_output_bytes"]
    assert await workers.touch([large], ttl=60) == ["live"]
    assert (await redis_client.info("stats"))["total_net_output_bytes"] - sent < 100_000


async def test_claim_of_a_prefix_of_another_server_returns_its_name(
    workers: Workers, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """The claim of the first server stands while it renews it."""
    assert await workers.claim("calc", ttl=60) == "calc"
    assert await workers.claim("mail é", ttl=90) == "calc"
    assert await workers.claim("calc", ttl=60) == "calc"
    assert 0 < await redis_client.ttl(f"{key_prefix}server") <= 60
    await redis_client.delete(f"{key_prefix}server")
    assert await workers.claim("mail é", ttl=60) == await workers.claim("calc", ttl=60) == "mail é"
