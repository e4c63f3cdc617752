"""The start of an application: its line in the log, and the self-test of Redis in metrics and log."""

import asyncio
from collections.abc import Mapping
from importlib.metadata import version

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from starlette.applications import Starlette

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreUnavailableError, http_app
from mcp_eventscope.redis.self_test import Capabilities, Capability
from mcp_eventscope.telemetry import redis_self_test
from support.memory_store import MemoryEventStore
from support.waiting import until
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio


class Scripted:
    """A self-test that returns or raises the given results, in order."""

    def __init__(self, *results: Capabilities | Exception) -> None:
        self.left = list(results)

    async def run(self) -> Capabilities:
        """The next result."""
        await asyncio.sleep(0)
        result = self.left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def found(available: Mapping[Capability, bool], *refused: str) -> Capabilities:
    """A result for the prefix `app:`."""
    return Capabilities(available, refused, "app:", "allkeys-lru")


@pytest.fixture
def store(scope: Scope, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """A store."""
    return scope.instrument(RedisEventStore(redis, key_prefix="app:", ttl=60))


async def started(app: Starlette) -> None:
    """Start and stop an application."""
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)


async def test_started_application_logs_its_store_once(scope: Scope, store: InstrumentedEventStore) -> None:
    """The line has what an operator compares between workers and versions."""
    app = http_app(MCPServer("s"), store, logger=scope.log)
    assert scope.log.named("event_store.started") == []
    await started(app)
    (entry,) = scope.log.named("event_store.started")
    worker = entry.pop("worker")
    assert isinstance(worker, str)
    assert len(worker) == 12
    assert entry == {
        "event": "event_store.started",
        "level": "info",
        "store": "default",
        "version": version("mcp-eventscope"),
        "kind": "Redis",
        "address": store.address,
        "key_prefix": "app:",
        "ttl_seconds": 60,
    }


async def test_started_application_with_third_party_store_logs_its_class(scope: Scope) -> None:
    """There is neither a prefix nor a worker to name."""
    app = http_app(MCPServer("s"), MemoryEventStore(), registry=scope.registry, logger=scope.log)
    await started(app)
    (entry,) = scope.log.named("event_store.started")
    assert entry["kind"] == "third-party store"
    assert entry["address"] == "MemoryEventStore"
    assert not {"worker", "key_prefix", "ttl_seconds"} & entry.keys()
    assert scope.log.named("event_store.redis_tested") == []


async def test_self_test_that_finds_everything_is_an_information(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the capabilities, and each has a gauge; unknown ones have none."""
    monkeypatch.setattr(RedisEventStore, "self_test", lambda _: Scripted(found({Capability.SCRIPTS: True})))
    assert scope.sample("redis_capability", capability="scripts") is None
    async with store.test_redis():
        await until(lambda: scope.sample("redis_capability", capability="scripts") == 1)
    assert scope.sample("redis_capability", capability="publish") is None
    (entry,) = scope.log.named("event_store.redis_tested")
    assert (entry["level"], entry["capabilities"]) == ("info", ["scripts"])
    assert scope.log.named("event_store.redis_limited") == []


@pytest.mark.parametrize(
    ("missing", "refused", "fix"),
    [
        (Capability.COMMANDS, ("hset", "lpop"), "ACL SETUSER USER +hset +lpop"),
        (Capability.SCRIPTS, ("evalsha",), "ACL SETUSER USER +evalsha"),
        (Capability.KEYS, (), "ACL SETUSER USER ~app:*"),
        (Capability.PUBLISH, ("publish",), "ACL SETUSER USER +publish &app:*"),
        (Capability.SUBSCRIBE, (), "ACL SETUSER USER &app:*"),
        (Capability.WRITES, (), "connect to the primary"),
        (Capability.VERSION, ("xread",), "run Redis 6.2 or later"),
        (Capability.NO_EVICTION, (), "set maxmemory-policy noeviction instead of allkeys-lru"),
    ],
)
async def test_self_test_that_finds_something_missing_is_a_warning_with_the_fix(  # noqa: PLR0913, PLR0917 - fixtures
    scope: Scope,
    store: InstrumentedEventStore,
    monkeypatch: pytest.MonkeyPatch,
    missing: Capability,
    refused: tuple[str, ...],
    fix: str,
) -> None:
    """The fix is a command that an operator can use."""
    result = found({**dict.fromkeys(Capability, True), missing: False}, *refused)
    monkeypatch.setattr(RedisEventStore, "self_test", lambda _: Scripted(result))
    async with store.test_redis():
        await until(lambda: scope.sample("redis_capability", capability=missing.value) == 0)
    (entry,) = scope.log.named("event_store.redis_limited")
    assert (entry["level"], entry["missing"]) == ("warning", [missing.value])
    assert fix in str(entry["fix"])
    assert entry.get("commands", []) == list(refused)
    assert scope.log.named("event_store.redis_tested") == []


async def test_self_test_without_redis_is_repeated(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage at start is no error, and hides no missing capability for good."""
    monkeypatch.setattr(redis_self_test, "RETRY_SECONDS", 0.01)
    scripted = Scripted(StoreUnavailableError("down"), found({Capability.WRITES: True}))
    monkeypatch.setattr(RedisEventStore, "self_test", lambda _: scripted)
    async with store.test_redis():
        await until(lambda: scope.sample("redis_capability", capability="writes") == 1)
    assert scripted.left == []
    assert scope.sample("telemetry_failures_total", sink="metrics") == 0


async def test_self_test_that_fails_is_counted(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of the test affects nothing else."""
    monkeypatch.setattr(RedisEventStore, "self_test", lambda _: Scripted(ZeroDivisionError()))
    async with store.test_redis():
        await until(lambda: scope.sample("telemetry_failures_total", sink="metrics") == 1)
    assert len(scope.log.named("event_store.telemetry_failed")) == 1


async def test_application_is_started_before_the_self_test_ends(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that never answers delays neither start nor stop."""
    begun = asyncio.Event()

    class Endless:
        async def run(self) -> Capabilities:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(RedisEventStore, "self_test", lambda _: Endless())
    app = http_app(MCPServer("s"), store, logger=scope.log)
    async with app.router.lifespan_context(app):
        await begun.wait()
        assert scope.sample("redis_capability", capability=Capability.SCRIPTS.value) is None
