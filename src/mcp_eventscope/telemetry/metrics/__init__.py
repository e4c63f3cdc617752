"""Instruments for Prometheus and OpenTelemetry, and the updates of the metrics that `telemetry.catalog` declares."""
