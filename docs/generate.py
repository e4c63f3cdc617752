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

QUESTIONS = """## Where the answer is

Each is asked, and answered, by a test: `tests/telemetry/test_questions.py`, `tests/e2e/test_questions.py`.

| question | answer |
|---|---|
| Do resumes work? | `eventscope_replay_duration_seconds_count` by `outcome`: `resumed` and `caught_up` are successes |
| If not, why not? | `eventscope_replay_misses_total` by `reason`, `eventscope_replay_missing_events_total`, `eventscope_replay_corrupt_events_total`; `event_store.replay_incomplete` |
| How near is the TTL, before anything is lost? | `eventscope_resume_ttl_ratio` above 0.9; `event_store.resume_late`; how long clients were away: `eventscope_resume_age_seconds` |
| How big are replays? | `eventscope_replay_events`, `eventscope_replay_bytes` |
| How long until the first event? | `eventscope_replay_first_event_seconds` |
| Our store, or a slow client? | `eventscope_replay_send_seconds` is the client's part of `eventscope_replay_duration_seconds` |
| Is a stream followed, and where? | `eventscope_followers` by `instance` |
| Which worker does the work? | `eventscope_stored_events_total`, `eventscope_sessions` by `instance`; a scrape of several processes as one does not tell them apart |
| Is the store slow, failing, degraded? | `eventscope_commit_duration_seconds`, `eventscope_store_wait_seconds`, `eventscope_errors_total`, `eventscope_degraded`, `eventscope_backlog_bytes` |
| What has been lost? | `eventscope_lost_events_total` by `reason`; `event_store.events_lost` |
| Is the TTL missing, or too short? | `eventscope_ttl_seconds` is 0; `eventscope_redis_keys_without_ttl`; `event_store.ttl_missing`, `event_store.ttl_missing_keys`, `event_store.ttl_short` |
| Are clients refused, and why? | `eventscope_sessions_refused_total` by `reason`; `event_store.session_refused` |
| How many requests cannot resume? | `eventscope_requests_total` of `revision` 2026-07-28 and other; `event_store.inert` |
| Does the telemetry fail? | `eventscope_telemetry_failures_total` by `sink`; `event_store.telemetry_failed` |
"""  # noqa: E501 - rows


_OTEL = """With `meter_provider=` they are OpenTelemetry's, too, under the name and unit of the second column, with the
labels as attributes and the same buckets. A gauge that is the sum of workers is an up-down counter there."""


def telemetry() -> str:
    """The page."""
    return "\n".join([HEAD, QUESTIONS, *_metrics(), "", *_spans(), "", *_logs()]) + "\n"


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
