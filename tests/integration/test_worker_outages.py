"""An idle worker notices an outage of Redis, and reports each one once."""

import asyncio
import time
from collections.abc import Iterator

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.events import FailureReason, StoreDegraded, StoreRecovered
from support.proxy import Proxy
from support.session_producers import observed
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = pytest.mark.anyio

LEASE = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """A Valkey that a test may restart, and whose users it may change."""
    with own_valkey() as own:
        yield own


async def nothing() -> None:
    """Publish nothing."""


async def occupied(client: aioredis.Redis, connections: int = 4) -> None:
    """Leave idle connections in the client's pool."""
    async with anyio.create_task_group() as tasks:
        for _ in range(connections):
            tasks.start_soon(client.execute_command, "BLPOP", "mcp:never", 0.1)


@pytest.mark.slow
async def test_restart_of_redis_is_one_outage(server: OwnValkey) -> None:
    """Each pooled connection is broken afterwards, which is no second outage."""
    async with connect(server.url) as client:
        assert isinstance(client, aioredis.Redis)
        store = RedisEventStore(client, ttl=60)
        facts = observed(store)
        async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing):
            for outage in (1, 2, 3):
                await occupied(client)
                server.kill()
                await until(lambda: len(facts.of(StoreDegraded)) == outage)  # noqa: B023 - awaited in this iteration
                await anyio.to_thread.run_sync(server.start)
                await until(lambda: len(facts.of(StoreRecovered)) == outage)  # noqa: B023
                renewed = store.coordinator._written
                await until(lambda: store.coordinator._written >= renewed + 3)  # noqa: B023
                assert len(facts.of(StoreDegraded)) == outage
        await store.flush()


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (("resetpass", ">another"), FailureReason.AUTH),
        (("resetkeys", "~other:*"), FailureReason.AUTH),
        (("-set",), FailureReason.AUTH),
    ],
    ids=["password", "keys", "commands"],
)
async def test_refused_user_of_an_idle_worker_is_one_outage_until_it_is_allowed(
    server: OwnValkey, rules: tuple[str, ...], reason: FailureReason
) -> None:
    """Redis answers a PING, or the client's handshake with an error: either way it takes no event."""
    allowed = ("reset", "on", ">hunter2", "+@all", "~mcp:*", "resetchannels", "&mcp:*")
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "me", *allowed, *rules)
        async with connect(f"redis://me:hunter2@127.0.0.1:{server.port}") as client:
            store = RedisEventStore(client, ttl=60)
            facts = observed(store)
            async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing):
                await until(lambda: facts.of(StoreDegraded))
                attempted = store.coordinator._attempted
                await until(lambda: store.coordinator._attempted >= attempted + 3)
                assert [fact.reason for fact in facts.of(StoreDegraded)] == [reason]
                assert store.backlog.failure is reason
                admin.execute_command("ACL", "SETUSER", "me", *allowed)
                await until(lambda: facts.of(StoreRecovered))
                await until(lambda: store.coordinator._leased)
                assert len(facts.of(StoreDegraded)) == 1
            await store.flush()


async def test_refused_lease_is_not_renewed_again_with_each_recovery(server: OwnValkey) -> None:
    """Redis 6.0 refuses the form of the command, and takes the write with which the worker probes it."""
    async with Proxy(server.socket).running() as proxy, connect(proxy.url) as client:
        proxy.answer(" PX ", "ERR syntax error", times=1_000_000)
        store = RedisEventStore(client, ttl=60)
        facts = observed(store)
        began = time.monotonic()
        async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing):
            await until(lambda: len(facts.of(StoreRecovered)) > 1)
            attempts, elapsed = store.coordinator._attempted, time.monotonic() - began
        await store.flush()
    assert attempts <= elapsed / (LEASE / 3) + 2


@pytest.mark.slow
async def test_stop_in_an_outage_reports_no_second_one(server: OwnValkey) -> None:
    """The circuit stays open until the lease is given up."""
    async with connect(server.url) as client:
        store = RedisEventStore(client, ttl=60)
        facts = observed(store)
        async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing):
            server.kill()
            try:
                await until(lambda: facts.of(StoreDegraded))
                await store.flush(0.1)
                attempted = store.coordinator._attempted
                await until(lambda: store.coordinator._attempted >= attempted + 2)
            finally:
                await anyio.to_thread.run_sync(server.start)
        assert len(facts.of(StoreDegraded)) == 1


@pytest.mark.slow
async def test_stop_while_redis_is_frozen_leaves_no_probe_and_no_connection(server: OwnValkey) -> None:
    """Else the probes would connect again, and report another outage, after the client is closed."""
    async with connect(server.url) as client:
        assert isinstance(client, aioredis.Redis)
        store = RedisEventStore(client, ttl=60, store_timeout=0.25)
        facts = observed(store)
        async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing):
            server.freeze()
            await until(lambda: facts.of(StoreDegraded))
        try:
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("eventscope")]
            assert not client.connection_pool._in_use_connections
            assert store.backlog.failure is None
            assert len(facts.of(StoreDegraded)) == 1
        finally:
            server.thaw()
