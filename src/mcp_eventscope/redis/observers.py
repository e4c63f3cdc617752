"""The callbacks that are called with each background event of a store."""

import contextlib
from collections.abc import Callable

from mcp_eventscope.store.events import StoreEvent


class Observers:
    """Calls back with outages, retries, commits and losses, in the order of subscription."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[StoreEvent], None]] = []

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def subscribe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Call back with each fact. The callback must not block; an exception that it raises is dropped."""
        self._callbacks.append(callback)

    def emit(self, fact: StoreEvent) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            # A failing observer must not keep events from being stored.
            with contextlib.suppress(Exception):
                callback(fact)
