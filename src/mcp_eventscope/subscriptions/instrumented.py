"""The decorator that records the streams, signals and gaps of a bus."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from mcp.server.subscriptions import ServerEvent, SubscriptionBus

from mcp_eventscope.options import given
from mcp_eventscope.subscriptions.adapter import SubscriptionBusAdapter
from mcp_eventscope.subscriptions.facts import (
    GapFound,
    GapReason,
    NotRunning,
    PublishFailed,
    PublishFailure,
    StreamClosed,
    StreamOpened,
    SubscriptionFact,
)
from mcp_eventscope.subscriptions.protocol import Listener, ObservableSubscriptionBus
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.logs import Logger, LogSink
from mcp_eventscope.telemetry.metrics.otel import MeterProvider
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.metrics.subscriptions import SubscriptionMetrics
from mcp_eventscope.telemetry.sinks import Sinks
from mcp_eventscope.telemetry.tracing import TracerProvider

_GAP_FIXES: Mapping[GapReason, str] = {
    GapReason.LATE: "make Redis reachable before this worker starts",
    GapReason.LOST: "none if Redis was restarted or flushed on purpose; otherwise set appendonly yes",
    GapReason.ROLLED_BACK: "set appendonly yes, and use a failover that keeps acknowledged writes",
    GapReason.TRIMMED: "find out why this worker did not run or did not reach Redis; or raise kept_batches=",
    GapReason.DAMAGED: "keep other programs from writing under the key prefix",
    GapReason.OVERFLOW: "make Redis reachable, raise max_pending=, or publish list changes instead of many resources",
}
_FAILURE_FIXES: Mapping[PublishFailure, str] = {
    PublishFailure.UNREACHABLE: "make Redis reachable: the changes are sent when it is",
    PublishFailure.REFUSED: "see event_store.redis_limited; keep other programs from writing the key {prefix}changes",
    PublishFailure.OVERFLOW: _GAP_FIXES[GapReason.OVERFLOW],
    PublishFailure.SHUTDOWN: "stop workers only while Redis is reachable",
    PublishFailure.UNSUPPORTED: "publish the event types of mcp.server.subscriptions only",
}


def check_bus(option: str, bus: object) -> None:
    """Validate a bus.

    Args:
        option: The name in the error.
        bus: The value.

    Raises:
        TypeError: It lacks `publish` or `subscribe`, or is a class.
    """
    methods = (getattr(bus, name, None) for name in ("publish", "subscribe"))
    if isinstance(bus, type) or not all(callable(method) for method in methods):
        msg = (
            f"{option} must be an mcp.server.subscriptions.SubscriptionBus, got {given(bus)}; "
            "pass RedisSubscriptionBus(RedisEventStore(client).backend), for example"
        )
        raise TypeError(msg)


class InstrumentedSubscriptionBus:
    """Wraps a bus, and emits metrics and logs of its streams, signals and gaps.

    It accepts any `SubscriptionBus` of the SDK, and shows more of a `RedisSubscriptionBus`. A telemetry sink that fails
    is counted, and has no other effect. A publication makes no span, because it waits for nothing.

    Args:
        bus: The bus.
        name: The `store` label, as in `InstrumentedEventStore`.
        registry: The Prometheus registry; None: no Prometheus metrics.
        tracer_provider: As in `InstrumentedEventStore`. The bus itself makes no spans.
        meter_provider: The meter provider of OpenTelemetry metrics, in addition to `registry`; None: none.
        logger: The logger, as in `InstrumentedEventStore`.

    Raises:
        TypeError: `bus` is no bus, `logger` accepts no fields, or an argument has another type.
        ValueError: `bus` is already instrumented: everything would be counted twice; or `name` is empty.
    """

    def __init__(  # noqa: PLR0913 - the destination of each signal
        self,
        bus: SubscriptionBus,
        *,
        name: str = "default",
        registry: Registry | None = DEFAULT_REGISTRY,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger: Logger | None = None,
    ) -> None:
        check_bus("bus", bus)
        if isinstance(bus, InstrumentedSubscriptionBus):
            msg = "bus must not be instrumented already, or everything would be counted twice; use it as it is"
            raise ValueError(msg)  # noqa: TRY004 - the type is right, its state is not
        self._bus: ObservableSubscriptionBus = (
            bus if isinstance(bus, ObservableSubscriptionBus) else SubscriptionBusAdapter(bus)
        )
        sinks = Sinks(name, registry, tracer_provider, meter_provider, logger)
        self._record: Callable[[SubscriptionFact], None] = sinks.recorder(SubscriptionMetrics, _log)
        self._bus.observe(self._record)

    async def publish(self, event: ServerEvent) -> None:
        """Publish an event; see the bus."""
        await self._bus.publish(event)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Subscribe a stream, and count it until it unsubscribes; see the bus."""
        unsubscribe = self._bus.subscribe(listener)
        self._record(StreamOpened())
        subscribed = True

        def remove() -> None:
            nonlocal subscribed
            if subscribed:
                subscribed = False
                self._record(StreamClosed())
            unsubscribe()

        return remove

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run the bus within the block; see the bus. A third-party bus is run by its owner."""
        return self._bus.running()


def _log(logs: LogSink, fact: SubscriptionFact) -> None:
    """Log a fact that needs attention."""
    match fact:
        case GapFound():
            logs.limited(
                catalog.subscriptions.GAP_REPAIRED,
                reason=fact.reason.value,
                streams=fact.streams,
                unknown_streams=fact.unknown or None,
                fix=_GAP_FIXES[fact.reason],
            )
        case PublishFailed():
            logs.limited(
                catalog.subscriptions.PUBLISH_FAILED,
                reason=fact.reason.value,
                changes=fact.events,
                fix=_FAILURE_FIXES[fact.reason],
            )
        case NotRunning():
            logs.limited(
                catalog.subscriptions.NOT_RUNNING,
                fix="run the lifespan of http_app(), or enter bus.running() in the lifespan of the application",
            )
