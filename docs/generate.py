"""Write the generated pages: `python docs/generate.py`. Tests check that they are current."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import cleandoc
from pathlib import Path

import click

import navigation
import reference
from mcp_eventscope.cli import main as command_line
from mcp_eventscope.telemetry import catalog, declarations

_WORKERS: dict[declarations.MultiprocessMode, str] = {
    "livesum": "sum of workers",
    "livemax": "maximum of workers",
    "livemin": "minimum of workers",
    "livemostrecent": "latest poll of all workers, with `redis_stats_interval=`",
}

HEAD = """# Metrics, spans and log events

<!-- Written by docs/generate.py from the catalog (mcp_eventscope/telemetry/catalog). Do not edit. -->

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
| Why do resumes fail? | `eventscope_replay_misses_total` by `reason`, `eventscope_events_missing_total`, `eventscope_events_corrupt_total`; `event_store.replay_incomplete`, `event_store.foreign_elements_removed` |
| How close do resumes come to the TTL? | `eventscope_resume_ttl_ratio` above 0.9; `event_store.resume_late`; in seconds: `eventscope_resume_age_seconds` |
| How large are replays? | `eventscope_replay_events`, `eventscope_replay_size_bytes` |
| What latency does a client perceive? | `eventscope_replay_time_to_first_event_seconds` |
| Do resumes wait for other resumes of their principal? | `eventscope_resume_wait_seconds`; refused: `eventscope_requests_refused_total` with reason `resumes` |
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
because clients choose it. Only these series of operations exist from the start: `tools/call` without an error, and with
its most important errors. All others begin with their first observation, which a `rate()` does not include."""


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


LOGS = """Within a trace, each has `trace_id` and `span_id`. Unless the application has configured structlog, they go to
the standard library's logger `mcp_eventscope`, where Python shows warnings and errors only. To see the others, too,
configure logging, for example with `logging.basicConfig(level=logging.INFO)`."""

SETTINGS_HEAD = """# Options and environment

<!-- Written by docs/generate.py from the docstrings and mcp_eventscope/settings.py. Do not edit. -->

Options of `http_app()`. Those with a † are also options of `EventScope`, and are then given there. `http_app()` also
accepts the keywords of the framework's own function: the SDK's `streamable_http_app()`, or FastMCP's `http_app()`.

| option | default | meaning |
|---|---|---|
"""
VARIABLES = """
`EventScope` also takes `redis=`, an asyncio client of redis-py instead of a URL, which the caller closes. The options
of `RedisEventStore`, `RedisTaskStore` and the other classes are in [the API](api.md).

## The environment

`http_app()` and `EventScope` read the variables when they are called. Each stands for the option of the same name.

* **An argument has priority** over its variable, which is then not validated. An argument of None counts as left out;
  `ttl=None` alone is a value (no expiry), written `none` in the environment.
* **An invalid or empty value is an error at start** that names the variable. It is not replaced by the default.
* **A mistyped name** (`EVENTSCOPE_TLL`) has no effect; `event_store.setting_unknown` names the variable that was meant.
* With `event_store=` the variables of the store (`EVENTSCOPE_REDIS_URL` to `EVENTSCOPE_MAX_SESSION_BYTES`) have no
  effect, since the store has its own options.
* `RedisEventStore`, `InstrumentedEventStore` and `ResumableSessionManager` read no variables. `RedisRequestState` reads
  the last two, unless `keys=` is given.

| variable | default | values |
|---|---|---|
"""
OTHER_VARIABLES = """
Others read their own: prometheus_client `PROMETHEUS_MULTIPROC_DIR` ([scraping](scraping.md#several-workers)), the
[command line](cli.md) `GRAFANA_TOKEN` and `MCP_TOKEN`.
"""

API_HEAD = """# API

<!-- Written by docs/generate.py from the docstrings. Do not edit. -->

Everything here is imported from `mcp_eventscope`. [Errors](errors.md) lists the exceptions; `mcp_eventscope.testing`
has the conformance suites for stores and buses of your own.
"""

ERRORS_HEAD = """# Errors

<!-- Written by docs/generate.py from the package. Do not edit. -->

[Troubleshooting](troubleshooting.md) begins with the symptom. No message contains a password, a payload or a session id.

## JSON-RPC errors

A client receives them in place of a result.

| code | `data` | meaning | send it again? |
|---|---|---|---|
| -32010 | `reason`: `worker_lost`, `cancelled`, in answers to questions only | The worker of the call or task has stopped or died. The call may have taken effect. | only if the tool is idempotent |
| -32011 | `reason`: `too_large`, in answers to questions only | The events or the response are not available: expired, evicted, dropped, or lost with Redis. The call may have taken effect. | only if the tool is idempotent |
| -32012 | `reason`: `in_progress` | The same answer to a question is being processed. | yes, later |
| -32013 | `reason`: `unavailable`, `not_running` | The answer to a question had no effect. | yes |
| -32602 | `reason`: `invalid_request_state`, `other_answer` | The request state is invalid, expired, or was already answered differently. | no |
| -32603 | `retryable`: true | Redis is unavailable, or the server has no place for another task. | yes |

## HTTP statuses

| status | body | cause |
|---|---|---|
| 400 | `Last-Event-ID is not an event id of this server` | The client sent an id of another server, or an invented one. |
| 401 | | A scrape without the `metrics_token`, or the authentication of the SDK |
| 404 | `Session not found` | The session has ended or expired, belongs to another principal or server, or was never there. The client opens a new one. |
| 413 | | `initialize` above 64 KiB |
| 421, 403 | `Invalid Host header`, `Invalid Origin header` | [Host and Origin](proxies.md#host-and-origin) |
| 503 | `Session store temporarily unavailable; retry` | Redis is unreachable, and the session is not on this worker. `Retry-After: 1` |
| 503 | `Too many open sessions` | `max_sessions` of this worker. `Retry-After: 1` |
| 503 | `Too many resumes in progress; retry` | 1,000 resumes of this session wait on this worker ([limits](benchmarks.md#limits)). `Retry-After: 1` |
| 503 | `the server was not started; …`, `the server has stopped` | The application that mounts `http_app()` does not run its lifespan. |

## Exceptions

| exception | base | |
|---|---|---|
"""  # noqa: E501 - rows
MESSAGES_HEAD = """
## Messages

The messages of exceptions, in alphabetical order. `…` stands for a value, OPTION for the name of an option or variable.

| message | exception | fix |
|---|---|---|
"""


def settings_page() -> str:
    """The page of the options and environment variables."""
    options, variables = _rows(reference.options()), _rows(reference.variables())
    return SETTINGS_HEAD + options + VARIABLES + variables + OTHER_VARIABLES


def api_page() -> str:
    """The page of the public API."""
    return "\n".join([API_HEAD, *reference.api()]).rstrip() + "\n"


def errors_page() -> str:
    """The page of the errors."""
    return ERRORS_HEAD + _rows(reference.exceptions()) + MESSAGES_HEAD + _rows(reference.messages())


def llms() -> str:
    """`llms.txt`: the pages of the navigation, each with its first sentence."""
    lines = ["# mcp-eventscope", "", f"> {reference.summary()}"]
    section = None
    for page in navigation.pages():
        if page.section != section:
            section = page.section
            lines += ["", f"## {section}"] if section else []
            lines += [""]
        lines.append(f"- [{page.title}]({page.target}): {navigation.summary_of(page.text)}")
    return "\n".join(lines) + "\n"


def _rows(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


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


FOLDER = Path(__file__).parent
PAGES: Mapping[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli_reference.md": cli_page,
    "errors.md": errors_page,
    "settings.md": settings_page,
    "telemetry.md": telemetry,
    "llms.txt": llms,
}
"""The generated files of this folder. `llms.txt` is last, since it quotes the others."""

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
