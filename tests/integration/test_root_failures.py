"""Errors of the root store when Redis is unreachable or refuses, or the caller cancels."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, SessionsNotIsolatedWarning, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import FailureReason, StoreDegraded, StoreEvent
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import BacklogStatus
from mcp_eventscope.testing import Collected, on_the_wire
from support.messages import note
from support.servers import Valkey, valkey
from support.waiting import until

pytestmark = pytest.mark.anyio

PASSWORD = "hunter2"


@pytest.fixture
async def own_valkey() -> AsyncIterator[Valkey]:
    """A Valkey of this test alone, to be stopped and misconfigured."""
    with valkey() as server:
        yield server


def operations(store: RedisEventStore) -> list[Callable[[], Awaitable[object]]]:
    """The operations that raise when Redis fails."""
    return [
        store.probe,
        lambda: store.replay("5", Collected()),
    ]


async def test_operations_on_unreachable_redis_name_its_address(key_prefix: str) -> None:
    """Each operation reports that Redis could not be reached, and where, without the password."""
    async with connect(f"redis://user:{PASSWORD}@127.0.0.1:1/0") as client:
        facts: list[StoreEvent] = []
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        store.observe(facts.append)
        for operation in operations(store):
            with pytest.raises(StoreUnavailableError, match=r"Redis at 127\.0\.0\.1:1") as caught:
                await operation()
            assert PASSWORD not in str(caught.value)
        assert (await store.append("1", note(0, "a secret"))).deferred
        with pytest.warns(SessionsNotIsolatedWarning):
            assert await store.store_event("1", None) == ""
        assert [fact.reason for fact in facts if isinstance(fact, StoreDegraded)] == [FailureReason.CONNECTION]
        assert PASSWORD not in store.address + repr(store) + repr(facts)
        assert "secret" not in repr(facts)
        assert await store.flush(0) == 2


async def test_operations_with_a_wrong_password_are_rejected(own_valkey: Valkey, key_prefix: str) -> None:
    """The error names the reason, and does not repeat the password."""
    async with aioredis.Redis.from_url(own_valkey.url) as administrator:
        await administrator.config_set("requirepass", "another")
        url = own_valkey.url.replace("unix://", f"unix://:{PASSWORD}@")
        async with connect(url) as client:
            store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
            for operation in operations(store):
                with pytest.raises(StoreRejectedError, match="user name or password") as caught:
                    await operation()
                assert PASSWORD not in str(caught.value)
            assert (await store.append("1", None)).deferred
            assert store.backlog == BacklogStatus(
                events=1, payload_bytes=store.backlog.payload_bytes, failure=FailureReason.AUTH
            )
            assert await store.flush(0) == 1


@pytest.mark.parametrize(
    ("setting", "value", "reason", "text"),
    [
        ("maxmemory", "1", FailureReason.OOM, "used memory"),
        ("min-replicas-to-write", "1", FailureReason.OTHER, "NOREPLICAS"),
    ],
)
async def test_append_that_redis_refuses_is_deferred(  # noqa: PLR0913, PLR0917
    own_valkey: Valkey, key_prefix: str, setting: str, value: str, reason: FailureReason, text: str
) -> None:
    """Redis's own words are reported, nothing is half written, reading works, and writing later."""
    async with connect(own_valkey.url) as client:
        facts: list[StoreEvent] = []
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        store.observe(facts.append)
        first = (await store.append("1", None)).event_id
        keys = await client.dbsize()
        await client.config_set(setting, value)
        refused = await store.append("1", note(0))
        assert refused.deferred
        (degraded,) = [fact for fact in facts if isinstance(fact, StoreDegraded)]
        assert degraded.reason is reason
        assert text in degraded.error
        assert (await store.replay(first, Collected())).miss is None
        assert await client.dbsize() == keys
        await client.config_set(setting, "0")
        await until(lambda: not store.backlog.events)
        after = (await store.append("1", note(1))).event_id
        collected = Collected()
        await store.replay(first, collected)
        assert collected.data == [on_the_wire(note(number)) for number in range(2)]
        assert collected.ids[-1] == after
        await store.flush()


async def test_append_after_redis_recovers_is_stored(own_valkey: Valkey, key_prefix: str) -> None:
    """A store needs no care after an outage: the next operation works."""
    async with connect(own_valkey.url) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        await store.append("1", note(0))
        own_valkey.stop()
        assert (await store.append("1", note(1))).deferred
        own_valkey.start()  # It has lost its data.
        await until(lambda: not store.backlog.events)
        after = await store.append("1", note(2))
        members: list[Any] = await client.zrange(f"{key_prefix}stream:1", 0, 0)
        before = int(members[0])
        assert int(after.event_id) > before
        await store.flush()


@pytest.mark.parametrize("decoding", [False, True])
async def test_cancelled_operation_leaves_the_client_usable(
    valkey_url: str, key_prefix: str, *, decoding: bool
) -> None:
    """At whatever instant it is cancelled, no connection is lost and no reply mixed up."""
    async with aioredis.Redis.from_url(valkey_url, decode_responses=decoding, max_connections=1) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        first = (await store.append("1", None)).event_id
        cancelled = 0
        for steps in range(30):
            for operation in (lambda: store.append("1", note(0)), lambda: store.replay(first, Collected())):
                cancelled += await _cancelled_after(steps, operation)
            kept = await store.append("1", note(steps))
            collected = Collected()
            await store.replay(first, collected)
            assert collected.events[-1] == (kept.event_id, on_the_wire(note(steps)))
            assert len(collected.ids) == len(set(collected.ids))
        await store.flush()
    assert cancelled >= 5


async def _cancelled_after(steps: int, operation: Callable[[], Awaitable[object]]) -> int:
    """Cancel an operation after some turns of the loop; 1 when it had not ended yet."""
    ended = False

    async def run() -> None:
        nonlocal ended
        await operation()
        ended = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return 0 if ended else 1


async def test_replay_cancelled_between_chunks_ends(store: RedisEventStore) -> None:
    """The next replay is complete."""
    ids = [(await store.append("1", note(i))).event_id for i in range(600)]
    collected = Collected()
    with anyio.CancelScope() as scope:

        async def cancel(event: EventMessage) -> None:
            await collected(event)
            if len(collected.ids) == 300:
                scope.cancel()

        await store.replay(ids[0], cancel)
    assert scope.cancelled_caught
    assert 300 <= len(collected.ids) < 599
    assert (await store.replay(ids[0], Collected())).delivered == 599
