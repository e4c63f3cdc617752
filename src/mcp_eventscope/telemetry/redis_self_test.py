"""The background task that runs the self-test of Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.self_test import Capabilities

RETRY_SECONDS = 30.0
"""Seconds until a test is repeated that did not reach Redis."""


class SelfTest(Protocol):
    """The interface of a self-test."""

    async def run(self) -> Capabilities:
        """Run it."""
        ...


@asynccontextmanager
async def in_background(
    self_test: SelfTest, record: Callable[[Capabilities], None], failed: Callable[[Exception], None]
) -> AsyncIterator[None]:
    """Run a self-test, and repeat it until Redis has been reached, at most until the block ends.

    Args:
        self_test: The self-test.
        record: Called once with the result. It does not raise.
        failed: Called with an unexpected error, after which the test is not repeated. It does not raise.
    """
    task = asyncio.create_task(_run(self_test, record, failed), name="eventscope-redis-self-test")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await cancel_task(task)


async def _run(
    self_test: SelfTest, record: Callable[[Capabilities], None], failed: Callable[[Exception], None]
) -> None:
    while True:
        try:
            found = await self_test.run()
        except StoreError:  # Reported as `event_store.unreachable`.
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:  # noqa: BLE001 - a test must not affect what is tested
            failed(error)
            return
        else:
            record(found)
            return
