"""Catalog: sealed request states and the answers to them."""

from mcp_eventscope.telemetry.declarations import LogEvent, Metric, Span

METRICS: tuple[Metric, ...] = ()

SPANS: tuple[Span, ...] = ()

LOG_EVENTS: tuple[LogEvent, ...] = ()
