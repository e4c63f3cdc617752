"""`make demo` and `make serve`, run as their users run them."""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx2
import pytest

from mcp_eventscope.demo.figures import Figures
from mcp_eventscope.demo.scenes import KILL_AFTER, STEPS
from mcp_eventscope.settings import URL_VARIABLE
from support.http_client import NO_TLS
from support.servers import HOST
from support.valkeys import own_valkey
from support.waiting import CEILING

ROOT = Path(__file__).parents[2]
MARK = "EVENTSCOPE_DEMO_TEST"
"""A variable of the environment by which all processes of one run are found: children inherit it."""


class Run:
    """A run of the demonstration, in a process group of its own, as a terminal would start it."""

    def __init__(self, *arguments: str, environment: Mapping[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mcp_eventscope", "demo", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.output = ""
        self._sessions = {str(self.process.pid)}

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read lines until one matches; pytest's timeout is the bound."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if match := re.search(pattern, line):
                self.left_behind()  # Notes the sessions of its processes.
                return match
        pytest.fail(f"no line matches {pattern!r}:\n{self.output}")

    def finish(self) -> int:
        """Read the rest. Returns the exit status."""
        self.output += self.process.communicate(timeout=CEILING)[0]
        return self.process.returncode

    def left_behind(self) -> list[str]:
        """The command lines of processes of this run that are still there."""
        if not Path("/proc/self/stat").exists():
            pytest.skip("there is no /proc to find processes in")
        seen: list[tuple[str, str, bool]] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                session = (process / "stat").read_text().rpartition(")")[2].split()[3]
                marked = f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes()
                seen.append(((process / "cmdline").read_text().replace("\0", " "), session, marked))
            except OSError:  # It has ended, or belongs to another user.
                continue
        # Workers and the guardian of Valkey leave the session. Valkey writes its title over its environment, and is in
        # the session of its guardian, which is kept in case the guardian has ended.
        self._sessions |= {session for _, session, marked in seen if marked}
        return [command for command, session, _ in seen if session in self._sessions]


@contextmanager
def running(*arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Run]:
    """A run, killed with all its group should the test fail."""
    run = Run(*arguments, environment=environment)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.finish()
        if run.process.stdout is not None:
            run.process.stdout.close()


@pytest.mark.slow
def test_demo_of_all_scenes_passes() -> None:
    """It exits 0, shows each event, the cut, the resume, the kill, the error and the figures, and leaves nothing."""
    with running() as run:
        run.read_until(" 2/16 ")
        status = run.finish()
    assert status == 0, run.output
    first, second = run.output.split("\n  2  ")
    assert re.findall(r" (\d+)/16 ", first) == [str(step) for step in range(1, STEPS + 1)]
    ran_on, cut, resumed = worker(first, "call"), worker(first, "cut"), worker(first, "resumed")
    assert ran_on == cut != resumed
    served = (
        rf"Events on resumed streams, by /metrics:\s.*worker\s+{resumed}\s+replayed\s+\d+\s+and\s+sent\s+\d+\s+live"
    )
    assert re.search(served, first, re.DOTALL)
    assert re.search(rf"worker\s+{ran_on}\s+sent\s+none", first)
    assert [int(step) for step in re.findall(r" (\d+)/16 ", second)][:KILL_AFTER] == [*range(1, KILL_AFTER + 1)]
    killed, survivor = worker(second, "killed"), worker(second, "resumed")
    assert worker(second, "call") == killed != survivor
    assert re.search(
        rf"error +-32010: The server process .*call +word_count runs on worker {survivor}", second, re.DOTALL
    )
    assert f"summed over the workers that are alive: {survivor}\n" in second
    assert re.search(r"requests orphaned +1 ", second)
    assert f"The counters of worker {killed} ended with it" in second
    assert "PASS  16 of 16 events, each once and in order" in second
    assert "PASS  A task outlived its client" in second
    assert "PASS  The killed worker's call was answered in time" in second
    assert "PASS  The killed worker's task failed with an error" in second
    assert "\x1b" not in run.output, "colours went into a pipe"
    assert not re.search(r"[^\n]{81}| \n", run.output), "a line is too long, or ends in spaces"
    assert run.left_behind() == []


def worker(scene: str, phase: str) -> str:
    """The worker that the first row of a phase names."""
    row = re.search(rf" s  {phase} .*worker (\w)", scene)
    assert row, scene
    return row[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Two workers", signal.SIGINT),
        (r" 2/16 ", signal.SIGTERM),
        ("SIGKILL", signal.SIGINT),
    ],
    ids=["starting", "before the cut", "after the kill"],
)
def test_interrupting_the_demo_leaves_nothing_behind(moment: str, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole group of processes; it ends without a traceback, and with the signal's status."""
    with running() as run:
        run.read_until(moment)
        os.killpg(run.process.pid, number)
        status = run.finish()
    assert status == 128 + number, run.output
    assert "Traceback" not in run.output
    assert run.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_until_it_is_stopped(number: signal.Signals) -> None:
    """The addresses it prints answer, and a signal ends it, and all that it started."""
    with running("--serve", "--port", "0") as run:
        url = run.read_until(r"http://127\.0\.0\.1:\d+(?=/healthz)").group()
        run.read_until("Press Ctrl-C to stop")
        with httpx2.Client(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
            health = http.get(f"{url}/healthz")
            scrape = http.get(f"{url}/metrics")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        assert Figures.of(scrape.text).total("eventscope_ttl_seconds") > 0
        assert len(run.left_behind()) == 4, "itself, a worker, a Valkey, and its guardian"
        run.process.send_signal(number)
        assert run.finish() == 0, run.output
    assert run.left_behind() == []


@pytest.mark.slow
def test_demo_on_a_given_redis_keeps_to_its_own_keys() -> None:
    """It names that Redis without the password; its keys expire, meet none of another run, and are removed."""
    with own_valkey() as server, server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "me", "on", ">hunter2", "~*", "&*", "+@all")
        admin.set("mcp:server", "a server in production")
        environment = {
            URL_VARIABLE: f"redis://me:hunter2@{HOST}:{server.port}/0",
            "EVENTSCOPE_KEY_PREFIX": "mcp:",
            "EVENTSCOPE_TTL": "none",
        }
        shown = rf"Redis:? +{HOST}:{server.port}, keys (mcp-demo-[0-9a-f]{{8}}:)\*"

        def keys(prefix: str) -> list[bytes]:
            return list(admin.scan_iter(f"{prefix}*"))

        with (
            running("--serve", "--port", "0", environment=environment) as served,
            running(environment=environment) as run,
        ):
            other = served.read_until(shown)[1]
            prefix = run.read_until(shown)[1]
            assert prefix != other
            run.read_until(" 2/16 ")
            assert keys(prefix)
            assert keys(other)
            assert {*admin.scan_iter("*")} == {b"mcp:server", *keys(prefix), *keys(other)}
            assert [key for key in (*keys(prefix), *keys(other)) if admin.ttl(key) == -1] == []
            assert run.finish() == 0, run.output
            assert keys(prefix) == []
            assert keys(other)
            served.process.send_signal(signal.SIGTERM)
            assert served.finish() == 0, served.output
            assert "hunter2" not in run.output + served.output
        assert list(admin.scan_iter("*")) == [b"mcp:server"]
