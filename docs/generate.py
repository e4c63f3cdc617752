"""Write docs/telemetry.md from the catalog: `python docs/generate.py`. A test holds the file to it."""

from collections.abc import Iterator
from pathlib import Path

from mcp_eventscope.telemetry import catalog, declarations

TARGET = Path(__file__).with_name("telemetry.md")

_WORKERS: dict[declarations.Together, str] = {
    "livesum": "sum of workers",
    "livemax": "maximum of workers",
    "livemostrecent": "with `sample_redis`; the newest of workers",
}

HEAD = """# What is measured

<!-- Written by docs/generate.py from the catalog (mcp_eventscope/telemetry/catalog.py). Do not edit. -->

Labels are closed sets. Ids of sessions, streams and events are in spans and logs only, and a session id, which is a
credential on a server without authentication, only as a short hash. The label `store` is the name that
`InstrumentedEventStore(store, name=…)` was given, `default` unless it was.
"""


_OTEL = """With `meter_provider=` they are OpenTelemetry's, too, under the name and unit of the second column, with the
labels as attributes and the same buckets. A gauge that is the sum of workers is an up-down counter there."""


def telemetry() -> str:
    """The page."""
    return "\n".join([HEAD, *_metrics(), "", *_spans(), "", *_logs()]) + "\n"


def _metrics() -> Iterator[str]:
    yield from ("## Metrics", "", _OTEL, "", "| metric | OpenTelemetry | type | labels | |", "|---|---|---|---|---|")
    for metric in catalog.METRICS:
        labels = "<br>".join(
            f"`{label.name}`" + (f": {', '.join(label.values)}" if label.values else "") for label in metric.labels
        )
        type_ = f"{metric.type}<br>{_WORKERS[metric.together]}" if metric.together else metric.type
        yield f"| `{metric.name}` | `{metric.otel_name}`<br>{metric.unit} | {type_} | {labels} | {metric.help} |"


def _spans() -> Iterator[str]:
    yield from ("## Spans", "", "All are `INTERNAL`; `error.type` and the status `ERROR` are set on failure only.", "")
    yield from ("| span | attributes | |", "|---|---|---|")
    for span in catalog.SPANS:
        yield f"| `{span.name}` | {'<br>'.join(f'`{name}`' for name in span.attributes)} | {span.help} |"


def _logs() -> Iterator[str]:
    yield from ("## Log events", "", "Each has `trace_id` and `span_id` when it is written within a trace.", "")
    yield from ("| event | level | fields | |", "|---|---|---|---|")
    for event in catalog.LOG_EVENTS:
        yield f"| `{event.name}` | {event.level} | {', '.join(f'`{name}`' for name in event.fields)} | {event.help} |"


if __name__ == "__main__":
    TARGET.write_text(telemetry(), encoding="utf-8")
