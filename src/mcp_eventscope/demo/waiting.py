"""Bounded waits whose error names the condition."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp_eventscope.errors import EventscopeError


class DemoError(EventscopeError):
    """The demo cannot continue; the message is for its user."""


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Bound the time of a block.

    Args:
        seconds: How long the block may take.
        what: The condition, as it follows "… seconds for".

    Raises:
        DemoError: The block took longer.
    """
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        msg = f"timed out after {seconds:g} seconds waiting for {what}"
        raise DemoError(msg) from None
