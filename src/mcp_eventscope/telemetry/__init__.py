"""Metrics, spans and log events: the catalog, and the sinks for Prometheus, OpenTelemetry and structlog."""
