"""Worker processes that can be killed and frozen, behind a switch that is never sticky."""

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO

import httpx2

from mcp_eventscope.demo.switch import Switch
from mcp_eventscope.settings import URL_VARIABLE
from support.forks import FORKSERVER
from support.http_client import NO_TLS
from support.servers import HOST, free_port, text_of
from support.waiting import CEILING, eventually, slowness
from support.worker_app import CONTROL_VARIABLE, DEFAULT_APP, OPTIONS_VARIABLE, SPANS_VARIABLE, serve

LEASE = min(max(1.0, slowness() / 2), 4.0)
"""Seconds. Longer on a busy machine, where processes renew it late."""
RETRY_MILLISECONDS = 100


class WorkerProcess:
    """One uvicorn worker, on a port that it keeps over restarts.

    Args:
        redis_url: Where events go.
        control_url: The Redis that controls its tools.
        graceful: Seconds that running requests get when it is asked to stop; None: no limit.
        app: The factory of its application.
        spans: A file that it writes its spans to; None: it has no tracing.
        options: For `http_app`.
    """

    def __init__(
        self,
        redis_url: str,
        control_url: str,
        *,
        graceful: int | None = 1,
        app: str = DEFAULT_APP,
        spans: Path | None = None,
        **options: object,
    ) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._graceful = graceful
        self._app = app
        self._environment = {
            URL_VARIABLE: redis_url,
            CONTROL_VARIABLE: control_url,
            OPTIONS_VARIABLE: json.dumps({"worker_lease": LEASE, "retry_interval": RETRY_MILLISECONDS, **options}),
            **({} if spans is None else {SPANS_VARIABLE: str(spans)}),
        }
        self._process: ForkServerProcess | None = None
        self._log: IO[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs; frozen counts."""
        return self._process is not None and self._process.is_alive()

    @property
    def log(self) -> str:
        """Its output since its start."""
        return "" if self._log is None else text_of(self._log)

    def start(self) -> None:
        """Start the process; it is not healthy yet."""
        assert not self.alive
        if self._log is not None:
            self._log.close()
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed at the next start, or with us
        # A daemon: it is ended with us, whatever becomes of the test.
        self._process = FORKSERVER.Process(
            target=serve, args=(self._environment, self._log.name, self.port, self._graceful, self._app), daemon=True
        )
        self._process.start()

    def wait_healthy(self) -> None:
        """Return once it serves."""
        with httpx2.Client(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:

            def healthy() -> bool:
                assert self.alive, self.log
                with contextlib.suppress(httpx2.TransportError):
                    return http.get(f"{self.url}/healthz").is_success
                return False

            eventually(healthy, otherwise=lambda: self.log)

    def kill(self) -> None:
        """Kill it without notice, and wait."""
        self._signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the process; its sockets stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process."""
        self._signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it has ended; returns its status."""
        assert self._process is not None
        self._process.join(CEILING)
        status = self._process.exitcode
        assert status is not None, f"it has not ended: {self.log}"
        return status

    def jump(self, seconds: float) -> None:
        """Shift its wall clock by so many seconds."""
        with httpx2.Client(verify=NO_TLS, trust_env=False) as http:
            http.post(f"{self.url}/clock", content=str(seconds)).raise_for_status()

    def close(self) -> None:
        """End the process, and close its log."""
        if self.alive:
            self.thaw()
            self.kill()
        if self._log is not None:
            self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self._process.pid is not None
        if self.alive:
            os.kill(self._process.pid, number)


@contextlib.contextmanager
def worker_processes(
    count: int, redis_url: str, control_url: str, *, graceful: int = 1, app: str = DEFAULT_APP, **options: object
) -> Iterator[list[WorkerProcess]]:
    """Some workers, which end with the block. `revive` restarts them."""
    workers = [
        WorkerProcess(redis_url, control_url, graceful=graceful, app=app, spans=None, **options) for _ in range(count)
    ]
    try:
        revive(workers)
        yield workers
    finally:
        for worker in workers:
            worker.close()


def revive(workers: Sequence[WorkerProcess]) -> None:
    """Start all workers that do not run, concurrently, and return when they are healthy."""
    starting = [worker for worker in workers if not worker.alive]
    for worker in starting:
        worker.start()
    for worker in starting:
        worker.wait_healthy()


class Router(Switch):
    """The demonstration's switch, which a test can point at given workers."""

    def to(self, *workers: WorkerProcess) -> None:
        """Route new connections to these workers in turn; open ones stay."""
        self.ports = [worker.port for worker in workers]

    def cut(self) -> int:
        """Reset every connection. Returns their number."""
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def move(self, *workers: WorkerProcess) -> None:
        """Route new connections to these workers, and reset the open ones."""
        self.to(*workers)
        self.cut()
