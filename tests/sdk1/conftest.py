"""Fixtures of the tests on mcp 1.x. Without mcp 1.x none of them is collected, and those of sessions need 1.30."""

from collections.abc import AsyncIterator
from importlib.metadata import version

import fakeredis
import pytest
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

_installed = tuple(int(each) for each in version("mcp").split(".")[:2])
collect_ignore_glob = (
    ["test_*.py"]
    if _installed >= (2, 0)
    else ["test_sessions_*.py"]
    if _installed < (1, 30)
    else ["test_refusals_*.py"]
)


@pytest.fixture
def anyio_backend() -> str:
    """The event loop: the SDK's servers run on asyncio."""
    return "asyncio"


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of this test alone."""
    return CollectorRegistry()


@pytest.fixture
async def fake_client() -> AsyncIterator[aioredis.Redis]:
    """A client of a fake server of this test alone."""
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as client:
        yield client
