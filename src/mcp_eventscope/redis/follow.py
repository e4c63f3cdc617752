"""Waking those who follow a stream when something was stored on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

POLL_SECONDS = 1.0
"""How long a follower sleeps at most before it looks for itself: what was stored by another process, whose wake-up
it does not hear or has lost, is delivered at most this much later."""


class Waiter:
    """One follower's bell."""

    __slots__ = ("_rung",)

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Something was stored."""
        self._rung.set()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - running out is an answer here, not an error
        """Return when it rang since the last wait, or after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            await self._rung.wait()
        self._rung = anyio.Event()


class Wakeups:
    """Who waits for which stream index, in this process. It only wakes: the truth is read from the index."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[Waiter]] = {}

    @contextmanager
    def waiting(self, index: str) -> Iterator[Waiter]:
        """Be woken for the index key until the block ends. Enter before reading, or a wake-up is missed."""
        waiter = Waiter()
        self._waiters.setdefault(index, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[index]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[index]

    def notify(self, index: str) -> None:
        """Something was stored under this index key."""
        for waiter in self._waiters.get(index, ()):
            waiter.ring()
