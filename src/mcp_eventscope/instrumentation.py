"""The decorator that measures and traces every operation of a store."""

import copy
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from time import perf_counter, time, time_ns
from typing import Self

from mcp_eventscope.options import given
from mcp_eventscope.redis.self_test import Capabilities
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.sdk_versions import VERSION
from mcp_eventscope.store.adapter import EventStoreAdapter
from mcp_eventscope.store.coordination import Coordinator
from mcp_eventscope.store.events import BatchCommitted, BatchRetried, SessionSized, StoreEvent
from mcp_eventscope.store.messages import (
    GET_STREAM_KEY,
    EventCallback,
    EventId,
    EventStore,
    JSONRPCMessage,
    RequestId,
    StreamId,
    type_of,
    unwrapped,
    wrapping,
)
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowResult, ReplayResult, StoreOutcome
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.facts import ServingFact, Started
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.telemetry.measurements import (
    Counted,
    FollowMeasurement,
    RedisStatsMeasurement,
    ReplayMeasurement,
    StoreMeasurement,
    Timed,
    outcome_of,
    replay_outcome,
    store_outcome,
)
from mcp_eventscope.telemetry.metrics.observations import SampledObservation, SpanIds
from mcp_eventscope.telemetry.metrics.otel import MeterProvider
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.metrics.store import MetricsSink
from mcp_eventscope.telemetry.redis_self_test import in_background
from mcp_eventscope.telemetry.redis_stats import poll_redis_stats, poller_of
from mcp_eventscope.telemetry.sinks import Sinks
from mcp_eventscope.telemetry.tracing import Opened, Span, TracerProvider, session_hash

_origin: ContextVar[tuple[StreamId | None, str] | None] = ContextVar("_origin", default=None)
"""The stream that the current task has replayed, and the `traceparent` of its call."""


def check_store(option: str, store: object) -> None:
    """Validate an event store.

    Args:
        option: The name in the error.
        store: The value.

    Raises:
        TypeError: It is not an instance of the SDK's `EventStore`, and not an `ObservableEventStore`.
    """
    if isinstance(store, EventStore | ObservableEventStore) and not isinstance(store, type):
        return
    fix = "pass RedisEventStore(client, ttl=3600), for example"
    if isinstance(store, type):
        fix = "call it, and pass an instance"
    elif isinstance(store, str):
        fix = "pass the URL of Redis to http_app() as redis_url="
    elif type(store).__name__ == "EventScope":  # Of a higher layer.
        fix = "pass it to http_app() as scope="
    msg = f"{option} must be an mcp.server.streamable_http.EventStore, got {given(store)}; {fix}"
    raise TypeError(msg)


class InstrumentedEventStore(EventStore):
    """Wraps an event store, and emits spans, metrics and logs of its operations.

    It accepts any SDK `EventStore`, and shows more of an `ObservableEventStore` such as `RedisEventStore`. Results and
    exceptions of the store are passed on unchanged. A telemetry sink that fails is counted, and has no other effect.

    Args:
        store: The store.
        name: The `store` label, which distinguishes several stores on one registry.
        registry: The Prometheus registry; None: no Prometheus metrics.
        tracer_provider: The tracer provider; None: the global one (no spans until the application sets one).
        meter_provider: The meter provider of OpenTelemetry metrics, in addition to `registry`; None: none.
        logger: The logger; None: structlog, if the application has configured it, else the standard library's logger
            `mcp_eventscope`.

    Raises:
        TypeError: `store` is not an event store, `logger` accepts no fields, or an argument has another type.
        ValueError: `store` is already instrumented: everything would be counted twice; or `name` is empty.
    """

    def __init__(  # noqa: PLR0913 - the destination of each signal
        self,
        store: EventStore,
        *,
        name: str = "default",
        registry: Registry | None = DEFAULT_REGISTRY,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger: Logger | None = None,
    ) -> None:
        check_store("store", store)
        if isinstance(store, InstrumentedEventStore):
            msg = "store must not be instrumented already, or everything would be counted twice; use it as it is"
            raise ValueError(msg)  # noqa: TRY004 - the type is right, its state is not
        self._store: ObservableEventStore = (
            store if isinstance(store, ObservableEventStore) else EventStoreAdapter(store)
        )
        self._sinks = Sinks(name, registry, tracer_provider, meter_provider, logger)
        if isinstance(store, RedisEventStore):
            self._sinks.tracing.name_worker(store.worker)
        self._registry = registry
        self._session: str | None = None
        # A third-party store may isolate sessions and expire events in its own way.
        observable = isinstance(store, ObservableEventStore)
        self._warn_not_isolated = observable
        # An observable store does its I/O in a shared task: a caller's span has no children, and need not be current.
        self._current = not observable
        self._recorded: list[SampledObservation] = []
        """Acknowledged events with recorded spans, for the exemplars of their commit."""
        decorated = self._store
        self._sinks.configured(self.ttl, lambda: decorated.backlog)
        self._store.observe(self._on_event)
        self._sinks.safely("logs", self._sinks.logs.configured, ttl_missing=observable and self.ttl is None)

    @property
    def ttl(self) -> int | None:
        """Seconds that an event is kept; None: no expiry, or unknown."""
        return self._store.ttl

    @property
    def registry(self) -> Registry | None:
        """The Prometheus registry; None: no Prometheus metrics."""
        return self._registry

    @property
    def shared(self) -> bool:
        """Whether events of any process wake followers; see the store."""
        return self._store.shared

    @property
    def coordinator(self) -> Coordinator | None:
        """Leases, session records and messages between workers; see the store."""
        return self._store.coordinator

    @property
    def address(self) -> str:
        """Readable location of the store, without credentials."""
        return self._store.address

    def for_session(self, session_id: str) -> Self:
        """Return the store of one session, with the same instrumentation."""
        part = copy.copy(self)
        part._store = self._store.for_session(session_id)
        part._session = session_hash(session_id)
        part._warn_not_isolated = False
        return part

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Open the stream of a request; see the store."""
        self._store.begin(stream_id, request_id)

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Register callbacks for ends on other workers; see the store."""
        self._store.bind(ended=ended, fenced=fenced)

    def followed(self, stream_id: StreamId) -> None:
        """Store the events of a request without lingering; see the store."""
        self._store.followed(stream_id)

    def close(self) -> None:
        """Release the session in this process; see the store."""
        self._store.close()

    def lag(self, event_id: EventId) -> float | None:
        """Seconds since another process accepted an event; see the store."""
        return self._store.lag(event_id)

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether a replay can succeed; see the store."""
        return self._store.readable(stream_id, after)

    async def open_standalone(self) -> EventId:
        """Return a cursor on the standalone stream; see the store."""
        return await self._store.open_standalone()

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Answer a request that this process no longer runs; see the store."""
        await self._store.give_up(stream_id, request_id)
        self._sinks.count(MetricsSink.orphaned)

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Register a callback for background events; see the store."""
        self._store.observe(callback)

    @property
    def backlog(self) -> BacklogStatus:
        """The deferred events; see the store."""
        return self._store.backlog

    async def flush(self, seconds: float) -> int:
        """Store the pending events; see the store."""
        lost = await self._store.flush(seconds)
        self._sinks.count(MetricsSink.flush)
        return lost

    async def probe(self) -> None:
        """Write to the store without a measurement; see the store. Its exceptions are passed on."""
        await self._store.probe()

    def poll_redis_stats(self, every: float) -> AbstractAsyncContextManager[None]:
        """Poll statistics of the store's Redis in the background: keys, memory, keys without TTL.

        A poll is bounded and measured. One of the processes that share a prefix polls for all.

        Args:
            every: Seconds between polls.

        Returns:
            A context manager that polls until it is left.

        Raises:
            TypeError: `every` is not a number.
            ValueError: `every` is out of range, or the store is not a `RedisEventStore`.
        """
        return poll_redis_stats(poller_of(self._store, every), every, self._polled)

    def inspected(self, option: str) -> RedisEventStore:
        """The store itself, for an option that shows facts about its Redis and measures nothing.

        Args:
            option: The option, for the error.

        Raises:
            ValueError: It is not a `RedisEventStore`.
        """
        if not isinstance(self._store, RedisEventStore):
            msg = f"{option} needs a RedisEventStore, got a third-party store; omit {option}"
            raise ValueError(msg)  # noqa: TRY004 - stores of any type can be decorated, but not inspected
        return self._store

    def test_redis(self) -> AbstractAsyncContextManager[None]:
        """Test in the background, once, what the store's Redis allows, and record the result.

        An unreachable Redis is no error: the test is repeated later. Third-party stores are not tested.

        Returns:
            A context manager that cancels an unfinished test when it is left.
        """
        if not isinstance(self._store, RedisEventStore):
            return nullcontext()
        return in_background(self._store.self_test(), self._tested, partial(self._sinks.failed, "metrics"))

    def _tested(self, found: Capabilities) -> None:
        self._sinks.count(MetricsSink.tested, found)
        self._sinks.safely("logs", self._sinks.logs.tested, found)

    def started(self, log: Log) -> None:
        """Log that an application has started with this store.

        Args:
            log: The log of the application.
        """
        store, package = self._store, VERSION
        if isinstance(store, RedisEventStore):
            fact = Started(package, store.kind, store.address, store.ttl, store.key_prefix, store.worker)
        else:
            fact = Started(package, "third-party store", store.address, store.ttl)
        self.record(fact, log)

    def record(self, fact: ServingFact, log: Log | None = None) -> None:
        """Count and log a fact about sessions and requests. It never raises.

        Args:
            fact: The fact.
            log: The log; None: the log of the store.
        """
        self._sinks.count(MetricsSink.served, fact)
        self._sinks.safely("logs", self._sinks.logs.serving, fact, log)

    def log_failed(self, error: Exception) -> None:
        """Count a failure of another log, which has no counter."""
        self._sinks.failed("logs", error)

    def _polled(self, measured: RedisStatsMeasurement) -> None:
        self._sinks.count(MetricsSink.polled, measured)
        self._sinks.safely("logs", self._sinks.logs.polled, measured, self.ttl)

    # -- the SDK's interface ------------------------------------------------------------------------------------------

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event; see the store. A root store logs `event_store.sessions_not_isolated`, once."""
        if self._warn_not_isolated:
            self._check_isolated()
        return (await self.append(stream_id, unwrapped(message))).event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send the events after an event; see the store. A root store warns as in `store_event`."""
        self._check_isolated()
        facts = await self.replay(last_event_id, wrapping(send_callback))
        return facts.stream_id if facts.miss is None else None

    # -- the same, with results ---------------------------------------------------------------------------------------

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event, in a span, and measure it. Arguments, result and errors are those of the store.

        A recorded span replaces `traceparent`, and is stored with the event, so that a replay can link to it.
        """
        # Runs for each event of each session, so the success path allocates only what it needs.
        sinks = self._sinks
        span, opened = None, None
        if self._current:
            opened = sinks.start_current_span(catalog.store.STORE_SPAN)
        elif not sinks.tracing.off:
            span, own = sinks.start_span()
            traceparent = own or traceparent
        started = perf_counter()
        try:
            appended = await self._store.append(stream_id, message, traceparent)
        except BaseException as error:
            self._appended(perf_counter() - started, stream_id, message, None, error, span, opened)
            raise
        seconds = perf_counter() - started
        if appended.pending is not None and not appended.refused:
            self._accepted(seconds, stream_id, message, appended, span)
            return appended
        if opened is not None or not appended.event_id:
            self._appended(seconds, stream_id, message, appended, None, span, opened)
            return appended
        ids = None if span is None else sinks.end_stored_span(span, self._session, stream_id, message, appended)
        for meter in sinks.meters:
            try:
                meter.stored(seconds, type(message), appended.payload_bytes, ids)
            except Exception as error:  # noqa: BLE001 - whatever a provider of the application's raises
                sinks.failed(meter.name, error)
        return appended

    def _accepted(
        self,
        seconds: float,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult,
        span: Span | None,
    ) -> None:
        """Measure the wait for an event that is stored in the background."""
        if span is not None and appended.pending is not None:
            began = perf_counter()
            appended.pending.add_done_callback(
                lambda outcome: self._acknowledged(outcome, perf_counter() - began, stream_id, message, appended, span)
            )
        for meter in self._sinks.meters:
            try:
                meter.accepted(seconds, type(message), appended.payload_bytes)
            except Exception as error:  # noqa: BLE001 - whatever a provider of the application's raises
                self._sinks.failed(meter.name, error)

    def _acknowledged(  # noqa: PLR0913, PLR0917 - the fields of the measurement
        self,
        outcome: StoreOutcome,
        seconds: float,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult,
        span: Span,
    ) -> None:
        """End the span of a background event, which lasts until the acknowledgement."""
        if outcome is StoreOutcome.STORED:
            ids = self._sinks.end_stored_span(span, self._session, stream_id, message, appended)
            if ids is not None:
                self._recorded.append((seconds, ids, time()))
            return
        measured = StoreMeasurement(seconds, outcome.value, stream_id, None, type_of(message), appended)
        self._sinks.end_span(span, measured, self._session)

    def _appended(  # noqa: PLR0913, PLR0917 - the fields of the measurement
        self,
        seconds: float,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult | None,
        error: BaseException | None,
        span: Span | None,
        opened: Opened | None,
    ) -> None:
        """Record an append with a current span, or one that was deferred, refused or failed."""
        measured = StoreMeasurement(
            seconds,
            outcome_of(error) if appended is None else store_outcome(appended),
            stream_id,
            error,
            type_of(message),
            appended,
        )
        ids = self._sinks.end_current_span(opened, measured, self._session) or self._sinks.end_span(
            span, measured, self._session
        )
        self._sinks.count(MetricsSink.appended, measured, ids)
        if measured.outcome == "deferred":
            self._sinks.count(MetricsSink.waiting, self._store.backlog)
        self._sinks.safely("logs", self._sinks.logs.stored, measured, self._session)

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver the events after an event, in a span, and measure it. Arguments and errors are those of the store."""
        facts: ReplayResult | None = None
        error: BaseException | None = None
        timed = Timed(send)
        began, started = time_ns(), perf_counter()
        try:
            facts = await self._store.replay(last_event_id, timed, stream_id=stream_id)
        except BaseException as raised:
            error = raised
            raise
        finally:
            measured = ReplayMeasurement(
                perf_counter() - started,
                replay_outcome(facts, error),
                stream_id if facts is None else facts.stream_id,
                error,
                timed.delivered,
                facts,
                self.ttl,
                timed.first,
                timed.seconds,
            )
            ids = self._read(catalog.store.REPLAY_SPAN, "replay", began, measured)
            self._sinks.count(MetricsSink.replayed, measured, ids)
        return facts

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver the events stored from now on, in a span, and measure it. Arguments and errors are the store's."""
        facts: FollowResult | None = None
        error: BaseException | None = None
        counted = Counted(send, self._store.lag, partial(self._sinks.count, MetricsSink.followed_event))
        began, started = time_ns(), perf_counter()
        self._sinks.count(MetricsSink.following)
        try:
            facts = await self._store.follow(stream_id, after, counted, limit=limit)
        except BaseException as raised:
            error = raised
            raise
        finally:
            measured = FollowMeasurement(
                perf_counter() - started,
                outcome_of(error) if facts is None else facts.end.value,
                stream_id,
                error,
                counted.delivered,
                facts,
            )
            self._sinks.count(MetricsSink.followed, measured)
            self._read(catalog.store.FOLLOW_SPAN, "follow", began, measured)
        return facts

    def _read(
        self, declared: declarations.Span, operation: str, began: int, measured: ReplayMeasurement | FollowMeasurement
    ) -> SpanIds | None:
        """Record the span of a replay or follow, and log it within. Returns the ids of the span, for exemplars.

        The span is made at its end, because the delivered events name the trace that it belongs to: that of the call,
        however often its stream is cut and on whichever workers it is resumed.
        """
        facts, stream = measured.facts, measured.stream_id
        origin = "" if facts is None or stream == GET_STREAM_KEY else next(iter(facts.producers), facts.origin)
        if origin:
            _origin.set((stream, origin))
        elif (known := _origin.get()) is not None and known[0] == stream:
            origin = known[1]  # A follow that is cut has no result, but succeeds a replay.
        producers = () if facts is None else facts.producers
        span = self._sinks.start_past_span(declared, began, origin, producers)
        with self._sinks.within(span):
            self._sinks.safely("logs", self._sinks.logs.read, operation, measured, self._session)
        return self._sinks.end_span(span, measured, self._session)

    def _on_event(self, fact: StoreEvent) -> None:
        """Record a background event of the store."""
        if isinstance(fact, SessionSized):
            self._sinks.count(MetricsSink.record, fact)
            return
        if isinstance(fact, BatchCommitted):
            recorded = self._recorded[:]
            self._recorded.clear()
            self._sinks.count(MetricsSink.committed, fact, recorded)
        else:
            self._sinks.count(MetricsSink.record, fact)
        if not isinstance(fact, BatchCommitted) or fact.deferred or fact.latencies:
            self._sinks.count(MetricsSink.waiting, self._store.backlog)
        if not isinstance(fact, BatchCommitted | BatchRetried):
            self._sinks.safely("logs", self._sinks.logs.record, fact, self._store.backlog)

    def _check_isolated(self) -> None:
        if self._warn_not_isolated:
            self._warn_not_isolated = False
            self._sinks.safely("logs", self._sinks.logs.sessions_not_isolated)


def instrument(  # noqa: PLR0913 - the constructor's arguments
    store: EventStore,
    *,
    name: str = "default",
    registry: Registry | None = DEFAULT_REGISTRY,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger: Logger | None = None,
) -> InstrumentedEventStore:
    """Instrument a store, unless it is already instrumented."""
    if isinstance(store, InstrumentedEventStore):
        return store
    return InstrumentedEventStore(
        store,
        name=name,
        registry=registry,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        logger=logger,
    )
