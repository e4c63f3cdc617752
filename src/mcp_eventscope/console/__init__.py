"""The console: one read-only page about workers, sessions and Redis."""
