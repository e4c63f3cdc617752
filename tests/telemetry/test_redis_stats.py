"""Redis statistics: gauges, duration of polls, and keys without TTL."""

import asyncio
import contextlib

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreUnavailableError, http_app
from mcp_eventscope.redis.stats import RedisStats, RedisStatsPoller
from support.memory_store import MemoryEventStore
from support.waiting import CEILING, promptly, until
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

FACTS = RedisStats(
    keys=7, without_ttl=2, lasting={}, db_keys=9, event_bytes=150.5, memory_bytes=1000, memory_limit=0, evicted=3
)
LASTING = RedisStats(
    keys=None,
    without_ttl=None,
    lasting={"stream": 1, "event": 2},
    db_keys=9,
    event_bytes=None,
    memory_bytes=1000,
    memory_limit=0,
    evicted=0,
)
DURATION = "redis_stats_duration_seconds_count"


class Scripted:
    """A poller that returns the given results, the last one repeatedly."""

    def __init__(self, *found: RedisStats | Exception | None) -> None:
        self._found = list(found)
        self.left = 0

    async def poll(self, every: float) -> RedisStats | None:
        """The next result."""
        assert every == 0.01
        await asyncio.sleep(0)
        found = self._found.pop(0) if len(self._found) > 1 else self._found[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def leave(self) -> None:
        """Count the call."""
        self.left += 1


@pytest.fixture
def store(scope: Scope, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """A store with a TTL and a scripted poller."""
    return scope.instrument(RedisEventStore(redis, ttl=60))


def scripted(monkeypatch: pytest.MonkeyPatch, *found: RedisStats | Exception | None) -> Scripted:
    """Replace a store's poller."""
    poller = Scripted(*found)
    monkeypatch.setattr(RedisEventStore, "redis_stats_poller", lambda _: poller)
    return poller


async def test_gauges_of_redis_appear_with_the_first_poll(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gauges are absent before the first poll; then they have its results, and its duration is measured."""
    poller = scripted(monkeypatch, FACTS)
    assert scope.sample("redis_keys") is None
    async with store.poll_redis_stats(0.01):
        await until(lambda: (scope.sample(DURATION, outcome="ok") or 0) >= 2)
    assert poller.left == 1
    assert [scope.sample(f"redis_{name}") for name in ("keys", "keys_without_ttl", "db_keys", "event_size_bytes")] == [
        7,
        2,
        9,
        150.5,
    ]
    assert (scope.sample("redis_memory_used_bytes"), scope.sample("redis_memory_max_bytes")) == (1000, 0)
    polls = scope.sample(DURATION, outcome="ok") or 0
    assert scope.sample("redis_keys_evicted_total") == 3 * polls


async def test_gauges_are_removed_when_another_worker_polls(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once another worker polls, the gauges of this one are removed."""
    scripted(monkeypatch, FACTS, None)
    async with store.poll_redis_stats(0.01):
        await until(lambda: scope.sample(DURATION, outcome="other_worker"))
    assert scope.sample(DURATION, outcome="ok") == 1
    assert scope.sample("redis_keys") is None


async def test_failed_poll_is_counted_and_repeated(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed poll is counted, logged once, and followed by the next; gauges keep their values."""
    scripted(monkeypatch, FACTS, StoreUnavailableError("no Redis"), RuntimeError("secret"), FACTS)
    async with store.poll_redis_stats(0.01):
        await until(lambda: (scope.sample(DURATION, outcome="ok") or 0) >= 2)
    assert scope.sample(DURATION, outcome="error") == 2
    assert scope.sample("redis_keys") == 7
    (failed,) = scope.log.named("event_store.redis_stats_failed")
    assert (failed["error"], failed["error_type"], failed["level"]) == ("no Redis", "unavailable", "warning")


async def test_keys_without_ttl_are_logged(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys without TTL are logged rarely, by type, with the remedy."""
    scripted(monkeypatch, LASTING)
    async with store.poll_redis_stats(0.01):
        await until(lambda: (scope.sample(DURATION, outcome="ok") or 0) >= 5)
    (missing,) = scope.log.named("event_store.keys_without_ttl")
    assert (missing["keys"], missing["key_types"]) == (3, ["event", "stream"])
    assert "ttl" in missing["fix"]


async def test_keys_without_ttl_as_they_are_asked_for(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without a TTL logs no such keys: another event covers it."""
    scripted(monkeypatch, LASTING)
    async with scope.instrument(RedisEventStore(redis, ttl=None)).poll_redis_stats(0.01):
        await until(lambda: scope.sample(DURATION, outcome="ok"))
    assert scope.log.named("event_store.keys_without_ttl") == []


async def test_shutdown_does_not_wait_for_a_poll(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shutdown waits neither for a poll in progress, nor for a frozen Redis."""
    sampling = asyncio.Event()

    class Hanging(Scripted):
        async def poll(self, every: float) -> RedisStats | None:
            sampling.set()
            await asyncio.sleep(3600)
            return None

        async def leave(self) -> None:
            await asyncio.sleep(3600)

    monkeypatch.setattr(RedisEventStore, "redis_stats_poller", lambda _: Hanging())
    with promptly(3):
        async with store.poll_redis_stats(0.01):
            with anyio.fail_after(CEILING):
                await sampling.wait()
    assert scope.sample(DURATION, outcome="cancelled") == 1
    assert scope.log.entries == []


async def test_shutdown_with_a_swallowed_cancellation_ends(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that swallows a cancellation, as redis-py does on Python 3.11, does not block shutdown."""
    began = asyncio.Event()

    class Deaf(Scripted):
        async def poll(self, every: float) -> RedisStats | None:
            began.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            return None

    monkeypatch.setattr(RedisEventStore, "redis_stats_poller", lambda _: Deaf())
    with anyio.fail_after(CEILING):
        async with store.poll_redis_stats(3600):
            await began.wait()
    assert scope.sample(DURATION, outcome="other_worker") == 1


async def test_polling_without_a_registry_keeps_log_events(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a registry the log events remain."""
    scripted(monkeypatch, LASTING)
    store = InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=None, logger=scope.log)
    async with store.poll_redis_stats(0.01):
        await until(lambda: scope.log.entries)
    assert {entry["event"] for entry in scope.log.entries} == {"event_store.keys_without_ttl"}


async def test_real_poller_is_the_stores(store: InstrumentedEventStore) -> None:
    """By default the poller is that of the store."""
    assert isinstance(store._store, RedisEventStore)
    assert isinstance(store._store.redis_stats_poller(), RedisStatsPoller)


async def test_redis_stats_with_invalid_arguments_are_refused(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Invalid intervals and unsupported stores are refused at construction."""
    store = RedisEventStore(redis, ttl=60)
    for every, error in (
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="redis_stats_interval must be"):
            http_app(MCPServer("s"), store, registry=scope.registry, redis_stats_interval=every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="redis_stats_interval needs a RedisEventStore"):
        http_app(MCPServer("s"), MemoryEventStore(), registry=scope.registry, redis_stats_interval=30)
