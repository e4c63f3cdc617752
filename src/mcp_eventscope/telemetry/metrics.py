"""What is counted, with whatever instruments: Prometheus's, or OpenTelemetry's."""

import collections
from collections.abc import Callable

from mcp_eventscope.store.events import (
    BatchCommitted,
    BatchRetried,
    EventsLost,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
)
from mcp_eventscope.store.messages import kind_of_type
from mcp_eventscope.store.results import BacklogStatus
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.facts import ServingFact
from mcp_eventscope.telemetry.instruments import Instruments, exemplar_of
from mcp_eventscope.telemetry.measurements import (
    FollowMeasurement,
    ReplayMeasurement,
    SampleMeasurement,
    StoreMeasurement,
)
from mcp_eventscope.telemetry.serving import ServingMetrics
from mcp_eventscope.telemetry.tally import Note, Noted, Recorded, SpanIds

_TAKEN = frozenset({"ok", "deferred"})


class MetricsSink:
    """Counts measurements. Every child is bound here, once, so that a zero is exposed before anything happens.

    Args:
        name: The sink, as failures are counted by it.
        instruments: What is counted with.
        failed: Told what is raised where nobody waits for it: by what is counted by the batch.
    """

    def __init__(self, name: str, instruments: Instruments, failed: Callable[[Exception], None]) -> None:
        self.name = name
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        self._store_seconds = {v: histogram(catalog.STORE_DURATION, v) for v in _values(catalog.STORE_OUTCOME)}
        self._stored = {v: counter(catalog.STORED_EVENTS, v) for v in _values(catalog.KIND)}
        self._stored_bytes = counter(catalog.STORED_BYTES)
        self._commit_seconds = histogram(catalog.COMMIT_DURATION)
        self._commit_events = histogram(catalog.COMMIT_EVENTS)
        self._retries = {v: counter(catalog.COMMIT_RETRIES, v) for v in _values(catalog.TROUBLE)}
        self._degraded = gauge(catalog.DEGRADED)
        self._degraded_seconds = {v: counter(catalog.DEGRADED_SECONDS, v) for v in _values(catalog.TROUBLE)}
        self._degradations = {v: counter(catalog.DEGRADATIONS, v) for v in _values(catalog.TROUBLE)}
        self._backlog_events = gauge(catalog.BACKLOG_EVENTS)
        self._backlog_bytes = gauge(catalog.BACKLOG_BYTES)
        self._lost = {v: counter(catalog.LOST_EVENTS, v) for v in _values(catalog.LOSS_REASON)}
        self._replay_seconds = {v: histogram(catalog.REPLAY_DURATION, v) for v in _values(catalog.REPLAY_OUTCOME)}
        self._replay_events = histogram(catalog.REPLAY_EVENTS)
        self._replay_bytes = histogram(catalog.REPLAY_BYTES)
        self._misses = {v: counter(catalog.REPLAY_MISSES, v) for v in _values(catalog.MISS_REASON)}
        self._age = histogram(catalog.RESUME_AGE)
        self._missing = counter(catalog.MISSING_EVENTS)
        self._corrupt = counter(catalog.CORRUPT_EVENTS)
        self._followers = gauge(catalog.FOLLOWERS)
        self._follow_seconds = {v: histogram(catalog.FOLLOW_DURATION, v) for v in _values(catalog.FOLLOW_OUTCOME)}
        self._followed = counter(catalog.FOLLOWED_EVENTS)
        self._errors = {
            (operation, kind): counter(catalog.ERRORS, operation, kind)
            for operation in _values(catalog.OPERATION)
            for kind in _values(catalog.ERROR_TYPE)
        }
        self._orphaned = counter(catalog.ORPHANED)
        self._ttl = gauge(catalog.TTL)
        self._sample_seconds = {v: histogram(catalog.SAMPLE_DURATION, v) for v in _values(catalog.SAMPLE_OUTCOME)}
        self._evicted = counter(catalog.REDIS_EVICTED)
        self._sampled = {metric.name: instruments.sampled(metric) for metric in catalog.METRICS if metric.sampled}
        self._failures = {v: counter(catalog.TELEMETRY_FAILURES, v) for v in _values(catalog.SINK)}
        self.serving = ServingMetrics(instruments)
        self._tally = instruments.tally("stored", self._write, failed)
        self.stored: Note = self._store if self._tally is None else self._tally.note
        """An event was stored: what mostly happens. It may be written with others."""
        self._wait = histogram(catalog.STORE_WAIT)
        self._accepted_events = counter(catalog.ACCEPTED_EVENTS)
        self._accepted_tally = instruments.tally("accepted", self._write_accepted, failed)
        self.accepted: Note = self._accept if self._accepted_tally is None else self._accepted_tally.note
        """An event was accepted, and is stored in the background; with the seconds that the caller waited."""

        self._pending: Callable[[], BacklogStatus] | None = None

    def configured(self, ttl: int | None, pending: Callable[[], BacklogStatus]) -> None:
        """A store was decorated.

        Args:
            ttl: Its TTL.
            pending: Returns what is pending. In an outage the store accepts events, and reports nothing.
        """
        self._ttl.set(ttl or 0)
        self._pending = pending

    def flush(self) -> None:
        """Write what was noted."""
        for tally in (self._tally, self._accepted_tally):
            if tally is not None:
                tally.flush()

    def _store(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        self._store_seconds["ok"].observe(seconds, span and exemplar_of(span))
        self._stored_bytes.inc(payload_bytes)
        self._stored[kind_of_type(message)].inc()

    def _write(self, noted: Noted) -> None:
        self._store_seconds["ok"].observe_all(noted.seconds, noted.recorded)
        self._stored_bytes.inc(noted.payload_bytes)
        for message, count in collections.Counter(noted.messages).items():
            self._stored[kind_of_type(message)].inc(count)

    def _accept(self, seconds: float, message: type, payload_bytes: int, span: SpanIds | None = None) -> None:
        self._wait.observe(seconds)
        self._accepted_events.inc()
        self._write_pending()

    def _write_accepted(self, noted: Noted) -> None:
        self._wait.observe_all(noted.seconds, noted.recorded)
        self._accepted_events.inc(len(noted.seconds))
        self._write_pending()

    def _write_pending(self) -> None:
        if self._pending is not None:
            self.waiting(self._pending())

    def appended(self, store: StoreMeasurement, span: SpanIds | None = None) -> None:
        """An event was deferred, refused, or not taken at all; or it was stored, in a span of its own."""
        self._store_seconds[store.outcome].observe(store.seconds, span and exemplar_of(span))
        if store.outcome in _TAKEN and store.appended is not None:
            self._stored[store.kind].inc()
            self._stored_bytes.inc(store.appended.payload_bytes)
        if store.error_type is not None:
            self._errors["store", store.error_type].inc()

    def committed(self, fact: BatchCommitted, recorded: list[Recorded]) -> None:
        """A batch was stored, in the background or for callers that waited."""
        self._commit_seconds.observe(fact.seconds)
        self._commit_events.observe(fact.events)
        if fact.latencies:
            self._store_seconds["ok"].observe_all(list(fact.latencies), recorded)
            self._stored_bytes.inc(fact.payload_bytes)
            for message, count in collections.Counter(fact.messages).items():
                self._stored[kind_of_type(message)].inc(count)

    def told(self, fact: StoreEvent) -> None:
        """The store has told something that no caller is told."""
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
                self._degraded_seconds[fact.reason].inc(fact.seconds)
            case EventsLost():
                self._lost[fact.reason].inc(fact.events)

    def waiting(self, waiting: BacklogStatus) -> None:
        """So much waits for Redis now."""
        self._backlog_events.set(waiting.events)
        self._backlog_bytes.set(waiting.payload_bytes)

    def replayed(self, replay: ReplayMeasurement, span: SpanIds | None = None) -> None:
        """A replay ended."""
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
        self._replay_bytes.observe(facts.payload_bytes)
        self._missing.inc(facts.missing)
        self._corrupt.inc(len(facts.corrupt))

    def following(self) -> None:
        """A stream begins to be followed."""
        self._followers.inc()

    def followed_event(self) -> None:
        """An event was delivered to a stream that is being followed, which may go on for minutes."""
        self._followed.inc()

    def followed(self, follow: FollowMeasurement) -> None:
        """A stream is no longer followed."""
        self._followers.dec()
        self._follow_seconds[follow.outcome].observe(follow.seconds)
        if follow.error_type is not None:
            self._errors["follow", follow.error_type].inc()
        if follow.facts is not None:
            self._missing.inc(follow.facts.missing)
            self._corrupt.inc(len(follow.facts.corrupt))
            self._errors["follow", "unavailable"].inc(follow.facts.failures)
            if follow.facts.orphaned:
                self.orphaned()

    def orphaned(self) -> None:
        """A request was answered whose worker is gone."""
        self._orphaned.inc()

    def sampled(self, sample: SampleMeasurement) -> None:
        """Redis was sampled, or not."""
        self._sample_seconds[sample.outcome].observe(sample.seconds)
        facts = sample.facts
        if facts is not None:
            self._evicted.inc(facts.evicted)
            for metric, value in (
                (catalog.REDIS_KEYS, facts.keys),
                (catalog.REDIS_KEYS_WITHOUT_TTL, facts.without_ttl),
                (catalog.REDIS_DB_KEYS, facts.db_keys),
                (catalog.REDIS_EVENT_BYTES, facts.event_bytes),
                (catalog.REDIS_MEMORY, facts.memory_bytes),
                (catalog.REDIS_MEMORY_LIMIT, facts.memory_limit),
            ):
                self._sampled[metric.name].set(value)
        elif sample.outcome == "elsewhere":
            for gauge in self._sampled.values():
                gauge.set(None)
        # After a failure, what was known is better than nothing; that it is old is counted.

    def served(self, fact: ServingFact) -> None:
        """Something arose above the store."""
        self.serving.told(fact)

    def failed(self, sink: str) -> None:
        """A sink raised."""
        self._failures[sink].inc()


def _values(label: declarations.Label) -> tuple[str, ...]:
    return label.values or ()
