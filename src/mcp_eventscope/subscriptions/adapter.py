"""Adapter that makes facts of what any `SubscriptionBus` delivers."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from functools import wraps

from mcp.server.subscriptions import ServerEvent, SubscriptionBus

from mcp_eventscope.subscriptions.facts import Signalled, SignalPath
from mcp_eventscope.subscriptions.protocol import Listener, Observer

_publishing: ContextVar[bool] = ContextVar("mcp_eventscope_publishing", default=False)
"""Whether the current task publishes: deliveries in the meantime are local."""


class SubscriptionBusAdapter:
    """Reports each delivery of a bus. Third-party buses have neither gaps nor a lag.

    Args:
        bus: Any bus. Its owner starts and stops it.
    """

    def __init__(self, bus: SubscriptionBus) -> None:
        self._bus = bus
        self._observers: list[Observer] = []

    async def publish(self, event: ServerEvent) -> None:
        """Publish; see the bus."""
        token = _publishing.set(True)
        try:
            await self._bus.publish(event)
        finally:
            _publishing.reset(token)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Subscribe; see the bus."""

        @wraps(listener)
        def report(event: ServerEvent) -> None:
            path = SignalPath.LOCAL if _publishing.get() else SignalPath.REMOTE
            for observer in self._observers:
                observer(Signalled(path, 1))
            listener(event)

        return self._bus.subscribe(report)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Do nothing: the owner runs the bus."""
        return nullcontext()

    def observe(self, observer: Observer) -> None:
        """Register a callback for deliveries."""
        self._observers.append(observer)
