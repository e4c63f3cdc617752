"""Redis clients: their failures become store errors, in time and with the address."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreError, StoreUnavailableError
from mcp_eventscope.redis import client as client_module
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.results import FollowEnd
from support.servers import HOST
from support.valkeys import own_valkey
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


async def no_client(_: EventMessage) -> None:
    """Fail the test: there is nothing to send."""
    pytest.fail("there is nothing to send")


@pytest.fixture
async def no_cluster() -> AsyncIterator[aioredis.RedisCluster]:
    """A client of an unreachable cluster, for which redis-py raises no `RedisError`."""
    client = aioredis.RedisCluster(host="127.0.0.1", port=1)
    yield client
    await client.aclose()


async def test_unreachable_cluster_is_unavailable_and_polled(no_cluster: aioredis.RedisCluster) -> None:
    """An unreachable cluster raises the usual error, and a follower polls it again."""
    store = RedisEventStore(no_cluster, ttl=60).for_session("s")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        await store.probe()
    store.begin("1", 1)
    assert (await store.append("1", None)).event_id
    assert await store.flush(0) == 1
    followed = await store.follow("1", "1-1-0123456789ab1", no_client, limit=0.01)
    assert followed.end is FollowEnd.TIMEOUT
    assert followed.failures >= 1


@pytest.mark.parametrize(("full", "error"), [(False, "no node serves a slot"), (True, "0 of 16384 covered")])
async def test_cluster_without_slots_is_unavailable_until_it_has_them(*, full: bool, error: str) -> None:
    """The client of a user raises the same error as one by URL; stores of one client share the change.

    It learns the nodes many times meanwhile, and closes all of its connections.
    """
    with own_valkey(cluster_enabled="yes") as empty:
        client = aioredis.RedisCluster(host=HOST, port=empty.port, require_full_coverage=full)
        roots = [RedisEventStore(client, key_prefix="{clients}:", ttl=60) for _ in range(2)]
        store, other = (root.for_session("s") for root in roots)
        for each in (store, other):
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match=error):
                    await each.probe()
        with empty.client() as admin:
            admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            # Until then the server refuses commands, which is not the subject.
            await until(lambda: admin.cluster("INFO")["cluster_state"] == "ok")

        async def served() -> bool:
            with suppress(StoreUnavailableError):
                await store.probe()
                return True
            return False

        await until(served)
        for root in roots:  # Ends their probes, which would open the client again.
            assert await root.flush() == 0
        await client.aclose()
        with empty.client() as admin:
            await until(lambda: len(admin.client_list()) == 1)


async def test_client_without_timeout_on_silent_redis_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that accepts and never replies times out, whatever the client's own timeout."""
    monkeypatch.setattr(client_module, "ANSWER_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = aioredis.Redis(host="127.0.0.1", port=silent.getsockname()[1], socket_timeout=None)
        store = RedisEventStore(client, ttl=60).for_session("s")
        with anyio.fail_after(CEILING):
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                await store.probe()
            store.begin("1", 1)
            assert (await store.append("1", None)).event_id
            assert await store.flush(0) == 1
        await client.aclose()


@pytest.mark.parametrize(
    "option", ["foo=hunter2", "retry=3", "connection_class=x", "protocol=9", "max_connections=-1", "socket_timeout=x"]
)
def test_connect_with_unknown_url_option_is_refused(option: str) -> None:
    """An option that redis-py does not know is refused when the client is made, without its value."""
    with pytest.raises(ValueError, match="only options that redis-py supports") as refused:
        connect(f"redis://me:hunter2@127.0.0.1:1/0?{option}")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("option", ["max_connections=7", "socket_timeout=0", "socket_timeout=-1", "socket_timeout=inf"])
def test_connect_with_url_option_that_stops_a_worker_is_refused(option: str) -> None:
    """A blocking read would take the only connection, or no reply would come in time."""
    with pytest.raises(ValueError, match=option.partition("=")[0]) as refused:
        connect(f"redis://me:hunter2@127.0.0.1:1/0?{option}")
    assert "hunter2" not in str(refused.value)


async def test_connect_with_fewer_connections_than_callers_waits(valkey_url: str, key_prefix: str) -> None:
    """A caller waits for a free connection of the pool."""
    async with connect(f"{valkey_url}?max_connections=8") as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        appended = await asyncio.gather(*(store.append("1", None) for _ in range(60)))
    assert len({each.event_id for each in appended}) == 60


def test_address_of_sentinel_client_names_the_master() -> None:
    """A client behind Sentinel has no fixed address and is named after its master."""
    sentinel = aioredis.Sentinel([("127.0.0.1", 1)])  # type: ignore[no-untyped-call]
    store = RedisEventStore(sentinel.master_for("mymaster", password="hunter2"), ttl=60)
    assert store.address == "the master 'mymaster' of Sentinel"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
async def test_client_of_another_encoding_stores_utf8_names(valkey_url: str, key_prefix: str, encoding: str) -> None:
    """Names in Redis are UTF-8, whatever encoding the client uses."""
    async with aioredis.Redis.from_url(valkey_url, encoding=encoding) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=60)
        first = await store.append("ü€", None)
        facts = await store.replay(first.event_id, no_client, stream_id="ü€")
    assert (facts.stream_id, facts.miss) == ("ü€", None)


async def test_store_with_a_wrong_url_reports_the_fix() -> None:
    """A real server: no password, a wrong one, and TLS to a port that has none."""
    with own_valkey() as server:
        server.set(requirepass="sesame")
        for scheme, password, fix in (
            ("redis", "", "requires a password; add user:password@"),
            ("redis", ":hunter2@", "refused the user name or password; correct them in the URL"),
            ("rediss", ":sesame@", "if this port has no TLS, write redis:// in the URL"),
        ):
            async with connect(f"{scheme}://{password}127.0.0.1:{server.port}") as client:
                with pytest.raises(StoreError, match=f"at 127.0.0.1:{server.port}: .*{fix}") as caught:
                    await RedisEventStore(client, ttl=60).probe()
            assert "hunter2" not in str(caught.value)
