"""Catalog: open `subscriptions/listen` streams and the bus that signals them."""

from mcp_eventscope.telemetry.declarations import LogEvent, Metric, Span

METRICS: tuple[Metric, ...] = ()

SPANS: tuple[Span, ...] = ()

LOG_EVENTS: tuple[LogEvent, ...] = ()
