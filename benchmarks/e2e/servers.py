"""The contestants, each a uvicorn process of its own on the loopback interface."""

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from benchmarks.e2e import CONTESTANT, FAST, REDIS_URL
from benchmarks.processes import HOST, ROOT, BenchmarkError, Worker, free_port, stop, until


@dataclass(frozen=True)
class Contestant:
    """One server: its name on the command line, its title, and whether it keeps events in Redis."""

    name: str
    title: str
    redis: bool = False
    needs: str = ""

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None


CONTESTANTS = {
    each.name: each
    for each in (
        Contestant("none", "SDK, no store"),
        Contestant("memory", "SDK, in-memory store"),
        Contestant("ours", "mcp-eventscope", redis=True),
        Contestant("persist", "mcp-persist", redis=True, needs="mcp_persist"),
    )
}


@asynccontextmanager
async def served(names: Iterable[str], redis_url: str, *, fast: bool = False) -> AsyncIterator[dict[str, Worker]]:
    """Start a server for each name; they end with the block.

    Args:
        names: Of the contestants.
        redis_url: Where those that need Redis find it.
        fast: Whether uvloop, httptools and hiredis are used where they are installed.
    """
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(_server(name, redis_url, fast=fast)) for name in names}


@asynccontextmanager
async def _server(name: str, redis_url: str, *, fast: bool) -> AsyncIterator[Worker]:
    port = free_port()
    loop, http = ("auto", "auto") if fast else ("asyncio", "h11")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "benchmarks.e2e.app:app", "--factory"),
        *("--host", HOST, "--port", str(port), "--loop", loop, "--http", http),
        *("--log-level", "critical", "--no-access-log", "--timeout-graceful-shutdown", "1"),
        # A contestant idles while others have their turn.
        *("--timeout-keep-alive", "600"),
        cwd=ROOT,
        env=os.environ | {CONTESTANT: name, REDIS_URL: redis_url, FAST: "1" if fast else ""},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL if not os.environ.get("BENCHMARK_STDERR") else None,
    )
    try:

        async def listens() -> bool:
            if process.returncode is not None:
                msg = f"{name} ended with status {process.returncode}; BENCHMARK_STDERR=1 shows why"
                raise BenchmarkError(msg)
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
                return True
            return False

        await until(listens, f"{name} to listen")
        yield Worker(port, process.pid)
    finally:
        await stop(process)
