"""A probe of the store is bounded, shared, and shows no secret."""

import asyncio

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server.lowlevel.server import Server
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, ResumableSessionManager, health
from mcp_eventscope.health import Health

pytestmark = pytest.mark.anyio

REQUEST = Request({"type": "http"})


class ProbedStore(RedisEventStore):
    """A store whose probe does what a test wants."""

    asked = 0
    failure: Exception | None = None
    seconds = 0.0

    async def probe(self) -> None:
        """Take some time, or fail."""
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        await asyncio.sleep(self.seconds)


@pytest.fixture
def store() -> ProbedStore:
    """A store on a fake."""
    return ProbedStore(FakeAsyncRedis(), ttl=60)


async def healthz(store: ProbedStore, times: int = 1) -> list[Response]:
    """The answers to concurrent requests."""
    instrumented = InstrumentedEventStore(store, registry=CollectorRegistry())
    manager = ResumableSessionManager(Server("s"), instrumented)
    endpoint = Health(instrumented, manager).endpoints["/healthz"]
    async with manager.run():
        return await asyncio.gather(*(endpoint(REQUEST) for _ in range(times)))


async def test_healthz_asked_concurrently_probes_once(store: ProbedStore) -> None:
    """A public endpoint must not use up the connections of the store."""
    store.seconds = 0.01
    assert [answer.status_code for answer in await healthz(store, 5)] == [200] * 5
    assert store.asked == 1


async def test_healthz_of_a_silent_store_answers_in_time(store: ProbedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe ends with its timeout."""
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.01)
    store.seconds = 3600
    (answer,) = await healthz(store)
    assert answer.status_code == 503
    assert b"within 0.01 seconds" in bytes(answer.body)


async def test_healthz_of_a_broken_store_names_the_type_of_the_error_only(store: ProbedStore) -> None:
    """The text of a third-party store's error may contain its password."""
    store.failure = RuntimeError("hunter2")
    (answer,) = await healthz(store)
    assert answer.status_code == 503
    assert b"RuntimeError" in bytes(answer.body)
    assert b"hunter2" not in bytes(answer.body)
