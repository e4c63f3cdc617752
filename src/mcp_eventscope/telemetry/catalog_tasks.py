"""Catalog: tasks, their runs and their polls."""

from mcp_eventscope.telemetry.declarations import LogEvent, Metric, Span

METRICS: tuple[Metric, ...] = ()

SPANS: tuple[Span, ...] = ()

LOG_EVENTS: tuple[LogEvent, ...] = ()
