"""Buffered observations of stored events: recording them one by one would cost more than storing them.

A buffer is flushed by a scrape, so that a scrape is exact, and when it is full. In multiprocess mode, where a scrape
cannot reach the buffers of other processes, it is also flushed at the end of each iteration of the event loop.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mcp_eventscope.process import PROCESS

FLUSH_SIZE = 512
"""Observations per flush, which then takes 0.1 ms."""

SpanIds: TypeAlias = tuple[int, int]
"""The trace id and the span id of a sampled span, as an exemplar needs them."""
SampledObservation: TypeAlias = tuple[float, SpanIds, float]
"""An observation with a sampled span: its value, the span, and the Unix time."""


@dataclass(frozen=True, slots=True)
class ObservationBatch:
    """Buffered observations of stored events."""

    seconds: list[float]
    """The seconds that each event took."""
    messages: list[type]
    """The type of each message."""
    payload_bytes: int
    """The total size."""
    recorded: list[SampledObservation]
    """The observations with a sampled span."""


class AddObservation(Protocol):
    """Adds an observation; see `ObservationBuffer.add`."""

    def __call__(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        """Add it."""
        ...


class ObservationBuffer:
    """Buffers observations until they are flushed; thread-safe.

    Args:
        write: Called with the observations, in order. If it raises, they are lost.
        failed: Called with the error. It does not raise.
        flush_each_turn: Whether to flush at the end of each iteration of the event loop.
    """

    __slots__ = (
        "__weakref__",
        "_failed",
        "_flush_each_turn",
        "_messages",
        "_one_at_a_time",
        "_recorded",
        "_seconds",
        "_sizes",
        "_turning",
        "_write",
    )

    def __init__(
        self,
        write: Callable[[ObservationBatch], None],
        failed: Callable[[Exception], None],
        *,
        flush_each_turn: bool = False,
    ) -> None:
        self._write = write
        self._failed = failed
        self._flush_each_turn = flush_each_turn
        self.after_fork()
        PROCESS.track(self)

    def after_fork(self) -> None:
        """Start empty: in a forked child the observations belong to the parent, and the lock may be held."""
        # Lists of untracked objects, which the garbage collector skips. Appending and deleting a prefix are atomic; the
        # elements of the lists need not match.
        self._seconds: list[float] = []
        self._sizes: list[int] = []
        self._recorded: list[SampledObservation] = []
        self._messages: list[type] = []
        self._turning: asyncio.AbstractEventLoop | None = None
        self._one_at_a_time = threading.Lock()

    def add(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        """Add an observation.

        Args:
            seconds: The seconds that storing the event took.
            message: The type of the message.
            payload_bytes: Its size.
            span: Its span, if it is sampled.
        """
        self._seconds.append(seconds)
        self._sizes.append(payload_bytes)
        if span is not None:
            self._recorded.append((seconds, span, time.time()))
        # Last, so that the other lists are at least as long.
        messages = self._messages
        messages.append(message)
        if len(messages) >= FLUSH_SIZE:
            self.flush()
        elif self._flush_each_turn:
            self._flush_soon()

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # No event loop, or not one of asyncio.
            self.flush()
            return
        # The loop of another thread may never run again.
        if self._turning is not loop:
            self._turning = loop
            loop.call_soon(self._turned)

    def _turned(self) -> None:
        self._turning = None
        self.flush()

    def flush(self) -> None:
        """Write the buffered observations."""
        try:
            # A scrape waits for a concurrent flush, whose observations it would miss.
            with self._one_at_a_time:
                count = len(self._messages)
                if not count:
                    return
                recorded = self._recorded[:]
                batch = ObservationBatch(
                    self._seconds[:count], self._messages[:count], sum(self._sizes[:count]), recorded
                )
                del self._messages[:count], self._sizes[:count], self._seconds[:count], self._recorded[: len(recorded)]
                self._write(batch)
        except Exception as error:  # noqa: BLE001 - the registry of the application
            self._failed(error)


def flush() -> None:
    """Flush the buffers of all stores of this process."""
    for buffer in PROCESS.tracked(ObservationBuffer):
        buffer.flush()
