"""Buses with one fault each, under the suite; `test_conformance_suite.py` runs it to fail."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated, ServerEvent, SubscriptionBus

from mcp_eventscope.testing import SharedSubscriptionBusConformance, subscriptions

subscriptions.ARRIVAL_SECONDS = 0.1  # What does not arrive is waited for.

Listener = Callable[[ServerEvent], None]


class Network:
    """The buses of several workers in one process, without a fault."""

    def __init__(self) -> None:
        self.buses: list[NetworkBus] = []
        self.reachable = True

    def send(self, sender: "NetworkBus", event: ServerEvent) -> None:
        """Pass an event to the other buses."""
        for bus in self.buses:
            if bus is not sender:
                bus.arrive(event)


class NetworkBus(InMemorySubscriptionBus):
    """A bus without a fault."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.pending: list[ServerEvent] = []
        network.buses.append(self)

    async def publish(self, event: ServerEvent) -> None:
        """Publish here, then there."""
        self.distribute(event)
        await super().publish(event)

    def distribute(self, event: ServerEvent) -> None:
        """Publish to the other workers."""
        self.pending.append(event)
        self.flush()

    def flush(self) -> None:
        """Send the pending events."""
        if self.network.reachable:
            for event in self.pending:
                self.network.send(self, event)
            self.pending.clear()

    def arrive(self, event: ServerEvent) -> None:
        """Deliver an event of another worker."""
        for listener in list(self._listeners.values()):
            with contextlib.suppress(Exception):
                listener(event)


class Unshared(NetworkBus):
    """Keeps to itself."""

    def distribute(self, event: ServerEvent) -> None:
        """Send nothing."""


class Forgetful(NetworkBus):
    """Drops the events of an outage."""

    def distribute(self, event: ServerEvent) -> None:
        """Send it now or never."""
        super().distribute(event)
        self.pending.clear()


class Raising(NetworkBus):
    """Raises during an outage."""

    def distribute(self, event: ServerEvent) -> None:
        """Refuse."""
        if not self.network.reachable:
            raise ConnectionError
        super().distribute(event)


class Waiting(NetworkBus):
    """Waits for the network before it returns, and for the end of an outage."""

    async def publish(self, event: ServerEvent) -> None:
        """Wait, then publish."""
        await anyio.lowlevel.checkpoint()
        while not self.network.reachable:  # noqa: ASYNC110 - the fault
            await anyio.sleep(0.01)
        await super().publish(event)


class Deduplicating(NetworkBus):
    """Takes an equal event for the same change."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.seen: set[ServerEvent] = set()

    def distribute(self, event: ServerEvent) -> None:
        """Send it once."""
        if event not in self.seen:
            self.seen.add(event)
            super().distribute(event)


class Bounded(NetworkBus):
    """Drops the remainder of a burst."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.sent = 0

    def distribute(self, event: ServerEvent) -> None:
        """Send the first hundred."""
        self.sent += 1
        if self.sent <= 100:
            super().distribute(event)


class Late(NetworkBus):
    """Learns about its listeners only when it is opened."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.first: Listener | None = None

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Remember the first one for events of others."""
        self.first = self.first or listener
        return super().subscribe(listener)

    def arrive(self, event: ServerEvent) -> None:
        """Deliver to the first one."""
        if self.first is not None:
            self.first(event)


class Ascii(NetworkBus):
    """Sends URIs in ASCII."""

    def distribute(self, event: ServerEvent) -> None:
        """Replace other characters."""
        if isinstance(event, ResourceUpdated):
            event = ResourceUpdated(event.uri.encode("ascii", "replace").decode())
        super().distribute(event)


class Truncating(NetworkBus):
    """Keeps URIs short, here, too."""

    async def publish(self, event: ServerEvent) -> None:
        """Cut the URI."""
        await super().publish(ResourceUpdated(event.uri[:255]) if isinstance(event, ResourceUpdated) else event)


class Reversed(NetworkBus):
    """Delivers pairs in reverse."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.held: list[ServerEvent] = []

    async def publish(self, event: ServerEvent) -> None:
        """Hold every other event."""
        self.held.append(event)
        if len(self.held) == 2:
            for each in reversed(self.held):
                await super().publish(each)
            self.held.clear()


class Replaying(NetworkBus):
    """Delivers old events to new listeners."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.past: list[ServerEvent] = []

    async def publish(self, event: ServerEvent) -> None:
        """Keep it."""
        self.past.append(event)
        await super().publish(event)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Deliver the past."""
        for event in self.past:
            listener(event)
        return super().subscribe(listener)


class Keyed(NetworkBus):
    """Keys its listeners by themselves."""

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Register it once."""
        self._listeners[listener] = listener

        def unsubscribe() -> None:
            self._listeners.pop(listener, None)

        return unsubscribe


class Strict(NetworkBus):
    """Removes a listener once, and raises afterwards."""

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Return a function that may be called once."""
        token = object()
        self._listeners[token] = listener

        def unsubscribe() -> None:
            del self._listeners[token]

        return unsubscribe


class Uncaught(NetworkBus):
    """Passes on the exceptions of listeners."""

    async def publish(self, event: ServerEvent) -> None:
        """Call them without protection."""
        self.distribute(event)
        for listener in list(self._listeners.values()):
            listener(event)
        await anyio.lowlevel.checkpoint()


class Iterating(NetworkBus):
    """Iterates over the listeners themselves."""

    async def publish(self, event: ServerEvent) -> None:
        """Call them while they may change."""
        self.distribute(event)
        for listener in self._listeners.values():
            with contextlib.suppress(RuntimeError):
                listener(event)
        await anyio.lowlevel.checkpoint()


class Greedy(NetworkBus):
    """Never lets streams run."""

    async def publish(self, event: ServerEvent) -> None:
        """Deliver without a checkpoint."""
        self.distribute(event)
        self.arrive(event)


class Cancellable(NetworkBus):
    """Can be cancelled before it delivers."""

    async def publish(self, event: ServerEvent) -> None:
        """Begin with a checkpoint."""
        await anyio.lowlevel.checkpoint()
        await super().publish(event)


class Suite(SharedSubscriptionBusConformance):
    """The suite on a network of buses."""

    faulty: type[NetworkBus] = NetworkBus
    network: Network

    @pytest.fixture
    def open_bus(self) -> subscriptions.OpenBus:
        """Open a bus of this kind."""
        type(self).network = Network()

        @asynccontextmanager
        async def open_bus() -> AsyncIterator[SubscriptionBus]:
            await anyio.lowlevel.checkpoint()
            yield self.faulty(type(self).network)

        return open_bus

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:  # type: ignore[override]
        """Disconnect the network."""
        network = type(self).network
        network.reachable = False
        try:
            yield
        finally:
            network.reachable = True
            for bus in network.buses:
                bus.flush()
        await anyio.lowlevel.checkpoint()


for _kind in (
    *(NetworkBus, Unshared, Forgetful, Raising, Waiting, Deduplicating, Bounded, Late, Ascii, Truncating, Reversed),
    *(Replaying, Keyed, Strict, Uncaught, Iterating, Greedy, Cancellable),
):
    globals()[f"Test{_kind.__name__}"] = type(f"Test{_kind.__name__}", (Suite,), {"faulty": _kind})
