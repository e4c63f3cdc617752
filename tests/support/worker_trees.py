"""Runs a server that forks or spawns its workers: a process tree with one metrics directory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from prometheus_client.mmap_dict import MmapedDict

from mcp_eventscope.settings import URL_VARIABLE
from support.servers import HOST, free_port, healthy, short_directory, text_of
from support.waiting import CEILING, eventually
from support.worker_app import CONTROL_VARIABLE, DEFAULT_APP, OPTIONS_VARIABLE

TESTS = Path(__file__).parents[1]


class WorkerTree:
    """A running server with workers.

    Args:
        process: Its root, which leads a process group of its own.
        port: Where it serves.
        metrics: The directory of its metrics.
        log: The output of all its processes.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, metrics: Path, log: IO[bytes]) -> None:
        self.process = process
        self.url = f"http://{HOST}:{port}"
        self.metrics = metrics
        self._log = log

    @property
    def log(self) -> str:
        """The beginning of its output."""
        return text_of(self._log)

    def workers(self) -> set[int]:
        """The pids of the processes that hold a place in the metrics directory, or did until they ended."""
        return {int(path.stem.partition("-")[2]) for path in self.metrics.glob("eventscope-*.alive")}

    def processes(self) -> set[int]:
        """The pids of the processes of the tree that run, on Linux."""
        found = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found.add(int(stat.parent.name))
        return found

    def gauge(self, pid: int, name: str) -> float:
        """The value of a gauge with a series for each worker, in the file of one."""
        file = self.metrics / f"gauge_liveall_{pid}.db"
        found = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        return sum(float(value) for key, value, *_ in found if json.loads(key)[0] == name)

    def port_owner(self, port: int) -> int:
        """The pid of the worker that has the port of the metrics."""
        return int((self.metrics / f"eventscope-port-{port}.held").read_text())

    def serves(self) -> bool:
        """Whether the server answers its health check; it must not have ended."""
        assert self.process.poll() is None, self.log
        return healthy(self.url)

    def terminate(self) -> int:
        """Send SIGTERM to the root as a supervisor does, and return its status once it has ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(CEILING / 2)


@contextlib.contextmanager
def worker_tree(  # noqa: PLR0913 - of a process
    command: Sequence[str],
    port: int,
    redis_url: str,
    control_url: str,
    options: Mapping[str, object],
    *,
    first_on_path: Sequence[Path] = (),
) -> Iterator[WorkerTree]:
    """Start a server of `support.worker_app`, which ends with the block.

    Args:
        command: Arguments of Python.
        port: Where the command has it serve.
        redis_url: Where events go.
        control_url: The Redis that controls the tools.
        options: For `http_app`.
        first_on_path: Directories that Python searches first.
    """
    with short_directory() as metrics, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=TESTS,
            env=os.environ
            | {
                URL_VARIABLE: redis_url,
                CONTROL_VARIABLE: control_url,
                OPTIONS_VARIABLE: json.dumps(dict(options)),
                "PROMETHEUS_MULTIPROC_DIR": str(metrics),
                "PYTHONPATH": os.pathsep.join(map(str, (*first_on_path, TESTS, TESTS.parent))),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        running = WorkerTree(process, port, metrics, log)
        try:
            eventually(running.serves, otherwise=lambda: running.log)
            yield running
        finally:
            try:
                running.terminate()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # The tree has a group of its own: end the rest of it.
                process.wait(CEILING)


def uvicorn_command(port: int, workers: int, app: str = DEFAULT_APP) -> list[str]:
    """Arguments of Python that have uvicorn serve an application of its factory."""
    return [
        *("-m", "uvicorn", app, "--factory", "--host", HOST, "--port", str(port)),
        *("--workers", str(workers), "--log-level", "warning", "--ws", "none", "--timeout-graceful-shutdown", "1"),
    ]


@contextlib.contextmanager
def uvicorn_workers(
    workers: int,
    redis_url: str,
    control_url: str,
    *,
    app: str = DEFAULT_APP,
    first_on_path: Sequence[Path] = (),
    **options: object,
) -> Iterator[WorkerTree]:
    """Start `uvicorn --workers N`, which ends with the block.

    Args:
        workers: How many.
        redis_url: Where events go.
        control_url: The Redis that controls the tools.
        app: The factory of its application.
        first_on_path: Directories that Python searches first.
        options: For `http_app`.
    """
    port = free_port()
    command = uvicorn_command(port, workers, app)
    with worker_tree(command, port, redis_url, control_url, options, first_on_path=first_on_path) as running:
        eventually(lambda: len(running.workers()) == workers, otherwise=lambda: running.log)
        yield running
