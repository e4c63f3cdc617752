"""The conformance suites for buses of `subscriptions/listen` streams."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from mcp.server.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    SubscriptionBus,
    ToolsListChanged,
)

OpenBus: TypeAlias = Callable[[], AbstractAsyncContextManager[SubscriptionBus]]
"""A function that opens another bus of the same kind, as another worker does, and closes it when the block ends."""

ARRIVAL_SECONDS = 30.0
"""Seconds within which a signal must arrive. It limits no speed."""
_BURST = 3000
_BUFFERED = 1024
"""Events that the SDK buffers for a stream."""

EVENTS: Mapping[str, ServerEvent] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
    "resource": ResourceUpdated("file:///a"),
    "resource with the empty URI": ResourceUpdated(""),
    "resource with separators": ResourceUpdated('a b\n\r\0"\\,:{}*?[]\u2028'),
    "resource beyond ASCII": ResourceUpdated("file:///\u00e9/e\u0301/\U0001f9ea"),
    "resource with a lone surrogate": ResourceUpdated("file:///\ud800"),
    "resource with a long URI": ResourceUpdated("file:///" + "x" * 4000),
}
"""Events that some buses change."""


class SubscriptionBusConformance:
    """The contract between a bus and the SDK's `ListenHandler`.

    Inherit it, and override the fixture `bus`. It needs no Redis: the SDK's `InMemorySubscriptionBus` conforms.
    """

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.anyio

    @pytest.fixture
    def bus(self) -> SubscriptionBus:
        """The bus under test, running. Override it."""
        msg = f"{type(self).__name__} must override the fixture `bus`; see the docstring of mcp_eventscope.testing"
        raise NotImplementedError(msg)

    @pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
    async def test_event_reaches_every_listener(self, bus: SubscriptionBus, event: ServerEvent) -> None:
        """Each listener has received an equal event when `publish` returns."""
        first, second = _Received(), _Received()
        bus.subscribe(first.append)
        bus.subscribe(second.append)
        await bus.publish(event)
        assert first == second == [event]

    async def test_events_keep_their_order(self, bus: SubscriptionBus) -> None:
        """A listener receives the events of one publisher in order."""
        received = _Received()
        bus.subscribe(received.append)
        published: list[ServerEvent] = [ResourceUpdated(f"file:///{number}") for number in range(20)]
        for event in published:
            await bus.publish(event)
        assert received == published

    async def test_event_without_listeners_is_accepted(self, bus: SubscriptionBus) -> None:
        """A publisher does not know whether anything listens; earlier events are not delivered later."""
        await bus.publish(ToolsListChanged())
        received = _Received()
        bus.subscribe(received.append)
        await bus.publish(PromptsListChanged())
        assert received == [PromptsListChanged()]

    async def test_unsubscribed_listener_receives_nothing(self, bus: SubscriptionBus) -> None:
        """After its removal, which may be repeated, a listener receives nothing; the others do."""
        received, other = _Received(), _Received()
        unsubscribe = bus.subscribe(received.append)
        bus.subscribe(other.append)
        unsubscribe()
        unsubscribe()
        await bus.publish(ToolsListChanged())
        assert received == []
        assert other == [ToolsListChanged()]

    async def test_listener_may_subscribe_twice(self, bus: SubscriptionBus) -> None:
        """Two subscriptions of one callable are two, and end separately: bound methods compare equal."""
        received = _Received()
        unsubscribe = bus.subscribe(received.append)
        bus.subscribe(received.append)
        await bus.publish(ToolsListChanged())
        assert len(received) == 2
        unsubscribe()
        await bus.publish(PromptsListChanged())
        assert received[2:] == [PromptsListChanged()]

    async def test_listener_that_raises_is_isolated(self, bus: SubscriptionBus) -> None:
        """Neither the publisher nor another listener notices an exception."""
        received = _Received()

        def fail(_: ServerEvent) -> None:
            raise RuntimeError

        bus.subscribe(fail)
        bus.subscribe(received.append)
        await bus.publish(ToolsListChanged())
        assert received == [ToolsListChanged()]

    async def test_listeners_may_change_during_delivery(self, bus: SubscriptionBus) -> None:
        """A listener may end its subscription, and begin others, while it receives an event."""
        received = _Received()
        removals: list[Callable[[], None]] = []

        def replace(_: ServerEvent) -> None:
            for remove in removals:
                remove()
            bus.subscribe(received.append)

        removals.append(bus.subscribe(replace))
        await bus.publish(ToolsListChanged())
        received.clear()
        await bus.publish(PromptsListChanged())
        assert received == [PromptsListChanged()]

    async def test_burst_does_not_overflow_a_stream(self, bus: SubscriptionBus) -> None:
        """`publish` lets streams run: a burst from one task does not fill their buffers unread."""
        send, receive = anyio.create_memory_object_stream[ServerEvent](_BUFFERED)
        bus.subscribe(send.send_nowait)
        overflowed = False
        async with anyio.create_task_group() as tasks, send, receive:

            async def drain() -> None:
                async for _ in receive:
                    pass

            tasks.start_soon(drain)
            for number in range(_BURST):
                await bus.publish(ResourceUpdated(f"file:///{number % 10}"))
                overflowed = overflowed or send.statistics().current_buffer_used == _BUFFERED
            tasks.cancel_scope.cancel()
        assert not overflowed

    async def test_cancelled_publisher_has_published(self, bus: SubscriptionBus) -> None:
        """A tool whose client has left is cancelled in `publish`; the change has happened, and is signalled."""
        received = _Received()
        bus.subscribe(received.append)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bus.publish(ToolsListChanged())
        assert received == [ToolsListChanged()]


class SharedSubscriptionBusConformance(SubscriptionBusConformance):
    """The suite for a bus that several workers share.

    Inherit it, and override the fixture `open_bus`; the fixture `bus` uses it. Each opened bus runs, and acts as
    another worker. After each change each listener receives at least one signal; more are allowed.
    """

    @pytest.fixture
    def open_bus(self) -> OpenBus:
        """Opens buses that share their events. Override it."""
        msg = f"{type(self).__name__} must override the fixture `open_bus`; see the docstring of mcp_eventscope.testing"
        raise NotImplementedError(msg)

    @pytest.fixture
    async def bus(self, open_bus: OpenBus) -> AsyncIterator[SubscriptionBus]:
        """The bus of the worker whose streams listen."""
        async with open_bus() as bus:
            yield bus

    @pytest.fixture
    async def other(self, open_bus: OpenBus, bus: SubscriptionBus) -> AsyncIterator[SubscriptionBus]:
        """The bus of another worker."""
        async with open_bus() as other:
            yield other

    @staticmethod
    def outage() -> AbstractAsyncContextManager[None]:
        """Make the backend unreachable within the block. Override it, or the test of outages is skipped."""
        pytest.skip("this bus has no `outage`")

    @pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
    async def test_event_of_another_worker_arrives(
        self, bus: SubscriptionBus, other: SubscriptionBus, event: ServerEvent
    ) -> None:
        """Each listener receives an equal event."""
        first, second = _Received(), _Received()
        bus.subscribe(first.append)
        bus.subscribe(second.append)
        await other.publish(event)
        await _arrived(first, event)
        await _arrived(second, event)

    async def test_events_of_both_workers_arrive_at_both(self, bus: SubscriptionBus, other: SubscriptionBus) -> None:
        """Concurrent publishers do not hide each other's events."""
        here, there = _Received(), _Received()
        bus.subscribe(here.append)
        other.subscribe(there.append)
        published: list[ServerEvent] = [ResourceUpdated(f"file:///{number}") for number in range(40)]
        async with anyio.create_task_group() as tasks:
            for number, event in enumerate(published):
                tasks.start_soon((bus, other)[number % 2].publish, event)
        for event in published:
            await _arrived(here, event)
            await _arrived(there, event)

    async def test_burst_of_another_worker_arrives(self, bus: SubscriptionBus, other: SubscriptionBus) -> None:
        """No resource of many is left out, however the bus combines them."""
        received = _Received()
        bus.subscribe(received.append)
        published: list[ServerEvent] = [ResourceUpdated(f"file:///{number}") for number in range(500)]
        for event in published:
            await other.publish(event)
        for event in published:
            await _arrived(received, event)

    async def test_change_after_a_signal_is_signalled_again(self, bus: SubscriptionBus, other: SubscriptionBus) -> None:
        """An equal event is another change: a client may have refetched in the meantime."""
        received = _Received()
        bus.subscribe(received.append)
        for _ in range(20):
            received.clear()
            await other.publish(ToolsListChanged())
            await _arrived(received, ToolsListChanged())

    async def test_listener_receives_the_changes_after_its_subscription(
        self, bus: SubscriptionBus, other: SubscriptionBus
    ) -> None:
        """A stream misses nothing that is published after it was acknowledged, while others come and go."""
        for number in range(20):
            received = _Received()
            unsubscribe = bus.subscribe(received.append)
            event = ResourceUpdated(f"file:///{number}")
            await other.publish(event)
            await _arrived(received, event)
            unsubscribe()

    async def test_cancelled_publisher_reaches_other_workers(
        self, bus: SubscriptionBus, other: SubscriptionBus
    ) -> None:
        """As on the same worker."""
        received = _Received()
        bus.subscribe(received.append)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await other.publish(ToolsListChanged())
        await _arrived(received, ToolsListChanged())

    async def test_event_of_an_outage_arrives_afterwards(self, bus: SubscriptionBus, other: SubscriptionBus) -> None:
        """`publish` neither raises nor waits while the backend is unreachable; the signal comes when it is back."""
        received, local = _Received(), _Received()
        bus.subscribe(received.append)
        other.subscribe(local.append)
        published: list[ServerEvent] = [ResourceUpdated(f"file:///{number}") for number in range(10)]
        async with self.outage():
            with anyio.fail_after(ARRIVAL_SECONDS):
                for event in published:
                    await other.publish(event)
            assert local == published
        for event in published:
            await _arrived(received, event)


class _Received(list[ServerEvent]):
    """The events that a listener has received."""


async def _arrived(received: Sequence[ServerEvent], event: ServerEvent) -> None:
    """Wait until an event was received."""
    with contextlib.suppress(TimeoutError), anyio.fail_after(ARRIVAL_SECONDS):
        while event not in received:  # noqa: ASYNC110 - a listener cannot be awaited
            await anyio.sleep(0.005)
    assert event in received, f"{event!r} has not arrived"
