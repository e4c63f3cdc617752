"""The command line, with a real Valkey and a server of two workers."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from redis import asyncio as aioredis

from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.redis import client as client_module
from mcp_eventscope.settings import URL_VARIABLE
from mcp_eventscope.telemetry.tracing import session_hash
from support.chaos import on_worker, open_session, start_call
from support.http_client import Connect, HTTPClient, events
from support.processes import WorkerProcess, worker_processes
from support.servers import HOST, free_port, healthy
from support.tool_control import ToolControl
from support.valkeys import own_valkey
from support.waiting import CEILING, eventually, until
from support.worker_app import NAME

pytestmark = pytest.mark.anyio

PREFIX = "cli:"
HOSTILE = "evil\x1b[2J"
PATIENT_COMMAND = (
    "import sys; from mcp_eventscope.cli.main import main; from mcp_eventscope.redis import client; "
    f"client.ANSWER_TIMEOUT = {CEILING}; sys.exit(main())"
)
"""The program of a command that waits for Redis, however busy the machine is; a person's gives up after 5 seconds."""

VERIFY_OPTIONS = ("--timeout", str(CEILING), "--json")


@pytest.fixture(autouse=True)
def patience_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands in this process wait, too."""
    monkeypatch.setattr(client_module, "ANSWER_TIMEOUT", CEILING)


@pytest.fixture(scope="module")
def workers(valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers that all tests share."""
    with worker_processes(2, valkey_url, valkey_url, key_prefix=PREFIX) as both:
        yield both


@dataclass
class Operator:
    """Runs commands against one Redis, in a thread."""

    redis_url: str
    capsys: pytest.CaptureFixture[str]

    async def __call__(self, *arguments: str) -> tuple[int, str]:
        """The exit code and the output of a command."""
        given = [*arguments, "--redis-url", self.redis_url, "--key-prefix", PREFIX]
        self.capsys.readouterr()
        code = await anyio.to_thread.run_sync(partial(main, given))
        printed = self.capsys.readouterr()
        assert not printed.err, printed.err
        assert printed.out.replace("\n", "").isprintable()
        return code, printed.out

    async def json(self, *arguments: str) -> tuple[int, Any]:
        """The exit code and the result of a command."""
        code, text = await self(*arguments, "--json")
        return code, json.loads(text)

    async def lines(self, *arguments: str) -> list[Any]:
        """The objects that a command prints, one a line."""
        _, text = await self(*arguments, "--json")
        return [json.loads(line) for line in text.splitlines()]


def patient(url: str) -> str:
    """A URL whose client waits for Redis, however busy the machine is."""
    return f"{url}?socket_timeout={CEILING}&socket_connect_timeout={CEILING}"


@pytest.fixture
def operator(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> Operator:
    """An operator of the server."""
    return Operator(patient(valkey_url), capsys)


@dataclass
class Call:
    """A call that runs on the first worker, and whose client has disconnected."""

    client: HTTPClient
    tool: ToolControl
    ids: list[str]

    @property
    def session(self) -> str:
        """The session."""
        return self.client.session


@pytest.fixture
async def call(
    workers: list[WorkerProcess], connect: Connect, redis_client: aioredis.Redis, operator: Operator
) -> AsyncIterator[Call]:
    """A call with two reported steps that are stored."""
    client = connect(workers[0].url)
    await client.initialize(HOSTILE)
    tool = ToolControl(redis_client, uuid.uuid4().hex)
    received = await start_call(client, tool, "one", "two")
    call = Call(client, tool, [each.id for each in received])

    async def stored() -> bool:
        return bool((await operator.json("why", call.ids[0]))[1]["delivered"] == 2)

    await until(stored)
    yield call
    await tool.finish()
    await client.delete()


async def test_sessions_and_workers_show_what_runs(call: Call, operator: Operator) -> None:
    """A running call is counted with its worker and its session; a hostile client name is harmless."""
    code, found = await operator.json("workers")
    assert (code, found["alive"], found["orphaned_requests"], found["truncated"]) == (Exit.OK, 2, 0, False)
    assert sum(each["requests"] for each in found["workers"]) >= 1
    assert min(each["inbox"] for each in found["workers"] if each["alive"]) == 0
    code, listed = await operator.json("sessions", "list", "--limit", "1000")
    (session,) = [each for each in listed["sessions"] if each["session_id"] == call.session]
    assert (code, session["state"], session["server"], session["running"]) == (Exit.OK, "live", NAME, 1)
    assert session["client"] == f"{HOSTILE} 0"
    hashed = session_hash(call.session)
    assert session["session_hash"] == hashed
    assert hashed is not None
    code, shown = await operator.json("sessions", "show", hashed)
    (stream,) = [each for each in shown["streams"] if each["state"] == "running"]
    assert (code, shown["session"]["session_id"]) == (Exit.OK, call.session)
    assert (stream["request_id"], stream["last"], stream["retained"], stream["worker_alive"]) == (1, 3, 3, True)
    for arguments in (["workers"], ["sessions", "list", "--limit", "1000"], ["sessions", "show", call.session]):
        code, text = await operator(*arguments)
        assert code == Exit.OK
        assert (call.session in text) == (arguments[0] == "sessions")
    assert "evil\\x1b[2J" in text


async def test_why_explains_a_running_call_and_its_end(call: Call, operator: Operator) -> None:
    """It names the session by its hash only, found by the event id alone."""
    code, found = await operator.json("why", call.ids[1])
    assert (code, found["verdict"], found["delivered"], found["worker_alive"]) == (Exit.OK, "running", 1, True)
    assert found["session"]["session_hash"] == session_hash(call.session)
    code, text = await operator("why", call.ids[1])
    assert (code, text.splitlines()[0]) == (
        Exit.OK,
        "Can be resumed: 1 message would be delivered, and the request still runs on a live worker.",
    )
    assert call.session not in text + json.dumps(found)
    assert "two" not in text
    await call.tool.finish()

    async def complete() -> bool:
        return bool((await operator.json("why", call.ids[2]))[1]["verdict"] == "complete")

    await until(complete)
    code, found = await operator.json("why", "nonsense")
    assert (code, found["verdict"]) == (Exit.FAILED, "malformed")


async def test_tail_prints_events_and_payloads_only_on_request(call: Call, operator: Operator) -> None:
    """From the start, and until the session ends, which another command causes; the call is cancelled."""
    printed = await operator.lines("tail", call.session, "--from-start", "--seconds", "0")
    numbers = [(each["number"], each["type"]) for each in printed if each["stream"] == "1"]
    assert numbers == [(1, "priming"), (2, "notification"), (3, "notification")]
    assert all("payload" not in each for each in printed)
    printed = await operator.lines("tail", call.session, "--from-start", "--seconds", "0", "--payloads")
    assert [each["payload"]["params"]["message"] for each in printed if each["stream"] == "1" and each["bytes"]] == [
        "one",
        "two",
    ]
    assert await operator.lines("tail", call.session, "--seconds", "0") == []
    with _started("tail", call.session, "--from-start", "--payloads", url=operator.redis_url) as live:
        assert live.stdout is not None

        async def until_printed(text: str) -> None:
            assert live.stdout is not None
            while text not in (line := await anyio.to_thread.run_sync(live.stdout.readline)):
                assert line, "it has ended"

        await until_printed('"two"')
        await call.tool.step("three")
        await until_printed('"three"')
        hashed = session_hash(call.session) or ""
        code, ended = await operator.json("sessions", "end", hashed, "--yes")
        assert (code, ended["session_id"]) == (Exit.OK, call.session)
        await until_printed("the session has ended")
        assert await anyio.to_thread.run_sync(live.wait) == Exit.OK

    async def forgotten() -> bool:
        async with call.client.post({"jsonrpc": "2.0", "id": 9, "method": "ping"}) as response:
            return response.status_code == 404

    await until(forgotten)
    code, found = await operator.json("why", call.ids[0], "--session", call.session)
    assert (code, found["verdict"]) == (Exit.FAILED, "session_ended")


async def test_end_without_confirmation_changes_nothing(call: Call, operator: Operator) -> None:
    """An operator who does not confirm ends nothing; an unknown session is an error."""
    unanswered = partial(_run, "sessions", "end", call.session, "--json", url=operator.redis_url)
    code, text = await anyio.to_thread.run_sync(unanswered)
    assert (code, "add --yes" in json.loads(text)["error"]["message"]) == (Exit.USAGE, True)
    interrupted = partial(_interrupted_at, "[y/N]: ", "sessions", "end", call.session, url=operator.redis_url)
    assert await anyio.to_thread.run_sync(interrupted) == Exit.INTERRUPTED
    answered = partial(_run, "sessions", "end", call.session, "--json", url=operator.redis_url, typed="n\n")
    code, text = await anyio.to_thread.run_sync(answered)
    assert (code, json.loads(text)["ended"]) == (Exit.FAILED, False)
    assert (await operator.json("why", call.ids[0]))[1]["verdict"] == "running"
    code, found = await operator.json("sessions", "end", "no-such-session", "--yes")
    assert (code, found["error"]["code"]) == (Exit.FAILED, "failed")


async def test_verify_cuts_and_resumes_a_stream(
    workers: list[WorkerProcess], operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list of tools, and a call that reports progress; the session is deleted."""
    del operator

    async def verify(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = await anyio.to_thread.run_sync(partial(main, ["verify", *arguments, *VERIFY_OPTIONS]))
        return code, json.loads(capsys.readouterr().out)

    url = f"{workers[0].url}/mcp"
    code, found = await verify(url)
    assert (code, found["ok"], found["failure"]) == (Exit.OK, True, ""), found
    assert [each["name"] for each in found["steps"]] == ["initialize", "cut", "resume"]
    arguments = json.dumps({"name": "n", "times": 3, "pause": 0.05, "padding": 1})
    code, found = await verify(url, "--tool", "count", "--arguments", arguments)
    assert (code, found["ok"]) == (Exit.OK, True), found
    assert "after 1 message, and a GET with Last-Event-ID delivered 3 messages" in found["verified"]
    code, found = await verify(f"{workers[0].url}/nowhere")
    assert (code, found["ok"]) == (Exit.FAILED, False)
    assert "HTTP 404" in found["failure"]


async def test_doctor_of_healthy_redis_finds_nothing_wrong(workers: list[WorkerProcess], operator: Operator) -> None:
    """Each check has a result; latency, which depends on the machine, may have a warning."""
    assert workers
    _, found = await operator.json("doctor", "--name", NAME)
    severities = {each["check"]: each["severity"] for each in found["findings"]}
    assert set(severities) == {
        "server", "latency", "role", "persistence", "memory", "clock", "permissions", "ttl", "server_name", "sdk",
    }  # fmt: skip
    wrong = {check for check, severity in severities.items() if severity in {"warning", "error"}}
    assert wrong <= {"latency"}
    assert found["ok"] == (not wrong)
    assert [each["kind"] for each in found["servers"]] == ["valkey"]
    assert found["latency_seconds"]["samples"] == 50
    code, text = await operator("doctor", "--name", "another", "--no-writes")
    assert code == Exit.FAILED
    assert "sessions of 'another' are answered 404" in " ".join(text.split())
    assert "permissions" not in text


def test_doctor_names_each_fault_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    """Keys without TTL, a missing permission, eviction, a full memory, and a replica."""

    def doctor(url: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["doctor", patient(url), "--json"]) == Exit.FAILED
        return {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}

    with own_valkey() as server, own_valkey() as primary, server.client() as admin:
        admin.hset("mcp:{s}:session", "owner", "")
        admin.execute_command("ACL", "SETUSER", "weak", "on", ">weak-password", "~mcp:*", "&*", "+@all", "-rpush")
        found = doctor(f"redis://weak:weak-password@{HOST}:{server.port}")
        assert (found["ttl"]["severity"], "1 session" in found["ttl"]["message"]) == ("warning", True)
        assert "rpush" in found["permissions"]["message"]
        assert "ACL SETUSER" in found["permissions"]["fix"]
        server.set(maxmemory=1, maxmemory_policy="noeviction")
        found = doctor(server.url)
        assert (found["memory"]["severity"], found["permissions"]["severity"]) == ("error", "error")
        assert found["eviction"]["severity"] == "ok"
        server.set(maxmemory=1 << 40, maxmemory_policy="allkeys-lru")
        found = doctor(server.url)
        assert (found["eviction"]["severity"], found["memory"]["severity"]) == ("warning", "ok")
        server.follow(primary)
        found = doctor(server.url)
        assert (found["role"]["severity"], found["permissions"]["severity"]) == ("error", "error")


async def test_forecast_measures_a_running_server(
    workers: list[WorkerProcess], connect: Connect, operator: Operator
) -> None:
    """The rate of a call that reports in turn, and the bytes of its events."""
    client = await open_session(connect, workers[0].url)
    async with client.call(1, "count", name="n", times=5000, pause=0.01, padding=100) as response:
        stream = events(response)
        await anext(stream)
        results: list[tuple[int, str]] = []

        async def measure() -> None:
            arguments = ["forecast", "--seconds", "1", "--maxmemory", str(1 << 40), "--json"]
            results.append(await anyio.to_thread.run_sync(partial(_run, *arguments, url=operator.redis_url)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(measure)
            async for _ in stream:
                if results:
                    break
    ((code, text),) = results
    found = json.loads(text)
    assert (code, found["fits"], found["ttl"]) == (Exit.OK, True, 3600)
    assert found["rate"] > 0
    assert found["event_bytes"] > 50
    assert found["sampled_sessions"] >= 1
    await on_worker(client, workers[0]).delete()


def test_serve_starts_workers_of_a_server(tmp_path: Path, valkey_url: str) -> None:
    """Two workers serve a server by name, and end with the command."""
    (tmp_path / "cli_served.py").write_text(
        'from mcp.server import MCPServer\n\nmcp = MCPServer("served", log_level="WARNING")\n', "utf-8"
    )
    port = free_port()
    command = [sys.executable, "-m", "mcp_eventscope.cli.main", "serve", "cli_served:mcp", "--workers", "2"]
    environment = {**os.environ, URL_VARIABLE: valkey_url, "EVENTSCOPE_KEY_PREFIX": "cli-serve:"}
    with subprocess.Popen(
        [*command, "--port", str(port), "--app-dir", str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as served:
        try:
            eventually(lambda: healthy(f"http://{HOST}:{port}"))
            ran = _run("verify", f"http://{HOST}:{port}/mcp", *VERIFY_OPTIONS)
            assert json.loads(ran[1])["ok"], ran
        finally:
            served.terminate()
        served.wait()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://{HOST}:{port}/livez", trust_env=False)


def _command(*arguments: str, url: str = "") -> list[str]:
    connection = ["--redis-url", url, "--key-prefix", PREFIX] if url else []
    return [sys.executable, "-c", PATIENT_COMMAND, *arguments, *connection]


def _run(*arguments: str, url: str = "", typed: str = "") -> tuple[int, str]:
    """Run a command in a process of its own; its exit code and standard output."""
    ran = subprocess.run(_command(*arguments, url=url), capture_output=True, text=True, check=False, input=typed)
    return ran.returncode, ran.stdout


def _interrupted_at(text: str, *arguments: str, url: str) -> int:
    """Interrupt a command once its standard error ends with a text, and it waits for the answer; its exit code."""
    command = _command(*arguments, url=url)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stderr is not None
        shown = ""
        while not shown.endswith(text):
            read = asking.stderr.read(1)
            assert read, shown
            shown += read
        # A signal between the question and the read would be noticed after the read only.
        eventually(lambda: Path("/proc", str(asking.pid), "stat").read_text().rpartition(")")[2].split()[0] == "S")
        asking.send_signal(signal.SIGINT)
        return asking.wait(CEILING)


@contextmanager
def _started(*arguments: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs until the end of the block."""
    with subprocess.Popen(_command(*arguments, url=url), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
