"""Runs `uvicorn --workers N`: a process tree with one metrics directory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from mcp_eventscope.settings import URL_VARIABLE
from support.servers import HOST, free_port, healthy, short_directory, text_of
from support.waiting import CEILING, eventually
from support.worker_app import CONTROL_VARIABLE, OPTIONS_VARIABLE

_TESTS = Path(__file__).parents[1]


class UvicornWorkers:
    """A running tree of uvicorn workers.

    Args:
        process: Its root.
        port: Where it serves.
        metrics: The directory of its metrics.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, metrics: Path) -> None:
        self.process = process
        self.url = f"http://{HOST}:{port}"
        self.metrics = metrics

    def workers(self) -> set[int]:
        """The pids of the workers that hold a place in the directory, or did until they ended."""
        return {int(path.stem.partition("-")[2]) for path in self.metrics.glob("eventscope-*.alive")}

    def gauge(self, pid: int, name: str) -> float:
        """The value of a gauge that is added up, in the file of one worker."""
        file = self.metrics / f"gauge_livesum_{pid}.db"
        found = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        return sum(float(value) for key, value, *_ in found if json.loads(key)[0] == name)

    def port_owner(self, port: int) -> int:
        """The pid of the worker that has the port of the metrics."""
        return int((self.metrics / f"eventscope-port-{port}.held").read_text())


@contextlib.contextmanager
def uvicorn_workers(workers: int, redis_url: str, control_url: str, **options: object) -> Iterator[UvicornWorkers]:
    """Start a tree of workers, which ends with the block.

    Args:
        workers: How many.
        redis_url: Where events go.
        control_url: The Redis that controls the tools.
        options: For `http_app`.
    """
    port = free_port()
    with short_directory() as metrics, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "support.worker_app:app", "--factory", "--app-dir", str(_TESTS)),
                *("--host", HOST, "--port", str(port), "--workers", str(workers), "--log-level", "warning"),
                *("--ws", "none", "--timeout-graceful-shutdown", "1"),
            ],
            env=os.environ
            | {
                URL_VARIABLE: redis_url,
                CONTROL_VARIABLE: control_url,
                OPTIONS_VARIABLE: json.dumps(options),
                "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        running = UvicornWorkers(process, port, metrics)
        try:
            eventually(lambda: len(running.workers()) == workers, otherwise=lambda: text_of(log))
            eventually(lambda: healthy(running.url), otherwise=lambda: text_of(log))
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(CEILING / 2)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # The tree has a session of its own: end the rest of it.
                process.wait(CEILING)
