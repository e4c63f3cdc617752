"""Facts about sealed states and the answers to them, for telemetry."""
