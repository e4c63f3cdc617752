"""Instruments for Prometheus and OpenTelemetry, and the metrics of each part."""
