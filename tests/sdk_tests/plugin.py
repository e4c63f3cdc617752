"""A pytest plugin that puts the parts of this package in place of the SDK's, before the SDK's tests import them."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from blockbuster import BlockBuster
from mcp.server import streamable_http_manager
from mcp.server.lowlevel import server as lowlevel
from mcp.server.mcpserver import server as mcpserver
from redis.asyncio import Redis

from mcp_eventscope import RedisEventStore, ResumableSessionManager
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.store.messages import EventStore
from sdk_tests.differences import DIFFERENCES, Parts

PARTS = Parts(os.environ["EVENTSCOPE_SDK_TESTS"])
"""The parts that are put in the SDK's place."""
_NAME = "StreamableHTTPSessionManager"
_running = ExitStack()
_prefixes = (f"sdk{number}:" for number in itertools.count())


def pytest_configure() -> None:
    """Replace the session manager wherever the SDK creates one; for `Parts.REDIS` start the server."""
    if PARTS is Parts.SDK:
        return
    substitute: type[ResumableSessionManager] = ResumableSessionManager
    if PARTS is Parts.REDIS:
        server = EmbeddedValkey()
        _running.enter_context(server._guarded())  # Its guardian ends it even where xdist kills this process.
        substitute = _manager_on(server.url)
    for module in (streamable_http_manager, lowlevel, mcpserver):
        assert hasattr(module, _NAME), f"{module.__name__} has no {_NAME}: nothing would be substituted"
        setattr(module, _NAME, substitute)


@pytest.fixture(autouse=True)
def blocking_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow redis-py to read its own version for each connection: the SDK's tests fail on calls that block."""
    activate = BlockBuster.activate

    def with_exception(detector: BlockBuster) -> None:
        for function in detector.functions.values():
            function.can_block_in("redis/utils.py", "get_lib_version")
        activate(detector)

    monkeypatch.setattr(BlockBuster, "activate", with_exception)


def pytest_unconfigure() -> None:
    """Stop the server."""
    _running.close()


def _manager_on(url: str) -> type[ResumableSessionManager]:
    class ManagerOnRedis(ResumableSessionManager):
        """The session manager on Redis, whichever store the test passes, and even where it passes none."""

        def __init__(self, app: Any, event_store: EventStore | None = None, *arguments: Any, **options: Any) -> None:
            self._redis: Redis = Redis.from_url(url)
            super().__init__(
                app, RedisEventStore(self._redis, key_prefix=next(_prefixes), ttl=3600), *arguments, **options
            )

        @asynccontextmanager
        async def run(self) -> AsyncIterator[None]:
            """Close the client with the manager."""
            try:
                async with super().run():
                    yield
            finally:  # Not `async with`, which leaves a coroutine on trio: a failure of whichever test runs next.
                await self._redis.aclose()

    return ManagerOnRedis


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests with an expected difference. One that passes is a failure."""
    for item in items:
        for difference in DIFFERENCES:
            if PARTS in difference.parts and _matches(item.nodeid, frozenset(difference.tests)):
                item.add_marker(pytest.mark.xfail(reason=difference.reason, strict=True, run=not difference.hangs))


def _matches(nodeid: str, tests: frozenset[str]) -> bool:
    return not tests.isdisjoint({nodeid, nodeid.partition("[")[0], nodeid.partition("::")[0]})
