"""The end of a session deletes its keys, and nothing that comes late brings one back."""

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.store.coordination import NewRecord
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import StoreOutcome
from support.leaks import LeakChecker
from support.messages import answer, note
from support.servers import Valkey
from support.session_producers import SessionProducer
from support.stores import until_settled
from support.waiting import until

pytestmark = pytest.mark.anyio

TTL = 600
RECORD = NewRecord("s", "alice", "{}", "calc")
LARGE = note(0, "x" * 5000)


class Life:
    """A session with keys of every kind, on two workers.

    Args:
        client: A client.
        key_prefix: The prefix of the stores.
        ttl: Seconds that events are kept; None: no expiry.
    """

    def __init__(self, client: aioredis.Redis, key_prefix: str, ttl: int | None = TTL) -> None:
        self.client = client
        self.keys = Keys(key_prefix).for_session("s")
        self.stores = [
            RedisEventStore(client, key_prefix=key_prefix, ttl=ttl, max_session_bytes=1 << 20) for _ in range(2)
        ]
        self.open = [SessionProducer(store, "s", 1000 + number) for number, store in enumerate(self.stores)]

    async def live(self, calls: int = 40) -> None:
        """Make calls that end, one that runs on each worker, large payloads, and standalone streams."""
        await self.stores[0].coordinator.record(RECORD, ttl=TTL)
        for store, producer in zip(self.stores, self.open, strict=True):
            await producer.append(None)
            await producer.append(LARGE)
            for number in range(calls):
                ended = SessionProducer(store, "s", number)
                await ended.append(LARGE if number < 3 else None)
                await ended.append(answer())
            await producer.part._record_sent()
            await producer.part.append(GET_STREAM_KEY, LARGE)
            await until_settled(store)
            await store._limit.drain(10)

    async def end(self) -> None:
        """End the session on the second worker."""
        await self.stores[1].coordinator.end("s", ttl=TTL)

    async def close(self) -> None:
        """Store the pending events."""
        for store in self.stores:
            await store.flush(10)


def text(value: str | bytes) -> str:
    """The text of a reply, whether the client decodes or not."""
    return value if isinstance(value, str) else value.decode()


async def indexed(life: Life) -> set[str]:
    """The keys that the index names."""
    rows = await life.client.lrange(life.keys.index, 0, -1)
    return {life.keys.prefix + text(row).partition(" ")[2] for row in rows}


async def check_ended(life: Life, leaks: LeakChecker) -> None:
    """Only the mark of the end remains, and expires."""
    assert await leaks.keys() == [life.keys.session]
    assert {text(field) for field in await life.client.hkeys(life.keys.session)} == {"ended"}
    assert 0 < await life.client.ttl(life.keys.session) <= TTL


@pytest.fixture
async def redis_client(valkey_server: Valkey) -> AsyncIterator[aioredis.Redis]:
    """A client of the real Valkey. Whether it decodes replies does not matter here."""
    async with aioredis.Redis.from_url(valkey_server.url) as client:
        yield client


@pytest.fixture
async def life(redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker) -> Life:
    """A session that has not ended."""
    life = Life(redis_client, key_prefix)
    await life.live()
    assert (await leaks.keys()).count(life.keys.sizes) == 1
    return life


async def test_end_of_a_session_deletes_all_its_keys(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """Hundreds of keys before, one after, whichever worker stored them."""
    life = Life(redis_client, key_prefix)
    await life.live(calls=400)
    found = set(await leaks.keys())
    assert len(found) > 2 * scripts._DELETED_AT_ONCE - 300
    assert await indexed(life) == {key for key in found if ":stream:" in key or ":large:" in key}
    await life.end()
    await check_ended(life, leaks)
    await life.close()
    await check_ended(life, leaks)


async def test_end_of_a_session_without_ttl_deletes_all_its_keys(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """The keys would otherwise remain forever."""
    leaks.exempt()
    life = Life(redis_client, key_prefix, ttl=None)
    await life.live()
    await life.end()
    await life.close()
    await check_ended(life, leaks)


async def commit_event(life: Life) -> None:
    """An event of a running call."""
    await life.open[0].append_next()
    assert set(await life.open[0].outcomes()) <= {StoreOutcome.STORED, StoreOutcome.REFUSED}


async def commit_response(life: Life) -> None:
    """A large response."""
    await life.open[0].append(answer("x" * 5000))
    await life.open[0].outcomes()


async def commit_call(life: Life) -> None:
    """A new call, and a message on the standalone stream."""
    late = SessionProducer(life.stores[0], "s", 2000)
    await late.append(LARGE)
    await late.append(answer())
    await life.open[0].part.append(GET_STREAM_KEY, LARGE)
    await until_settled(life.stores[0])


async def renew_runs(life: Life) -> None:
    """The keys of silent calls."""
    life.stores[0]._session_writer.verify()
    await until_settled(life.stores[0])


async def renew_record(life: Life) -> None:
    """The record, by a worker that has missed the end."""
    await life.stores[0].coordinator.touch([RECORD], ttl=TTL)


async def republish(life: Life) -> None:
    """The record, by a worker that was suspended."""
    await life.stores[0].coordinator.record_all([RECORD, RECORD], ttl=TTL)


async def send_standalone(life: Life) -> None:
    """A message of a standalone stream."""
    part = RedisEventStore(life.client, key_prefix=life.stores[0].key_prefix, ttl=TTL).for_session("s")
    await part._record_sent()


async def account(life: Life) -> None:
    """The size of stored events, when the session ends on that worker."""
    life.open[0].part.close()
    await life.stores[0]._limit.drain(10)


async def answer_call(life: Life) -> None:
    """An answer in place of a dead worker, which has read the entry before."""
    run = life.open[0].ids[0].split("-")[2]
    await Script("answer.lua")(
        life.client, [life.keys.requests, life.open[0].key], [run, b"r 1000 1000", "a 1 {}", TTL]
    )


async def evict(life: Life) -> None:
    """An eviction, whose plan was made before."""
    keys = [life.keys.sizes, life.keys.index, life.open[0].key]
    await Script("evict.lua")(life.client, keys, [1, "name", "9 []", "", 1, "f", 0])


async def end_again(life: Life) -> None:
    """The same end, on the other worker."""
    await life.stores[0].coordinator.end("s", ttl=TTL)


LATE = [
    commit_event,
    commit_response,
    commit_call,
    renew_runs,
    renew_record,
    republish,
    send_standalone,
    account,
    answer_call,
    evict,
    end_again,
]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("step", [0, 1, 9])
async def test_end_of_a_session_is_not_undone(
    life: Life,
    leaks: LeakChecker,
    monkeypatch: pytest.MonkeyPatch,
    late: Callable[[Life], Awaitable[None]],
    step: int,
) -> None:
    """Before the end, between its steps, or after it, the result is the same."""
    monkeypatch.setattr(scripts, "_DELETED_AT_ONCE", 25)
    end, calls = scripts._end, 0

    async def stepwise(*arguments: object) -> object:
        nonlocal calls
        if calls == step:
            monkeypatch.setattr(scripts, "_end", end)
            await late(life)
            monkeypatch.setattr(scripts, "_end", stepwise)
        calls += 1
        return await end(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scripts, "_end", stepwise)
    await life.end()
    assert calls > (late is not end_again)
    if step >= calls:
        await late(life)
    await check_ended(life, leaks)
    await life.close()
    await check_ended(life, leaks)


@pytest.mark.parametrize("interrupted", range(5))
async def test_concurrent_ends_of_a_session_delete_all_its_keys(
    life: Life, leaks: LeakChecker, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    """A client may send DELETE to two workers, and cancel one after some of its steps."""
    monkeypatch.setattr(scripts, "_DELETED_AT_ONCE", 25)
    one = other = None
    for step in range(9):
        if step < interrupted:
            one = await scripts.end(life.client, life.keys, TTL, one)
        other = await scripts.end(life.client, life.keys, TTL, other)
    await check_ended(life, leaks)
    await life.close()


async def test_index_of_a_session_names_every_key_until_it_expires(
    redis_client: aioredis.Redis, key_prefix: str, leaks: LeakChecker
) -> None:
    """Also those of calls that run for longer than the TTL; the rows of expired keys are removed."""
    life = Life(redis_client, key_prefix, ttl=1)
    await life.live(calls=20)
    rows = await indexed(life)
    silent, busy = life.open
    began = anyio.current_time()
    while anyio.current_time() - began < 2.5:
        life.stores[0]._session_writer.renew()
        await busy.append_next()
        await anyio.sleep(0.1)
    await until_settled(life.stores[1])
    found = {key for key in await leaks.keys() if ":stream:" in key or ":large:" in key}
    assert {silent.key, busy.key} <= found <= await indexed(life)
    await until(lambda: not life.stores[0].backlog.events)
    assert len(await indexed(life)) < len(rows) / 2
    await life.end()
    await life.close()
    await check_ended(life, leaks)
