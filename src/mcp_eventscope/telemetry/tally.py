"""Stored events, counted by the batch: one by one an observation costs more than storing does, where many are stored.

What is noted is written at the end of the loop's turn, or before, by whoever scrapes: a scrape is exact, and nothing
waits for it, nor for a timer, in the files that the processes of one directory share.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakSet

MOST = 1024
"""Noted events that are written at once: no loop turns, or it has been turning this once for long."""

SpanIds: TypeAlias = tuple[int, int]
"""A span that was recorded, for an exemplar: the ids of its trace, and its own."""
Noted: TypeAlias = tuple[float, type, int, SpanIds | None]
"""Seconds that it took; the type of the message; payload bytes; the span, if one was recorded."""

_tallies: WeakSet["Tally"] = WeakSet()


class Tally:
    """Keeps what is noted until it is written. From whichever thread; nothing is lost between two.

    Args:
        write: Given what was noted, in order. What it raises is told, and the batch is lost.
        failed: Told what was raised. It does not raise.
    """

    __slots__ = ("__weakref__", "_failed", "_noted", "_one_at_a_time", "_write")

    def __init__(self, write: Callable[[list[Noted]], None], failed: Callable[[Exception], None]) -> None:
        self._write = write
        self._failed = failed
        # One deque for good, safe at both ends: of a list that is swapped, a thread may still hold the old one.
        self._noted: deque[Noted] = deque()
        self._one_at_a_time = threading.Lock()
        _tallies.add(self)

    def note(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        """An event was stored.

        Args:
            seconds: That it took.
            message: The type of the message.
            payload_bytes: Its size.
            span: The span that was recorded of it.
        """
        noted = self._noted
        noted.append((seconds, message, payload_bytes, span))
        waiting = len(noted)
        if waiting == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # Of another event loop than asyncio's, or none.
                self.flush()
        elif waiting >= MOST:
            self.flush()

    def flush(self) -> None:
        """Write what was noted until now."""
        noted = self._noted
        # Who scrapes while another writes waits for it, or would miss what that one holds.
        with self._one_at_a_time:
            batch = [noted.popleft() for _ in range(len(noted))]
            if batch:
                try:
                    self._write(batch)
                except Exception as error:  # noqa: BLE001 - whatever a registry of the application's raises
                    self._failed(error)


def flush() -> None:
    """Write what was noted, of all stores of this process."""
    for tally in tuple(_tallies):
        tally.flush()
