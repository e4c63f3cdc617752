"""Write the generated pages: `python docs/generate.py`. Tests check that they are current."""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path

import click

from mcp_eventscope import settings
from mcp_eventscope.cli import main as command_line
from mcp_eventscope.redis import self_test
from mcp_eventscope.telemetry import catalog, declarations

TARGET = Path(__file__).with_name("telemetry.md")
SETTINGS_TARGET = Path(__file__).with_name("settings.md")
CLI_TARGET = Path(__file__).with_name("cli_reference.md")

_WORKERS: dict[declarations.MultiprocessMode, str] = {
    "livesum": "sum of workers",
    "livemax": "maximum of workers",
    "livemin": "minimum of workers",
    "livemostrecent": "latest poll of all workers, with `redis_stats_interval=`",
}

HEAD = """# Metrics, spans and log events

<!-- Written by docs/generate.py from the catalog (mcp_eventscope/telemetry/catalog.py). Do not edit. -->

Labels are closed sets. Ids of sessions, streams and events are in spans and logs only; a session id, which is a
credential on a server without authentication, only as a short hash. The label `store` is the name of
the server: `name=` in `http_app()`, `EventScope` and `InstrumentedEventStore`.

A dimension has one name in all signals: a label and a log field `outcome`, a span attribute `eventscope.outcome`. The
exception is `error.type`, a name of the semantic conventions: the label and the log field are `error_type`, with the
same values.
"""

QUESTIONS = """## Questions and answers

Each row is checked by a test: `tests/telemetry/test_questions.py`, `tests/e2e/test_metrics_per_worker.py`; those about
revision 2026-07-28 in `tests/telemetry/test_subscription_signals.py`, `test_request_states.py` and `test_task_signals.py`.

| question | answer |
|---|---|
| Do resumes work? | `eventscope_replay_duration_seconds_count` by `outcome`: `resumed` and `caught_up` are successes |
| Why do resumes fail? | `eventscope_replay_misses_total` by `reason`, `eventscope_events_missing_total`, `eventscope_events_corrupt_total`; `event_store.replay_incomplete` |
| How close do resumes come to the TTL? | `eventscope_resume_ttl_ratio` above 0.9; `event_store.resume_late`; in seconds: `eventscope_resume_age_seconds` |
| How large are replays? | `eventscope_replay_events`, `eventscope_replay_size_bytes` |
| What latency does a client perceive? | `eventscope_replay_time_to_first_event_seconds` |
| Is the store slow, or the client? | `eventscope_replay_send_duration_seconds` is the client's part of `eventscope_replay_duration_seconds` |
| Which streams are followed, and where? | `eventscope_streams_followed` by `instance` |
| How is the load distributed? | `eventscope_events_stored_total`, `eventscope_sessions_active` by `instance` and `pid`; counters not in multiprocess mode |
| Is the store slow, failing or degraded? | `eventscope_commit_duration_seconds`, `eventscope_store_wait_seconds`, `eventscope_errors_total`, `eventscope_degraded`, `eventscope_backlog_size_bytes` |
| Were events lost? | `eventscope_events_lost_total` by `reason`; `event_store.events_lost` |
| Is the TTL missing or too short? | no series `eventscope_ttl_seconds`; `eventscope_redis_keys_without_ttl`; `event_store.ttl_missing`, `event_store.keys_without_ttl`, `event_store.ttl_short` |
| Are clients refused, and why? | `eventscope_requests_refused_total` by `reason`; `event_store.session_refused` |
| How many requests cannot resume? | `eventscope_requests_received_total` with `mcp_protocol_version` 2026-07-28 and other; `event_store.resumption_disabled` |
| Which requests are slow or fail, and how long do sessions last? | `mcp_server_operation_duration_seconds` by `mcp_method_name` and `error_type`; `mcp_server_session_duration_seconds` |
| Are signals to subscribers late or missed? | `eventscope_subscriptions_signal_lag_seconds`, `eventscope_subscriptions_changes_pending`; `eventscope_subscriptions_gaps_total` by `reason`; `subscriptions.gap_repaired` |
| Why are answers to questions refused? | `eventscope_request_state_refused_total` by `reason`; `request_state.refused` |
| Are tasks orphaned or never collected? | `eventscope_tasks_orphaned_total`, `eventscope_tasks_uncollected_total`, `eventscope_tasks_poll_age_seconds`; `task_store.orphaned`, `task_store.uncollected` |
| Does the telemetry fail? | `eventscope_telemetry_failures_total` by `sink`; `event_store.telemetry_failed` |
"""  # noqa: E501 - rows


_OTEL = """With `meter_provider=` the metrics go to OpenTelemetry too, with the name and unit in the second column, the
labels as attributes (`error_type` as `error.type`), and the same buckets. A gauge whose sum over workers has a meaning
is an up-down counter. After the OTLP-to-Prometheus translator they have the names in the first column again.

Gauges "of each worker": where workers share a directory (`PROMETHEUS_MULTIPROC_DIR`), such a gauge has a series for
each live worker, with the label `pid`. Workers that are scraped separately differ in `instance`.

`mcp.server.operation.duration` and `mcp.server.session.duration` are metrics of the OpenTelemetry semantic conventions
for MCP (status: Development), with their attributes and buckets; `error_type` is absent on success. Operations are the
requests of clients within sessions. Not counted: notifications, requests of protocol revision 2026-07-28 and of
stateless servers, and requests that are refused before they reach their session. The name of a tool is no label,
because clients choose it. Of operations, only the series of `tools/call` without an error and with its most important
errors exist from the start; the others begin with their first observation, which a `rate()` does not include."""


def telemetry() -> str:
    """The page."""
    return "\n".join([HEAD, QUESTIONS, *_metrics(), "", *_spans(), "", *_logs()]) + "\n"


def _metrics() -> Iterator[str]:
    yield from ("## Metrics", "", _OTEL, "", "| metric | OpenTelemetry | type | labels | |", "|---|---|---|---|---|")
    for metric in catalog.METRICS:
        labels = "<br>".join(
            f"`{label.name}`" + (f": {', '.join(filter(None, label.values))}" if label.values else "")
            for label in metric.labels
        )
        type_ = f"{metric.type}<br>{_workers(metric)}" if metric.multiprocess_mode else metric.type
        yield f"| `{metric.name}` | `{metric.otel_name}`<br>{metric.unit} | {type_} | {labels} | {metric.help} |"


def _workers(metric: declarations.Metric) -> str:
    return "of each worker" if metric.per_worker else _WORKERS[metric.multiprocess_mode or "livesum"]


def _spans() -> Iterator[str]:
    yield from ("## Spans", "", "All are `INTERNAL`; `error.type` and the status `ERROR` are set on failure only.", "")
    yield from ("| span | attributes | |", "|---|---|---|")
    for span in catalog.SPANS:
        yield f"| `{span.name}` | {'<br>'.join(f'`{name}`' for name in span.attributes)} | {span.help} |"


def _logs() -> Iterator[str]:
    yield from ("## Log events", "", LOGS, "")
    yield from ("| event | level | fields | |", "|---|---|---|---|")
    for event in catalog.LOG_EVENTS:
        yield f"| `{event.name}` | {event.level} | {', '.join(f'`{name}`' for name in event.fields)} | {event.help} |"


LOGS = """Within a trace, each has `trace_id` and `span_id`. Without structlog they go to the standard library's logger
`mcp_eventscope`, where Python shows warnings and errors only. To see the others, too, configure logging, for example
with `logging.basicConfig(level=logging.INFO)`."""

SETTINGS_HEAD = """# Settings from the environment

<!-- Written by docs/generate.py from mcp_eventscope/settings.py. Do not edit. -->

`http_app()` and `EventScope` read these variables when they are called. Each has the meaning of the option of the same
name in lower case, without `EVENTSCOPE_`; the [README](../README.md#options) describes the options.

* **An argument has priority** over its variable, which is then not validated. An argument of None counts as left out;
  `ttl=None` alone is a value (no expiry), written `none` in the environment.
* **An invalid or empty value is an error at start** that names the variable. It is not replaced by the default.
* **A mistyped name** (`EVENTSCOPE_TLL`) has no effect; `event_store.setting_unknown` names the variable that was meant.
* With `event_store=` the variables of the store (`EVENTSCOPE_REDIS_URL` to `EVENTSCOPE_MAX_SESSION_BYTES`) have no
  effect, since the store has its own options.
* `RedisEventStore`, `InstrumentedEventStore` and `ResumableSessionManager` read no variables. `RedisRequestState` reads
  the variables of its own, unless `keys=` is given.

| variable | default | values |
|---|---|---|
"""
REDIS_HEAD = """
## The user in Redis

At start, a worker tests whether Redis has every capability that the store needs, and otherwise logs
`event_store.redis_limited` with the fix. In `redis-cli`, this command creates a user with sufficient rights
for the `key_prefix` `mcp:`; `redis_stats_interval=` also needs `+dbsize +memory|usage +pttl +scan +type`:

```
"""


def settings_page() -> str:
    """The page of the environment variables."""
    rules = f"ACL SETUSER mcp on >PASSWORD {self_test.acl_rules('mcp:')}"
    return SETTINGS_HEAD + "".join(f"{row}\n" for row in _settings()) + REDIS_HEAD + rules + "\n```\n"


def _settings() -> Iterator[str]:
    for option, field in settings.Settings.model_fields.items():
        if (number := settings.NUMBERS.get(option)) is not None:
            otherwise = f", or `{settings.NEVER}`: {number.none}" if number.none else ""
            values = f"{number.expected()}{otherwise}"
        else:
            values = settings.TEXTS[option][1]
        default = "unset" if field.default is None else field.default
        yield f"| `{settings.variable(option)}` | {default} | {values} |"
    for name, values in settings.REQUEST_STATE_VARIABLES.items():
        yield f"| `{name}` | unset | {values} |"


CLI_HEAD = """# Command line reference

<!-- Written by docs/generate.py from mcp_eventscope/cli/main.py. Do not edit. -->

[cli.md](cli.md) describes the commands with examples, the exit codes, and the shapes of the JSON.
"""


def cli_page() -> str:
    """The page of the command line."""
    return "\n".join([CLI_HEAD, *_commands(command_line.cli, (command_line.PROGRAM,))]) + "\n"


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], (*path, name))
        return
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    options = [each for each in command.params if isinstance(each, click.Option)]
    named = " ".join(
        name if each.required else f"[{name}]" for each in arguments for name in [each.metavar or each.name.upper()]
    )
    yield from (f"## {' '.join(path)}", "", f"`{' '.join(path)} [OPTIONS]{f' {named}' if named else ''}`", "")
    yield from (*cleandoc(command.help or "").splitlines(), "", "| option | default | |", "|---|---|---|")
    for option in options:
        choices = option.type.choices if isinstance(option.type, click.Choice) else ()
        values = "" if option.is_flag else f" {option.metavar or _values(choices)}"
        default = option.default if option.show_default else ""
        yield f"| `{', '.join(option.opts)}{values}` | {default} | {option.help} |"
    yield ""


def _values(choices: Sequence[object]) -> str:
    """The values of an option without a name of their own."""
    return "{" + ",".join(map(str, choices)) + "}" if choices else "VALUE"


if __name__ == "__main__":
    CLI_TARGET.write_text(cli_page(), encoding="utf-8")
    TARGET.write_text(telemetry(), encoding="utf-8")
    SETTINGS_TARGET.write_text(settings_page(), encoding="utf-8")
