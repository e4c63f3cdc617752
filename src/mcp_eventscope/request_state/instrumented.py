"""The decorator that records request states and the answers to them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.request_state import RequestStateSecurity
from mcp_types.methods import INPUT_REQUIRED_METHODS

from mcp_eventscope.options import given
from mcp_eventscope.request_state import installation
from mcp_eventscope.request_state.adapter import PolicyRequestState
from mcp_eventscope.request_state.facts import (
    AnswerEnded,
    AnswerRepeated,
    AnswersLost,
    KeysChanged,
    KeySource,
    RequestStateFact,
    StateRefusal,
    StateRefused,
    WorkerLost,
)
from mcp_eventscope.request_state.protocol import RequestState
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.logs import Logger, LogSink
from mcp_eventscope.telemetry.measurements import AnswerMeasurement
from mcp_eventscope.telemetry.metrics.otel import MeterProvider
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.metrics.request_state import RequestStateMetrics
from mcp_eventscope.telemetry.sinks import Sinks
from mcp_eventscope.telemetry.tracing import TracerProvider

_FIXES: Mapping[StateRefusal, str] = {
    StateRefusal.MALFORMED: "none: a client has changed a state, or invented one",
    StateRefusal.UNKNOWN_KEY: "give all workers the same EVENTSCOPE_REQUEST_STATE_KEYS; to rotate, append the new "
    "secret on all workers before it becomes the first one",
    StateRefusal.EXPIRED: "raise ttl= of RedisRequestState if users need longer to answer",
    StateRefusal.BINDING: "none: a client has sent a state with another method, tool, or arguments",
    StateRefusal.AUDIENCE: "give all workers of a service the same name, and each service secrets of its own",
    StateRefusal.PRINCIPAL: "none if the client changed its credential; otherwise a client sends states of others",
    StateRefusal.OTHER_ANSWER: "none: a client has answered a question twice, in different ways",
    StateRefusal.IN_PROGRESS: "raise wait_timeout= of RedisRequestState if tools take longer after an answer",
    StateRefusal.UNAVAILABLE: "restore Redis: see event_store.degraded and /healthz for the reason",
    StateRefusal.NOT_RUNNING: "enter running() of the request state in the lifespan of the server",
}

_current: ContextVar["list[RequestStateFact] | None"] = ContextVar("eventscope_request_state_facts", default=None)
"""The facts of the current request, which its span shows."""


class InstrumentedRequestState:
    """Wraps a request state, and records metrics, spans and logs of its states and answers.

    It accepts a `RedisRequestState`, or any `RequestStateSecurity` of the SDK, whose refusals it counts by reason.
    A telemetry sink that fails is counted, and has no other effect.

    Args:
        state: The request state, or a policy of the SDK.
        name: The `store` label.
        registry: As in `InstrumentedEventStore`.
        tracer_provider: As in `InstrumentedEventStore`.
        meter_provider: As in `InstrumentedEventStore`.
        logger: As in `InstrumentedEventStore`.

    Raises:
        TypeError: An argument has another type.
        ValueError: `name` is empty, or the request state is already instrumented.
    """

    def __init__(  # noqa: PLR0913 - the destination of each signal
        self,
        state: RequestState | RequestStateSecurity,
        *,
        name: str = "default",
        registry: Registry | None = DEFAULT_REGISTRY,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger: Logger | None = None,
    ) -> None:
        if isinstance(state, InstrumentedRequestState):
            msg = "state must not be instrumented already, or everything would be counted twice; use it as it is"
            raise ValueError(msg)  # noqa: TRY004 - the type is right, its state is not
        if isinstance(state, RequestStateSecurity):
            state = PolicyRequestState(state)
        elif not isinstance(state, RequestState):
            msg = f"state must be a RedisRequestState, got {given(state)}; pass RedisRequestState(backend)"
            raise TypeError(msg)
        self._state: RequestState = state
        self._sinks = Sinks(name, registry, tracer_provider, meter_provider, logger)
        self._record = self._sinks.recorder(RequestStateMetrics, _log)
        state.observe(self._on_fact)

    @property
    def audience(self) -> str | None:
        """The name of the service; None: the name of the server."""
        return self._state.audience

    def install(self, server: object) -> None:
        """Protect the request states of a server; see `RedisRequestState.install`."""
        installation.install(self, server)

    def middleware(self, audience: str) -> ServerMiddleware[Any]:
        """Create the middleware; see `RequestState.middleware`."""
        return _TracedMiddleware(self._state.middleware(audience), self._sinks)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keep the keys current; see `RedisRequestState.running`."""
        return self._state.running()

    def observe(self, callback: Callable[[RequestStateFact], None]) -> None:
        """Register a callback for facts; see `RequestState.observe`."""
        self._state.observe(callback)

    def _on_fact(self, fact: RequestStateFact) -> None:
        self._record(fact)
        if (facts := _current.get()) is not None:
            facts.append(fact)


class _TracedMiddleware:
    """Opens a span for each request with an answer."""

    protects_request_state = True

    def __init__(self, inner: ServerMiddleware[Any], sinks: Sinks) -> None:
        self._wrapped = inner
        self._sinks = sinks

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        answers = ctx.params is not None and ctx.params.get("requestState") is not None
        if not answers or ctx.method not in INPUT_REQUIRED_METHODS:
            return await self._wrapped(ctx, call_next)
        opened = self._sinks.start_current_span(catalog.request_state.ANSWER_SPAN)
        if opened is None:
            return await self._wrapped(ctx, call_next)
        facts: list[RequestStateFact] = []
        token, began, error = _current.set(facts), perf_counter(), None
        try:
            return await self._wrapped(ctx, call_next)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _current.reset(token)
            outcome, reason = _outcome(facts)
            measured = AnswerMeasurement(perf_counter() - began, outcome, None, error, reason)
            self._sinks.end_current_span(opened, measured, None)


def _outcome(facts: list[RequestStateFact]) -> tuple[str, str | None]:
    """The outcome of a request with an answer, and the reason of a refusal."""
    for fact in reversed(facts):
        match fact:
            case StateRefused():
                return "refused", fact.reason.value
            case AnswerRepeated():
                return "repeated", None
            case AnswerEnded(seconds=float()):
                return fact.end.value, None
    return "completed", None


def _log(sink: LogSink, fact: RequestStateFact) -> None:
    match fact:
        case KeysChanged(source=KeySource.REDIS, rotated=True):
            sink.limited(catalog.request_state.KEY_ROTATED)
        case KeysChanged(source=KeySource.REDIS):
            sink.limited(
                catalog.request_state.KEYS_IN_REDIS,
                fix="set EVENTSCOPE_REQUEST_STATE_KEYS to a secret of at least 32 bytes, the same on all workers",
            )
        case KeysChanged(source=KeySource.PROCESS):
            sink.limited(
                catalog.request_state.KEYS_NOT_SHARED, fix="restore Redis, or set EVENTSCOPE_REQUEST_STATE_KEYS"
            )
        case StateRefused():
            sink.limited(catalog.request_state.STATE_REFUSED, reason=fact.reason.value, fix=_FIXES[fact.reason])
        case WorkerLost():
            sink.limited(
                catalog.request_state.ANSWER_WORKER_LOST,
                worker=fact.worker,
                fix="find the reason why the process ended; stop workers with SIGTERM, and let them finish",
            )
        case AnswersLost():
            sink.limited(
                catalog.request_state.ANSWERS_LOST,
                restored=fact.restored,
                fix="set appendonly yes, and use a failover that keeps acknowledged writes",
            )
