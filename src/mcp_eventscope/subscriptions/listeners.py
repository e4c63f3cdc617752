"""The listeners of this worker: fan-out of events, and repair of missed ones."""

import asyncio
import inspect
import logging
import random
from collections.abc import Callable, Iterator
from itertools import islice

from mcp.server.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from mcp_eventscope.subscriptions.facts import SignalPath
from mcp_eventscope.subscriptions.protocol import Listener

_LISTS: tuple[ServerEvent, ...] = (ToolsListChanged(), PromptsListChanged(), ResourcesListChanged())
_REPAIRED_AT_ONCE = 256
"""Events of a repair that a stream receives in one step: a quarter of the events that the SDK buffers."""
_STEP_SECONDS = 0.1

_log = logging.getLogger("mcp_eventscope")


class Listeners:
    """Registered listeners, in the order of their subscription.

    Args:
        signalled: Called with the path and the number of listeners, once for each event.
    """

    def __init__(self, signalled: Callable[[SignalPath, int], None]) -> None:
        # By token, as in the SDK: the same callable may subscribe twice.
        self._listeners: dict[object, Listener] = {}
        self._repairs: dict[object, asyncio.TimerHandle] = {}
        self._signalled = signalled

    def __len__(self) -> int:
        return len(self._listeners)

    def add(self, listener: Listener) -> Callable[[], None]:
        """Register a listener; return the function that removes it, which may be called twice."""
        token = object()
        self._listeners[token] = listener

        def remove() -> None:
            self._listeners.pop(token, None)
            if (repair := self._repairs.pop(token, None)) is not None:
                repair.cancel()

        return remove

    def deliver(self, event: ServerEvent) -> int:
        """Pass an event to all listeners; return their number."""
        listeners = list(self._listeners.values())
        for listener in listeners:
            _call(listener, event)
        return len(listeners)

    def unknown(self) -> int:
        """The number of listeners whose resource URIs are unknown."""
        return sum(subscribed_uris(listener) is None for listener in self._listeners.values())

    def repair(self, spread: float) -> None:
        """Signal each listener that everything that it listens to has changed, once for several calls.

        Args:
            spread: Seconds over which the listeners are signalled, at random: each may refetch everything.
        """
        loop = asyncio.get_running_loop()
        for token in self._listeners:
            if token not in self._repairs:
                delay = random.uniform(0, spread)  # noqa: S311 - it spreads load
                self._repairs[token] = loop.call_later(delay, self._repair, token)

    def repair_now(self) -> None:
        """Send the repairs that are due later."""
        for token, repair in list(self._repairs.items()):
            repair.cancel()
            self._repair(token)

    def _repair(self, token: object) -> None:
        del self._repairs[token]
        listener = self._listeners[token]
        self._send(token, iter((*_LISTS, *map(ResourceUpdated, sorted(self._uris_for(listener))))))

    def _send(self, token: object, events: Iterator[ServerEvent]) -> None:
        """Send the next events of a repair, and more of them a little later."""
        listener = self._listeners.get(token)
        if listener is None:
            return
        for event in islice(events, _REPAIRED_AT_ONCE):
            _call(listener, event)
            self._signalled(SignalPath.REPAIR, 1)
        if (following := next(events, None)) is not None:
            asyncio.get_running_loop().call_later(_STEP_SECONDS, self._send, token, _chained(following, events))

    def _uris_for(self, listener: Listener) -> frozenset[str]:
        """The resource URIs of a listener; if they are unknown, those of all listeners."""
        uris = subscribed_uris(listener)
        if uris is not None:
            return uris
        return frozenset().union(*(subscribed_uris(each) or () for each in self._listeners.values()))


def _chained(first: ServerEvent, others: Iterator[ServerEvent]) -> Iterator[ServerEvent]:
    yield first
    yield from others


def _call(listener: Listener, event: ServerEvent) -> None:
    try:
        listener(event)
    except Exception:  # noqa: BLE001 - as in the SDK: the other listeners and the publisher must not notice
        _log.exception("subscription listener raised")


def subscribed_uris(listener: Listener) -> frozenset[str] | None:
    """The resource URIs that a stream of the SDK's `ListenHandler` subscribes to; None: unknown.

    A bus is given no filter, only a function that applies it. The filter is read from that function's closure. A
    middleware on `subscriptions/listen` would see it, too, but must be added to each server, its interface is
    provisional, and a change of it would fail every request. Here a change of the SDK makes URIs unknown, which is
    reported. Wrappers made with `functools.wraps` are followed.
    """
    try:
        inner = inspect.unwrap(listener)
    except ValueError:  # Wrappers in a circle.
        return None
    code, closure = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
    if code is None or closure is None or "honored_uris" not in code.co_freevars:
        return None
    uris = closure[code.co_freevars.index("honored_uris")].cell_contents
    return uris if isinstance(uris, frozenset) else None
