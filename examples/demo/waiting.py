"""Waiting that always ends, and says what it waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class DemoError(Exception):
    """The demonstration cannot go on; the message is for the one who runs it."""


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Bound the time of a block.

    Args:
        seconds: How long the block may take.
        what: What is waited for, to go after "waited … for".

    Raises:
        DemoError: It took longer.
    """
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        msg = f"waited {seconds:g} seconds for {what}, in vain"
        raise DemoError(msg) from None
