"""OpenTelemetry instruments, built from the catalog. The application brings the SDK.

Observations are not buffered, since the time of a collection is unknown.
"""

import threading
from collections.abc import Callable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider

from mcp_eventscope.options import check_type
from mcp_eventscope.sdk_versions import VERSION
from mcp_eventscope.telemetry import declarations
from mcp_eventscope.telemetry.metrics.observations import ObservationBatch, SampledObservation
from mcp_eventscope.telemetry.metrics.store import MetricsSink

__all__ = ["MeterProvider", "check_meter_provider", "otel_sink"]


def check_meter_provider(option: str, provider: object) -> None:
    """Validate a meter provider.

    Args:
        option: The name in the error.
        provider: The value.

    Raises:
        TypeError: It is not a `MeterProvider`: a `Meter`, for example.
    """
    check_type(
        option,
        provider,
        MeterProvider,
        "an opentelemetry MeterProvider",
        "pass the provider whose get_meter() makes meters, or leave it out for no OpenTelemetry metrics",
    )


def otel_sink(store: str, provider: MeterProvider, failed: Callable[[Exception], None]) -> MetricsSink:
    """Create a sink for OpenTelemetry, with the names and units of `declarations.Metric`.

    Args:
        store: The name of the store, an attribute of every metric.
        provider: The meter provider.
        failed: As in `MetricsSink`.
    """
    meter = metrics.get_meter("mcp_eventscope", VERSION, meter_provider=provider)
    return MetricsSink("otel_metrics", _Instruments(store, meter), failed)


class _Instruments:
    """The instruments of one store. Stores of one provider share them and differ in an attribute."""

    def __init__(self, store: str, meter: metrics.Meter) -> None:
        self._store = store
        self._meter = meter

    def expose_worker(self) -> None:
        """Nothing: each process exports its own metrics."""

    def buffer(
        self, purpose: str, write: Callable[[ObservationBatch], None], failed: Callable[[Exception], None]
    ) -> None:
        """None: the SDK cannot record several observations in one call."""

    def counter(self, metric: declarations.Metric, *values: str) -> "_Counter":
        made = self._meter.create_counter(metric.otel_name, metric.unit, metric.help)
        return _Counter(made, self._attributes(metric, values))

    def gauge(self, metric: declarations.Metric, *values: str) -> "_UpDownCounter | _Gauge":
        if metric.multiprocess_mode == "livesum":
            summed = self._meter.create_up_down_counter(metric.otel_name, metric.unit, metric.help)
            return _UpDownCounter(summed, self._attributes(metric, values))
        gauge = _Gauge(self._made(metric), self._attributes(metric, values))
        gauge.set(0)
        return gauge

    def histogram(self, metric: declarations.Metric, *values: str) -> "_Histogram":
        made = self._meter.create_histogram(
            metric.otel_name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=metric.buckets
        )
        return _Histogram(made, self._attributes(metric, values))

    def optional_gauge(self, metric: declarations.Metric, *values: str) -> "_OptionalGauge":
        return _OptionalGauge(self._made(metric), self._attributes(metric, values))

    def _made(self, metric: declarations.Metric) -> "metrics._Gauge":
        return self._meter.create_gauge(metric.otel_name, metric.unit, metric.help)

    def _attributes(self, metric: declarations.Metric, values: tuple[str, ...]) -> Mapping[str, str]:
        given = zip(metric.labels, metric.label_values(self._store, *values), strict=True)
        return {label.attribute: value for label, value in given if value or label.values is None}


class _Counter:
    """A counter, initially 0."""

    def __init__(self, counter: metrics.Counter, attributes: Mapping[str, str]) -> None:
        self._counter = counter
        self._attributes = attributes
        self.inc(0)

    def inc(self, amount: float = 1) -> None:
        self._counter.add(amount, self._attributes)


class _UpDownCounter:
    """A gauge that is summed over processes: an up-down counter in OpenTelemetry."""

    def __init__(self, counter: metrics.UpDownCounter, attributes: Mapping[str, str]) -> None:
        self._counter = counter
        self._attributes = attributes
        self._value = 0.0
        self._lock = threading.Lock()
        self.inc(0)

    def set(self, value: float) -> None:
        with self._lock:
            self._counter.add(value - self._value, self._attributes)
            self._value = value

    def inc(self, amount: float = 1) -> None:
        with self._lock:
            self._counter.add(amount, self._attributes)
            self._value += amount

    def dec(self, amount: float = 1) -> None:
        self.inc(-amount)


class _Gauge:
    """A gauge."""

    def __init__(self, gauge: "metrics._Gauge", attributes: Mapping[str, str]) -> None:
        self._gauge = gauge
        self._attributes = attributes
        self._value = 0.0

    def set(self, value: float) -> None:
        self._gauge.set(value, self._attributes)
        self._value = value

    def inc(self, amount: float = 1) -> None:
        self.set(self._value + amount)

    def dec(self, amount: float = 1) -> None:
        self.set(self._value - amount)


class _OptionalGauge:
    """A gauge that is absent until it is set. It cannot be removed again."""

    def __init__(self, gauge: "metrics._Gauge", attributes: Mapping[str, str]) -> None:
        self._gauge = gauge
        self._attributes = attributes

    def set(self, value: float | None) -> None:
        if value is not None:
            self._gauge.set(value, self._attributes)


class _Histogram:
    """A histogram. The SDK creates exemplars from the current span."""

    def __init__(self, histogram: metrics.Histogram, attributes: Mapping[str, str]) -> None:
        self._histogram = histogram
        self._attributes = attributes

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._histogram.record(amount, self._attributes)

    def observe_all(self, amounts: list[float], recorded: list[SampledObservation]) -> None:
        for amount in amounts:
            self._histogram.record(amount, self._attributes)
