"""Tasks that are to end."""

import asyncio

import anyio

_INSIST_SECONDS = 0.05


async def cancel_task(task: "asyncio.Task[object]") -> None:
    """Cancel a task, and return when it has ended, however.

    Again and again: on Python 3.11 `asyncio.wait_for`, by which redis-py sends, swallows a cancellation that comes when
    what it waits for is done (python/cpython#86296).
    """
    with anyio.CancelScope(shield=True):
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_INSIST_SECONDS)
    if not task.cancelled():
        task.exception()  # Looked at, or asyncio would complain.


def is_cancelling() -> bool:
    """Whether the current task was cancelled, though that may have been swallowed, as above."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
