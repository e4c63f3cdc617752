"""Facts about tasks, their runs and their polls, for telemetry."""
