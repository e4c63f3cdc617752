"""Metrics: the instruments, made from the catalog, and what is counted with them."""

import collections
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from mcp_eventscope.telemetry import catalog, declarations, multiprocess, tally
from mcp_eventscope.telemetry.measurements import (
    FollowMeasurement,
    ReplayMeasurement,
    SampleMeasurement,
    StoreMeasurement,
)
from mcp_eventscope.telemetry.serving import ServingMetrics
from mcp_eventscope.types import CameBack, Committed, Lost, Retried, StoreFact, Waiting, WentAway, kind_of_type

__all__ = ["DEFAULT_REGISTRY", "MetricsSink", "Registry"]

Registry = CollectorRegistry
DEFAULT_REGISTRY: Final = REGISTRY

_Family = Counter | Gauge | Histogram
_F = TypeVar("_F", bound=_Family)
_TAKEN = frozenset({"ok", "deferred"})
# One set of instruments a registry: a second store on it shares them, told apart by the `store` label.
_families: WeakKeyDictionary[Registry, dict[str, _Family]] = WeakKeyDictionary()
# In multiprocess mode one set for all registries of the process: a value is a place in the process's file, which two
# instruments of the same name would both write, each without knowing of the other.
_shared: dict[str, _Family] = {}
_stores: set[str] = set()


class _Counter(Counter):
    """A counter that is exact when it is read: see `tally`."""

    def collect(self) -> Iterable[Metric]:
        """What is counted until now."""
        tally.flush()
        return super().collect()


class _Histogram(Histogram):
    """A histogram that is exact when it is read, and to which many observations can be added at once."""

    def collect(self) -> Iterable[Metric]:
        """What is observed until now."""
        tally.flush()
        return super().collect()

    def observe_all(self, amounts: list[float]) -> None:
        """As `observe`, of each; with as many locks as there are buckets that rise, and not as observations."""
        self._sum.inc(sum(amounts))
        amounts.sort()
        below, everything = 0, len(amounts)
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            up_to = bisect_right(amounts, bound, below)
            if up_to > below:
                bucket.inc(up_to - below)
                if up_to == everything:
                    break
                below = up_to


def _families_of(registry: Registry) -> dict[str, _Family]:
    if registry not in _families:
        if multiprocess.directory() is None:
            _families[registry] = {metric.name: _register(metric, registry) for metric in catalog.METRICS}
        else:
            _families[registry] = _shared_families(registry)
    return _families[registry]


def _shared_families(registry: Registry) -> dict[str, _Family]:
    if _shared:
        for family in _shared.values():
            registry.register(family)
    else:
        multiprocess.join()
        _shared.update({metric.name: _register(metric, registry) for metric in catalog.METRICS})
    return _shared


def _register(metric: declarations.Metric, registry: Registry) -> _Family:
    names = [label.name for label in metric.labels]
    if metric.type is declarations.MetricType.COUNTER:
        return _Counter(metric.name, metric.help, names, registry=registry)
    if metric.type is declarations.MetricType.GAUGE:
        return Gauge(metric.name, metric.help, names, registry=registry, multiprocess_mode=metric.together or "livesum")
    return _Histogram(metric.name, metric.help, names, registry=registry, buckets=metric.buckets)


class MetricsSink:
    """Counts measurements. Every child is bound here, once, so that a zero is exposed before anything happens.

    Args:
        store: The name of the store.
        registry: Where they are exposed.
        failed: Told what is raised where nobody waits for it: by what is counted by the batch.
    """

    def __init__(self, store: str, registry: Registry, failed: Callable[[Exception], None]) -> None:
        families = _families_of(registry)
        first = multiprocess.directory() is not None and store not in _stores
        _stores.add(store)

        def counter(metric: declarations.Metric, *values: str) -> Counter:
            return _typed(Counter, families[metric.name]).labels(store, *values)

        def gauge(metric: declarations.Metric, *values: str) -> Gauge:
            child = _typed(Gauge, families[metric.name]).labels(store, *values)
            if first:
                child.set(0)  # In multiprocess mode a process that is gone, and had our pid, may have left its value.
            return child

        def histogram(metric: declarations.Metric, *values: str) -> _Histogram:
            return _typed(_Histogram, families[metric.name]).labels(store, *values)

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
        self._sampled = {
            metric.name: _Sampled(_typed(Gauge, families[metric.name]), store)
            for metric in catalog.METRICS
            if metric.sampled
        }
        self._failures = {v: counter(catalog.TELEMETRY_FAILURES, v) for v in _values(catalog.SINK)}
        self._tally = tally.Tally(self._write, failed)
        self.serving = ServingMetrics(counter, gauge, histogram)

    def configured(self, ttl: int | None) -> None:
        """A store was decorated."""
        self._ttl.set(ttl or 0)

    def stored(self, seconds: float, message: type, payload_bytes: int, exemplar: tally.Exemplar | None = None) -> None:
        """An event was stored: what mostly happens. It is written with others; see `Tally.note`."""
        self._tally.note(seconds, message, payload_bytes, exemplar)

    def flush(self) -> None:
        """Write what was noted."""
        self._tally.flush()

    def _write(self, noted: list[tally.Noted]) -> None:
        seconds, messages, sizes, _ = zip(*noted, strict=True)
        self._store_seconds["ok"].observe_all(list(seconds))
        self._stored_bytes.inc(sum(sizes))
        for message, count in collections.Counter(messages).items():
            self._stored[kind_of_type(message)].inc(count)

    def appended(self, store: StoreMeasurement) -> None:
        """An event was deferred, refused, or not taken at all; or it was stored, in a span of its own."""
        self._store_seconds[store.outcome].observe(store.seconds)
        if store.outcome in _TAKEN and store.appended is not None:
            self._stored[store.kind].inc()
            self._stored_bytes.inc(store.appended.payload_bytes)
        if store.error_type is not None:
            self._errors["store", store.error_type].inc()

    def told(self, fact: StoreFact) -> None:
        """The store has told something that no caller is told."""
        match fact:
            case Committed():
                self._commit_seconds.observe(fact.seconds)
                self._commit_events.observe(fact.events)
            case Retried():
                self._retries[fact.reason].inc()
            case WentAway():
                self._degraded.set(1)
                self._degradations[fact.reason].inc()
            case CameBack():
                self._degraded.set(0)
                self._degraded_seconds[fact.reason].inc(fact.seconds)
            case Lost():
                self._lost[fact.reason].inc(fact.events)

    def waiting(self, waiting: Waiting) -> None:
        """So much waits for Redis now."""
        self._backlog_events.set(waiting.events)
        self._backlog_bytes.set(waiting.payload_bytes)

    def replayed(self, replay: ReplayMeasurement) -> None:
        """A replay ended."""
        facts = replay.facts
        self._replay_seconds[replay.outcome].observe(replay.seconds)
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

    def failed(self, sink: str) -> None:
        """A sink raised."""
        self._failures[sink].inc()


class _Sampled:
    """A gauge that is there while this process knows its value."""

    def __init__(self, family: Gauge, store: str) -> None:
        self._family = family
        self._store = store

    def set(self, value: float | None) -> None:
        """Set it; None: it is not known, or no longer here."""
        if value is not None:
            self._family.labels(self._store).set(value)
        elif multiprocess.directory() is None:
            self._family.remove(self._store)
        # In multiprocess mode nothing can be removed, and nothing has to be: the newest value counts.


def _values(label: declarations.Label) -> tuple[str, ...]:
    return label.values or ()


def _typed(kind: type[_F], family: _Family) -> _F:
    if not isinstance(family, kind):  # pragma: no cover - the catalog and this module disagree
        msg = f"{family!r} is no {kind.__name__}"
        raise TypeError(msg)
    return family
