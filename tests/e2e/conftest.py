"""A registry, and plain HTTP clients."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from support.http_client import LIMITS, NO_TLS, Connect, HTTPClient
from support.waiting import CEILING


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of this test alone."""
    return CollectorRegistry()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, whose connections are closed at the end of the test."""
    async with httpx2.AsyncClient(verify=NO_TLS, limits=LIMITS, timeout=CEILING) as http:

        def make(base_url: str, **headers: str) -> HTTPClient:
            return HTTPClient(http, f"{base_url}/mcp", headers=headers)

        yield make
