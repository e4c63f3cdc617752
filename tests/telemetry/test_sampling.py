"""What is told of samples: gauges, what they cost, and the keys that will never expire."""

import asyncio
import contextlib

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreUnavailableError, http_app
from mcp_eventscope.redis.sampling import Sample, Sampler
from support.memory_store import MemoryEventStore
from support.waiting import CEILING, promptly, until
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

FACTS = Sample(
    keys=7, without_ttl=2, lasting={}, db_keys=9, event_bytes=150.5, memory_bytes=1000, memory_limit=0, evicted=3
)
LASTING = Sample(
    keys=None,
    without_ttl=None,
    lasting={"stream": 1, "event": 2},
    db_keys=9,
    event_bytes=None,
    memory_bytes=1000,
    memory_limit=0,
    evicted=0,
)
DURATION = "redis_sample_duration_seconds_count"


class Scripted:
    """A sampler that finds what it is told to, the last again and again."""

    def __init__(self, *found: Sample | Exception | None) -> None:
        self._found = list(found)
        self.left = 0

    async def sample(self, every: float) -> Sample | None:
        """The next."""
        assert every == 0.01
        await asyncio.sleep(0)
        found = self._found.pop(0) if len(self._found) > 1 else self._found[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def leave(self) -> None:
        """Count."""
        self.left += 1


@pytest.fixture
def store(scope: Scope, redis: FakeAsyncRedis) -> InstrumentedEventStore:
    """A store with a TTL, whose sampler is `scripted`."""
    return scope.instrument(RedisEventStore(redis, ttl=60))


def scripted(monkeypatch: pytest.MonkeyPatch, *found: Sample | Exception | None) -> Scripted:
    """Let a store's sampler find this."""
    sampler = Scripted(*found)
    monkeypatch.setattr(RedisEventStore, "sampler", lambda _: sampler)
    return sampler


async def test_facts_are_gauges(scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said before there is a sample; then what it found, and what it cost."""
    sampler = scripted(monkeypatch, FACTS)
    assert scope.sample("redis_keys") is None
    async with store.sampling(0.01):
        await until(lambda: scope.sample(DURATION, outcome="ok") == 2)
    assert sampler.left == 1
    assert [scope.sample(f"redis_{name}") for name in ("keys", "keys_without_ttl", "db_keys", "event_bytes")] == [
        7,
        2,
        9,
        150.5,
    ]
    assert (scope.sample("redis_memory_used_bytes"), scope.sample("redis_memory_max_bytes")) == (1000, 0)
    assert scope.sample("redis_evicted_keys_total") == 6


async def test_elsewhere(scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another worker has taken over, what this one knew is no longer said."""
    scripted(monkeypatch, FACTS, None)
    async with store.sampling(0.01):
        await until(lambda: scope.sample("redis_keys") == 7)
        await until(lambda: scope.sample(DURATION, outcome="elsewhere"))
    assert scope.sample("redis_keys") is None


async def test_failures(scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that fails is counted, told once, and followed by the next; what was known stays."""
    scripted(monkeypatch, FACTS, StoreUnavailableError("no Redis"), RuntimeError("secret"), FACTS)
    async with store.sampling(0.01):
        await until(lambda: scope.sample(DURATION, outcome="ok") == 2)
    assert scope.sample(DURATION, outcome="error") == 2
    assert scope.sample("redis_keys") == 7
    (failed,) = scope.log.named("event_store.sample_failed")
    assert (failed["error"], failed["error_type"], failed["level"]) == ("no Redis", "unavailable", "warning")


async def test_keys_without_ttl_are_told(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as some are found, seldom, by what they are, and with what to do."""
    scripted(monkeypatch, LASTING)
    async with store.sampling(0.01):
        await until(lambda: scope.sample(DURATION, outcome="ok") == 5)
    (missing,) = scope.log.named("event_store.ttl_missing_keys")
    assert (missing["keys"], missing["kinds"]) == (3, ["event", "stream"])
    assert "ttl" in missing["fix"]


async def test_keys_without_ttl_as_they_are_asked_for(
    scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without a TTL has said so already."""
    scripted(monkeypatch, LASTING)
    async with scope.instrument(RedisEventStore(redis, ttl=None)).sampling(0.01):
        await until(lambda: scope.sample(DURATION, outcome="ok"))
    assert scope.log.named("event_store.ttl_missing_keys") == []


async def test_ends_at_once(scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends waits neither for the sample that is being taken, nor for a Redis that hangs."""
    sampling = asyncio.Event()

    class Hanging(Scripted):
        async def sample(self, every: float) -> Sample | None:
            sampling.set()
            await asyncio.sleep(3600)
            return None

        async def leave(self) -> None:
            await asyncio.sleep(3600)

    monkeypatch.setattr(RedisEventStore, "sampler", lambda _: Hanging())
    with promptly(3):
        async with store.sampling(0.01):
            with anyio.fail_after(CEILING):
                await sampling.wait()
    assert scope.sample(DURATION, outcome="cancelled") == 1
    assert scope.log.entries == []


async def test_cancellation_that_is_swallowed(
    scope: Scope, store: InstrumentedEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that swallows a cancellation, as redis-py does on Python 3.11, does not keep a server from ending."""
    began = asyncio.Event()

    class Deaf(Scripted):
        async def sample(self, every: float) -> Sample | None:
            began.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            return None

    monkeypatch.setattr(RedisEventStore, "sampler", lambda _: Deaf())
    with anyio.fail_after(CEILING):
        async with store.sampling(3600):
            await began.wait()
    assert scope.sample(DURATION, outcome="elsewhere") == 1


async def test_without_metrics(scope: Scope, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a registry the log still tells."""
    scripted(monkeypatch, LASTING)
    store = InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=None, logger=scope.log)
    async with store.sampling(0.01):
        await until(lambda: scope.log.entries)
    assert {entry["event"] for entry in scope.log.entries} == {"event_store.ttl_missing_keys"}


async def test_real_sampler_is_the_stores(store: InstrumentedEventStore) -> None:
    """Unless a test says otherwise."""
    assert isinstance(store._store, RedisEventStore)
    assert isinstance(store._store.sampler(), Sampler)


async def test_refused_arguments(scope: Scope, redis: FakeAsyncRedis) -> None:
    """What is no time, and stores that cannot be sampled, are refused when the application is built."""
    store = RedisEventStore(redis, ttl=60)
    for every, error in (
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="sample_redis must be"):
            http_app(MCPServer("s"), store, registry=scope.registry, sample_redis=every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only the Redis of a RedisEventStore"):
        http_app(MCPServer("s"), MemoryEventStore(), registry=scope.registry, sample_redis=30)
