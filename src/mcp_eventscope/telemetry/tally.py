"""Stored events, counted by the batch: one by one an observation costs more than storing does, where many are stored.

What is noted is written by whoever scrapes, so that a scrape is exact; or when there is enough of it; or, where several
processes share a directory, and whoever scrapes cannot ask the others, at the end of the loop's turn.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from weakref import WeakSet

MOST = 512
"""Noted events that are written at once, in a tenth of a millisecond."""

SpanIds: TypeAlias = tuple[int, int]
"""A span that was recorded, for an exemplar: the ids of its trace, and its own."""
Recorded: TypeAlias = tuple[float, SpanIds, float]
"""An observation of which there is a span; the span; when it was, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Some events that were stored."""

    seconds: list[float]
    """That each took."""
    messages: list[type]
    """The type of each."""
    payload_bytes: int
    """Of all of them."""
    recorded: list[Recorded]
    """Those of which a span was recorded, by their seconds."""


class Note(Protocol):
    """Notes that an event was stored; see `Tally.note`."""

    def __call__(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        """Note it."""
        ...


_tallies: WeakSet["Tally"] = WeakSet()


class Tally:
    """Keeps what is noted until it is written. From whichever thread; nothing is lost between two.

    Args:
        write: Given what was noted, in order. What it raises is told, and the batch is lost.
        failed: Told what was raised. It does not raise.
        every_turn: Whether it is written at the end of the loop's turn, too.
    """

    __slots__ = (
        "__weakref__",
        "_every_turn",
        "_failed",
        "_messages",
        "_one_at_a_time",
        "_recorded",
        "_seconds",
        "_sizes",
        "_turning",
        "_write",
    )

    def __init__(
        self, write: Callable[[Noted], None], failed: Callable[[Exception], None], *, every_turn: bool = False
    ) -> None:
        self._write = write
        self._failed = failed
        self._every_turn = every_turn
        self.forget()
        _tallies.add(self)

    def forget(self) -> None:
        """Begin anew: in a process that was forked, what is noted is the parent's, and a lock is nobody's."""
        # Lists of what the garbage collector does not look at; they are appended to, and cut off in front, in one step
        # each. It does not matter which of them belong together.
        self._seconds: list[float] = []
        self._sizes: list[int] = []
        self._recorded: list[Recorded] = []
        self._messages: list[type] = []
        self._turning: asyncio.AbstractEventLoop | None = None
        self._one_at_a_time = threading.Lock()

    def note(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        """An event was stored.

        Args:
            seconds: That it took.
            message: The type of the message.
            payload_bytes: Its size.
            span: The span that was recorded of it.
        """
        self._seconds.append(seconds)
        self._sizes.append(payload_bytes)
        if span is not None:
            self._recorded.append((seconds, span, time.time()))
        # Last: the others are at least as long as this one.
        messages = self._messages
        messages.append(message)
        if len(messages) >= MOST:
            self.flush()
        elif self._every_turn:
            self._flush_soon()

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # Of another event loop than asyncio's, or none.
            self.flush()
            return
        # Another loop, of another thread, may never turn again.
        if self._turning is not loop:
            self._turning = loop
            loop.call_soon(self._turned)

    def _turned(self) -> None:
        self._turning = None
        self.flush()

    def flush(self) -> None:
        """Write what was noted until now."""
        try:
            # Who scrapes while another writes waits for it, or would miss what that one holds.
            with self._one_at_a_time:
                count = len(self._messages)
                if not count:
                    return
                recorded = self._recorded[:]
                noted = Noted(self._seconds[:count], self._messages[:count], sum(self._sizes[:count]), recorded)
                del self._messages[:count], self._sizes[:count], self._seconds[:count], self._recorded[: len(recorded)]
                self._write(noted)
        except Exception as error:  # noqa: BLE001 - whatever a registry of the application's raises
            self._failed(error)


def _forked() -> None:
    for tally in tuple(_tallies):
        tally.forget()


if hasattr(os, "register_at_fork"):  # Not on Windows, where nothing forks.
    os.register_at_fork(after_in_child=_forked)


def flush() -> None:
    """Write what was noted, of all stores of this process."""
    for tally in tuple(_tallies):
        tally.flush()
