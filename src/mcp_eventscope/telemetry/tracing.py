"""Spans: the one module that imports the OpenTelemetry API. The SDK is the application's."""

import contextlib
import hashlib
from collections.abc import Mapping
from contextvars import Token
from importlib.metadata import version
from typing import TypeAlias
from weakref import ref

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
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

from mcp_eventscope.telemetry import declarations
from mcp_eventscope.telemetry.measurements import Measurement, ReplayMeasurement, StoreMeasurement
from mcp_eventscope.telemetry.tally import SpanIds

__all__ = ["Opened", "Span", "TracerProvider", "Tracing", "session_hash", "trace_ids"]

Opened: TypeAlias = tuple[Span, Token[Context]]
"""A span that was begun, and what undoes its being current."""

_REMEMBERED = 256
"""The most calls of which it is remembered that they are not sampled."""


class Tracing:
    """Makes the spans of one store.

    Args:
        store: The name of the store, an attribute of every span.
        provider: Whose spans; None is the global provider, whatever it is when a span begins.
    """

    def __init__(self, store: str, provider: TracerProvider | None) -> None:
        self._store = store
        self._tracer = trace.get_tracer("mcp_eventscope", version("mcp-eventscope"), tracer_provider=provider)
        self._never = isinstance(self._tracer, NoOpTracer)
        self._global = isinstance(self._tracer, ProxyTracer)
        """Whether the tracer is the global provider's, which the application may set at any time."""
        self._unsampled: dict[int, ref[Context]] = {}

    @property
    def off(self) -> bool:
        """Whether there is no span: the application has set no provider, or one that makes none."""
        if self._global:
            # The API's own way to the provider looks into the environment each time.
            return isinstance(getattr(self._tracer, "_tracer", None), NoOpTracer)
        return self._never

    def unsampled(self) -> bool:
        """Whether this is within a call that is not sampled, where no span is asked for, with `start`.

        Samplers that go by their parent, as OpenTelemetry's do unless they are told otherwise, would refuse it; another
        would make a trace of its own of every event.
        """
        current = context.get_current()
        # It cannot change: a context is immutable, and a span that is not sampled stays so.
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
        with contextlib.suppress(TypeError):  # Somebody may have attached a mapping of another type.
            self._unsampled[id(current)] = ref(current)
        return True

    def start(self, declared: declarations.Span) -> Span | None:
        """Start a span that is not made current: for an operation that does nothing in the context of its caller.

        Args:
            declared: Which span.

        Returns:
            A span that is recorded, for `finish`; None when there is none.
        """
        span = self._tracer.start_span(declared.name, kind=SpanKind.INTERNAL)
        return span if span.is_recording() else None

    @staticmethod
    def traceparent(span: Span) -> str:
        """Who a span is, in W3C's notation, to be kept with what it produces; "" where nobody could look it up.

        Args:
            span: Any span.
        """
        context = span.get_span_context()
        if not context.trace_flags.sampled:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @staticmethod
    def ids(span: Span) -> SpanIds | None:
        """The ids of a span, for exemplars; None where nobody could look it up. Asked before it ends."""
        context = span.get_span_context()
        return (context.trace_id, context.span_id) if span.is_recording() and context.trace_flags.sampled else None

    def finish(self, span: Span, measured: Measurement, session: str | None) -> None:
        """Write a measurement onto a span from `start`, and end it. Arguments as in `end`."""
        try:
            self._tell(span, measured, session)
        finally:
            span.end()

    def stored(  # noqa: PLR0913, PLR0917 - a measurement, without the cost of making one for what mostly happens
        self, span: Span, session: str | None, stream_id: str, kind: str, event_id: str, payload_bytes: int
    ) -> None:
        """An event was stored: write it onto its span, and end it. All at once, for each time takes a lock."""
        attributes: dict[str, AttributeValue] = {
            "eventscope.store": self._store,
            "eventscope.outcome": "ok",
            "eventscope.stream.id": stream_id,
            "eventscope.message.kind": kind,
            "eventscope.event.id": event_id,
            "eventscope.payload.bytes": payload_bytes,
        }
        if session is not None:
            attributes["eventscope.session.hash"] = session
        span.set_attributes(attributes)
        span.end()

    def begin(self, declared: declarations.Span) -> Opened | None:
        """Start a span and make it current, so that the client's own spans are its children.

        Args:
            declared: Which span.

        Returns:
            What `end` takes; None where the application has no tracing, and there is nothing to end.
        """
        span = self._tracer.start_span(declared.name, kind=SpanKind.INTERNAL)
        if not span.is_recording() and not span.get_span_context().is_valid:
            return None
        return span, context.attach(trace.set_span_in_context(span))

    def end(self, opened: Opened, measured: Measurement, session: str | None) -> None:
        """Write a measurement onto its span, and end it.

        Args:
            opened: From `begin`, in the same task.
            measured: What became of the operation.
            session: The session, as `session_hash` writes it.
        """
        span, token = opened
        try:
            self._tell(span, measured, session)
        finally:
            context.detach(token)
            span.end()

    def _tell(self, span: Span, measured: Measurement, session: str | None) -> None:
        if not span.is_recording():
            return
        span.set_attributes(
            {
                "eventscope.store": self._store,
                "eventscope.outcome": measured.outcome,
                **({} if measured.stream_id is None else {"eventscope.stream.id": measured.stream_id}),
                **({} if session is None else {"eventscope.session.hash": session}),
                **_details(measured),
            }
        )
        if isinstance(measured, ReplayMeasurement) and measured.facts is not None:
            for producer in measured.facts.producers:
                if (linked := _linked(producer)) is not None:
                    span.add_link(linked)
        if measured.error_type is not None:
            # The type only: a message may repeat what a client sent.
            span.set_attribute("error.type", type(measured.error).__qualname__)
            span.set_status(Status(StatusCode.ERROR))


def _linked(traceparent: str) -> SpanContext | None:
    """Whom a `traceparent` means, which has the right shape; None for nobody."""
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return context if context.is_valid else None


def _details(measured: Measurement) -> Mapping[str, AttributeValue]:
    """The attributes of one kind of operation."""
    if isinstance(measured, StoreMeasurement):
        details: dict[str, AttributeValue] = {"eventscope.message.kind": measured.kind.value}
        if measured.appended is not None:
            details["eventscope.event.id"] = measured.appended.event_id
            details["eventscope.payload.bytes"] = measured.appended.payload_bytes
        return details
    details = {}
    if isinstance(measured, ReplayMeasurement):
        details["eventscope.replay.events"] = measured.delivered
        if (facts := measured.facts) is not None:
            details["eventscope.replay.bytes"] = facts.payload_bytes
            details["eventscope.replay.missing"] = facts.missing
            details["eventscope.replay.corrupt"] = len(facts.corrupt)
            if facts.miss is not None:
                details["eventscope.replay.miss_reason"] = facts.miss.value
            if facts.age is not None:
                details["eventscope.replay.age"] = facts.age
    return details


def session_hash(session_id: str | None) -> str | None:
    """A session id for spans and logs: a short digest, for on a server without auth the id is a credential."""
    return None if session_id is None else hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()[:12]


def trace_ids() -> dict[str, str]:
    """The current trace and span ids in hexadecimal, for logs; empty outside of a trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
