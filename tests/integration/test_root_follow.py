"""`follow` of the root store: wake-ups, limits and failures."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from redis import asyncio as aioredis
from redis.asyncio.client import PubSub

from mcp_eventscope import RedisEventStore
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.root import follow as follow_module
from mcp_eventscope.redis.root.scripts import Chunk
from mcp_eventscope.store.messages import GET_STREAM_KEY, EventMessage
from mcp_eventscope.store.results import FollowEnd, FollowResult
from mcp_eventscope.testing import Collected
from support.events import change
from support.messages import answer, note
from support.servers import Valkey, valkey
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio

LONG = 30.0
"""Seconds: a limit, or a poll, that no test waits for."""


class Follower:
    """Follows a stream in a task, and collects its events."""

    def __init__(self, store: RedisEventStore, after: str, *, stream: str = "1", limit: float = LONG) -> None:
        self.collected = Collected()
        self.facts: FollowResult | None = None
        self._store, self._after, self._stream, self._limit = store, after, stream, limit

    async def __call__(self) -> None:
        """Follow until it ends."""
        self.facts = await self._store.follow(self._stream, self._after, self.collected, limit=self._limit)

    async def has(self, count: int) -> None:
        """Return when that many events were delivered."""

        async def delivered() -> bool:
            return len(self.collected.ids) >= count

        await until(delivered)


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable polling: followers sleep until they are woken."""
    monkeypatch.setattr(follow_module, "POLL_SECONDS", LONG)


@pytest.mark.usefixtures("no_polling")
async def test_follower_in_the_same_process_is_woken_without_polling(store: RedisEventStore) -> None:
    """Each event stored by this process is delivered without a poll."""
    first = (await store.append("1", None)).event_id
    follower = Follower(store, first)
    ids = []
    with in_time(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower)
            for i in range(5):
                ids.append((await store.append("1", note(i))).event_id)
                await follower.has(i + 1)
            ids.append((await store.append("1", answer())).event_id)
    assert follower.collected.ids == ids
    assert follower.facts is not None
    assert follower.facts == FollowResult(
        last_event_id=ids[-1],
        end=FollowEnd.COMPLETED,
        delivered=6,
        payload_bytes=sum(len(data.encode()) for data in follower.collected.data),
    )


async def test_follower_gets_events_of_another_process(store: RedisEventStore, valkey_url: str) -> None:
    """An event of another process is delivered about a second later."""
    first = (await store.append("1", None)).event_id
    follower = Follower(store, first)
    async with connect(valkey_url) as client:
        other = RedisEventStore(client, key_prefix=store.key_prefix, ttl=60)
        await store.append("1", note(0))
        with in_time(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follower)
                await follower.has(1)
                started = time.monotonic()
                await other.append("1", answer())
    assert time.monotonic() - started < 3
    assert follower.facts is not None
    assert follower.facts.end is FollowEnd.COMPLETED


async def test_follow_after_replay_misses_no_event(store: RedisEventStore) -> None:
    """An event stored between the end of the replay and the start of following is delivered once."""
    first = (await store.append("1", None)).event_id
    collected = Collected()
    await store.append("1", note(0))
    facts = await store.replay(first, collected, stream_id="1")
    await store.append("1", note(1))
    await store.append("1", answer())
    followed = await store.follow("1", facts.last_event_id, collected, limit=LONG)
    assert (facts.delivered, followed.delivered, followed.end) == (1, 2, FollowEnd.COMPLETED)
    assert len(set(collected.ids)) == 3


async def test_follow_without_events_ends_at_its_limit(store: RedisEventStore) -> None:
    """It ends at its position."""
    last = (await store.append("1", note(0))).event_id
    started = time.monotonic()
    facts = await store.follow("1", last, Collected(), limit=0.1)
    assert facts == FollowResult(last_event_id=last, end=FollowEnd.TIMEOUT)
    assert 0.1 <= time.monotonic() - started < 5


async def test_follow_with_limit_zero_reads_once(store: RedisEventStore) -> None:
    """A limit of 0 delivers the stored events."""
    first = (await store.append("1", None)).event_id
    await store.append("1", note(0))
    assert (await store.follow("1", first, Collected(), limit=0)).delivered == 1


async def test_follow_of_a_standalone_stream_does_not_end_at_a_response(store: RedisEventStore) -> None:
    """No message ends a standalone stream."""
    first = (await store.append(GET_STREAM_KEY, None)).event_id
    await store.append(GET_STREAM_KEY, answer())
    facts = await store.follow(GET_STREAM_KEY, first, Collected(), limit=0.05)
    assert (facts.end, facts.delivered) == (FollowEnd.TIMEOUT, 1)


async def test_followers_of_one_stream_each_get_every_event(store: RedisEventStore) -> None:
    """Each connection that follows a stream gets all of it."""
    first = (await store.append("1", None)).event_id
    followers = [Follower(store, first) for _ in range(10)]
    with in_time(10):
        async with anyio.create_task_group() as tasks:
            for follower in followers:
                tasks.start_soon(follower)
            ids = [(await store.append("1", note(i))).event_id for i in range(3)]
            ids.append((await store.append("1", answer())).event_id)
    assert [follower.collected.ids for follower in followers] == [ids] * 10


async def test_follow_when_callback_raises_ends(store: RedisEventStore) -> None:
    """The exception is passed on, and no follower remains."""
    first = (await store.append("1", None)).event_id
    await store.append("1", note(0))

    async def broken(_: EventMessage) -> None:
        raise anyio.BrokenResourceError

    with pytest.raises(anyio.BrokenResourceError):
        await store.follow("1", first, broken, limit=LONG)
    assert len(store._followers) == 0
    assert (await store.follow("1", first, Collected(), limit=0)).delivered == 1


async def test_follow_that_is_cancelled_leaves_nothing(store: RedisEventStore) -> None:
    """A cancelled follower is unregistered."""
    first = (await store.append("1", None)).event_id
    follower = Follower(store, first)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower)
        await store.append("1", note(0))
        await follower.has(1)
        tasks.cancel_scope.cancel()
    assert follower.facts is None
    assert len(store._followers) == 0


async def test_subscription_whose_client_swallows_cancellation_still_ends(
    store: RedisEventStore, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener ends with its last follower, although redis-py swallows its cancellation."""
    get_message = PubSub.get_message
    swallowed: list[bool] = []

    async def deaf(pubsub: PubSub, **options: Any) -> Any:
        try:
            return await get_message(pubsub, **options)
        except asyncio.CancelledError:
            if swallowed:
                raise
            swallowed.append(True)
            return await get_message(pubsub, **options)

    monkeypatch.setattr(PubSub, "get_message", deaf)
    signals = store._followers._subscriptions
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Follower(store, (await store.append("1", note(0))).event_id))
        await until(lambda: signals.confirmed(keys.stored))
        tasks.cancel_scope.cancel()
    await until(lambda: signals._task is None, within=2)
    assert swallowed


async def test_follow_counts_corrupt_and_missing_rows_once(
    store: RedisEventStore, redis_client: aioredis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a follower polls, a row that cannot be delivered counts once."""
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.01)
    ids = [(await store.append("1", note(i))).event_id for i in range(4)]
    await change(redis_client, keys.event(ids[1]), payload="{not json")
    await redis_client.delete(keys.event(ids[2]))
    await redis_client.zadd(keys.stream("1"), {"rubbish": int(ids[3]) + 5})
    facts = await store.follow("1", ids[0], Collected(), limit=0.2)
    assert (facts.delivered, facts.missing, facts.corrupt) == (1, 1, (ids[1], "rubbish"))
    assert facts.last_event_id == ids[3]


class CountingStore(RedisEventStore):
    """Counts the reads, and those that failed, as they happen."""

    reads = failed = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        read = self._reader.read

        async def counted(keys: Keys, cursor: str, stream_id: str | None) -> Chunk:
            self.reads += 1
            try:
                return await read(keys, cursor, stream_id)
            except StoreError:
                self.failed += 1
                raise

        self._reader.read = counted  # type: ignore[method-assign]


@pytest.mark.usefixtures("no_polling", "leaks")
async def test_follower_reads_only_when_woken(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """A follower reads when an event is stored, and does not poll all the time afterwards."""
    store = CountingStore(redis_client, key_prefix=key_prefix, ttl=60)
    first = (await store.append("1", None)).event_id
    follower = Follower(store, first, limit=0.3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower)
        await anyio.wait_all_tasks_blocked()
        await store.append("1", note(0))
        await follower.has(1)
    assert store.reads <= 5


@pytest.fixture
async def own_valkey() -> AsyncIterator[Valkey]:
    """A Valkey of this test alone, to be stopped."""
    with valkey() as server:
        yield server


async def test_follow_through_a_restart_of_redis_continues(
    own_valkey: Valkey, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower waits while Redis is unreachable, and then delivers the rest."""
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.02)
    async with connect(own_valkey.url) as client:
        store = CountingStore(client, key_prefix=key_prefix, ttl=60)
        first = (await store.append("1", None)).event_id
        await store.append("1", note(0))
        follower = Follower(store, first)

        with in_time(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follower)
                await follower.has(1)
                own_valkey.stop()
                with pytest.raises(StoreError):
                    await store.probe()
                own_valkey.start()
                await store.append("1", note(1))
                await store.append("1", answer())
    assert follower.facts is not None
    assert (follower.facts.delivered, follower.facts.end) == (3, FollowEnd.COMPLETED)
    assert follower.facts.failures == store.failed
