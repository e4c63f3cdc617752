"""The decorator: the same store, and every operation on it timed, named and told."""

import copy
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from time import perf_counter, time
from typing import Self

from mcp_eventscope.store.adapter import EventStoreAdapter
from mcp_eventscope.store.coordination import Coordinator
from mcp_eventscope.store.events import BatchCommitted, BatchRetried, StoreEvent
from mcp_eventscope.store.messages import (
    EventCallback,
    EventId,
    EventStore,
    JSONRPCMessage,
    RequestId,
    StreamId,
    kind_of,
)
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowResult, ReplayResult, StoreOutcome
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.facts import ServingFact
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
from mcp_eventscope.telemetry.metrics import MetricsSink
from mcp_eventscope.telemetry.observations import SampledObservation
from mcp_eventscope.telemetry.otel_metrics import MeterProvider
from mcp_eventscope.telemetry.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.redis_stats import poll_redis_stats, poller_of
from mcp_eventscope.telemetry.sinks import Sinks
from mcp_eventscope.telemetry.tracing import Opened, Span, TracerProvider, session_hash


class InstrumentedEventStore(EventStore):
    """An event store, and spans, metrics and logs of everything that it does.

    It wraps any SDK `EventStore`; with one that returns facts, such as `RedisEventStore`, it shows more. What the
    store returns and raises is passed on as it is, and a sink that fails changes nothing but its own counter.

    Args:
        store: The store.
        name: The `store` label, to tell several stores on one registry apart.
        registry: Where the metrics go; None: nowhere.
        tracer_provider: Where the spans go; None: the global provider (nowhere, until the application sets one).
        meter_provider: Where the metrics go as OpenTelemetry's, too, or instead with `registry=None`; None: nowhere.
        logger: Where the log events go; None: structlog, as the application configured it, else the standard
            library's logger `mcp_eventscope`.

    Raises:
        TypeError: `store` is no event store, or `logger` takes no fields.
        ValueError: `store` is instrumented already: everything would be counted twice.
    """

    def __init__(  # noqa: PLR0913 - where each signal goes
        self,
        store: EventStore,
        *,
        name: str = "default",
        registry: Registry | None = DEFAULT_REGISTRY,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger: Logger | None = None,
    ) -> None:
        if isinstance(store, type):
            msg = f"an event store must be an instance, and this is the class {store.__name__}: call it"
            raise TypeError(msg)
        if isinstance(store, InstrumentedEventStore):
            msg = "this store is instrumented already; a second InstrumentedEventStore would count everything twice"
            raise ValueError(msg)  # noqa: TRY004 - the type is right, its state is not
        self._store: ObservableEventStore = (
            store if isinstance(store, ObservableEventStore) else EventStoreAdapter(store)
        )
        self._sinks = Sinks(name, registry, tracer_provider, meter_provider, logger)
        self._registry = registry
        self._session: str | None = None
        # A third-party store may be scoped, and may expire its events, in ways that cannot be seen from here.
        ours = isinstance(store, ObservableEventStore)
        self._warn_not_isolated = ours
        # Ours does its I/O in a task for many callers: the span of one has no children, and need not be current.
        self._current = not ours
        self._recorded: list[SampledObservation] = []
        """Of acknowledged events whose spans are recorded: for the exemplars of the commit that they are in."""
        decorated = self._store
        self._sinks.count(MetricsSink.configured, self.ttl, lambda: decorated.backlog)
        self._store.observe(self._on_event)
        self._sinks.safely("logs", self._sinks.logs.configured, ttl_missing=ours and self.ttl is None)

    @property
    def ttl(self) -> int | None:
        """Seconds that an event is kept; None: for ever, or the store does not say."""
        return self._store.ttl

    @property
    def registry(self) -> Registry | None:
        """Where the metrics go; None: nowhere."""
        return self._registry

    @property
    def shared(self) -> bool:
        """Whether a follower is woken whichever process stores; see the store."""
        return self._store.shared

    @property
    def coordinator(self) -> Coordinator | None:
        """Leases, session records and messages between workers; see the store."""
        return self._store.coordinator

    @property
    def address(self) -> str:
        """Where the store is, for people: never with a credential."""
        return self._store.address

    def for_session(self, session_id: str) -> Self:
        """The part of the store that is one session's, instrumented alike."""
        part = copy.copy(self)
        part._store = self._store.for_session(session_id)
        part._session = session_hash(session_id)
        part._warn_not_isolated = False
        return part

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Open the stream of a request; see the store."""
        self._store.begin(stream_id, request_id)

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Call back when something ended elsewhere; see the store."""
        self._store.bind(ended=ended, fenced=fenced)

    def followed(self, stream_id: StreamId) -> None:
        """Store the events of a request without a pause; see the store."""
        self._store.followed(stream_id)

    def close(self) -> None:
        """Keep nothing of the session in this process; see the store."""
        self._store.close()

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether a replay is worth a try; see the store."""
        return self._store.readable(stream_id, after)

    async def open_standalone(self) -> EventId:
        """A cursor on the standalone stream; see the store."""
        return await self._store.open_standalone()

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Answer a request that this process ran, and runs no longer; see the store."""
        await self._store.give_up(stream_id, request_id)
        self._sinks.count(MetricsSink.orphaned)

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Have what no caller is told called back with; see the store."""
        self._store.observe(callback)

    @property
    def backlog(self) -> BacklogStatus:
        """What is deferred now; see the store."""
        return self._store.backlog

    async def flush(self, seconds: float) -> int:
        """Store what waits; see the store."""
        lost = await self._store.flush(seconds)
        self._sinks.count(MetricsSink.flush)
        return lost

    async def ping(self) -> None:
        """Return when the store answers. Raises what the store raises; it is not measured."""
        await self._store.ping()

    def poll_redis_stats(self, every: float) -> AbstractAsyncContextManager[None]:
        """Poll statistics of the store's Redis in the background: keys, memory, keys without TTL.

        A poll is bounded and measured. One of the processes that share a prefix polls for all.

        Args:
            every: Seconds between polls.

        Returns:
            What is entered to begin, and left to end.

        Raises:
            TypeError: `every` is no number.
            ValueError: `every` is not positive; or the store is no `RedisEventStore`, or on a cluster.
        """
        return poll_redis_stats(poller_of(self._store, every), every, self._polled)

    def record(self, fact: ServingFact, log: Log | None = None) -> None:
        """Count and log what arises in serving the store. It never raises.

        Args:
            fact: What it is.
            log: Where its log event goes; None: where the store's go.
        """
        self._sinks.count(MetricsSink.served, fact)
        self._sinks.safely("logs", self._sinks.logs.serving, fact, log)

    def log_failed(self, error: Exception) -> None:
        """Count that a log event could not be written elsewhere, where nothing is counted."""
        self._sinks.failed("logs", error)

    def _polled(self, measured: RedisStatsMeasurement) -> None:
        self._sinks.count(MetricsSink.polled, measured)
        self._sinks.safely("logs", self._sinks.logs.polled, measured, self.ttl)

    # -- the SDK's interface ------------------------------------------------------------------------------------------

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event; see the store. On a root store this says `event_store.sessions_not_isolated`, once."""
        if self._warn_not_isolated:
            self._check_isolated()
        return (await self.append(stream_id, message)).event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send what is stored after an event; see the store. On a root store as in `store_event`."""
        self._check_isolated()
        facts = await self.replay(last_event_id, send_callback)
        return facts.stream_id if facts.miss is None else None

    # -- the same, as facts -------------------------------------------------------------------------------------------

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event, in a span, and measure it. Arguments, result and errors are the store's.

        Where the span is recorded it is kept with the event, in place of `traceparent`: a replay links to it.
        """
        # For each event of each session: what is not needed when all is well is not made.
        sinks = self._sinks
        span, opened = None, None
        if self._current:
            opened = sinks.start_current_span(catalog.STORE_SPAN)
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
        """Measure the wait for an event that is stored in the background; `BatchCommitted` has the rest."""
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

    def _acknowledged(  # noqa: PLR0913, PLR0917 - what is known of it, one by one
        self,
        outcome: StoreOutcome,
        seconds: float,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult,
        span: Span,
    ) -> None:
        """End the span of an event that was stored in the background: it lasts until the acknowledgement."""
        if outcome is StoreOutcome.STORED:
            ids = self._sinks.end_stored_span(span, self._session, stream_id, message, appended)
            if ids is not None:
                self._recorded.append((seconds, ids, time()))
            return
        measured = StoreMeasurement(seconds, outcome.value, stream_id, None, kind_of(message), appended)
        self._sinks.end_span(span, measured, self._session)

    def _appended(  # noqa: PLR0913, PLR0917 - what is known of it, one by one
        self,
        seconds: float,
        stream_id: StreamId,
        message: JSONRPCMessage | None,
        appended: AppendResult | None,
        error: BaseException | None,
        span: Span | None,
        opened: Opened | None,
    ) -> None:
        """Tell of a store whose span was current, or that did not just go well."""
        measured = StoreMeasurement(
            seconds,
            outcome_of(error) if appended is None else store_outcome(appended),
            stream_id,
            error,
            kind_of(message),
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
        """Deliver what is stored after an event, in a span, and measure it. Arguments and errors are the store's."""
        opened = self._sinks.start_current_span(catalog.REPLAY_SPAN)
        facts: ReplayResult | None = None
        error: BaseException | None = None
        timed = Timed(send)
        started = perf_counter()
        try:
            facts = await self._store.replay(last_event_id, timed, stream_id=stream_id)
        except BaseException as raised:
            error = raised
            raise
        finally:
            measured = ReplayMeasurement(
                perf_counter() - started,
                outcome_of(error) if facts is None else replay_outcome(facts),
                stream_id if facts is None else facts.stream_id,
                error,
                timed.delivered,
                facts,
                self.ttl,
                timed.first,
                timed.seconds,
            )
            # Within the span, which it names.
            self._sinks.safely("logs", self._sinks.logs.read, "replay", measured, self._session)
            self._sinks.count(
                MetricsSink.replayed, measured, self._sinks.end_current_span(opened, measured, self._session)
            )
        return facts

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver what is stored from now on, and measure it. Arguments, result and errors are the store's."""
        facts: FollowResult | None = None
        error: BaseException | None = None
        counted = Counted(send, partial(self._sinks.count, MetricsSink.followed_event))
        started = perf_counter()
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
            self._sinks.safely("logs", self._sinks.logs.read, "follow", measured, self._session)
        return facts

    def _on_event(self, fact: StoreEvent) -> None:
        """What arises in the middle of operations."""
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


def instrument(
    store: EventStore,
    *,
    registry: Registry | None = DEFAULT_REGISTRY,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger: Logger | None = None,
) -> InstrumentedEventStore:
    """The store itself when it is instrumented already, with whatever it was given then; else instrumented here."""
    if isinstance(store, InstrumentedEventStore):
        return store
    return InstrumentedEventStore(
        store, registry=registry, tracer_provider=tracer_provider, meter_provider=meter_provider, logger=logger
    )
