"""The conformance suites of request states on Redis, and on the policies of the SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mcp.server.request_state import RequestStateSecurity
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedRequestState, RedisEventStore, RedisRequestState
from mcp_eventscope.request_state.adapter import PolicyRequestState
from mcp_eventscope.testing.request_state import (
    OpenWorkers,
    RequestStateConformance,
    SingleUseConformance,
    StateUnderTest,
    principal_of,
)

SECRET = "0123456789abcdef" * 4


def redis_state(client: aioredis.Redis, key_prefix: str, keys: tuple[str, ...] | None) -> RedisRequestState:
    """The request state of one worker."""
    backend = RedisEventStore(client, key_prefix=key_prefix, store_timeout=10).backend
    return RedisRequestState(backend, keys=keys, bind_principal=principal_of)


class TestOnValkey(SingleUseConformance):
    """With a secret of the operator."""

    keys: tuple[str, ...] | None = (SECRET,)

    @pytest.fixture
    def open_workers(self, redis_client: aioredis.Redis, key_prefix: str, leaks: object) -> OpenWorkers:
        """Two workers."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            first, second = (redis_state(redis_client, key_prefix, self.keys) for _ in range(2))
            async with first.running(), second.running():
                yield first, second

        return open_pair


class TestOnValkeyWithGeneratedKeys(TestOnValkey):
    """With keys generated in Redis."""

    keys = None


class TestInstrumentedOnValkey(TestOnValkey):
    """Decorated."""

    @pytest.fixture
    def open_workers(self, redis_client: aioredis.Redis, key_prefix: str, leaks: object) -> OpenWorkers:
        """Two decorated workers."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            first, second = (
                InstrumentedRequestState(redis_state(redis_client, key_prefix, None), registry=CollectorRegistry())
                for _ in range(2)
            )
            async with first.running(), second.running():
                yield first, second

        return open_pair


class TestPolicyOfTheSDK(RequestStateConformance):
    """The SDK's policy with shared keys."""

    @pytest.fixture
    def open_workers(self) -> OpenWorkers:
        """Two workers with the same keys."""

        @asynccontextmanager
        async def open_pair() -> AsyncIterator[tuple[StateUnderTest, StateUnderTest]]:
            first, second = (
                PolicyRequestState(RequestStateSecurity(keys=[SECRET], bind_principal=principal_of)) for _ in range(2)
            )
            yield first, second

        return open_pair
