"""Facts about streams, signals and gaps, for telemetry."""
