"""Updates the metrics of `subscriptions/listen` streams and their bus."""

from mcp_eventscope.subscriptions.facts import (
    GapFound,
    GapReason,
    PendingChanged,
    Published,
    PublishFailed,
    PublishFailure,
    Signalled,
    SignalPath,
    StreamClosed,
    StreamOpened,
    SubscriptionFact,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.metrics.instruments import Instruments


class SubscriptionMetrics:
    """Records facts about subscriptions. Every child is bound once, so that zeros are exposed.

    Args:
        instruments: The instruments of one bus.
    """

    def __init__(self, instruments: Instruments) -> None:
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        self._open = gauge(catalog.subscriptions.STREAMS_OPEN)
        self._signals = {path: counter(catalog.subscriptions.SIGNALS_DELIVERED, path.value) for path in SignalPath}
        self._lag = histogram(catalog.subscriptions.SIGNAL_LAG)
        self._gaps = {reason: counter(catalog.subscriptions.GAPS, reason.value) for reason in GapReason}
        self._published = counter(catalog.subscriptions.CHANGES_PUBLISHED)
        self._publish_seconds = histogram(catalog.subscriptions.PUBLISH_DURATION)
        self._pending = gauge(catalog.subscriptions.CHANGES_PENDING)
        self._failures = {v: counter(catalog.subscriptions.PUBLISH_FAILURES, v.value) for v in PublishFailure}

    def record(self, fact: SubscriptionFact) -> None:
        """Record a fact."""
        match fact:
            case Signalled():
                self._signals[fact.path].inc(fact.streams)
                if fact.lag is not None:
                    self._lag.observe(fact.lag)
            case PendingChanged():
                self._pending.set(fact.events)
            case Published():
                self._published.inc(fact.events)
                self._publish_seconds.observe(fact.seconds)
            case StreamOpened():
                self._open.inc()
            case StreamClosed():
                self._open.dec()
            case GapFound():
                self._gaps[fact.reason].inc()
            case PublishFailed():
                self._failures[fact.reason].inc(1 if fact.reason.repeated else fact.events)
