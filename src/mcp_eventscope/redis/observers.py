"""The callbacks for a store's background events."""

import contextlib
from collections.abc import Callable

from mcp_eventscope.store.events import StoreEvent


class Observers:
    """Passes outages, retries, commits and losses to callbacks, in the order of subscription."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[StoreEvent], None]] = []

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def subscribe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Add a callback. It must not block; its exceptions are dropped."""
        self._callbacks.append(callback)

    def emit(self, fact: StoreEvent) -> None:
        """Call all callbacks."""
        for callback in self._callbacks:
            # A failing observer must not keep events from being stored.
            with contextlib.suppress(Exception):
                callback(fact)
