"""`doctor` on servers that are not, or only partly, Redis: an old one, KeyDB, Dragonfly, a proxy without some commands.

A proxy before the Valkey of the test gives the replies in which these servers differ.
"""

import json
from collections.abc import Iterator

import pytest

from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from support.proxy import Proxy, proxy_in_thread
from support.valkeys import own_valkey
from support.waiting import CEILING

ALWAYS = 1_000
"""More commands than a run of doctor sends."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a Valkey of this test alone, whose replies it changes."""
    with own_valkey() as server, proxy_in_thread(server.socket) as running:
        yield running


def _url(proxy: Proxy) -> str:
    """A URL whose client waits for the reply, however busy the machine is."""
    return f"{proxy.url}?socket_timeout={CEILING}&socket_connect_timeout={CEILING}"


def findings(proxy: Proxy, capsys: pytest.CaptureFixture[str], expected: Exit = Exit.OK) -> dict[str, tuple[str, ...]]:
    """Severity, message and fix by check; the latency depends on the machine."""
    code = main(["doctor", _url(proxy), "--json"])
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    latency = found.pop("latency")["severity"]
    assert code == expected or (code == Exit.FAILED and latency != "ok")
    return {check: (each["severity"], each["message"], each["fix"]) for check, each in found.items()}


@pytest.mark.parametrize(
    ("command", "error", "fix"),
    [
        ("HELLO", "ERR unknown command 'HELLO', with args beginning with: '3'", "run Redis 6.2 or later, or Valkey"),
        ("HELLO", "ERR max number of clients reached", "raise maxclients"),
        ("PING", "ERR unknown command 'PING'", "not of a proxy that refuses commands"),
        ("PING", "LOADING Redis is loading the dataset in memory", "wait until it has loaded its data"),
        ("PING", "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "of the primary"),
    ],
)
def test_doctor_of_a_server_that_refuses_every_client_names_the_fix(
    proxy: Proxy, capsys: pytest.CaptureFixture[str], command: str, error: str, fix: str
) -> None:
    """In one line, with the exit code of an unreachable Redis."""
    proxy.answer(command, error, times=ALWAYS)
    # redis-py 7 sends HELLO for RESP3 only, which is not its default.
    assert main(["doctor", f"{_url(proxy)}&protocol=3"]) == Exit.UNREACHABLE
    printed = capsys.readouterr().err
    assert (len(printed.splitlines()), fix in printed) == (1, True), printed


def test_doctor_of_a_proxy_that_closes_the_connection_names_the_fix(
    proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """After it has answered PING, the port is the right one, and has no TLS."""
    proxy.cut_request("INFO", after=1, times=ALWAYS)
    assert main(["doctor", _url(proxy)]) == Exit.UNREACHABLE
    printed = capsys.readouterr().err
    assert "although it answered PING; if it is a proxy, write the URL of Redis itself" in printed
    assert "TLS" not in printed


def test_doctor_without_info_continues(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers need it for statistics only."""
    proxy.answer("INFO", "ERR unknown command 'INFO'", times=ALWAYS)
    found = findings(proxy, capsys)
    assert (found["server"][0], "run doctor with the URL of Redis itself" in found["server"][2]) == ("info", True)
    assert found["permissions"][0] == "ok"


@pytest.mark.parametrize(
    ("info", "check", "expected"),
    [
        ("redis_version:6.0.16\r\nrole:master", "server", ("error", "redis 6.0.16")),
        ("redis_version:6.3.4\r\nserver_name:keydb\r\nrole:active-replica", "role", ("info", "active-replica")),
        ("redis_version:7.4.0\r\ndragonfly_version:df-v1.30.0", "server", ("ok", "dragonfly df-v1.30.0")),
        ("redis_version:7.4.0\r\nused_memory:1\r\nmaxmemory:100", "eviction", ("info", "the server names no policy")),
        ("role:master", "server", ("ok", "redis of an unknown version")),
    ],
)
def test_doctor_reads_the_info_of_other_servers(
    proxy: Proxy, capsys: pytest.CaptureFixture[str], info: str, check: str, expected: tuple[str, str]
) -> None:
    """It claims nothing that the server does not state."""
    proxy.answer_text("INFO", f"# Server\r\n{info}\r\n", times=ALWAYS)
    severity, message, _ = findings(proxy, capsys, Exit.FAILED if expected[0] == "error" else Exit.OK)[check]
    assert (severity, message.startswith(expected[1])) == (expected[0], True), message


def test_doctor_without_scripts_names_the_fix(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a proxy that knows no scripts: other rights would not help."""
    proxy.answer("EVAL", "ERR unknown command 'EVAL'", times=ALWAYS)
    severity, message, fix = findings(proxy, capsys, Exit.FAILED)["permissions"]
    assert (severity, "scripts" in message, "has no such commands, use another" in fix) == ("error", True, True)
