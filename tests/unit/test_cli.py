"""The command line without servers: its frame, exit codes, redaction, and the forecast of given numbers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import click
import pytest

from mcp_eventscope import sdk_versions
from mcp_eventscope.cli import main as main_module
from mcp_eventscope.cli.main import _Number, _WholeNumber, cli, main
from mcp_eventscope.cli.output import Exit, duration, print_table, printable, redacted, size, to_json
from mcp_eventscope.cli.serve import ServeError, load_server
from support.servers import HOST, free_port

SECRET = "hunter2-secret"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of the machine, and none of `serve`, which sets those that worker processes inherit."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    with patch.dict(os.environ):
        for name in list(os.environ):
            if name.startswith("EVENTSCOPE_") or name in ("MCP_TOKEN", "GRAFANA_TOKEN"):
                del os.environ[name]
        yield


def commands(group: click.Group = cli, *path: str) -> list[tuple[str, ...]]:
    """The paths of all commands that are no groups."""
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found += commands(command, *path, name) if isinstance(command, click.Group) else [(*path, name)]
    return found


def command(path: tuple[str, ...]) -> click.Command:
    """A command by its path."""
    found: click.Command = cli
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


# -- the frame --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["--version", "--help", "why --help"])
def test_start_imports_neither_the_sdk_nor_redis(arguments: str) -> None:
    """What an operator types first is instantaneous."""
    code = (
        "import sys; from mcp_eventscope.cli.main import main; code = main(sys.argv[1:]);"
        "print([name for name in ('mcp', 'redis', 'pydantic', 'rich', 'uvicorn') if name in sys.modules], code)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[] 0", run.stdout


def test_completion_of_commands_is_available() -> None:
    """The shell asks for the commands that begin with a text."""
    environment = {**os.environ, main_module.COMPLETE_VARIABLE: "bash_complete", "COMP_WORDS": "x d", "COMP_CWORD": "1"}
    code = "from mcp_eventscope.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert set(run.stdout.split()) == {"plain,doctor", "plain,dashboards", "plain,demo"}


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_command_has_json_and_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command prints JSON on request; `serve` prints only the log of uvicorn."""
    assert ("--json" in [name for each in command(path).params for name in each.opts]) == (path != ("serve",))
    assert main([*path, "--help"]) == Exit.OK
    assert "Usage: mcp-eventscope" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["why"],
        ["doctor", "--max-keys", "many"],
        ["doctor"],
        ["doctor", "http://host"],
        ["workers", "--redis-url", "redis://host/name"],
        ["workers", "--redis-url", "redis://host", "--key-prefix", ""],
        ["verify", "localhost:8000/mcp"],
        ["verify", "http://localhost/mcp", "--arguments", "[]"],
        ["verify", "http://localhost/mcp", "-H", "no colon"],
        ["serve", "module"],
        ["serve", "no_such_module_anywhere:mcp", "--redis-url", "redis://host"],
        ["serve", "json:no_such_name", "--redis-url", "redis://host"],
        ["serve", "json:loads", "--workers", "2"],
    ],
    ids=" ".join,
)
def test_invalid_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the usage and the reason on standard error, and nothing on standard output."""
    assert main(arguments) == Exit.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Usage: mcp-eventscope")
    assert printed.err.splitlines()[-1].startswith("mcp-eventscope: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["forecast", "--maxmemory", "1gb"],
            (
                "--maxmemory must be a whole number of at least 1 bytes, got '1gb'; "
                "write the bytes without a unit, such as 1073741824 for 1 GiB"
            ),
        ),
        (
            ["forecast", "--event-bytes", "1kb"],
            "--event-bytes must be at least 1 bytes, got '1kb'; write the bytes without a unit, such as 500",
        ),
        (
            ["forecast", "--ttl", "1h"],
            (
                "--ttl must be a whole number of at least 1 seconds, got '1h'; "
                "write the seconds without a unit, such as 3600 for an hour"
            ),
        ),
        (
            ["forecast", "--rate", "nan"],
            (
                "--rate must be at least 0 events per second, got 'nan'; "
                "write the events per second without a unit, such as 20"
            ),
        ),
        (
            ["forecast", "--seconds", "5s"],
            "--seconds must be at least 0.1 seconds, got '5s'; write the seconds without a unit, such as 5",
        ),
        (
            ["tail", "session", "--seconds", "-1"],
            "--seconds must be at least 0 seconds, got '-1'; write the seconds without a unit, such as 60",
        ),
        (
            ["verify", "http://localhost/mcp", "--timeout", "1m"],
            "--timeout must be at least 0.1 seconds, got '1m'; write the seconds without a unit, such as 30",
        ),
        (
            ["demo", "--serve", "--port", "99999"],
            "--port must be a whole number between 0 and 65535, got '99999'; write a number, such as 8000",
        ),
        (
            ["doctor", "--max-keys", "1e6"],
            "--max-keys must be a whole number of at least 1000, got '1e6'; write a number, such as 1000000",
        ),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_number_that_is_invalid_is_refused_with_its_unit(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error has an example of a valid value."""
    assert main(arguments) == Exit.USAGE
    assert capsys.readouterr().err.splitlines()[-1] == f"mcp-eventscope: {message}"


def test_every_number_of_the_command_line_names_its_range_in_errors() -> None:
    """Click's own types name neither the unit nor a valid value."""
    types = [each.type for path in commands() for each in command(path).params]
    numbers = [each for each in types if isinstance(each, click.types.IntParamType | click.types.FloatParamType)]
    assert numbers
    assert [each for each in numbers if not isinstance(each, _Number | _WholeNumber)] == []


@pytest.mark.parametrize("arguments", [[], ["dashboards"], ["sessions"]], ids=" ".join)
def test_group_without_command_exits_with_2_and_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists the commands."""
    assert main(arguments) == Exit.USAGE
    assert "Commands:" in capsys.readouterr().err


def test_invalid_variable_exits_with_2_and_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment is read as a server reads it."""
    monkeypatch.setenv("EVENTSCOPE_TTL", "soon")
    assert main(["workers", "--redis-url", "redis://host"]) == Exit.USAGE
    assert "EVENTSCOPE_TTL must be" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["doctor", "workers", "sessions list", "sessions show s", "why 1-1-0000000000001.7"])
def test_unreachable_redis_exits_with_3(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is one JSON object on standard output, without the password."""
    url = f"redis://user:{SECRET}@{HOST}:{free_port()}"
    assert main([*path.split(), "--redis-url", url, "--json"]) == Exit.UNREACHABLE
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    result = json.loads(printed.out)
    assert path.startswith(result["command"])
    assert result["error"]["code"] == "unreachable"
    assert HOST in result["error"]["message"]


def test_unreachable_server_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    """As an unreachable Redis."""
    assert main(["verify", f"http://{HOST}:{free_port()}/mcp", "--token", SECRET, "--json"]) == Exit.UNREACHABLE
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == "unreachable"
    assert SECRET not in printed.out + printed.err


def test_unexpected_error_exits_with_1_and_hides_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback is printed, but not the secret that its error repeats."""

    def fail(url: str) -> None:
        msg = f"cannot handle {url}\x1b[31m"
        raise RuntimeError(msg)

    monkeypatch.setattr("mcp_eventscope.cli.connection.client_for", fail)
    assert main(["workers", "--redis-url", f"redis://:{SECRET}@host"]) == Exit.FAILED
    printed = capsys.readouterr().err
    assert "RuntimeError: cannot handle redis://***@host\\x1b[31m" in printed
    assert SECRET not in printed


def test_unsupported_sdk_is_named_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that need the SDK name the supported versions."""
    monkeypatch.setattr(sdk_versions, "version", lambda _: "1.29.0")
    assert main(["sessions", "list", "--redis-url", "redis://host"]) == Exit.FAILED
    assert "for mcp-eventscope sessions list, got 1.29.0" in capsys.readouterr().err


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a traceback."""
    monkeypatch.setattr("mcp_eventscope.cli.connection.client_for", Mock(side_effect=KeyboardInterrupt))
    assert main(["workers", "--redis-url", "redis://host"]) == Exit.INTERRUPTED
    assert capsys.readouterr().err.strip() == "mcp-eventscope: interrupted"


# -- secrets and control characters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["workers", f"redis://:{SECRET}@host"],
        ["doctor", f"redis://user:{SECRET}@host/name"],
        ["doctor", f"redis://user:{SECRET}/@host"],
        ["doctor", f"http://user:{SECRET}@host"],
        ["workers", "--redis-url", f"redis://:{SECRET}@host:99999"],
        ["dashboards", "push", "--grafana", f"https://grafana/?auth_token={SECRET}"],
        ["dashboards", "push", "--grafana", f"https://user:{SECRET}@grafana"],
        ["dashboards", "push", "--grafana", "https://grafana", "--token", SECRET, SECRET],
        ["verify", f"https://host/mcp?api_key={SECRET}"],
        ["verify", "https://host/mcp", "-H", f"Authorization: Bearer {SECRET}", f"Bearer {SECRET}"],
        ["verify", "https://host/mcp", f"--token={SECRET}", f"x{SECRET}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(SECRET, "***"),
)
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_error_repeats_no_secret(arguments: list[str], as_json: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Passwords of URLs, tokens and headers are in no error about the command line."""
    assert main([*arguments, *as_json]) == Exit.USAGE
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert bool(printed.out) == bool(as_json)


def test_redaction_includes_variables_and_both_forms_of_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password is hidden in its encoded and its decoded form."""
    monkeypatch.setenv("EVENTSCOPE_REDIS_URL", "redis://user:p%40ss%2Fword@host")
    monkeypatch.setenv("GRAFANA_TOKEN", "glsa_token")
    assert redacted("p%40ss%2Fword p@ss/word glsa_token host") == "*** *** *** host"
    assert redacted("a://b:c@d?x=1&access_token=e#f") == "a://***@d?x=1&access_token=***#f"


def test_redaction_finds_the_password_of_a_cluster_with_ipv6_addresses() -> None:
    """Python refuses to split such a URL."""
    url = "redis+cluster://me:hunter22@a,[::1]:7002/?x=1"
    assert redacted("hunter22 host", ("--redis-url", url)) == "*** host"


def test_output_without_unicode_is_escaped() -> None:
    """A container may have a locale in which a name of a client cannot be printed."""
    code = "from mcp_eventscope.cli.main import main; import sys; sys.exit(main(['workers', 'é']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (run.returncode, "(\\xe9)" in run.stderr) == (Exit.USAGE, True), run.stderr


def test_characters_that_act_on_a_terminal_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, C1 controls, direction overrides, and lone surrogates; other characters are kept."""
    hostile = "a\x1b[2J\x07\x7f\x9b\u202e\u2028\n\ud800é漢"
    assert printable(hostile) == "a\\x1b[2J\\x07\\x7f\\x9b\\u202e\\u2028\\n\\ud800é漢"
    assert to_json({"text": hostile}).isprintable()
    assert json.loads(to_json({"text": hostile})) == {"text": hostile}
    print_table(("column",), [["[bold]\x1b[31mx[/bold]"]])
    assert "[bold]\\x1b[31mx[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_table_hides_no_column_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """The terminal wraps its lines."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(("session", "state", "age", "workers"), [["s" * 32, "running", "1m 30s", "w" * 12]])
    header, row = re.sub("\x1b\\[[0-9]*m", "", capsys.readouterr().out).splitlines()
    assert header.split() == ["session", "state", "age", "workers"]
    assert row.split() == ["s" * 32, "running", "1m", "30s", "w" * 12]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.04, "0.0s"), (9.94, "9.9s"), (61, "1m 1s"), (3600, "1h"), (93784, "1d 2h")]
)
def test_duration_has_two_units(seconds: float | None, text: str) -> None:
    """The largest ones."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, ""), (0, "0 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (1 << 45, "32.0 TiB")]
)
def test_size_has_a_binary_unit(number: float | None, text: str) -> None:
    """The largest one that fits."""
    assert size(number) == text


# -- commands without servers -----------------------------------------------------------------------------------------


def forecast(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the result of a forecast."""
    code = main(["forecast", *options, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_forecast_of_given_numbers_needs_no_redis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The product, against three quarters of maxmemory; the TTL may come from the environment."""
    given = ["--rate", "100", "--event-bytes", "300", "--maxmemory"]
    code, fits = forecast(capsys, *given, "300000000", "--ttl", "3600")
    assert (code, fits["fits"], fits["bytes"], fits["part_of_maxmemory"]) == (Exit.OK, True, 108_000_000, 0.36)
    monkeypatch.setenv("EVENTSCOPE_TTL", "7200")
    code, full = forecast(capsys, *given, "216000000")
    assert (code, full["fits"], full["ttl"], full["part_of_maxmemory"]) == (Exit.FAILED, False, 7200, 1.0)
    monkeypatch.setenv("EVENTSCOPE_TTL", "none")
    code, endless = forecast(capsys, *given, "216000000")
    assert (code, endless["fits"], endless["bytes"], endless["ttl"]) == (Exit.FAILED, False, None, None)
    assert main(["forecast", *given, "216000000"]) == Exit.FAILED
    assert "Without a TTL" in capsys.readouterr().out


def test_server_is_found_by_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also nested; an error within the module is reported with its line."""
    (tmp_path / "cli_served_module.py").write_text("class A:\n    server = 7\n", "utf-8")
    (tmp_path / "cli_broken_module.py").write_text("import no_such_module_of_it\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_server("cli_served_module:A.server") == 7
    with pytest.raises(ServeError, match=r"cli_broken_module\.py, line 1: .*no_such_module_of_it.*; install it"):
        load_server("cli_broken_module:mcp")
