"""The state of this process that a forked child must not share with its parent."""

import os
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet


class ForkAware(Protocol):
    """An object that takes a fork into account."""

    def after_fork(self) -> None:
        """Drop what belongs to the parent. Called in the child, before anything else runs there."""
        ...


_objects: WeakSet[ForkAware] = WeakSet()
_callbacks: list[Callable[[], None]] = []


def track(fork_aware: ForkAware) -> None:
    """Call `after_fork` of an object in each forked child, for as long as the object lives."""
    _objects.add(fork_aware)


def after_fork(callback: Callable[[], None]) -> None:
    """Call back in each forked child, behind the objects. A callback is registered once, however often it is given."""
    if callback not in _callbacks:
        _callbacks.append(callback)


def _forked() -> None:
    for each in tuple(_objects):
        each.after_fork()
    for callback in _callbacks:
        callback()


if hasattr(os, "register_at_fork"):  # Not on Windows, where nothing forks.
    os.register_at_fork(after_in_child=_forked)
