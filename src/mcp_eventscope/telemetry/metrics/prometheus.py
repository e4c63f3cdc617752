"""Prometheus instruments, built from the catalog."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from threading import Lock
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from mcp_eventscope.options import check_type
from mcp_eventscope.process import PROCESS
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.exposition import multiprocess
from mcp_eventscope.telemetry.metrics import observations
from mcp_eventscope.telemetry.metrics.instruments import exemplar_of
from mcp_eventscope.telemetry.metrics.observations import ObservationBatch, ObservationBuffer, SampledObservation
from mcp_eventscope.telemetry.metrics.store import MetricsSink

__all__ = ["DEFAULT_REGISTRY", "MetricsSink", "Registry", "check_registry", "prometheus_sink"]

Registry = CollectorRegistry
DEFAULT_REGISTRY: Final = REGISTRY

_Family = Counter | Gauge | Histogram
_F = TypeVar("_F", bound=_Family)


def check_registry(option: str, registry: object) -> None:
    """Validate a registry.

    Args:
        option: The name in the error.
        registry: The value.

    Raises:
        TypeError: It is not a `CollectorRegistry`.
    """
    check_type(
        option,
        registry,
        Registry,
        "a prometheus_client.CollectorRegistry",
        "leave it out for the global registry, prometheus_client.REGISTRY",
    )


class _Counter(Counter):
    """A counter that includes buffered observations when it is collected; see `observations`."""

    def collect(self) -> Iterable[Metric]:
        """Flush the buffers, and collect."""
        observations.flush()
        return super().collect()


class _Histogram(Histogram):
    """A histogram that flushes buffers when it is collected, and records many observations in one call."""

    def collect(self) -> Iterable[Metric]:
        """Flush the buffers, and collect."""
        observations.flush()
        return super().collect()

    def observe_all(self, amounts: list[float], recorded: list[SampledObservation]) -> None:
        """Observe each amount, with one lock per bucket instead of one per observation.

        Args:
            amounts: The observations; sorted in place.
            recorded: Those with a sampled span; the last of each bucket becomes its exemplar.
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


class _Registrations:
    """The instruments of this process: one set per registry, which stores share; they differ in the label `store`."""

    def __init__(self) -> None:
        self._families: WeakKeyDictionary[Registry, dict[str, _Family]] = WeakKeyDictionary()
        self._buffers: WeakKeyDictionary[Registry, dict[tuple[str, str], ObservationBuffer]] = WeakKeyDictionary()
        # In multiprocess mode one set for all registries of the process: a value is a slot in the file of the process,
        # which two instruments of the same name would both write.
        self._shared: dict[str, _Family] = {}
        self._stores: set[str] = set()
        self._hidden: list[_WorkerGauge] = []
        self._exposed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held. A child of a worker is exposed like it."""
        self._lock = Lock()

    def families(self, registry: Registry) -> dict[str, _Family]:
        """Return the instruments on a registry, by name."""
        if registry not in self._families:
            check_prometheus_client()
            if multiprocess.directory() is None:
                self._families[registry] = {metric.name: _register(metric, registry) for metric in catalog.METRICS}
            else:
                self._families[registry] = self._share(registry)
        return self._families[registry]

    def _share(self, registry: Registry) -> dict[str, _Family]:
        if self._shared:
            for family in self._shared.values():
                registry.register(family)
        else:
            # The gauges of a dead process with the same pid are exposed until they are reset.
            self._exposed = multiprocess.join()
            self._shared.update({metric.name: _register(metric, registry) for metric in catalog.METRICS})
        return self._shared

    def add_gauge(self, gauge: "_WorkerGauge") -> None:
        """Expose a gauge as soon as this process is a worker."""
        with self._lock:
            if not self._exposed:
                self._hidden.append(gauge)
                return
        gauge.expose()

    def expose_worker(self) -> None:
        """Expose the gauges per worker; see `Instruments`."""
        if self._exposed:
            return
        with self._lock:
            while self._hidden:
                self._hidden[0].expose()
                del self._hidden[0]
            self._exposed = True

    def buffers(self, registry: Registry) -> dict[tuple[str, str], ObservationBuffer]:
        """Return the buffers by store and purpose; buffered observations outlive the store."""
        return self._buffers.setdefault(registry, {})

    def add_store(self, store: str) -> bool:
        """Add the name of a store; return whether it is new in this process."""
        new = store not in self._stores
        self._stores.add(store)
        return new


_PRIVATE = ("_buckets", "_sum", "_upper_bounds")
"""What `_Histogram.observe_all` uses of prometheus_client's histogram."""


def check_prometheus_client() -> None:
    """Check the private parts of prometheus_client that are used here and in `multiprocess`.

    Raises:
        ImportError: They have changed.
    """
    # By the code, since a histogram that is only probed would leave values in the files of multiprocess mode.
    code = getattr(getattr(Histogram, "_metric_init", None), "__code__", None)
    missing = [name for name in _PRIVATE if code is None or name not in code.co_names]
    missing += [] if hasattr(values.ValueClass, "_multiprocess") else ["ValueClass._multiprocess"]
    if missing:
        msg = (
            f"prometheus_client {version('prometheus-client')} has no {', '.join(missing)}; "
            "install prometheus-client 0.26, which this version of mcp-eventscope was tested with"
        )
        raise ImportError(msg)


def _register(metric: declarations.Metric, registry: Registry) -> _Family:
    names = [label.name for label in metric.labels]
    if metric.type is declarations.MetricType.COUNTER:
        return _Counter(metric.name, metric.help, names, registry=registry)
    if metric.type is declarations.MetricType.GAUGE:
        mode = "liveall" if metric.per_worker else metric.multiprocess_mode or "livesum"
        return Gauge(metric.name, metric.help, names, registry=registry, multiprocess_mode=mode)
    return _Histogram(metric.name, metric.help, names, registry=registry, buckets=metric.buckets)


class _Instruments:
    """The instruments of one store on one registry."""

    def __init__(self, store: str, registry: Registry) -> None:
        self._store = store
        self._registrations = registrations = PROCESS.single(_Registrations)
        self._families = registrations.families(registry)
        self._buffers = registrations.buffers(registry)
        self._multiprocess = multiprocess.directory() is not None
        # In multiprocess mode a dead process with the same pid may have left its values.
        self._reset = self._multiprocess and registrations.add_store(store)

    def expose_worker(self) -> None:
        self._registrations.expose_worker()

    def buffer(
        self, purpose: str, write: Callable[[ObservationBatch], None], failed: Callable[[Exception], None]
    ) -> ObservationBuffer:
        if (self._store, purpose) not in self._buffers:
            self._buffers[self._store, purpose] = ObservationBuffer(write, failed, flush_each_turn=self._multiprocess)
        return self._buffers[self._store, purpose]

    def counter(self, metric: declarations.Metric, *values: str) -> Counter:
        return _typed(Counter, self._families[metric.name]).labels(*metric.label_values(self._store, *values))

    def gauge(self, metric: declarations.Metric, *values: str) -> "Gauge | _WorkerGauge":
        family, labels = _typed(Gauge, self._families[metric.name]), metric.label_values(self._store, *values)
        if self._multiprocess and metric.per_worker:
            gauge = _WorkerGauge(self._registrations, lambda: _bound(family, labels, reset=self._reset))
            self._registrations.add_gauge(gauge)
            return gauge
        return _bound(family, labels, reset=self._reset)

    def histogram(self, metric: declarations.Metric, *values: str) -> _Histogram:
        return _typed(_Histogram, self._families[metric.name]).labels(*metric.label_values(self._store, *values))

    def optional_gauge(self, metric: declarations.Metric, *values: str) -> "_OptionalGauge":
        return _OptionalGauge(_typed(Gauge, self._families[metric.name]), metric.label_values(self._store, *values))


def prometheus_sink(store: str, registry: Registry, failed: Callable[[Exception], None]) -> MetricsSink:
    """Create a sink for Prometheus.

    Args:
        store: The name of the store.
        registry: The registry that exposes the metrics.
        failed: As in `MetricsSink`.

    Raises:
        ValueError: The registry has other metrics of the same names, or multiprocess mode cannot work.
    """
    return MetricsSink("metrics", _Instruments(store, registry), failed)


def _bound(family: Gauge, labels: tuple[str, ...], *, reset: bool) -> Gauge:
    child = family.labels(*labels)
    if reset:
        child.set(0)
    return child


class _WorkerGauge:
    """A gauge per worker, which is absent while this process only imports the application.

    The parent process of workers often does: with `gunicorn --preload`, or `uvicorn.run(…, workers=4)` in the module of
    the application. Alerts count the series as workers.

    Args:
        registrations: Exposes all gauges of the process.
        bind: Returns the exposed gauge.
    """

    def __init__(self, registrations: _Registrations, bind: Callable[[], Gauge]) -> None:
        self._registrations = registrations
        self._bind = bind
        self._bound: Gauge | None = None

    def expose(self) -> None:
        """Expose the gauge, initially 0."""
        self._bound = self._bind()

    def set(self, value: float) -> None:
        """Set the value."""
        self._exposed().set(value)

    def inc(self, amount: float = 1) -> None:
        """Increase the value."""
        self._exposed().inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Decrease the value."""
        self._exposed().dec(amount)

    def _exposed(self) -> Gauge:
        self._registrations.expose_worker()
        return self._bind() if self._bound is None else self._bound


class _OptionalGauge:
    """A gauge that is absent while its value is unknown."""

    def __init__(self, family: Gauge, values: tuple[str, ...]) -> None:
        self._family = family
        self._values = values

    def set(self, value: float | None) -> None:
        """Set the value; None: unknown."""
        if value is not None:
            self._family.labels(*self._values).set(value)
        elif multiprocess.directory() is None:
            with suppress(KeyError):  # prometheus_client 0.21 raises it if there was no value.
                self._family.remove(*self._values)
        # In multiprocess mode children cannot be removed; the latest value of all workers counts.


def _typed(kind: type[_F], family: _Family) -> _F:
    if not isinstance(family, kind):  # pragma: no cover - a bug of this module
        msg = f"{family!r} is no {kind.__name__}"
        raise TypeError(msg)
    return family
