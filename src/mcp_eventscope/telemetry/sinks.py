"""All sinks of one store. Telemetry never raises; failures are counted by sink."""

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from mcp_eventscope.options import check_text
from mcp_eventscope.store.messages import JSONRPCMessage, StreamId, type_of
from mcp_eventscope.store.results import AppendResult, BacklogStatus
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.logs import Log, Logger, LogSink
from mcp_eventscope.telemetry.measurements import Measurement
from mcp_eventscope.telemetry.metrics.instruments import Instruments
from mcp_eventscope.telemetry.metrics.observations import SpanIds
from mcp_eventscope.telemetry.metrics.otel import MeterProvider, check_meter_provider, otel_sink
from mcp_eventscope.telemetry.metrics.prometheus import Registry, check_registry, prometheus_sink
from mcp_eventscope.telemetry.metrics.store import MetricsSink
from mcp_eventscope.telemetry.tracing import Opened, Span, TracerProvider, Tracing, check_tracer_provider

P = ParamSpec("P")
F = TypeVar("F")
Fact_contra = TypeVar("Fact_contra", contravariant=True)
_NO_SPAN = (None, "")


class FactMetrics(Protocol[Fact_contra]):
    """The metrics of one part of the package, recorded from its facts."""

    def record(self, fact: Fact_contra) -> None:
        """Record a fact."""
        ...


class Sinks:
    """The sinks of one store. Arguments as in `InstrumentedEventStore`, which are checked here for each decorator.

    Raises:
        TypeError: An argument has another type.
        ValueError: `name` is empty.
    """

    def __init__(
        self,
        name: str,
        registry: Registry | None,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        logger: Logger | None,
    ) -> None:
        check_text("name", name, '"orders"', 'leave it out for "default"')
        if registry is not None:
            check_registry("registry", registry)
        if tracer_provider is not None:
            check_tracer_provider("tracer_provider", tracer_provider)
        if meter_provider is not None:
            check_meter_provider("meter_provider", meter_provider)
        self.tracing = Tracing(name, tracer_provider)
        meters: list[MetricsSink] = []
        if registry is not None:
            meters.append(prometheus_sink(name, registry, partial(self.failed, "metrics")))
        if meter_provider is not None:
            meters.append(otel_sink(name, meter_provider, partial(self.failed, "otel_metrics")))
        self.meters = tuple(meters)
        self.logs = LogSink(name, Log(logger))

    def configured(self, ttl: int | None, pending: Callable[[], BacklogStatus]) -> None:
        """Record the configuration of the store; see `MetricsSink`. It does not make this process a worker."""
        for meter in self.meters:
            self.safely(meter.name, meter.configured, ttl, pending)

    def start_span(self) -> tuple[Span | None, str]:
        """Start a store span without making it current. Returns it with the `traceparent` to keep with the event."""
        try:
            if self.tracing.in_unsampled_call():
                return _NO_SPAN
            span = self.tracing.start_span(catalog.store.STORE_SPAN)
            return span, "" if span is None else self.tracing.traceparent(span)
        except Exception as error:  # noqa: BLE001 - the sampler or processor of the application
            self.failed("traces", error)
            return None, ""

    def end_stored_span(
        self,
        span: Span,
        session: str | None,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult,
    ) -> SpanIds | None:
        """End the span of a stored event. Returns its ids, for exemplars."""
        ids = self._ids(span)
        try:
            self.tracing.end_stored_span(
                span, session, stream_id, type_of(message).value, appended.event_id, appended.payload_bytes
            )
        except Exception as error:  # noqa: BLE001 - a processor or exporter of the application's
            self.failed("traces", error)
        return ids

    def end_span(self, span: Span | None, measured: Measurement, session: str | None) -> SpanIds | None:
        """End a span from `start_span`. Returns its ids, for exemplars."""
        if span is None:
            return None
        ids = self._ids(span)
        self.safely("traces", self.tracing.end_span, span, measured, session)
        return ids

    def start_past_span(
        self, span: declarations.Span, began: int, parent: str, producers: Iterable[str]
    ) -> Span | None:
        """Start a span of an operation that has ended; see `Tracing`."""
        try:
            return self.tracing.start_past_span(span, began, parent, producers)
        except Exception as error:  # noqa: BLE001 - the sampler or processor of the application
            self.failed("traces", error)
            return None

    def within(self, span: Span | None) -> AbstractContextManager[object]:
        """Return a context manager that makes a span current, if there is one."""
        return contextlib.nullcontext() if span is None else self.tracing.within(span)

    def start_current_span(self, span: declarations.Span) -> Opened | None:
        """Start a span that is current until `end_current_span`."""
        try:
            return self.tracing.start_current_span(span)
        except Exception as error:  # noqa: BLE001 - the sampler or processor of the application
            self.failed("traces", error)
            return None

    def end_current_span(self, opened: Opened | None, measured: Measurement, session: str | None) -> SpanIds | None:
        """End a span from `start_current_span`. Returns its ids, for exemplars."""
        if opened is None:
            return None
        ids = self._ids(opened[0])
        self.safely("traces", self.tracing.end_current_span, opened, measured, session)
        return ids

    def _ids(self, span: Span) -> SpanIds | None:
        try:
            return self.tracing.ids(span)
        except Exception as error:  # noqa: BLE001 - a span of the application's provider
            self.failed("traces", error)
            return None

    def count(self, verb: Callable[Concatenate[MetricsSink, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a method of each metrics sink."""
        for meter in self.meters:
            try:
                meter.instruments.expose_worker()
                verb(meter, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the registry or provider of the application
                self.failed(meter.name, error)

    def recorder(
        self, metrics: Callable[[Instruments], FactMetrics[F]], log: Callable[[LogSink, F], None]
    ) -> Callable[[F], None]:
        """Create the function that records the facts of one part: its metrics in each metrics sink, and its log events.

        Args:
            metrics: Creates the metrics from the instruments of a sink. It binds every child, to expose zeros.
            log: Logs a fact, if it needs attention.

        Returns:
            Records a fact. It never raises.
        """
        bound = [(meter, metrics(meter.instruments)) for meter in self.meters]

        def record(fact: F) -> None:
            for meter, each in bound:
                self.safely(meter.name, meter.instruments.expose_worker)
                self.safely(meter.name, each.record, fact)
            self.safely("logs", log, self.logs, fact)

        return record

    def safely(self, sink: str, record: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a method of a sink."""
        try:
            record(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the exporter or logger of the application
            self.failed(sink, error)

    def failed(self, sink: str, error: Exception) -> None:
        """Count and log that a sink raised. Errors of that are suppressed."""
        for meter in self.meters:
            with contextlib.suppress(Exception):
                meter.failed(sink)
        with contextlib.suppress(Exception):
            self.logs.failed(sink, error)
