"""Every fact about subscriptions, recorded once: for tests of all metrics."""

from typing import Any

from mcp.server.subscriptions import InMemorySubscriptionBus

from mcp_eventscope import InstrumentedSubscriptionBus
from mcp_eventscope.subscriptions.facts import (
    GapFound,
    GapReason,
    PendingChanged,
    Published,
    PublishFailed,
    PublishFailure,
    Signalled,
    SignalPath,
)


def subscription_story(**telemetry: Any) -> None:
    """Record each fact.

    Args:
        telemetry: Arguments of `InstrumentedSubscriptionBus`.
    """
    bus = InstrumentedSubscriptionBus(InMemorySubscriptionBus(), **telemetry)
    bus.subscribe(lambda _: None)
    for path in SignalPath:
        bus._record(Signalled(path, 2, 0.02 if path is SignalPath.REMOTE else None))
    for reason in GapReason:
        bus._record(GapFound(reason, 1))
    for failure in PublishFailure:
        bus._record(PublishFailed(failure, 3))
    bus._record(Published(4, 0.3))
    bus._record(PendingChanged(5))
