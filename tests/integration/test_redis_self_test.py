"""The self-test of Redis, on servers and users that lack something."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis import self_test
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.self_test import Capabilities, Capability
from mcp_eventscope.redis.self_test import __file__ as module_file
from mcp_eventscope.store.messages import EventMessage
from support.leaks import LeakChecker
from support.valkeys import OwnValkey, own_valkey

pytestmark = pytest.mark.anyio

EVERYTHING = set(Capability)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """A Valkey whose users and settings a test may change."""
    with own_valkey() as own:
        yield own


async def ignore(_: EventMessage) -> None:
    """Take an event."""


async def tested(server: OwnValkey, *rules: str) -> Capabilities:
    """The result for a user with these rules, beside all that a store needs."""
    with server.client() as admin:
        allowed = ("+@all", "~mcp:*", "resetchannels", "&mcp:*")
        admin.execute_command("ACL", "SETUSER", "me", "reset", "on", ">hunter2", *allowed, *rules)
    async with connect(f"redis://me:hunter2@127.0.0.1:{server.port}") as client:
        return await RedisEventStore(client, ttl=60).self_test().run()


async def test_self_test_of_an_unrestricted_redis_finds_everything(store: RedisEventStore, leaks: LeakChecker) -> None:
    """Everything is there, and no key remains."""
    found = await store.self_test().run()
    assert found.available == dict.fromkeys(EVERYTHING, True)
    assert (found.missing, found.refused, found.key_prefix) == ((), (), store.key_prefix)
    assert await leaks.keys() == []


async def test_self_test_of_redis_7_finds_everything(redis_url: str, key_prefix: str) -> None:
    """Redis 7 has the commands, too."""
    async with aioredis.Redis.from_url(redis_url) as client:
        found = await RedisEventStore(client, key_prefix=key_prefix, ttl=60).self_test().run()
    assert (found.missing, found.refused) == ((), ())


@pytest.mark.parametrize(
    ("rules", "missing", "refused"),
    [
        ((), set(), ()),
        (("-hset", "-lpop"), {"commands"}, ("hset", "lpop")),
        (("-evalsha",), {"scripts"}, ("evalsha",)),
        (("-eval",), {"scripts"}, ("eval",)),
        (("-publish",), {"publish"}, ("publish",)),
        (("-subscribe",), {"subscribe"}, ("subscribe",)),
        (("resetchannels",), {"publish", "subscribe"}, ()),
        (("resetkeys", "~other:*"), {"keys"}, ()),
        (("-info",), set(), ()),
        (("-expire", "-unlink", "-del"), {"commands"}, ("del", "expire", "unlink")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_self_test_of_a_restricted_user_names_what_is_missing(
    server: OwnValkey, rules: tuple[str, ...], missing: set[str], refused: tuple[str, ...]
) -> None:
    """Each capability is tried independently; without INFO the eviction policy is unknown."""
    found = await tested(server, *rules)
    assert set(found.missing) == missing
    assert found.refused == refused
    assert (Capability.NO_EVICTION in found.available) == ("-info" not in rules)
    with server.client() as admin:
        assert admin.dbsize() == 0


async def test_self_test_of_an_evicting_redis_names_its_policy(server: OwnValkey) -> None:
    """A policy is of no consequence without a limit."""
    server.set(maxmemory_policy="allkeys-lru")
    assert (await tested(server)).missing == ()
    server.set(maxmemory=1 << 30)
    try:
        found = await tested(server)
    finally:
        server.set(maxmemory=0, maxmemory_policy="noeviction")
    assert (found.missing, found.policy) == ((Capability.NO_EVICTION,), "allkeys-lru")


async def test_self_test_of_a_full_redis_is_repeated(server: OwnValkey) -> None:
    """Out of memory is a state of the server, and no missing command."""
    server.set(maxmemory=1)
    try:
        with pytest.raises(StoreRejectedError, match="OOM"):
            await tested(server)
    finally:
        server.set(maxmemory=0)


async def test_self_test_of_a_replica_finds_no_writes(server: OwnValkey) -> None:
    """A replica refuses writes only."""
    with own_valkey() as replica:
        replica.follow(server)
        async with connect(f"redis://127.0.0.1:{replica.port}") as client:
            found = await RedisEventStore(client, ttl=60).self_test().run()
    assert found.missing == (Capability.WRITES,)
    assert found.refused == ()


async def test_self_test_without_redis_is_unavailable() -> None:
    """The caller repeats it."""
    async with connect("redis://127.0.0.1:1") as client:
        with pytest.raises(StoreUnavailableError, match=r"could not test Redis at 127\.0\.0\.1:1"):
            await RedisEventStore(client, ttl=60).self_test().run()


def test_self_test_tries_every_command_of_the_scripts() -> None:
    """Except those of `survey.lua`, which Redis statistics alone use, and PUBLISH, which is a capability of its own."""
    folder = Path(module_file).parent / "lua"
    used = {
        name
        for script in folder.glob("*.lua")
        if script.name != "survey.lua"
        for name in re.findall(r"\('([A-Z]{3,})'", script.read_text("utf-8"))
    }
    assert len(used) > 20
    assert used - set(self_test.commands()) == {"PUBLISH"}
