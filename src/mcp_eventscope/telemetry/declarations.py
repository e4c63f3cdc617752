"""The types of the catalog's entries: metrics, labels, spans and log events."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

MultiprocessMode: TypeAlias = Literal["livesum", "livemax", "livemin", "livemostrecent"]
"""How one scrape merges a gauge of several workers: prometheus_client's modes that ignore dead processes."""

_UNITS: Mapping[str, str] = {"_seconds": "s", "_bytes": "By"}
"""OpenTelemetry's unit (UCUM) by the Prometheus suffix that names it."""


class MetricType(StrEnum):
    """The metric types in use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its values. None: the values depend on the installed versions, or on the application.

    With the value "" the label, and the OpenTelemetry attribute, are absent.
    """

    name: str
    values: tuple[str, ...] | None
    convention: str = ""

    @property
    def attribute(self) -> str:
        """The attribute of the OpenTelemetry metric, which the OTLP-to-Prometheus translator turns into `name`.

        A name of the semantic conventions where there is one; else the label itself.
        """
        return self.convention or self.name


STORE = Label("store", None)
"""The first label of every metric: the name that the application gave the store."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, by its Prometheus name, with its help text.

    Attributes:
        counted: The singular of the things that a number counts; "" where the name has a unit, or none.
        multiprocess_mode: How one scrape merges a gauge of several workers; every gauge has one.
        per_worker: Whether one scrape of several workers has a series for each instead, with the label `pid`: for
            gauges that answer whether one worker is concerned, or all are.
        polled: Whether Redis statistics set it. It is absent until the first poll: 0 keys would be wrong.
        optional: Whether it is absent where its value is unknown.
        on_demand: Whether a series begins with its first observation, because its labels have too many combinations.
        convention: Its OpenTelemetry name, where that is one of the semantic conventions.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[Label, ...]
    buckets: tuple[float, ...] = ()
    counted: str = ""
    multiprocess_mode: MultiprocessMode | None = None
    per_worker: bool = False
    polled: bool = False
    optional: bool = False
    on_demand: bool = False
    convention: str = ""

    @property
    def unit(self) -> str:
        """Its unit in OpenTelemetry's notation (UCUM)."""
        name = self.name.removesuffix("_total")
        named = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
        return named or (f"{{{self.counted}}}" if self.counted else "1")

    @property
    def otel_name(self) -> str:
        """Its OpenTelemetry name: that of the convention, else dots between the first words; no type, no unit.

        The OTLP-to-Prometheus translator appends both again, so that one query serves both worlds.
        """
        if self.convention:
            return self.convention
        name = self.name.removesuffix("_total")
        for suffix in _UNITS:
            name = name.removesuffix(suffix)
        return ".".join(name.split("_", 2))

    def label_values(self, *values: str) -> tuple[str, ...]:
        """The values, if there is one for each label.

        Raises:
            ValueError: There are more or fewer.
        """
        if len(values) != len(self.labels):
            names = ", ".join(label.name for label in self.labels)
            msg = f"{self.name} must be bound with one value for each of its labels ({names}), got {len(values)} values"
            raise ValueError(msg)
        return values


@dataclass(frozen=True, slots=True)
class Span:
    """One span and its possible attributes."""

    name: str
    help: str
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One structlog event: level, meaning, fields, and the seconds within which it is not repeated."""

    name: str
    level: str
    help: str
    fields: tuple[str, ...]
    repeat: float | None = None
