"""Prometheus's instruments, made from the catalog."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from mcp_eventscope.telemetry import catalog, declarations, multiprocess, tally
from mcp_eventscope.telemetry.instruments import exemplar_of
from mcp_eventscope.telemetry.metrics import MetricsSink
from mcp_eventscope.telemetry.tally import Noted, Recorded, Tally

__all__ = ["DEFAULT_REGISTRY", "MetricsSink", "Registry", "prometheus_sink"]

Registry = CollectorRegistry
DEFAULT_REGISTRY: Final = REGISTRY

_Family = Counter | Gauge | Histogram
_F = TypeVar("_F", bound=_Family)
# One set of instruments a registry: a second store on it shares them, told apart by the `store` label.
_families: WeakKeyDictionary[Registry, dict[str, _Family]] = WeakKeyDictionary()
# By the name of the store, for what one has noted is to be counted though nothing else is left of it.
_tallies: WeakKeyDictionary[Registry, dict[tuple[str, str], Tally]] = WeakKeyDictionary()
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

    def observe_all(self, amounts: list[float], recorded: list[Recorded]) -> None:
        """As `observe`, of each; with as many locks as there are buckets that rise, and not as observations.

        Args:
            amounts: The observations, which are then sorted.
            recorded: Those of which there is a span: of each bucket the last is its exemplar.
        """
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
        newest = {bisect_left(self._upper_bounds, each[0]): each for each in recorded}
        for number, (amount, span, when) in newest.items():
            self._buckets[number].set_exemplar(Exemplar(exemplar_of(span), amount, when))


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


class _Instruments:
    """The instruments of one store on one registry."""

    def __init__(self, store: str, registry: Registry) -> None:
        self._store = store
        self._families = _families_of(registry)
        self._tallies = _tallies.setdefault(registry, {})
        self._first = multiprocess.directory() is not None and store not in _stores
        _stores.add(store)

    def tally(self, purpose: str, write: Callable[[Noted], None], failed: Callable[[Exception], None]) -> Tally:
        if (self._store, purpose) not in self._tallies:
            every_turn = multiprocess.directory() is not None
            self._tallies[self._store, purpose] = Tally(write, failed, every_turn=every_turn)
        return self._tallies[self._store, purpose]

    def counter(self, metric: declarations.Metric, *values: str) -> Counter:
        return _typed(Counter, self._families[metric.name]).labels(self._store, *values)

    def gauge(self, metric: declarations.Metric, *values: str) -> Gauge:
        child = _typed(Gauge, self._families[metric.name]).labels(self._store, *values)
        if self._first:
            child.set(0)  # In multiprocess mode a process that is gone, and had our pid, may have left its value.
        return child

    def histogram(self, metric: declarations.Metric, *values: str) -> _Histogram:
        return _typed(_Histogram, self._families[metric.name]).labels(self._store, *values)

    def sampled(self, metric: declarations.Metric) -> "_Sampled":
        return _Sampled(_typed(Gauge, self._families[metric.name]), self._store)


def prometheus_sink(store: str, registry: Registry, failed: Callable[[Exception], None]) -> MetricsSink:
    """Counts measurements for Prometheus.

    Args:
        store: The name of the store.
        registry: Where they are exposed.
        failed: As in `MetricsSink`.

    Raises:
        ValueError: The registry has other metrics of the same names, or multiprocess mode cannot work.
    """
    return MetricsSink("metrics", _Instruments(store, registry), failed)


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


def _typed(kind: type[_F], family: _Family) -> _F:
    if not isinstance(family, kind):  # pragma: no cover - the catalog and this module disagree
        msg = f"{family!r} is no {kind.__name__}"
        raise TypeError(msg)
    return family
