"""Worker processes, and a switch that is never sticky: what breaks in production."""

import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO

import httpx2

from examples.demo.switch import Switch
from mcp_eventscope.app import URL_VARIABLE
from support.servers import HOST, free_port, text_of
from support.waiting import CEILING, eventually, slowness
from support.worker_app import CONTROL_VARIABLE, OPTIONS_VARIABLE, SPANS_VARIABLE, serve

LEASE = min(max(1.0, slowness() / 2), 4.0)
"""Seconds. Where processes get little CPU time they renew it late: a lease that lapses then is no fault."""
RETRY_MILLISECONDS = 100
_FORKSERVER = multiprocessing.get_context("forkserver")
# To import the SDK takes a worker more than a second. The server of the forks does so once, and runs nothing.
_FORKSERVER.set_forkserver_preload(
    ["mcp.server.mcpserver", "uvicorn", "mcp_eventscope", "mcp_eventscope.app", "opentelemetry.instrumentation.redis"]
)


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
        """What it has written since it was started."""
        return "" if self._log is None else text_of(self._log)

    def start(self) -> None:
        """Start the process; it is not healthy yet."""
        assert not self.alive
        if self._log is not None:
            self._log.close()
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed at the next start, or with us
        # A daemon: it is ended with us, whatever becomes of the test.
        self._process = _FORKSERVER.Process(
            target=serve, args=(self._environment, self._log.name, self.port, self._graceful), daemon=True
        )
        self._process.start()

    def wait_healthy(self) -> None:
        """Return once it serves."""
        with httpx2.Client(trust_env=False, timeout=CEILING) as http:

            def healthy() -> bool:
                assert self.alive, self.log
                with contextlib.suppress(httpx2.TransportError):
                    return http.get(f"{self.url}/healthz").is_success
                return False

            eventually(healthy, otherwise=lambda: self.log)

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
        self._process.join(CEILING)
        status = self._process.exitcode
        assert status is not None, f"it has not ended: {self.log}"
        return status

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
        assert self._process.pid is not None
        if self.alive:
            os.kill(self._process.pid, number)


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
