"""What is counted with: the shapes of instruments, whoever's they are, and what an exemplar says."""

from collections.abc import Callable
from typing import Protocol

from mcp_eventscope.telemetry import declarations
from mcp_eventscope.telemetry.tally import Noted, Recorded, SpanIds, Tally


class Counter(Protocol):
    """Rises."""

    def inc(self, amount: float = 1) -> None:
        """Rise by so much."""
        ...


class Gauge(Protocol):
    """Rises and falls."""

    def set(self, value: float) -> None:
        """Be so much."""
        ...

    def inc(self, amount: float = 1) -> None:
        """Rise by so much."""
        ...

    def dec(self, amount: float = 1) -> None:
        """Fall by so much."""
        ...


class SampledGauge(Protocol):
    """A gauge that is there while this process knows its value."""

    def set(self, value: float | None) -> None:
        """Be so much; None: it is not known, or no longer here."""
        ...


class Histogram(Protocol):
    """Counts observations by their size."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one, and remember of which span, where that can be told."""
        ...

    def observe_all(self, amounts: list[float], recorded: list[Recorded]) -> None:
        """Count many, which may be sorted; `recorded` are those of which there is a span."""
        ...


class Instruments(Protocol):
    """The instruments of one store, made from the catalog. `values` are of the labels that follow the store's."""

    def tally(self, purpose: str, write: Callable[[Noted], None], failed: Callable[[Exception], None]) -> Tally | None:
        """What stored events are noted in; None where to count many at once costs as much as one by one."""
        ...

    def counter(self, metric: declarations.Metric, *values: str) -> Counter:
        """A counter, at 0."""
        ...

    def gauge(self, metric: declarations.Metric, *values: str) -> Gauge:
        """A gauge, at 0."""
        ...

    def histogram(self, metric: declarations.Metric, *values: str) -> Histogram:
        """A histogram, without observations."""
        ...

    def sampled(self, metric: declarations.Metric) -> SampledGauge:
        """A gauge that is not there yet."""
        ...


def exemplar_of(span: SpanIds) -> dict[str, str]:
    """What an exemplar says of a span: no more, for OpenMetrics allows 128 characters, and the rest is in the span."""
    trace_id, span_id = span
    return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}"}
