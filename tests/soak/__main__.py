"""Run calls, cuts and faults from a seed against real workers, and check the history.

    python -m soak [--seed N] [--seconds N] [--calm] [--history FILE] [--results FILE]
    python -m soak --check FILE

Exits 0 without violations, 1 with some, and 2 when the rig failed. The run is a child in a process group of its own:
however it ends, nothing of the group is left.
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.report import measured_with
from soak.checker import Verdict, check
from soak.history import Observation, load
from soak.report import summary
from soak.results import add, figures
from soak.rig import Settings, run

_DIRECTORY = Path("build/soak")
_OVERTIME = 240.0
"""Seconds beyond those of the run that starting, the last calls and the check may take."""
_END_SECONDS = 20.0
_FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or check, depending on the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, help="the seed of the schedule; random by default")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long clients call")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--calm", action="store_true", help="cut connections, and let no fault happen")
    parser.add_argument("--history", type=Path, help="the file of the history; build/soak/SEED.jsonl by default")
    parser.add_argument("--results", type=Path, help="a JSON file that the figures of the run are added to")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only check the history of an earlier run")
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.check is not None:
        history = load(options.check)
        return _reported(history, check(history), f"python -m soak --check {options.check}")
    seed = random.randrange(1_000_000) if options.seed is None else options.seed  # noqa: S311 - a seed, no secret
    path = options.history or _DIRECTORY / f"{seed}.jsonl"
    settings = Settings(seed, options.seconds, path, options.clients, options.workers, options.calm)
    if options.supervised:
        return _run(settings, options.results)
    _print(f"soak: seed {seed}, {options.seconds:g} s, history in {path}")
    return _supervise(settings, options.results)


def _run(settings: Settings, results: Path | None) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        machine = asyncio.run(measured_with())
        run(settings)
    except KeyboardInterrupt:
        _print("soak: interrupted")
        return _FAILED
    except Exception:  # noqa: BLE001 - whatever it is, it is the rig's fault, and no violation
        traceback.print_exc()
        return _FAILED
    history = load(settings.history)
    verdict = check(history)
    if results is not None:
        add(results, settings.seed, figures(history, verdict), machine)
    return _reported(history, verdict, f"make soak SEED={settings.seed} SECONDS={settings.seconds:g}")


def _reported(history: Sequence[Observation], verdict: Verdict, again: str) -> int:
    _print(summary(history, verdict, again))
    return 1 if verdict.violations else 0


def _end_with_parent() -> None:
    """End the run when the supervisor has ended: then its end of the pipe is closed."""
    while os.read(0, 1):  # Not through sys.stdin, whose lock would be held at the end of this process.
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _supervise(settings: Settings, results: Path | None) -> int:
    """Run in a child that leads a process group, and end the group with it."""
    arguments = {
        "seed": settings.seed,
        "seconds": settings.seconds,
        "clients": settings.clients,
        "workers": settings.workers,
        "history": settings.history,
    }
    given = ["--calm"] if settings.calm else []
    given += [] if results is None else ["--results", str(results)]
    given += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    child = subprocess.Popen(
        [sys.executable, "-m", "soak", "--supervised", *given], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        status = child.wait(settings.seconds + _OVERTIME)
    except subprocess.TimeoutExpired:
        _print("soak: the run did not end in time")
        status = _FAILED
    except KeyboardInterrupt:
        status = _FAILED
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return status if status in {0, 1} and settings.history.exists() else _FAILED


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
