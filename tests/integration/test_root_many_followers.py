"""Hundreds of followers in one process share few connections, and lose no wake-up."""

from typing import Any

import anyio
import pytest
from redis import asyncio as aioredis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.root import chunk_reader
from mcp_eventscope.redis.root import follow as follow_module
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import FollowEnd, FollowResult
from mcp_eventscope.testing import Collected, on_the_wire
from support import legacy
from support.messages import answer, note
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

LONG = 2 * CEILING


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable polling: followers sleep until they are woken."""
    monkeypatch.setattr(follow_module, "POLL_SECONDS", LONG)


@pytest.mark.usefixtures("leaks")
async def test_followers_beyond_the_pool_all_complete(valkey_url: str, key_prefix: str) -> None:
    """All are woken at the same moment, and no read fails for lack of a connection."""
    # Beside the reads: the subscriptions, the look, and one append.
    url = f"{valkey_url}?max_connections={chunk_reader.READS_AT_ONCE + 3}"
    async with aioredis.Redis.from_url(url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        first = (await store.append("1", None)).event_id
        ended: list[FollowResult] = []

        async def follow() -> None:
            ended.append(await store.follow("1", first, Collected(), limit=LONG))

        with anyio.fail_after(CEILING):
            async with anyio.create_task_group() as tasks:
                for _ in range(300):
                    tasks.start_soon(follow)
                await anyio.wait_all_tasks_blocked()
                await store.append("1", note(0))
                await store.append("1", answer())
    assert [(facts.end, facts.delivered, facts.failures) for facts in ended] == [(FollowEnd.COMPLETED, 2, 0)] * 300


@pytest.mark.usefixtures("no_polling", "leaks")
@pytest.mark.parametrize("retries", [0, 3], ids="{} retries".format)
async def test_followers_when_the_subscription_breaks_miss_nothing(
    retries: int, valkey_url: str, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """Events stored without a notice are found when the subscription is restored."""
    other = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    first = (await other.append("1", None)).event_id
    collected = Collected()
    async with aioredis.Redis.from_url(valkey_url, retry=Retry(NoBackoff(), retries)) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)

        async def subscribed() -> bool:
            channels = await redis_client.pubsub_channels(f"{key_prefix}*")
            return len(channels) == 1

        with anyio.fail_after(CEILING):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: store.follow("1", first, collected, limit=LONG))
                await until(subscribed)
                await other.append("1", note(0))
                await until(lambda: len(collected.ids) == 1)
                await legacy.write(redis_client, key_prefix, "1", note(1), ttl=60)  # It publishes nothing.
                await redis_client.client_kill_filter(_type="pubsub")
                await until(lambda: len(collected.ids) == 2)
                await other.append("1", answer())
    assert len(collected.ids) == 3


@pytest.mark.usefixtures("no_polling", "leaks")
async def test_followers_share_one_subscription_while_they_follow(
    redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """The subscription ends with the last follower and can be made again."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    cursors = {stream: (await store.append(stream, None)).event_id for stream in ("1", "2", "3")}

    async def subscriptions() -> int:
        return len(await redis_client.pubsub_channels(f"{key_prefix}*"))

    async def becomes(count: int) -> None:
        async def is_now() -> bool:
            return await subscriptions() == count

        await until(is_now)

    async def follow(stream: str, scope: anyio.CancelScope) -> None:
        with scope:
            await store.follow(stream, cursors[stream], Collected(), limit=LONG)

    for _ in range(2):
        scopes = {stream: anyio.CancelScope() for stream in cursors}
        async with anyio.create_task_group() as tasks:
            for stream, scope in scopes.items():
                tasks.start_soon(follow, stream, scope)
            await becomes(1)
            scopes["1"].cancel()
            scopes["2"].cancel()
            await until(lambda: len(store._followers) == 1)
            assert await subscriptions() == 1
            scopes["3"].cancel()
        await becomes(0)


@pytest.mark.usefixtures("no_polling", "leaks")
@pytest.mark.parametrize("stream", ["1", "a\nb", "é", "x" * 20_000], ids=["plain", "newline", "not ASCII", "long"])
async def test_events_of_another_process_wake_followers(
    redis_client: aioredis.Redis, key_prefix: str, stream: str
) -> None:
    """This works for any stream name, and forged notices do no harm."""
    store, other = (RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60) for _ in range(2))
    first = (await other.append(stream, None)).event_id
    collected = Collected()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: store.follow(stream, first, collected, limit=LONG))
        await until(lambda: store._followers._subscriptions.confirmed(f"{key_prefix}stored"))
        for forged in ("", "x\n" + "[" * 100_000, 'x\n{"a": 1}', "x\n[1, null]", "\x00"):
            await redis_client.publish(f"{key_prefix}stored", forged)
        for number in range(2):
            await other.append(stream, note(number))
            await until(lambda number=number: len(collected.ids) == number + 1)  # type: ignore[misc]
        await other.append(stream, answer())
    assert len(collected.ids) == 3


@pytest.mark.usefixtures("leaks")
async def test_followers_of_a_silent_subscription_poll(
    redis_client: aioredis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is silent without breaking makes followers poll."""
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.02)
    deaf = anyio.Event()
    get_message = PubSub.get_message

    async def receive(pubsub: PubSub, **options: Any) -> Any:
        if deaf.is_set():
            await anyio.sleep_forever()
        return await get_message(pubsub, **options)

    monkeypatch.setattr(PubSub, "get_message", receive)
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    other = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    first = (await store.append(GET_STREAM_KEY, None)).event_id
    collected = Collected()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: store.follow(GET_STREAM_KEY, first, collected, limit=LONG))
        for count in (1, 2, 3):
            await other.append(GET_STREAM_KEY, note(count))
            await until(lambda count=count: len(collected.ids) == count)  # type: ignore[misc]
            deaf.set()
        tasks.cancel_scope.cancel()
    assert collected.data == [on_the_wire(note(count)) for count in (1, 2, 3)]
