"""Wait for conditions, never for seconds; where seconds matter, scale them by the machine's slowness."""

import contextlib
import hashlib
import inspect
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import anyio

T = TypeVar("T")

CEILING = 60.0
"""Seconds after which a wait fails. It limits no speed, and costs nothing."""
_CHUNKS = 20
_CHUNK = bytes(500_000)
_fastest = float("inf")


async def until(condition: Callable[[], object], *, within: float = CEILING, every: float = 0.005) -> None:
    """Return once the condition holds; fail if it does not hold in time.

    Args:
        condition: Evaluated repeatedly; an awaitable is awaited.
        within: Seconds after which it is a failure.
        every: Seconds between the first evaluations; they become rarer, so that waiting takes no CPU time from others.
    """
    began = time.monotonic()
    with anyio.move_on_after(within):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await anyio.sleep(_pause(every, began))
    msg = f"the condition did not hold within {within} seconds"
    raise AssertionError(msg)


def eventually(condition: Callable[[], T], *, otherwise: Callable[[], str] = lambda: "", within: float = CEILING) -> T:
    """Return the condition's value once it is true: `until`, for code that blocks.

    Args:
        condition: Evaluated repeatedly.
        otherwise: Describes the failure.
        within: Seconds after which it is a failure.
    """
    began = time.monotonic()
    while not (held := condition()):
        assert time.monotonic() - began < within, f"the condition did not hold within {within} seconds {otherwise()}"
        time.sleep(_pause(0.005, began))
    return held


def _pause(every: float, began: float) -> float:
    """Between two evaluations: a fiftieth of the time that has passed, up to 50 milliseconds."""
    return max(every, min(0.05, (time.monotonic() - began) / 50))


def cpu_aware_clock() -> float:
    """The monotonic clock without the time that this thread waited for a processor.

    By this clock a wait for a timer takes as long on a busy machine as on a quiet one.
    """
    starved = 0
    with contextlib.suppress(OSError):
        starved = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.monotonic() - starved / 1e9


def slowness() -> float:
    """Return how many times longer than undisturbed a known amount of work takes now: about 1 on a quiet machine.

    It blocks for some 15 milliseconds of a quiet machine.
    """
    global _fastest  # noqa: PLW0603 - the yardstick: the best that this process has seen of this machine
    marks = [time.perf_counter()]
    for _ in range(_CHUNKS):
        hashlib.blake2b(_CHUNK).digest()
        marks.append(time.perf_counter())
    _fastest = min(_fastest, *(end - begin for begin, end in itertools.pairwise(marks)))
    return max(1.0, (marks[-1] - marks[0]) / _CHUNKS / _fastest)


def pace(*, quiet: float = 2.0, most: float = 6.0) -> int:
    """Return by how much a schedule has to be stretched now: 1 on a machine that is quiet, or runs another test.

    Args:
        quiet: Below that slowness nothing is stretched.
        most: How far it is stretched at most.
    """
    seen = []
    for _ in range(9):
        seen.append(slowness())
        time.sleep(0.05)
    return math.ceil(min(max(1.0, statistics.median(seen) / quiet), most))


@contextmanager
def promptly(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer than so many seconds of a quiet machine.

    A busy machine is granted as much more as a known amount of work takes more there: before the block, or on average
    while it takes longer than it may on a quiet one.
    """
    before = slowness()
    over = threading.Event()
    seen: list[float] = []

    def measure() -> None:
        wait = seconds
        while not over.wait(wait):
            seen.append(slowness())  # Hashing holds up no event loop.
            wait = 0.1

    measuring = threading.Thread(target=measure, name="slowness", daemon=True)
    measuring.start()
    began = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - began
        over.set()
        measuring.join()
    if took <= seconds:
        return
    factor = max(before, statistics.mean(seen or [slowness()]))
    allowed = seconds * factor
    assert took <= allowed, (
        f"took {took:.2f} s; allowed are {seconds:g} s, here {allowed:.2f} s (slowness {factor:.1f})"
    )


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer than so many seconds of a quiet machine, or does not end: `promptly`, bounded."""
    with promptly(seconds), anyio.fail_after(CEILING):
        yield
