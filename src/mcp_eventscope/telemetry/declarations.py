"""What a metric, a span and a log event are: the shapes that the catalog is filled with."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

Together: TypeAlias = Literal["livesum", "livemax", "livemostrecent"]
"""What a gauge of several workers is in one scrape: prometheus_client's multiprocess modes that ask the living only."""


_UNITS = {
    "seconds": "s",
    "bytes": "By",
    "events": "{event}",
    "keys": "{key}",
    "followers": "{stream}",
    "replays": "{replay}",
    "requests": "{request}",
    "sessions": "{session}",
    "retries": "{batch}",
    "misses": "{replay}",
    "errors": "{error}",
    "failures": "{signal}",
}
"""By the word in a name that says it; a curly bracket is a count of something."""


class MetricType(StrEnum):
    """The types that are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and the values it can have. None: fixed by what is installed, or by the application for each store."""

    name: str
    values: tuple[str, ...] | None


STORE = Label("store", None)
"""The first label of every metric: which store, by the name that the application gave it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, by its exposed name, with the help that a scrape shows.

    `together` is for gauges, and each has it. What is `sampled` is there only where Redis is sampled, and from the
    first sample on: zero keys would be a lie. `otel` is its name for OpenTelemetry where the rule gives a bad one.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[Label, ...]
    buckets: tuple[float, ...] = ()
    together: Together | None = None
    sampled: bool = False
    otel: str = ""

    @property
    def unit(self) -> str:
        """Its unit, as OpenTelemetry writes units (UCUM)."""
        words = self.name.removesuffix("_total").split("_")
        return next((_UNITS[word] for word in reversed(words) if word in _UNITS), "1")

    @property
    def otel_name(self) -> str:
        """Its name for OpenTelemetry: dots between what it is about, `_total` and the unit not repeated in it.

        Where the unit says what is counted (`eventscope.stored.events`, `eventscope.stored.bytes`) it stays.
        """
        if self.otel:
            return self.otel
        name = self.name.removesuffix("_total").removesuffix("_seconds")
        return ".".join(name.split("_", 2))


@dataclass(frozen=True, slots=True)
class Span:
    """One span, and the attributes it can carry."""

    name: str
    help: str
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One structlog event: its level, what it means, its fields, and the seconds in which it is not repeated."""

    name: str
    level: str
    help: str
    fields: tuple[str, ...]
    repeat: float | None = None
