"""`make demo` and `make serve`, run as their users run them, and whether the verdict can fail at all."""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from examples.demo import figures as names
from examples.demo.figures import Figures
from examples.demo.record import Kind, Moment
from examples.demo.scenario import CUT_AFTER, STEPS
from examples.demo.verdict import faults
from mcp_eventscope.telemetry import catalog

ROOT = Path(__file__).parents[2]
MARK = "EVENTSCOPE_DEMO_TEST"
"""A variable of the environment by which all processes of one run are found: children inherit it."""


class Run:
    """A run of the demonstration, in a process group of its own, as a terminal would start it."""

    def __init__(self, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", *arguments],
            cwd=ROOT,
            env=os.environ | {MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.output = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read lines until one matches; pytest's timeout is the bound."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"no line matches {pattern!r}:\n{self.output}")

    def finish(self) -> int:
        """Read the rest. Returns the exit status."""
        self.output += self.process.communicate(timeout=30)[0]
        return self.process.returncode

    def left_behind(self) -> list[str]:
        """The command lines of processes of this run that are still there."""
        if not Path("/proc/self/stat").exists():
            pytest.skip("there is no /proc to find processes in")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                session = (process / "stat").read_text().rpartition(")")[2].split()[3]
                environment = (process / "environ").read_bytes()
                # Workers leave the session; Valkey writes its title over its environment.
                if session == str(self.process.pid) or f"{MARK}={self.mark}".encode() in environment:
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # It has ended, or is somebody else's.
                continue
        return found


@contextmanager
def running(*arguments: str) -> Iterator[Run]:
    """A run, killed with all its group should the test fail."""
    run = Run(*arguments)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.finish()


@pytest.mark.slow
def test_the_demo_passes() -> None:
    """It exits 0, shows each event, the cut, the resume and the figures, and leaves nothing behind."""
    with running() as run:
        status = run.finish()
    assert status == 0, run.output
    assert re.findall(r" (\d+)/16 ", run.output) == [str(step) for step in range(1, STEPS + 1)]
    assert re.search(
        r"cut      \d connections? reset in the middle of a stream\n.*resumed .*Last-Event-ID ", run.output
    )
    assert re.search(r"replays, resumed +1 +eventscope_replay_duration_seconds", run.output)
    assert "PASS  16 of 16 events, each once and in order" in run.output
    assert "\x1b" not in run.output, "colours went into a pipe"
    assert run.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [("A call is cut", signal.SIGINT), (r" 2/16 ", signal.SIGINT), (r" 9/16 ", signal.SIGTERM)],
    ids=["starting", "before the cut", "after the resume"],
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
    with running("serve", "--port", "0") as run:
        url = run.read_until(r"http://127\.0\.0\.1:\d+(?=/healthz)").group()
        run.read_until("Ctrl-C ends it")
        with httpx2.Client(trust_env=False, timeout=10) as http:
            health = http.get(f"{url}/healthz")
            scrape = http.get(f"{url}/metrics")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        assert Figures.of([scrape.text]).total("eventscope_ttl_seconds") > 0
        assert len(run.left_behind()) == 3, "itself, a worker and a Valkey"
        run.process.send_signal(number)
        assert run.finish() == 0, run.output
    assert run.left_behind() == []


# -- the verdict ------------------------------------------------------------------------------------------------------


def told(*numbers: int) -> list[Moment]:
    """One event for each number."""
    return [Moment(float(number), Kind.EVENT, number=number) for number in numbers]


BEFORE = told(*range(1, CUT_AFTER + 1))
CUT = Moment(6.1, Kind.CUT, number=2)
RETURN = Moment(6.7, Kind.RETURN, "1.2", 200)
AFTER = told(*range(CUT_AFTER + 1, STEPS + 1))
RESULT = Moment(17.0, Kind.RESULT, number=STEPS)
GOOD = [*BEFORE, CUT, RETURN, *AFTER, RESULT]


def counted(*, outcome: str = "resumed", replayed: int = 2, followed: int = 9, more: str = "") -> Figures:
    """What /metrics would report."""
    scrape = (
        f'{names.REPLAY_SECONDS}_count{{outcome="{outcome}"}} 1\n'
        f"{names.REPLAYED_EVENTS}_sum {replayed}\n"
        f"# TYPE {names.FOLLOWED_EVENTS} counter\n{names.FOLLOWED_EVENTS} {followed}\n{more}"
    )
    return Figures.of([scrape])


def test_a_good_run_has_no_faults() -> None:
    """Each event once, in order, cut in the middle and resumed, and the figures agree."""
    assert faults(GOOD, counted(), STEPS) == []
    assert faults(GOOD, counted(outcome="caught_up", replayed=0, followed=11), STEPS) == []


@pytest.mark.parametrize(
    ("moments", "fault"),
    [
        ([*BEFORE, CUT, RETURN, *AFTER[1:], RESULT], "events never came: 7"),
        ([*BEFORE, CUT, RETURN, BEFORE[-1], *AFTER, RESULT], "events came more than once: 6"),
        ([*BEFORE, CUT, RETURN, AFTER[1], AFTER[0], *AFTER[2:], RESULT], "events came out of order: 1, 2"),
        ([*BEFORE, CUT, RETURN, *AFTER, *told(17), RESULT], "events came that nobody sent: 17"),
        ([*BEFORE, CUT, RETURN, *AFTER], "the result never came"),
        ([*GOOD, RESULT], "the result came 2 times"),
        ([*BEFORE, CUT, RETURN, *AFTER[:-1], RESULT, AFTER[-1]], "the result came before the last event"),
        ([*BEFORE, CUT, Moment(7.0, Kind.FAILURE, "gone")], "the call failed: gone"),
        ([*BEFORE, *AFTER, RESULT], "no connection was cut"),
        ([*BEFORE, Moment(6.1, Kind.CUT, number=0), *AFTER, RESULT], "no connection was cut"),
        ([CUT, RETURN, *BEFORE, *AFTER, RESULT], "the cut was not in the middle"),
        ([*BEFORE, *AFTER, CUT, RETURN, RESULT], "the cut was not in the middle"),
        ([*BEFORE, CUT, *AFTER, RESULT], "the client did not come back"),
        ([], "events never came: 1, 2"),
    ],
)
def test_the_verdict_finds_what_the_client_saw(moments: list[Moment], fault: str) -> None:
    """A missing, doubled, swapped or invented event, a result that is not, and a cut that showed nothing."""
    assert any(text.startswith(fault) for text in faults(moments, counted(), STEPS))


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        (Figures.of([]), "/metrics knows of no replay"),
        (counted(outcome="gap"), "/metrics knows of no replay"),
        (counted(followed=8), "11 events came after the cut, but /metrics counts 10 on resumed streams"),
        (counted(followed=10), "11 events came after the cut, but /metrics counts 12 on resumed streams"),
        (counted(more=f"{names.MISSING_EVENTS} 1\n"), "/metrics reports 1 events that were owed and gone"),
        (counted(more=f"{names.CORRUPT_EVENTS} 2\n"), "/metrics reports 2 events that could not be read"),
        (counted(more=f'{names.ERRORS}{{operation="store"}} 3\n'), "/metrics reports 3 failed operations"),
    ],
)
def test_the_verdict_finds_what_the_store_counted(figures: Figures, fault: str) -> None:
    """What the client saw is not enough: the store has to account for it."""
    assert any(text.startswith(fault) for text in faults(GOOD, figures, STEPS))


def test_figures_add_up_workers() -> None:
    """The samples of all workers are one sum."""
    scrape = 'a_count{x="1"} 2\na_sum{x="1"} 3\na_count{x="2"} 4\na_sum{x="2"} 3\n'
    figures = Figures.of([scrape, scrape])
    assert figures.total("a_count", x="1") == 4
    assert figures.by("a_count", "x") == {"1": 4, "2": 8}
    assert figures.mean("a") == 1
    assert figures.mean("b") is None


def test_every_figure_is_in_the_catalog() -> None:
    """A metric that is renamed is renamed here too, and not quietly zero."""
    declared = {metric.name for metric in catalog.METRICS}
    shown = {value for name, value in vars(names).items() if name.isupper()}
    assert shown
    assert shown <= declared
