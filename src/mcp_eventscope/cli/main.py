"""The command line `mcp-eventscope`: diagnose, inspect and serve resumable MCP servers.

Commands are declared here, and import their implementation when they run: `--version`, `--help` and completion need
neither the SDK nor Redis.
"""

import asyncio
import io
import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from math import inf
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from mcp_eventscope.cli import bundled
from mcp_eventscope.cli.output import Exit, print_error, print_json, print_lines, redacted
from mcp_eventscope.errors import EventscopeError, StoreError
from mcp_eventscope.options import Number
from mcp_eventscope.sdk_versions import SESSIONS, require_sdk

PROGRAM = "mcp-eventscope"
COMPLETE_VARIABLE = "_MCP_EVENTSCOPE_COMPLETE"
"""The variable of click's shell completion."""
EPILOG = (
    "Exit codes: 0 nothing is wrong; 1 something is wrong, or the command failed; 2 the command line or a variable is "
    "invalid; 3 Redis or the server is unreachable or refuses the credentials."
)


class _Number(click.FloatRange):
    """A number.

    Args:
        least: Minimum.
        most: Maximum; None: unbounded.
        unit: The unit in the plural; "" for a number without one.
        such_as: A valid value, which the error names.
    """

    name = "number"

    def __init__(self, least: float, most: float | None = None, *, unit: str = "", such_as: str) -> None:
        super().__init__(least, most)
        self._number = Number(unit, least, inf if most is None else most)
        self._such_as = such_as

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert an argument."""
        return float(_converted(float, self._number, self._such_as, value, param, ctx))


class _WholeNumber(click.IntRange):
    """A whole number. Arguments as in `_Number`."""

    name = "whole number"

    def __init__(self, least: int, most: int | None = None, *, unit: str = "", such_as: str) -> None:
        super().__init__(least, most)
        self._number = Number(unit, least, inf if most is None else most, whole=True)
        self._such_as = such_as

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert an argument."""
        return int(_converted(int, self._number, self._such_as, value, param, ctx))


class _Port(_WholeNumber):
    """A port; 0 for any."""

    def __init__(self) -> None:
        super().__init__(0, 65535, such_as="8000")


def _converted(
    kind: type[int | float],
    number: Number,
    such_as: str,
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> float:
    """Convert an argument to a number.

    Raises:
        UsageError: It is not a number of this kind, or out of range. The error names the unit.
    """
    with suppress(ValueError):
        found = kind(value)
        if number.least <= found <= number.most:  # NaN is not.
            return found
    option = param.opts[-1] if param is not None else "the number"
    fix = f"write the {number.unit} without a unit" if number.unit else "write a number"
    msg = f"{option} must be {number.expected()}, got {value!r}; {fix}, such as {such_as}"
    raise click.UsageError(msg, ctx)


F = TypeVar("F", bound=Callable[..., Any])


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check the URL of an HTTP server. The error does not repeat it, because its query may have a token."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid or parts.username is not None:
        msg = "must be a URL such as https://www.example.com/path, without user, query and fragment"
        raise click.BadParameter(msg, ctx, param)
    return value


def _runbook_url(function: F) -> F:
    """Add the option that leads alerts and panels to a runbook outside of Grafana."""
    return click.option(
        "--runbook-url",
        callback=_address,
        metavar="URL",
        help="URL of the runbook, for the links of alerts and panels: a page with a section per alert, such as "
        "docs/runbook.md where you publish it; the anchor is the name of the alert in lower case. Without it they lead "
        "to the runbook dashboard in Grafana, because the project has no published address yet.",
    )(function)


def _connection(function: F) -> F:
    """Add the options of a connection to Redis, and check the SDK before the implementation imports it."""

    @wraps(function)
    def checked(**options: Any) -> Any:
        require_sdk(f"{PROGRAM} {function.__name__.replace('_', ' ')}", SESSIONS)
        return function(**options)

    command: Any = checked
    for option in (
        click.option(
            "--key-prefix", metavar="PREFIX", help="Prefix of every key. [env: EVENTSCOPE_KEY_PREFIX] [default: mcp:]"
        ),
        click.option("--redis-url", metavar="URL", help="URL of Redis. [env: EVENTSCOPE_REDIS_URL]"),
    ):
        command = option(command)
    decorated: F = command
    return decorated


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_max_keys = click.option(
    "--max-keys",
    type=_WholeNumber(1000, such_as="1000000"),
    default=1_000_000,
    show_default=True,
    help="Maximum number of keys that a walk through the database examines.",
)


_name = click.option("--name", metavar="NAME", help="Name of the server. [env: EVENTSCOPE_NAME]")


def _run(work: Coroutine[Any, Any, Exit]) -> None:
    """Run a command, and end with its exit code."""
    code = asyncio.run(work)
    if code:
        raise click.exceptions.Exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG)
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Diagnose, inspect and serve resumable MCP servers on Redis or Valkey.

    Every command has --json. Passwords and tokens are never printed, message contents only with --payloads, and session
    ids only by the commands about sessions.
    """


@cli.command()
@click.argument("url", required=False)
@_connection
@_name
@_max_keys
@click.option("--no-writes", is_flag=True, help="Skip the permissions, which are tested on keys that expire.")
@_json
def doctor(
    url: str | None,
    redis_url: str | None,
    key_prefix: str | None,
    name: str | None,
    max_keys: int,
    no_writes: bool,
    as_json: bool,
) -> None:
    """Check Redis, the permissions, and this installation.

    URL is that of Redis; without it, --redis-url or the environment. Each finding has its fix. The exit code is 1 if
    there is an error or a warning.
    """
    from mcp_eventscope.cli import doctor as implementation

    _run(
        implementation.run(url or redis_url, key_prefix, name, max_keys=max_keys, writes=not no_writes, as_json=as_json)
    )


@cli.command()
@_connection
@_max_keys
@_json
def workers(redis_url: str | None, key_prefix: str | None, max_keys: int, as_json: bool) -> None:
    """List workers, their leases, sessions and requests.

    The exit code is 1 if no worker is alive, or a dead one has running requests.
    """
    from mcp_eventscope.cli import sessions as implementation

    _run(
        implementation.list_workers(
            implementation.settings_of(redis_url, key_prefix), max_keys=max_keys, as_json=as_json
        )
    )


@cli.group()
def sessions() -> None:
    """List, show and end sessions."""


@sessions.command("list")
@_connection
@_name
@click.option("--limit", type=_WholeNumber(1, such_as="100"), default=100, show_default=True, help="Sessions at most.")
@click.option("--all", "ended", is_flag=True, help="Include sessions that have ended.")
@_max_keys
@_json
def sessions_list(
    redis_url: str | None,
    key_prefix: str | None,
    name: str | None,
    limit: int,
    ended: bool,
    max_keys: int,
    as_json: bool,
) -> None:
    """List live sessions. Without authentication a session id is a credential."""
    from mcp_eventscope.cli import sessions as implementation

    _run(
        implementation.list_sessions(
            implementation.settings_of(redis_url, key_prefix, name),
            limit=limit,
            ended=ended,
            max_keys=max_keys,
            as_json=as_json,
        )
    )


@sessions.command("show")
@click.argument("session")
@_connection
@_max_keys
@_json
def sessions_show(session: str, redis_url: str | None, key_prefix: str | None, max_keys: int, as_json: bool) -> None:
    """Show one session with its streams. SESSION is its id, or its hash in logs and spans."""
    from mcp_eventscope.cli import sessions as implementation

    _run(
        implementation.show(
            implementation.settings_of(redis_url, key_prefix), session, max_keys=max_keys, as_json=as_json
        )
    )


@sessions.command("end")
@click.argument("session")
@_connection
@_max_keys
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_json
def sessions_end(
    session: str,
    redis_url: str | None,
    key_prefix: str | None,
    max_keys: int,
    yes: bool,
    as_json: bool,
) -> None:
    """End a session on all workers, cancel its calls, and delete its events.

    SESSION is its id, or its hash in logs and spans. A client's DELETE does the same. It cannot be undone.
    """
    from mcp_eventscope.cli import sessions as implementation

    _run(
        implementation.end(
            implementation.settings_of(redis_url, key_prefix),
            session,
            yes=yes,
            max_keys=max_keys,
            as_json=as_json,
        )
    )


@cli.command()
@click.argument("last_event_id")
@click.option(
    "--session",
    metavar="SESSION",
    help="Its id, or its hash in logs and spans. Without it, the session is searched for.",
)
@_connection
@_max_keys
@_json
def why(
    last_event_id: str,
    session: str | None,
    redis_url: str | None,
    key_prefix: str | None,
    max_keys: int,
    as_json: bool,
) -> None:
    """Explain why a Last-Event-ID can or cannot resume.

    The exit code is 0 if the client would miss nothing, else 1.
    """
    from mcp_eventscope.cli import why as implementation

    _run(
        implementation.run(
            implementation.settings_of(redis_url, key_prefix),
            last_event_id,
            session,
            max_keys=max_keys,
            as_json=as_json,
        )
    )


@cli.command()
@click.argument("session")
@_connection
@_max_keys
@click.option("--from-start", is_flag=True, help="Begin with the retained events, not with the next one.")
@click.option("--payloads", is_flag=True, help="Print the messages, which may be confidential.")
@click.option("--seconds", type=_Number(0, unit="seconds", such_as="60"), help="Stop after this many seconds.")
@_json
def tail(
    session: str,
    redis_url: str | None,
    key_prefix: str | None,
    max_keys: int,
    from_start: bool,
    payloads: bool,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Print the events of a session live.

    SESSION is its id, or its hash in logs and spans. The session and its clients are not affected. With --json, one
    object per line. It ends when the session ends.
    """
    from mcp_eventscope.cli import tail as implementation

    _run(
        implementation.run(
            implementation.settings_of(redis_url, key_prefix),
            session,
            from_start=from_start,
            payloads=payloads,
            seconds=seconds,
            max_keys=max_keys,
            as_json=as_json,
        )
    )


@cli.command()
@click.argument("url", callback=_address)
@click.option("--token", metavar="TOKEN", help="Bearer token. [env: MCP_TOKEN]")
@click.option(
    "--header", "-H", "headers", multiple=True, metavar="NAME:VALUE", help="Header of every request; repeatable."
)
@click.option("--tool", metavar="NAME", help="Cut a call of this tool, instead of the list of tools.")
@click.option("--arguments", metavar="JSON", default="{}", help="Arguments of the tool.")
@click.option(
    "--timeout",
    type=_Number(0.1, unit="seconds", such_as="30"),
    default=30.0,
    show_default=True,
    help="Seconds for the whole check.",
)
@_json
def verify(
    url: str,
    token: str | None,
    headers: tuple[str, ...],
    tool: str | None,
    arguments: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Cut a stream of a running server and resume it.

    URL is the MCP endpoint, such as https://mcp.example.com/mcp. A session is opened, the stream of one request is cut
    after its first event id, and a GET resumes it, which must deliver the response. The session is then deleted.
    """
    from mcp_eventscope.cli import verify as implementation

    _run(
        implementation.run(
            url,
            token=token or os.environ.get("MCP_TOKEN"),
            headers=headers,
            tool=tool,
            arguments=arguments,
            timeout=timeout,
            as_json=as_json,
        )
    )


@cli.command()
@_connection
@_max_keys
@click.option(
    "--rate", type=_Number(0, unit="events per second", such_as="20"), help="Events per second; measured if left out."
)
@click.option(
    "--event-bytes",
    type=_Number(1, unit="bytes", such_as="500"),
    help="Bytes per event in Redis; measured if left out.",
)
@click.option(
    "--ttl",
    type=_WholeNumber(1, unit="seconds", such_as="3600 for an hour"),
    help="Seconds that events are kept. [env: EVENTSCOPE_TTL] [default: 3600]",
)
@click.option(
    "--maxmemory",
    type=_WholeNumber(1, unit="bytes", such_as="1073741824 for 1 GiB"),
    help="Bytes that Redis may use; read from Redis if left out.",
)
@click.option(
    "--seconds",
    type=_Number(0.1, unit="seconds", such_as="5"),
    default=5.0,
    show_default=True,
    help="Duration of the measurement.",
)
@click.option(
    "--sample",
    type=_WholeNumber(1, such_as="1000"),
    default=1000,
    show_default=True,
    help="Maximum number of sessions that are measured.",
)
@_json
def forecast(
    redis_url: str | None,
    key_prefix: str | None,
    max_keys: int,
    rate: float | None,
    event_bytes: float | None,
    ttl: int | None,
    maxmemory: int | None,
    seconds: float,
    sample: int,
    as_json: bool,
) -> None:
    """Forecast the memory that events will use.

    It is rate x bytes x TTL, against maxmemory. Given --rate, --event-bytes and --maxmemory, nothing is measured, and
    no Redis is needed.
    """
    from mcp_eventscope.cli import forecast as implementation

    _run(
        implementation.run(
            redis_url,
            key_prefix,
            implementation.Assumptions(rate=rate, event_bytes=event_bytes, ttl=ttl, maxmemory=maxmemory),
            seconds=seconds,
            sample=sample,
            max_keys=max_keys,
            as_json=as_json,
        )
    )


@cli.command()
@click.argument("url", required=False)
@_connection
@click.option("--port", type=_Port(), default=8765, show_default=True, help="Port; 0 for any.")
@click.option("--token", metavar="TOKEN", help="Token that viewers must give. [env: EVENTSCOPE_CONSOLE_TOKEN]")
@click.option("--payloads", is_flag=True, help="Let viewers read the contents of messages.")
@_json
def console(
    url: str | None,
    redis_url: str | None,
    key_prefix: str | None,
    port: int,
    token: str | None,
    payloads: bool,
    as_json: bool,
) -> None:
    """Serve a page about workers, sessions and Redis on 127.0.0.1.

    URL is that of Redis; without it, --redis-url or the environment. The page only reads. It is the one that
    http_app(console=True) serves at /console.
    """
    from mcp_eventscope.cli import console as implementation

    _run(implementation.run(url or redis_url, key_prefix, port=port, token=token, payloads=payloads, as_json=as_json))


@cli.command()
@click.argument("server", metavar="MODULE:SERVER")
@_connection
@_name
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_Port(), default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", type=_WholeNumber(1, such_as="2"), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--app-dir",
    type=click.Path(file_okay=False, exists=True),
    default=".",
    show_default=True,
    help="Directory of the module.",
)
def serve(
    server: str,
    redis_url: str | None,
    key_prefix: str | None,
    name: str | None,
    host: str,
    port: int,
    workers: int,
    app_dir: str,
) -> None:
    """Serve an MCP server with http_app() and uvicorn.

    MODULE:SERVER names an MCPServer, a low-level Server or a FastMCP, such as quickstart:mcp. Other options are
    variables EVENTSCOPE_*.
    """
    from mcp_eventscope.cli import serve as implementation

    implementation.run(server, redis_url, key_prefix, name, host=host, port=port, workers=workers, app_dir=app_dir)


@cli.command()
@click.option("--serve", "keep_serving", is_flag=True, help="Run one worker until Ctrl-C, instead of the scenes.")
@click.option("--port", type=_Port(), help="Port for --serve. A free one, if it is taken. [default: 8000]")
@_json
def demo(keep_serving: bool, port: int | None, as_json: bool) -> None:
    """Cut a stream and kill a worker, and check that two workers recover.

    The workers run on this machine, on an embedded Valkey, or on the Redis of EVENTSCOPE_REDIS_URL, under a key prefix
    of their own whose keys are removed at the end.
    """
    require_sdk(f"{PROGRAM} demo", SESSIONS)
    from mcp_eventscope.cli import demo as implementation

    code = implementation.run(keep_serving=keep_serving, port=port, as_json=as_json)
    if code:
        raise click.exceptions.Exit(code)


@cli.group()
def dashboards() -> None:
    """Export or push Grafana dashboards and Prometheus rules."""


_RULES = (
    "next: name prometheus/*.yaml of this directory in rule_files, and check with promtool check config that it counts "
    "the rules: Prometheus accepts a pattern that matches no file"
)
_NEXT: Mapping[str, str] = {
    "files": _RULES,
    "provisioning": _RULES,
    "kubernetes": "next: kubectl apply --filename with this directory; check that the ruleSelector of your Prometheus "
    "selects the PrometheusRules",
}
"""The next step, by format. Nothing reports it if it is forgotten."""


@dashboards.command("export")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "layout",
    type=click.Choice(bundled.FORMATS),
    default="files",
    show_default=True,
    help="Plain files, files with a provider for Grafana's provisioning, or Kubernetes objects.",
)
@click.option(
    "--grafana-url",
    callback=_address,
    metavar="URL",
    help="URL of Grafana, for the links in the alerts; without it they are relative to Grafana.",
)
@_runbook_url
@click.option("--namespace", metavar="NAMESPACE", help="Namespace of the Kubernetes objects.")
@click.option(
    "--provisioned",
    metavar="DIR",
    default=bundled.PROVISIONED,
    show_default=True,
    help="Directory of the dashboards on Grafana's host.",
)
@click.option("--force", is_flag=True, help="Replace existing files with different content.")
@_json
def dashboards_export(
    directory: Path,
    layout: str,
    grafana_url: str | None,
    runbook_url: str | None,
    namespace: str | None,
    provisioned: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write the dashboards and rules to a directory, which is created if it does not exist."""
    written = bundled.export(
        directory,
        layout=layout,
        grafana_url=grafana_url,
        runbook_url=runbook_url,
        namespace=namespace,
        provisioned=provisioned,
        force=force,
    )
    if as_json:
        print_json("dashboards export", files=[str(path) for path in written])
    else:
        print_lines(str(path) for path in written)
        print_error(_NEXT[layout])


@dashboards.command("push")
@click.option("--grafana", callback=_address, required=True, metavar="URL", help="URL of Grafana.")
@click.option("--token", metavar="TOKEN", help="Token of a service account with the role Editor. [env: GRAFANA_TOKEN]")
@click.option(
    "--folder", default=bundled.FOLDER_TITLE, show_default=True, help="Title of the folder if it does not exist yet."
)
@_runbook_url
@_json
def dashboards_push(grafana: str, token: str | None, folder: str, runbook_url: str | None, as_json: bool) -> None:
    """Import the dashboards into Grafana over its HTTP API.

    Earlier versions are replaced. The rules are for Prometheus: export them, and list them in its rule_files.
    """
    from mcp_eventscope.cli.grafana import TOKEN_VARIABLE, push

    token = token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        msg = f"--token must be given, got none; or set {TOKEN_VARIABLE}, which no process list shows"
        raise click.UsageError(msg)
    if not (token.isascii() and token.isprintable()) or " " in token:
        msg = f"--token ({TOKEN_VARIABLE}) must have printable ASCII characters, got others; remove line breaks"
        raise click.UsageError(msg)
    boards = [(name, text) for name, text in bundled.bundled_files(runbook_url) if name.endswith(".json")]
    urls = push(grafana, token, boards, folder=folder)
    if as_json:
        print_json("dashboards push", urls=urls)
    else:
        print_lines(urls)
        print_error(
            "next: select your Prometheus in the variable 'Data source' of a dashboard; without one panels are empty"
        )


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: C901, PLR0911 - an exit code each
    """Run the command line.

    Args:
        arguments: The arguments without the program name; None: `sys.argv`.

    Returns:
        The exit code; see `Exit`. The reason of a failure is on standard error, or on standard output with `--json`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # A container may have a locale without Unicode.
    try:
        # The code of `Exit`, or the result of a command, which has none.
        code = cli.main(given, prog_name=PROGRAM, standalone_mode=False, complete_var=COMPLETE_VARIABLE)
    except click.UsageError as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError) and "--json" not in given:
            print_error(error.format_message())
            return Exit.USAGE
        usage = f"{error.ctx.get_usage()}\n" if error.ctx else ""
        return _failed(given, Exit.USAGE, _with_fix(error, given), before=usage)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Otherwise the interpreter's flush fails, too.
    except (StoreError, ConnectionError) as error:
        return _failed(given, Exit.UNREACHABLE, str(error))
    except EventscopeError as error:
        return _failed(given, Exit.FAILED, str(error))
    except (click.Abort, KeyboardInterrupt):
        return _failed(given, Exit.INTERRUPTED, "interrupted")
    except Exception:  # noqa: BLE001 - printed by the interpreter it could show a secret
        return _failed(given, Exit.FAILED, traceback.format_exc())
    else:
        return code if isinstance(code, int) else Exit.OK
    return Exit.OK


def _with_fix(error: click.UsageError, arguments: Sequence[str]) -> str:
    """Click's message about an invalid command line, with the fix."""
    message = error.format_message()
    if "; " in message or "Did you mean" in message or error.ctx is None:
        return message
    message = message.removesuffix(".")
    if isinstance(error, click.NoSuchOption) and isinstance(error.ctx.command, click.Group):
        return f"{message}; write options after the command"
    if "unexpected extra argument" in message and any("://" in each for each in arguments):
        return f"{message}; write the URL of Redis as --redis-url"
    return f"{message}; see {error.ctx.command_path} --help"


def _failed(arguments: Sequence[str], code: Exit, message: str, *, before: str = "") -> int:
    """Report a failure without secrets, and return its code."""
    message = redacted(message, arguments)
    if "--json" in arguments:
        print_json(" ".join(_command_of(arguments)), error={"code": code.name.lower(), "message": message})
    else:
        print_error(f"{before}{PROGRAM}: {message}")
    return code


def _command_of(arguments: Sequence[str]) -> list[str]:
    """The names of the command and its subcommand."""
    names: list[str] = []
    found: click.Command | None = cli
    for argument in arguments:
        if not isinstance(found, click.Group) or (found := found.commands.get(argument)) is None:
            break
        names.append(argument)
    return names


if __name__ == "__main__":
    sys.exit(main())
