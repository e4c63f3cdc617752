"""Spans, through the OpenTelemetry API. The application brings the SDK."""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from typing import TypeAlias
from weakref import ref

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    NoOpTracer,
    ProxyTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TracerProvider,
)
from opentelemetry.util.types import AttributeValue

from mcp_eventscope.options import check_type
from mcp_eventscope.sdk_versions import VERSION
from mcp_eventscope.telemetry import declarations
from mcp_eventscope.telemetry.measurements import (
    AnswerMeasurement,
    FollowMeasurement,
    Measurement,
    ReplayMeasurement,
    StoreMeasurement,
)
from mcp_eventscope.telemetry.metrics.observations import SpanIds

__all__ = ["Opened", "Span", "TracerProvider", "Tracing", "check_tracer_provider", "session_hash", "trace_ids"]

Opened: TypeAlias = tuple[Span, Token[Context]]
"""A current span, and the token that detaches it."""

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_REMEMBERED = 256
"""The number of contexts that are remembered as not sampled."""


def check_tracer_provider(option: str, provider: object) -> None:
    """Validate a tracer provider.

    Args:
        option: The name in the error.
        provider: The value.

    Raises:
        TypeError: It is not a `TracerProvider`: a `Tracer`, for example.
    """
    check_type(
        option,
        provider,
        TracerProvider,
        "an opentelemetry TracerProvider",
        "pass the provider whose get_tracer() makes tracers, or leave it out for the global one",
    )


class Tracing:
    """Creates the spans of one store.

    Args:
        store: The name of the store, an attribute of every span.
        provider: The tracer provider; None: the global one at the time a span starts.
    """

    def __init__(self, store: str, provider: TracerProvider | None) -> None:
        self._common: dict[str, AttributeValue] = {"eventscope.store": store}
        self._tracer = trace.get_tracer("mcp_eventscope", VERSION, tracer_provider=provider)
        self._never = isinstance(self._tracer, NoOpTracer)
        self._global = isinstance(self._tracer, ProxyTracer)
        """Whether the tracer belongs to the global provider, which the application can set at any time."""
        self._unsampled: dict[int, ref[Context]] = {}

    def name_worker(self, worker: str) -> None:
        """Name this process in every span, as in event ids and in the log.

        Args:
            worker: Its name among the workers of the store.
        """
        self._common["eventscope.worker"] = worker

    @property
    def off(self) -> bool:
        """Whether tracing is off: the application set no provider, or a no-op one."""
        if self._global:
            # The public way to the provider reads the environment each time.
            return isinstance(getattr(self._tracer, "_tracer", None), NoOpTracer)
        return self._never

    def in_unsampled_call(self) -> bool:
        """Whether the current call is not sampled, so that `start_span` is not worth its cost.

        Parent-based samplers, the default of OpenTelemetry, would drop the span; others would start a trace per event.
        """
        current = context.get_current()
        # This cannot change: contexts are immutable, and so is the sampling decision.
        known = self._unsampled.get(id(current))
        if known is not None and known() is current:
            return True
        parent = trace.get_current_span(current)
        if parent is INVALID_SPAN or parent.is_recording():
            return False
        names = parent.get_span_context()
        if not names.is_valid or names.trace_flags.sampled:
            return False
        if len(self._unsampled) >= _REMEMBERED:
            self._unsampled.clear()
        with contextlib.suppress(TypeError):  # The context may be a mapping without weak references.
            self._unsampled[id(current)] = ref(current)
        return True

    def start_span(self, declared: declarations.Span) -> Span | None:
        """Start a span without making it current: for operations that run outside of the caller's context.

        Args:
            declared: The span.

        Returns:
            A span that is recorded, for `finish`; None when there is none.
        """
        span = self._tracer.start_span(declared.name, kind=SpanKind.INTERNAL)
        return span if span.is_recording() else None

    def start_detached_span(self, declared: declarations.Span) -> Span | None:
        """Start a span in a trace of its own, linked to the current span: for work that outlives the current call.

        Args:
            declared: The span.

        Returns:
            A span that is recorded, for `end_with`; None when there is none.
        """
        call = trace.get_current_span().get_span_context()
        links = [Link(call)] if call.is_valid else []
        span = self._tracer.start_span(declared.name, context=Context(), kind=SpanKind.INTERNAL, links=links)
        return span if span.is_recording() else None

    def start_past_span(
        self, declared: declarations.Span, began: int, parent: str, producers: Iterable[str]
    ) -> Span | None:
        """Start a span of an operation that has ended: its result names the trace that it belongs to.

        Args:
            declared: The span.
            began: When the operation began, in nanoseconds since 1970.
            parent: The `traceparent` of its parent, to which the current span is linked: the HTTP request that asked
                for it. "": the current span is its parent.
            producers: The `traceparent` values to link to.

        Returns:
            A span for `within` and `end_span`; None if tracing is off.
        """
        if self.off:
            return None
        found = _linked(parent)
        links = [Link(linked) for producer in producers if (linked := _linked(producer)) is not None]
        within = context.get_current()
        if found is not None:
            current = trace.get_current_span().get_span_context()
            links[:0] = [Link(current)] if current.is_valid else []
            within = trace.set_span_in_context(NonRecordingSpan(found), within)
        span = self._tracer.start_span(
            declared.name, context=within, kind=SpanKind.INTERNAL, links=links, start_time=began
        )
        return span if span.is_recording() or span.get_span_context().is_valid else None

    @staticmethod
    def within(span: Span) -> AbstractContextManager[object]:
        """Return a context manager that makes a span current, without ending it."""
        return trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def end_with(self, span: Span, outcome: str, *, failed: bool = False, producer: str = "") -> None:
        """End a span with its outcome.

        Args:
            span: The span.
            outcome: A value of the catalog's label.
            failed: Whether the outcome is a failure of this server.
            producer: A `traceparent` to link to; "": none.
        """
        try:
            span.set_attributes({**self._common, "eventscope.outcome": outcome})
            if producer and (linked := _linked(producer)) is not None:
                span.add_link(linked)
            if failed:
                span.set_attribute("error.type", outcome)
                span.set_status(Status(StatusCode.ERROR))
        finally:
            span.end()

    @staticmethod
    def traceparent(span: Span) -> str:
        """A span as W3C `traceparent`, to be stored with its event; "" if the span is not sampled.

        Args:
            span: Any span.
        """
        context = span.get_span_context()
        if not context.trace_flags.sampled:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @staticmethod
    def ids(span: Span) -> SpanIds | None:
        """The ids of a span, for exemplars; None if it is not sampled. Call it before the span ends."""
        context = span.get_span_context()
        return (context.trace_id, context.span_id) if span.is_recording() and context.trace_flags.sampled else None

    def end_span(self, span: Span, measured: Measurement, session: str | None) -> None:
        """Set the attributes of a span from `start_span`, and end it. Arguments as in `end_current_span`."""
        try:
            self._set_attributes(span, measured, session)
        finally:
            span.end()

    def end_stored_span(  # noqa: PLR0913, PLR0917 - the most frequent case, without a measurement object
        self, span: Span, session: str | None, stream_id: str, message_type: str, event_id: str, payload_bytes: int
    ) -> None:
        """End the span of a stored event. Sets all attributes in one call, since each takes a lock."""
        attributes: dict[str, AttributeValue] = {
            **self._common,
            "eventscope.outcome": "ok",
            "eventscope.stream_id": stream_id,
            "eventscope.message_type": message_type,
            "eventscope.event_id": event_id,
            "eventscope.payload_bytes": payload_bytes,
        }
        if session is not None:
            attributes["eventscope.session_hash"] = session
        span.set_attributes(attributes)
        span.end()

    def start_current_span(self, declared: declarations.Span) -> Opened | None:
        """Start a span and make it current, so that spans of the Redis client are its children.

        Args:
            declared: The span.

        Returns:
            The argument of `end_current_span`; None if tracing is off.
        """
        span = self._tracer.start_span(declared.name, kind=SpanKind.INTERNAL)
        if not span.is_recording() and not span.get_span_context().is_valid:
            return None
        return span, context.attach(trace.set_span_in_context(span))

    def end_current_span(self, opened: Opened, measured: Measurement, session: str | None) -> None:
        """Set the attributes of a span, and end it.

        Args:
            opened: From `start_current_span`, in the same task.
            measured: The measurement of the operation.
            session: The session, as returned by `session_hash`.
        """
        span, token = opened
        try:
            self._set_attributes(span, measured, session)
        finally:
            context.detach(token)
            span.end()

    def _set_attributes(self, span: Span, measured: Measurement, session: str | None) -> None:
        if not span.is_recording():
            return
        span.set_attributes(
            {
                **self._common,
                "eventscope.outcome": measured.outcome,
                **({} if measured.stream_id is None else {"eventscope.stream_id": measured.stream_id}),
                **({} if session is None else {"eventscope.session_hash": session}),
                **_details(measured),
            }
        )
        if measured.error_type is not None:
            # As on the metric. The message of the error may repeat client input.
            span.set_attribute("error.type", measured.error_type)
            span.set_status(Status(StatusCode.ERROR))


def _linked(traceparent: str) -> SpanContext | None:
    """The span context of a `traceparent`; None if it is malformed, or its ids are zero."""
    if _TRACEPARENT.fullmatch(traceparent) is None:
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return context if context.is_valid else None


def _details(measured: Measurement) -> Mapping[str, AttributeValue]:
    """The attributes of one operation."""
    if isinstance(measured, StoreMeasurement):
        details: dict[str, AttributeValue] = {"eventscope.message_type": measured.message_type.value}
        if measured.appended is not None:
            details["eventscope.event_id"] = measured.appended.event_id
            details["eventscope.payload_bytes"] = measured.appended.payload_bytes
        return details
    if isinstance(measured, AnswerMeasurement):
        return {} if measured.reason is None else {"eventscope.reason": measured.reason}
    details = {}
    if isinstance(measured, ReplayMeasurement | FollowMeasurement):
        details["eventscope.events"] = measured.delivered
        if measured.facts is not None:
            details["eventscope.payload_bytes"] = measured.facts.payload_bytes
            details["eventscope.missing_events"] = measured.facts.missing
            details["eventscope.corrupt_events"] = len(measured.facts.corrupt)
        if measured.reason is not None:
            details["eventscope.reason"] = measured.reason
    if isinstance(measured, ReplayMeasurement) and measured.facts is not None and measured.facts.age is not None:
        details["eventscope.age_seconds"] = measured.facts.age
    return details


def session_hash(session_id: str | None) -> str | None:
    """A short digest of a session id, for spans and logs: without authentication the id is a credential."""
    return None if session_id is None else hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()[:12]


def trace_ids() -> dict[str, str]:
    """The current trace and span ids in hexadecimal, for logs; empty without a trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
