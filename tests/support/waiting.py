"""Wait for conditions, never for seconds."""

from collections.abc import Callable

import anyio


async def until(condition: Callable[[], object], *, within: float = 5.0) -> None:
    """Return once the condition holds; fail when it does not within so many seconds."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event to wait on
            await anyio.sleep(0.005)
