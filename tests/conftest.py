"""Fixtures of all tests, and their order over processes."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from support.leaks import LeakChecker
from support.servers import Valkey, redis_server, redis_server_binary, valkey
from support.stores import PATIENCE, patient_client

# An example takes as long as the machine lets it.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For `make fuzz`.
settings.register_profile(
    "long",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=int(os.environ.get("EVENTSCOPE_FUZZ_EXAMPLES", "5000")),
    print_blob=True,
)
settings.load_profile("tests")

LONGEST = (
    "test_drill.py",
    "test_benchmarks.py",
    "test_end_to_end_benchmark.py",
    "test_demo.py",
    "test_session_limit.py",
    "test_many_sessions.py",
    "test_cluster_nodes.py",
    "test_redis_store.py",
    "test_redis_session_store.py",
    "test_conformance_suite.py",
    "test_multiprocess.py",
    "test_subscription_workers.py",
    "test_subscription_faults.py",
    "test_request_state_answers.py",
    "test_cluster_failures.py",
    "test_call_delivery.py",
    "test_root_outages.py",
    "test_outages_over_http.py",
    "test_redis_restart.py",
    "test_adopted_sessions.py",
    "test_cut_streams.py",
    "test_worker_failures.py",
    "test_scrape_workers.py",
    "test_otel_metrics.py",
    "test_session_scripts.py",
    "test_examples.py",
    "test_rules.py",
    "test_stack.py",
    "test_session_outages.py",
    "test_session_faults.py",
    "test_root_writer_faults.py",
    "test_faulty_replies.py",
    "test_workers.py",
)
"""The files that take longest, longest first, so that a run ends with short ones."""


@pytest.fixture
def anyio_backend() -> str:
    """The event loop: the SDK's servers run on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores of this process wait for a busy machine: the default of a store is too short for it.

    A test of outages passes `store_timeout`. Worker processes have the default.
    """
    monkeypatch.setitem(RedisEventStore.__init__.__kwdefaults__, "store_timeout", PATIENCE)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """A real Valkey for the whole run. A test that stops it restarts it."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey_server: Valkey) -> str:
    """Where the real Valkey is."""
    return valkey_server.url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Redis 7: the server at EVENTSCOPE_TEST_REDIS_URL, or Debian's binary; skipped where there is neither."""
    if url := os.environ.get("EVENTSCOPE_TEST_REDIS_URL"):
        yield url
        return
    binary = redis_server_binary()
    if binary is None:
        pytest.skip("no Redis: set EVENTSCOPE_TEST_REDIS_URL, or install redis-server")
    with redis_server(binary) as url:
        yield url


@pytest.fixture
def key_prefix() -> str:
    """A key prefix of this test alone."""
    return f"test-{uuid.uuid4().hex[:12]}:"


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the real Valkey that waits for it, however busy the machine is."""
    async with patient_client(valkey_url) as client:
        yield client


@pytest.fixture
async def fake_client() -> AsyncIterator[aioredis.Redis]:
    """A client of a fake server of this test alone."""
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as client:
        yield client


@pytest.fixture
async def leaks(redis_client: aioredis.Redis, key_prefix: str) -> AsyncIterator[LeakChecker]:
    """Fail a test that leaves keys without TTL under its prefix, and delete its keys."""
    checker = LeakChecker(redis_client, key_prefix)
    yield checker
    leaked = await checker.leaked()
    await checker.clean()
    assert not leaked, f"keys were left without TTL: {leaked}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: the tests wait for more than half of their time."""
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_configure(config: pytest.Config) -> None:
    """Have files begin in the order of collection, not those with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files. Mark tests that serve over sockets, or start processes, as slow."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if {"e2e", "chaos"} & set(item.path.parts) or "OnRedis" in item.nodeid or "OnValkey" in item.nodeid:
            item.add_marker(pytest.mark.slow)
