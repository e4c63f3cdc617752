"""Worker processes, and a switch that is never sticky: what breaks in production."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import httpx2

from examples.demo.switch import Switch
from mcp_eventscope.app import URL_VARIABLE
from support.servers import HOST, free_port
from support.worker_app import CONTROL_VARIABLE, OPTIONS_VARIABLE, SPANS_VARIABLE

START_SECONDS = 20.0
LEASE = 1.0
RETRY_MILLISECONDS = 100
_TESTS = Path(__file__).parents[1]


class WorkerProcess:
    """One uvicorn worker, on a port that it keeps over restarts.

    Args:
        redis_url: Where events go.
        control_url: Where its tools are steered from.
        graceful: Seconds that it is given to end what runs when it is asked to stop.
        spans: A file that it writes its spans to; None: it has no tracing.
        options: For `http_app`.
    """

    def __init__(
        self, redis_url: str, control_url: str, *, graceful: int = 1, spans: Path | None = None, **options: object
    ) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._graceful = graceful
        self._environment = {
            URL_VARIABLE: redis_url,
            CONTROL_VARIABLE: control_url,
            OPTIONS_VARIABLE: json.dumps({"lease": LEASE, "retry_interval": RETRY_MILLISECONDS, **options}),
            **({} if spans is None else {SPANS_VARIABLE: str(spans)}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs; frozen counts."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has written since it was started."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def start(self) -> None:
        """Start the process; it is not healthy yet."""
        assert not self.alive
        if self._log is not None:
            self._log.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the next start, or with us
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "support.worker_app:app", "--factory", "--app-dir", str(_TESTS)),
                *("--host", HOST, "--port", str(self.port), "--log-level", "warning", "--ws", "none"),
                *("--timeout-graceful-shutdown", str(self._graceful)),
            ],
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def wait_healthy(self) -> None:
        """Return once it serves."""
        deadline = time.monotonic() + START_SECONDS
        with httpx2.Client(trust_env=False, timeout=START_SECONDS) as http:
            while True:
                assert self.alive, self.log
                assert time.monotonic() < deadline, f"not healthy in time: {self.log}"
                with contextlib.suppress(httpx2.TransportError):
                    if http.get(f"{self.url}/healthz").is_success:
                        return
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it where it stands; its sockets stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it has ended; returns its status."""
        assert self._process is not None
        return self._process.wait(START_SECONDS)

    def jump(self, seconds: float) -> None:
        """Let its wall clock be wrong by so many seconds."""
        with httpx2.Client(trust_env=False) as http:
            http.post(f"{self.url}/clock", content=str(seconds)).raise_for_status()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.alive:
            self.thaw()
            self.kill()
        if self._log is not None:
            self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def worker_processes(
    count: int, redis_url: str, control_url: str, *, graceful: int = 1, **options: object
) -> Iterator[list[WorkerProcess]]:
    """Some workers; those that run at the end are ended. Start them with `revive`."""
    workers = [WorkerProcess(redis_url, control_url, graceful=graceful, spans=None, **options) for _ in range(count)]
    try:
        revive(workers)
        yield workers
    finally:
        for worker in workers:
            worker.close()


def revive(workers: Sequence[WorkerProcess]) -> None:
    """Start those that do not run, all at once, and return when all are healthy."""
    starting = [worker for worker in workers if not worker.alive]
    for worker in starting:
        worker.start()
    for worker in starting:
        worker.wait_healthy()


class Router(Switch):
    """The demonstration's switch, with a say in where connections go."""

    def to(self, *workers: WorkerProcess) -> None:
        """Hand new connections to these, in turn; those that are open stay."""
        self.ports = [worker.port for worker in workers]

    def cut(self) -> int:
        """Reset every connection, whatever it carries. Returns how many."""
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def move(self, *workers: WorkerProcess) -> None:
        """Hand new connections to these, and leave nobody where he is."""
        self.to(*workers)
        self.cut()
