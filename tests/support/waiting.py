"""Wait for conditions, never for seconds."""

import inspect
from collections.abc import Callable

import anyio


async def until(condition: Callable[[], object], *, within: float = 10.0, every: float = 0.005) -> None:
    """Return once the condition holds; fail when it does not in time.

    Args:
        condition: Asked again and again; what it returns is awaited where that is needed.
        within: Seconds after which it is a failure.
        every: Seconds between two looks, where looking costs something.
    """
    with anyio.move_on_after(within):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await anyio.sleep(every)
    msg = f"the condition did not hold within {within} seconds"
    raise AssertionError(msg)
