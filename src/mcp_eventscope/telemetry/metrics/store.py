"""Updates the metrics of one store, independent of the kind of instruments. `telemetry.catalog` declares them."""

import collections
from collections.abc import Callable, Mapping

from mcp_eventscope.redis.self_test import Capabilities
from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    ForeignElementsRemoved,
    MessagesDropped,
    SessionSized,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
)
from mcp_eventscope.store.messages import type_of_class
from mcp_eventscope.store.results import BacklogStatus, Gap
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.facts import ServingFact
from mcp_eventscope.telemetry.measurements import (
    FollowMeasurement,
    RedisStatsMeasurement,
    ReplayMeasurement,
    StoreMeasurement,
)
from mcp_eventscope.telemetry.metrics.instruments import Instruments, exemplar_of
from mcp_eventscope.telemetry.metrics.observations import AddObservation, ObservationBatch, SampledObservation, SpanIds
from mcp_eventscope.telemetry.metrics.sessions import SessionMetrics

_TAKEN = frozenset({"ok", "deferred"})


class MetricsSink:
    """Records measurements. Every child is bound once, so that zeros are exposed before the first event.

    Args:
        name: The sink, which is a label of its failures.
        instruments: The instruments.
        failed: Called with errors of buffered observations, which have no caller.
    """

    def __init__(self, name: str, instruments: Instruments, failed: Callable[[Exception], None]) -> None:
        self.name = name
        self.instruments = instruments
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        self._store_seconds = {
            v: histogram(catalog.store.STORE_DURATION, v) for v in _values(catalog.store.STORE_OUTCOME)
        }
        self._stored = {v: counter(catalog.store.EVENTS_STORED, v) for v in _values(catalog.store.MESSAGE_TYPE)}
        self._stored_bytes = counter(catalog.store.PAYLOAD_STORED_BYTES)
        self._commit_seconds = histogram(catalog.store.COMMIT_DURATION)
        self._batch_size = histogram(catalog.store.COMMIT_BATCH_SIZE)
        self._retries = {v: counter(catalog.store.COMMIT_RETRIES, v) for v in _values(catalog.store.FAILURE_REASON)}
        self._degraded = gauge(catalog.store.DEGRADED)
        self._degradation_seconds = {
            v: counter(catalog.store.DEGRADATION_DURATION, v) for v in _values(catalog.store.FAILURE_REASON)
        }
        self._degradations = {v: counter(catalog.store.DEGRADATIONS, v) for v in _values(catalog.store.FAILURE_REASON)}
        self._backlog_length = gauge(catalog.store.BACKLOG_LENGTH)
        self._backlog_size = gauge(catalog.store.BACKLOG_SIZE)
        self._dropped = {
            v: counter(catalog.store.WORKER_MESSAGES_DROPPED, v) for v in _values(catalog.store.DROP_REASON)
        }
        self._lost = {v: counter(catalog.store.EVENTS_LOST_TOTAL, v) for v in _values(catalog.store.LOSS_REASON)}
        self._replay_seconds = {
            v: histogram(catalog.store.REPLAY_DURATION, v) for v in _values(catalog.store.REPLAY_OUTCOME)
        }
        self._replay_events = histogram(catalog.store.REPLAY_EVENTS)
        self._replay_size = histogram(catalog.store.REPLAY_SIZE)
        self._misses = {v: counter(catalog.store.REPLAY_MISSES, v) for v in _values(catalog.store.MISS_REASON)}
        self._age = histogram(catalog.store.RESUME_AGE)
        self._missing = {v: counter(catalog.store.EVENTS_MISSING, v) for v in _values(catalog.store.GAP_REASON)}
        self._corrupt = counter(catalog.store.EVENTS_CORRUPT)
        self._streams_followed = gauge(catalog.store.STREAMS_FOLLOWED)
        self._follow_seconds = {
            v: histogram(catalog.store.FOLLOW_DURATION, v) for v in _values(catalog.store.FOLLOW_OUTCOME)
        }
        self._followed = counter(catalog.store.EVENTS_FOLLOWED)
        self._follow_lag = histogram(catalog.store.FOLLOW_LAG)
        self._session_size = histogram(catalog.store.SESSION_SIZE_RATIO)
        self._errors = {
            (operation, error_type): counter(catalog.store.ERRORS, operation, error_type)
            for operation in _values(catalog.store.OPERATION)
            for error_type in _values(catalog.store.ERROR_TYPE)
        }
        self._orphaned = counter(catalog.store.REQUESTS_ORPHANED)
        self._ttl = instruments.optional_gauge(catalog.store.TTL)
        self._poll_seconds = {
            v: histogram(catalog.redis_stats.REDIS_STATS_DURATION, v)
            for v in _values(catalog.redis_stats.REDIS_STATS_OUTCOME)
        }
        self._evicted = counter(catalog.redis_stats.REDIS_KEYS_EVICTED)
        self._polled = {metric.name: instruments.optional_gauge(metric) for metric in catalog.METRICS if metric.polled}
        self._capabilities = {
            v: instruments.optional_gauge(catalog.start.REDIS_CAPABILITY, v) for v in _values(catalog.start.CAPABILITY)
        }
        self._failures = {v: counter(catalog.store.TELEMETRY_FAILURES, v) for v in _values(catalog.store.SINK)}
        self.serving = SessionMetrics(instruments)
        self._stored_buffer = instruments.buffer("stored", self._write, failed)
        self.stored: AddObservation = self._store if self._stored_buffer is None else self._stored_buffer.add
        """Record a stored event: the most frequent call. Observations may be buffered."""
        self._wait = histogram(catalog.store.STORE_WAIT)
        self._accepted_events = counter(catalog.store.EVENTS_ACCEPTED)
        self._accepted_buffer = instruments.buffer("accepted", self._write_accepted, failed)
        self.accepted: AddObservation = self._accept if self._accepted_buffer is None else self._accepted_buffer.add
        """Record an accepted event, which is stored in the background, with the seconds that the caller waited."""

        self._pending: Callable[[], BacklogStatus] | None = None

    def configured(self, ttl: int | None, pending: Callable[[], BacklogStatus]) -> None:
        """Record the configuration of the store.

        Args:
            ttl: Its TTL.
            pending: Returns the backlog. In an outage the store accepts events, and reports no facts.
        """
        self._ttl.set(ttl)
        self._pending = pending

    def flush(self) -> None:
        """Write buffered observations."""
        for buffer in (self._stored_buffer, self._accepted_buffer):
            if buffer is not None:
                buffer.flush()

    def _store(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        self._store_seconds["ok"].observe(seconds, span and exemplar_of(span))
        self._stored_bytes.inc(payload_bytes)
        self._stored[type_of_class(message)].inc()

    def _write(self, batch: ObservationBatch) -> None:
        self.instruments.expose_worker()
        self._store_seconds["ok"].observe_all(batch.seconds, batch.recorded)
        self._stored_bytes.inc(batch.payload_bytes)
        for message, count in collections.Counter(batch.messages).items():
            self._stored[type_of_class(message)].inc(count)

    def _accept(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        self._wait.observe(seconds)
        self._accepted_events.inc()
        self._write_pending()

    def _write_accepted(self, batch: ObservationBatch) -> None:
        self._wait.observe_all(batch.seconds, batch.recorded)
        self._accepted_events.inc(len(batch.seconds))
        self._write_pending()

    def _write_pending(self) -> None:
        if self._pending is not None:
            self.waiting(self._pending())

    def appended(self, store: StoreMeasurement, span: SpanIds | None = None) -> None:
        """Record an event that was deferred, refused or failed, or that was stored in a current span."""
        self._store_seconds[store.outcome].observe(store.seconds, span and exemplar_of(span))
        if store.outcome in _TAKEN and store.appended is not None:
            self._stored[store.message_type].inc()
            self._stored_bytes.inc(store.appended.payload_bytes)
        if store.error_type is not None:
            self._errors["store", store.error_type].inc()

    def committed(self, fact: BatchCommitted, recorded: list[SampledObservation]) -> None:
        """Record a batch that was stored."""
        self._commit_seconds.observe(fact.seconds)
        self._batch_size.observe(fact.events)
        if fact.latencies:
            self._store_seconds["ok"].observe_all(list(fact.latencies), recorded)
            self._stored_bytes.inc(fact.payload_bytes)
            for message, count in collections.Counter(fact.messages).items():
                self._stored[type_of_class(message)].inc(count)

    def record(self, fact: StoreEvent) -> None:
        """Record a background event of the store."""
        match fact:
            case BatchCommitted():
                self.committed(fact, [])
            case BatchRetried():
                self._retries[fact.reason].inc()
            case StoreDegraded():
                self._degraded.set(1)
                self._degradations[fact.reason].inc()
            case StoreRecovered():
                self._degraded.set(0)
                self._degradation_seconds[fact.reason].inc(fact.seconds)
            case EventsLost():
                self._lost[fact.reason].inc(fact.events)
            case ForeignElementsRemoved():
                self._corrupt.inc(fact.elements)
            case SessionSized():
                self._session_size.observe(fact.size / fact.limit)
            case MessagesDropped():
                self._dropped[fact.reason].inc(fact.messages)

    def waiting(self, waiting: BacklogStatus) -> None:
        """Record the backlog."""
        self._backlog_length.set(waiting.events)
        self._backlog_size.set(waiting.payload_bytes)

    def replayed(self, replay: ReplayMeasurement, span: SpanIds | None = None) -> None:
        """Record the end of a replay."""
        facts = replay.facts
        self._replay_seconds[replay.outcome].observe(replay.seconds, span and exemplar_of(span))
        self.serving.replayed(replay)
        if replay.error_type is not None:
            self._errors["replay", replay.error_type].inc()
        if facts is None:
            return
        if facts.age is not None:
            self._age.observe(facts.age)
        if facts.miss is not None:
            self._misses[facts.miss].inc()
            return
        self._replay_events.observe(facts.delivered)
        self._replay_size.observe(facts.payload_bytes)
        self._gaps(facts.gaps)
        self._corrupt.inc(len(facts.corrupt))

    def _gaps(self, gaps: Mapping[Gap, int]) -> None:
        for reason, events in gaps.items():
            self._missing[reason].inc(events)

    def following(self) -> None:
        """Record that a stream is followed."""
        self._streams_followed.inc()

    def followed_event(self, lag: float | None = None) -> None:
        """Record the delivery of an event to a followed stream, which may last for minutes.

        Args:
            lag: Seconds since another worker accepted the event; None: this worker did, or unknown.
        """
        self._followed.inc()
        if lag is not None:
            self._follow_lag.observe(lag)

    def followed(self, follow: FollowMeasurement) -> None:
        """Record that a stream is no longer followed."""
        self._streams_followed.dec()
        self._follow_seconds[follow.outcome].observe(follow.seconds)
        if follow.error_type is not None:
            self._errors["follow", follow.error_type].inc()
        if follow.facts is not None:
            self._gaps(follow.facts.gaps)
            self._corrupt.inc(len(follow.facts.corrupt))
            self._errors["follow", "unavailable"].inc(follow.facts.failures)
            if follow.facts.orphaned:
                self.orphaned()

    def orphaned(self) -> None:
        """Record an orphaned request."""
        self._orphaned.inc()

    def polled(self, poll: RedisStatsMeasurement) -> None:
        """Record a poll of Redis statistics."""
        self._poll_seconds[poll.outcome].observe(poll.seconds)
        facts = poll.facts
        if facts is not None:
            self._evicted.inc(facts.evicted)
            for metric, value in (
                (catalog.redis_stats.REDIS_KEYS, facts.keys),
                (catalog.redis_stats.REDIS_KEYS_WITHOUT_TTL, facts.without_ttl),
                (catalog.redis_stats.REDIS_DB_KEYS, facts.db_keys),
                (catalog.redis_stats.REDIS_EVENT_SIZE, facts.event_bytes),
                (catalog.redis_stats.REDIS_MEMORY, facts.memory_bytes),
                (catalog.redis_stats.REDIS_MEMORY_LIMIT, facts.memory_limit),
            ):
                self._polled[metric.name].set(value)
        elif poll.outcome == "other_worker":
            for gauge in self._polled.values():
                gauge.set(None)
        # After a failure the gauges keep their values; the failure is counted.

    def tested(self, capabilities: Capabilities) -> None:
        """Record the result of a self-test of Redis."""
        for capability, has in capabilities.available.items():
            self._capabilities[capability].set(float(has))

    def served(self, fact: ServingFact) -> None:
        """Record a fact about sessions and requests."""
        self.serving.record(fact)

    def failed(self, sink: str) -> None:
        """Record that a sink failed."""
        self._failures[sink].inc()


def _values(label: declarations.Label) -> tuple[str, ...]:
    return label.values or ()
