"""Cancel tasks reliably, and keep starts and stops apart."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import anyio

_INSIST_SECONDS = 0.05


async def cancel_task(task: "asyncio.Task[object]") -> None:
    """Cancel a task, and return when it has ended in any way.

    Cancels repeatedly: on Python 3.11 `asyncio.wait_for`, which redis-py uses to send, swallows a cancellation that
    arrives when the awaited task is done (python/cpython#86296).
    """
    with anyio.CancelScope(shield=True):
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_INSIST_SECONDS)
    if not task.cancelled():
        task.exception()  # Retrieved, or asyncio would log it.


def is_cancelling() -> bool:
    """Whether the current task was cancelled, even if the cancellation was swallowed (see above)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def keep_cancellation() -> Iterator[None]:
    """Raise `CancelledError` at the end of the block if a cancellation within it was swallowed (see above).

    Else a caller that repeats the block, or waits for something else, would not end. A cancelled scope of anyio needs
    no help: it repeats the cancellation, and would not recognize this one as its own.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()

    def swallowed() -> bool:
        return task is not None and task.cancelling() > before and anyio.current_effective_deadline() > -inf

    try:
        yield
    except Exception:
        if swallowed():
            raise asyncio.CancelledError from None
        raise
    if swallowed():
        raise asyncio.CancelledError


class LoopLock:
    """A lock of the current event loop. An object may be used in several loops, one after the other.

    `asyncio.Lock` refuses a second loop, and stays locked if the first one ended within it.
    """

    def __init__(self) -> None:
        self._held: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def __call__(self) -> asyncio.Lock:
        """Return the lock."""
        loop = asyncio.get_running_loop()
        if self._held is None or self._held[0] is not loop:
            self._held = loop, asyncio.Lock()
        return self._held[1]
