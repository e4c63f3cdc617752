"""The interface of a bus that reports facts."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, runtime_checkable

from mcp.server.subscriptions import ServerEvent

from mcp_eventscope.subscriptions.facts import SubscriptionFact

Listener: TypeAlias = Callable[[ServerEvent], None]
"""Receives the events of a bus. It must not block, and must not raise."""
Observer: TypeAlias = Callable[[SubscriptionFact], None]
"""Receives the facts of a bus. It must not block, and must not raise."""


@runtime_checkable
class ObservableSubscriptionBus(Protocol):
    """The SDK's `SubscriptionBus`, with a lifetime and facts."""

    async def publish(self, event: ServerEvent) -> None:
        """Deliver an event to every listener."""
        ...

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Register a listener; returns the function that removes it."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Exchange signals with other workers within the block."""
        ...

    def observe(self, observer: Observer) -> None:
        """Register a callback for facts."""
        ...
