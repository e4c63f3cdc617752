"""Interfaces of instruments, implemented for Prometheus and for OpenTelemetry."""

from collections.abc import Callable
from typing import Protocol

from mcp_eventscope.telemetry import declarations
from mcp_eventscope.telemetry.metrics.observations import (
    ObservationBatch,
    ObservationBuffer,
    SampledObservation,
    SpanIds,
)


class Counter(Protocol):
    """A value that only rises."""

    def inc(self, amount: float = 1) -> None:
        """Increase the value."""
        ...


class Gauge(Protocol):
    """A value that rises and falls."""

    def set(self, value: float) -> None:
        """Set the value."""
        ...

    def inc(self, amount: float = 1) -> None:
        """Increase the value."""
        ...

    def dec(self, amount: float = 1) -> None:
        """Decrease the value."""
        ...


class OptionalGauge(Protocol):
    """A gauge that is absent while its value is unknown."""

    def set(self, value: float | None) -> None:
        """Set the value; None: unknown."""
        ...


class Histogram(Protocol):
    """Counts observations by size."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one observation, with an exemplar where supported."""
        ...

    def observe_all(self, amounts: list[float], recorded: list[SampledObservation]) -> None:
        """Count many observations, which may be sorted in place; `recorded` are those with a sampled span."""
        ...


class Instruments(Protocol):
    """The instruments of one store, built from the catalog. `values` are those of the labels after `store`."""

    def expose_worker(self) -> None:
        """Expose the gauges per worker: this process records, unlike one that only imports the application."""
        ...

    def buffer(
        self, purpose: str, write: Callable[[ObservationBatch], None], failed: Callable[[Exception], None]
    ) -> ObservationBuffer | None:
        """A buffer of observations; None where recording many together costs as much as one by one."""
        ...

    def counter(self, metric: declarations.Metric, *values: str) -> Counter:
        """A counter, initially 0."""
        ...

    def gauge(self, metric: declarations.Metric, *values: str) -> Gauge:
        """A gauge, initially 0."""
        ...

    def histogram(self, metric: declarations.Metric, *values: str) -> Histogram:
        """An empty histogram."""
        ...

    def optional_gauge(self, metric: declarations.Metric, *values: str) -> OptionalGauge:
        """A gauge that is absent until it is set."""
        ...


def exemplar_of(span: SpanIds) -> dict[str, str]:
    """The labels of an exemplar. OpenMetrics allows 128 characters; the span has the rest."""
    trace_id, span_id = span
    return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}"}
