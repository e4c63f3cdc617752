"""Name rules of the OTLP-to-Prometheus translator, as Prometheus and the collector apply them.

They follow prometheus/otlptranslator: `MetricNamer` with suffixes and without UTF-8, which is the default of Prometheus
(`translation_strategy: UnderscoreEscapingWithSuffixes`), and `LabelNamer`.
"""

import re

from opentelemetry.sdk.metrics.export import Gauge, Metric, Sum

_UNITS = {"s": "seconds", "By": "bytes", "1": "", "%": "percent"}


def series_name(metric: Metric) -> str:
    """The Prometheus name of an OpenTelemetry metric; of a histogram, without `_bucket`."""
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", metric.name) if word]
    # A unit in curly brackets is an annotation, and no unit.
    unit = metric.unit or ""
    unit = "" if "{" in unit else _UNITS[unit]
    if unit and unit not in words:
        words.append(unit)
    if isinstance(metric.data, Sum) and metric.data.is_monotonic:
        words = [*(word for word in words if word != "total"), "total"]
    if isinstance(metric.data, Gauge) and metric.unit == "1":
        words = [*(word for word in words if word != "ratio"), "ratio"]
    return "_".join(words)


def label_name(attribute: str) -> str:
    """The label of an attribute."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)
