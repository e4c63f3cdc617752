"""A logger that records its events."""

from typing import Any


class Recorder:
    """Takes log events as structlog's loggers do."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def info(self, event: str, **fields: object) -> None:
        """Record an information."""
        self.entries.append({"event": event, "level": "info", **fields})

    def warning(self, event: str, **fields: object) -> None:
        """Record a warning."""
        self.entries.append({"event": event, "level": "warning", **fields})

    def error(self, event: str, **fields: object) -> None:
        """Record an error."""
        self.entries.append({"event": event, "level": "error", **fields})

    def named(self, event: str) -> list[dict[str, Any]]:
        """The entries of one event."""
        return [entry for entry in self.entries if entry["event"] == event]
