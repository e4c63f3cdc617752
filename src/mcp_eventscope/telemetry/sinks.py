"""All sinks of one store: telemetry never raises, and whatever fails is counted by its sink."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec

from mcp_eventscope.store.messages import JSONRPCMessage, StreamId, kind_of
from mcp_eventscope.store.results import AppendResult
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.logs import Log, Logger, LogSink
from mcp_eventscope.telemetry.measurements import Measurement
from mcp_eventscope.telemetry.metrics import MetricsSink
from mcp_eventscope.telemetry.otel_metrics import MeterProvider, otel_sink
from mcp_eventscope.telemetry.prometheus import Registry, prometheus_sink
from mcp_eventscope.telemetry.tally import SpanIds
from mcp_eventscope.telemetry.tracing import Opened, Span, TracerProvider, Tracing

P = ParamSpec("P")
_NO_SPAN = (None, "")


class Sinks:
    """Where the signals of one store go. Arguments as in `InstrumentedEventStore`."""

    def __init__(
        self,
        name: str,
        registry: Registry | None,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        logger: Logger | None,
    ) -> None:
        self.tracing = Tracing(name, tracer_provider)
        meters: list[MetricsSink] = []
        if registry is not None:
            meters.append(prometheus_sink(name, registry, partial(self.failed, "metrics")))
        if meter_provider is not None:
            meters.append(otel_sink(name, meter_provider, partial(self.failed, "otel_metrics")))
        self.meters = tuple(meters)
        self.logs = LogSink(name, Log(logger))

    def started(self) -> tuple[Span | None, str]:
        """Start the span of a store that is not made current. Returns it, and what is kept of it with the event."""
        try:
            if self.tracing.unsampled():
                return _NO_SPAN
            span = self.tracing.start(catalog.STORE_SPAN)
            return span, "" if span is None else self.tracing.traceparent(span)
        except Exception as error:  # noqa: BLE001 - a sampler or processor of the application's
            self.failed("traces", error)
            return None, ""

    def stored(
        self,
        span: Span,
        session: str | None,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult,
    ) -> SpanIds | None:
        """End the span of an event that was stored. Returns its ids, for exemplars."""
        ids = self._ids(span)
        try:
            self.tracing.stored(
                span, session, stream_id, kind_of(message).value, appended.event_id, appended.payload_bytes
            )
        except Exception as error:  # noqa: BLE001 - a processor or exporter of the application's
            self.failed("traces", error)
        return ids

    def finish(self, span: Span | None, measured: Measurement, session: str | None) -> SpanIds | None:
        """End a span from `started` with whatever became of it. Returns its ids, for exemplars."""
        if span is None:
            return None
        ids = self._ids(span)
        self.safely("traces", self.tracing.finish, span, measured, session)
        return ids

    def begin(self, span: declarations.Span) -> Opened | None:
        """Start a span that is current until `end`."""
        try:
            return self.tracing.begin(span)
        except Exception as error:  # noqa: BLE001 - a sampler or processor of the application's
            self.failed("traces", error)
            return None

    def end(self, opened: Opened | None, measured: Measurement, session: str | None) -> SpanIds | None:
        """End a span. Returns its ids, for exemplars."""
        if opened is None:
            return None
        ids = self._ids(opened[0])
        self.safely("traces", self.tracing.end, opened, measured, session)
        return ids

    def _ids(self, span: Span) -> SpanIds | None:
        try:
            return self.tracing.ids(span)
        except Exception as error:  # noqa: BLE001 - a span of the application's provider
            self.failed("traces", error)
            return None

    def count(self, verb: Callable[Concatenate[MetricsSink, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have each of the metrics' sinks do something."""
        for meter in self.meters:
            try:
                verb(meter, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a registry or provider of the application's raises
                self.failed(meter.name, error)

    def safely(self, sink: str, tell: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have a sink do something."""
        try:
            tell(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever an exporter or logger of the application's raises
            self.failed(sink, error)

    def failed(self, sink: str, error: Exception) -> None:
        """Count and tell that a sink raised; if that raises too, there is nobody left to tell."""
        for meter in self.meters:
            with contextlib.suppress(Exception):
                meter.failed(sink)
        with contextlib.suppress(Exception):
            self.logs.failed(sink, error)
