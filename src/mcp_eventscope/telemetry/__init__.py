"""What is measured (catalog), and where it goes: Prometheus, OpenTelemetry traces, structlog."""
