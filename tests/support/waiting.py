"""Waiting for conditions, instead of for seconds."""

import time
from collections.abc import Awaitable, Callable

import anyio


async def until(condition: Callable[[], Awaitable[object]], *, within: float = 10.0) -> None:
    """Return when the condition is true.

    Args:
        condition: Asked again and again.
        within: Seconds after which it is a failure.
    """
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await anyio.sleep(0.005)
