"""The listeners of a worker: repairs, and the URIs that they are about."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.types import SubscriptionFilter, SubscriptionsListenRequestParams

from mcp_eventscope import RedisEventStore, RedisSubscriptionBus
from mcp_eventscope.redis.client import connect
from mcp_eventscope.subscriptions.facts import NotRunning, PublishFailed, PublishFailure, Signalled, SignalPath
from mcp_eventscope.subscriptions.listeners import Listeners, subscribed_uris
from mcp_eventscope.subscriptions.protocol import Listener
from support.waiting import until

pytestmark = pytest.mark.anyio

LISTS = [ToolsListChanged(), PromptsListChanged(), ResourcesListChanged()]


class Recorder:
    """Records repairs."""

    def __init__(self) -> None:
        self.signals: list[tuple[SignalPath, int]] = []
        self.listeners = Listeners(lambda path, streams: self.signals.append((path, streams)))


@pytest.fixture
def recorder() -> Recorder:
    """Listeners of one worker."""
    return Recorder()


async def listener_of_the_sdk(*uris: str) -> Listener:
    """The listener that the SDK's handler subscribes for a stream."""
    subscribed: list[Listener] = []

    class Bus(InMemorySubscriptionBus):
        def subscribe(self, listener: Listener) -> Callable[[], None]:
            subscribed.append(listener)
            return super().subscribe(listener)

    async def disconnected(*_: object, **__: object) -> None:
        raise ConnectionError

    context = SimpleNamespace(request_id=1, session=SimpleNamespace(send_notification=disconnected))
    notifications = SubscriptionFilter(tools_list_changed=True, resource_subscriptions=list(uris) or None)
    params = SubscriptionsListenRequestParams(notifications=notifications)
    with pytest.raises(ConnectionError):
        await ListenHandler(Bus())(cast("ServerRequestContext[Any, Any]", context), params)
    return subscribed[0]


def listening_to(*uris: str, received: list[ServerEvent]) -> Listener:
    """A listener like that of the SDK, which receives everything."""
    honored_uris = frozenset(uris)

    def deliver(event: ServerEvent) -> None:
        assert honored_uris is not None
        received.append(event)

    return deliver


class Steps(list[ServerEvent]):
    """Received events, and how many arrive in each iteration of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._within_step = False

    def append(self, event: ServerEvent, /) -> None:
        """Receive an event."""
        super().append(event)
        if not self._within_step:
            self._within_step = True
            self.sizes.append(0)
            asyncio.get_running_loop().call_soon(self._end_step)
        self.sizes[-1] += 1

    def _end_step(self) -> None:
        self._within_step = False


@pytest.mark.parametrize("uris", [(), ("a",), ("a", "b")])
async def test_uris_of_a_stream_of_the_sdk_are_known(uris: tuple[str, ...]) -> None:
    """If a release of the SDK changes the function that it subscribes, this fails, and repairs know no resources."""
    listener = await listener_of_the_sdk(*uris)
    assert subscribed_uris(listener) == frozenset(uris)

    @functools.wraps(listener)
    def wrapper(event: ServerEvent) -> None:
        listener(event)

    assert subscribed_uris(wrapper) == frozenset(uris)


def test_uris_of_other_listeners_are_unknown() -> None:
    """Whatever is subscribed, nothing raises."""
    honored_uris = ["a"]

    def other(_: ServerEvent) -> None:
        assert honored_uris

    def circular(_: ServerEvent) -> None:
        """Wrap itself."""

    circular.__wrapped__ = circular  # type: ignore[attr-defined]
    received: list[ServerEvent] = []
    for listener in (received.append, print, other, circular, functools.partial(other), lambda _: None):
        assert subscribed_uris(listener) is None


async def test_repair_signals_each_listener_its_own_resources(recorder: Recorder) -> None:
    """A stream is not signalled the resources of others, unless its own are unknown."""
    first: list[ServerEvent] = []
    second: list[ServerEvent] = []
    unknown: list[ServerEvent] = []
    recorder.listeners.add(listening_to("b", "a", received=first))
    recorder.listeners.add(listening_to("c", received=second))
    recorder.listeners.add(unknown.append)
    recorder.listeners.repair(0)
    await until(lambda: len(unknown) == 6)
    assert first == [*LISTS, ResourceUpdated("a"), ResourceUpdated("b")]
    assert second == [*LISTS, ResourceUpdated("c")]
    assert unknown == [*LISTS, *(ResourceUpdated(uri) for uri in "abc")]
    assert recorder.listeners.unknown() == 1
    assert recorder.signals == [(SignalPath.REPAIR, 1)] * 15


async def test_repairs_that_are_due_are_one(recorder: Recorder) -> None:
    """A stream refetches once, however many gaps are found before its turn."""
    received: list[ServerEvent] = []
    recorder.listeners.add(received.append)
    for _ in range(5):
        recorder.listeners.repair(0.01)
    await until(lambda: received)
    recorder.listeners.repair_now()
    assert received == LISTS
    recorder.listeners.repair(0)
    await until(lambda: len(received) == 6)


async def test_repairs_are_spread(recorder: Recorder) -> None:
    """Streams are repaired at different times, so that their clients do not refetch at the same one."""
    times: list[float] = []
    loop = asyncio.get_running_loop()
    for _ in range(50):
        recorder.listeners.add(lambda event: times.append(loop.time()) if event == LISTS[0] else None)
    began = loop.time()
    recorder.listeners.repair(0.2)
    await until(lambda: len(times) == 50)
    assert max(times) - began >= 0.1
    assert len({round(at - began, 2) for at in times}) > 5


async def test_repair_of_a_stream_that_has_ended_is_dropped(recorder: Recorder) -> None:
    """Neither before nor during its repair does a stream keep anything alive."""
    received: list[ServerEvent] = []
    remove = recorder.listeners.add(received.append)
    recorder.listeners.repair(0)
    remove()
    many = [f"{number:04}" for number in range(600)]
    half: list[ServerEvent] = []
    stop = recorder.listeners.add(listening_to(*many, received=half))
    recorder.listeners.repair(0)
    await until(lambda: half)
    stop()
    assert received == []
    assert len(half) == 256
    await anyio.sleep(0.2)  # The next step would follow after a tenth of a second.
    assert len(half) == 256


async def test_repair_of_many_resources_does_not_overflow_the_stream(recorder: Recorder) -> None:
    """It comes in steps, each smaller than the buffer of a stream."""
    received = Steps()
    many = [f"{number:04}" for number in range(600)]
    recorder.listeners.add(listening_to(*many, received=received))
    recorder.listeners.repair(0)
    await until(lambda: len(received) == 603)
    assert received.sizes == [256, 256, 91]
    assert received == [*LISTS, *(ResourceUpdated(uri) for uri in many)]


@pytest.fixture
async def bus() -> AsyncIterator[RedisSubscriptionBus]:
    """A bus that does not run; its Redis does not exist."""
    async with connect("redis://127.0.0.1:1") as client:
        yield RedisSubscriptionBus(RedisEventStore(client, ttl=60).backend)


async def test_bus_outside_of_running_reports_it_once(bus: RedisSubscriptionBus) -> None:
    """It behaves as the SDK's in-memory bus."""
    facts: list[object] = []
    bus.observe(facts.append)
    received: list[ServerEvent] = []
    bus.subscribe(received.append)
    for _ in range(3):
        await bus.publish(ToolsListChanged())
    assert received == [ToolsListChanged()] * 3
    assert facts == [NotRunning(), *[Signalled(SignalPath.LOCAL, 1)] * 3]


async def test_bus_keeps_unsupported_events_to_this_worker(bus: RedisSubscriptionBus) -> None:
    """`publish` does not raise for an event that has no form in Redis."""
    facts: list[object] = []
    bus.observe(facts.append)
    received: list[object] = []
    async with bus.running():
        bus.subscribe(received.append)
        await bus.publish(["what"])  # type: ignore[arg-type]
    assert received[:1] == [["what"]]
    assert PublishFailed(PublishFailure.UNSUPPORTED, 1) in facts


async def test_bus_with_a_failing_observer_works(bus: RedisSubscriptionBus) -> None:
    """Telemetry never reaches the publisher."""

    def fail(_: object) -> None:
        raise RuntimeError

    bus.observe(fail)
    received: list[ServerEvent] = []
    async with bus.running():
        bus.subscribe(received.append)
        await bus.publish(ToolsListChanged())
    assert received[:1] == [ToolsListChanged()]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_pending": 0}, "max_pending must be between 1 and 1000000 changes, got 0"),
        ({"max_pending": "7"}, "max_pending must be a whole number of changes, got '7'"),
        ({"kept_batches": 0}, "kept_batches must be"),
        ({"repair_seconds": -1}, "repair_seconds must be between 0 and 300 seconds, got -1"),
        ({"repair_seconds": float("nan")}, "repair_seconds must be between 0 and 300 seconds, got nan"),
    ],
)
async def test_bus_refuses_options_out_of_range(bus: RedisSubscriptionBus, options: dict[str, Any], error: str) -> None:
    """The error names the option, the value, and the remedy."""
    with pytest.raises((TypeError, ValueError), match=error):
        RedisSubscriptionBus(bus._backend, **options)


def test_bus_refuses_a_client_in_place_of_the_backend() -> None:
    """The error names the expression that has the right type."""
    with pytest.raises(TypeError, match=r"backend must be a RedisBackend, got str; pass RedisEventStore\(client\)"):
        RedisSubscriptionBus("redis://localhost")  # type: ignore[arg-type]
