"""The state of this process, and the hook that runs in a forked child; no other module has state of its own."""

import os
from collections.abc import Callable
from typing import Final, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

T = TypeVar("T")


@runtime_checkable
class ForkAware(Protocol):
    """An object that takes a fork into account."""

    def after_fork(self) -> None:
        """Drop what belongs to the parent. Called in the child, before anything else runs there."""
        ...


class Process:
    """The objects that exist once in a process, and those that a forked child must not share with its parent.

    An object that exists once is created on its first use and ends with the process; nothing runs at exit, which a
    killed process would skip. A forked child keeps these objects. Those that have the method `after_fork` are called.
    """

    def __init__(self) -> None:
        self._singles: dict[Callable[[], object], object] = {}
        self._tracked: WeakSet[ForkAware] = WeakSet()

    def single(self, kind: type[T]) -> T:
        """Return the only object of a class, whose constructor takes no arguments and has no effect.

        Args:
            kind: The class.
        """
        found = self._singles.get(kind)
        if found is None:
            # Atomic, so that no lock is held while another thread forks.
            found = self._singles.setdefault(kind, kind())
        return found  # type: ignore[return-value] # The value of a class is its instance.

    def track(self, fork_aware: ForkAware) -> None:
        """Call `after_fork` of an object in each forked child, for as long as the object lives."""
        self._tracked.add(fork_aware)

    def tracked(self, kind: type[T]) -> list[T]:
        """Return the living objects of a class that are tracked."""
        return [each for each in self._snapshot() if isinstance(each, kind)]

    def _snapshot(self) -> tuple[ForkAware, ...]:
        while True:
            try:
                return tuple(self._tracked)
            except RuntimeError:  # Another thread has tracked an object meanwhile.
                continue

    def after_fork(self) -> None:
        """Call the tracked objects, then the single ones, which may use them."""
        for each in (*self._snapshot(), *self._singles.values()):
            if isinstance(each, ForkAware):
                each.after_fork()


PROCESS: Final = Process()
if hasattr(os, "register_at_fork"):  # Not on Windows, where nothing forks.
    os.register_at_fork(after_in_child=PROCESS.after_fork)
