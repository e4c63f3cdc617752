"""One uvicorn worker: a process that serves the MCP server on a loopback port."""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

import httpx2

from mcp_eventscope.demo.waiting import DemoError, within
from mcp_eventscope.settings import URL_VARIABLE, variable

HOST = "127.0.0.1"
START_SECONDS = 20.0
STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.05


def free_port(preferred: int = 0) -> int:
    """A free loopback port: the preferred one, unless it is taken."""
    with socket.socket() as probe:
        # As a server binds: a connection in TIME_WAIT does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except OSError:
            probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Worker:
    """A worker process.

    Args:
        redis_url: The Redis that all workers share.
        key_prefix: The prefix of their keys.
        name: Its name in the output.
        port: Its port; 0 chooses a free one.
        show_log: Whether its log goes to standard error; otherwise it is kept, and shown if the worker fails.
    """

    def __init__(
        self, redis_url: str, key_prefix: str, *, name: str = "", port: int = 0, show_log: bool = False
    ) -> None:
        self.name = name
        self.port = port or free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._variables = {URL_VARIABLE: redis_url, variable("key_prefix"): key_prefix}
        self._show_log = show_log
        self._process: asyncio.subprocess.Process | None = None
        self.log = ""
        """Its log, after it has ended; empty with `show_log`."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the worker, wait until it is healthy, and stop it when the block ends.

        Raises:
            DemoError: It ended, or did not become healthy in time. Its log is appended to every `DemoError`.
        """
        with tempfile.TemporaryFile() as log:
            output = None if self._show_log else log
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "uvicorn", "mcp_eventscope.demo.server:app", "--factory"),
                *("--host", HOST, "--port", str(self.port), "--log-level", "warning"),
                # Otherwise a client that follows a stream would delay the shutdown.
                *("--timeout-graceful-shutdown", "1"),
                env=os.environ | self._variables,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C at the terminal reaches the demo only, which then stops the workers.
                start_new_session=True,
            )
            try:
                await self._healthy()
                yield
            except DemoError as error:
                await self.stop()
                msg = f"{error}\n{_text_of(log)}".rstrip()
                raise DemoError(msg) from None
            finally:
                await self.stop()
                self.log = _text_of(log)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.returncode is None

    async def wait(self) -> int:
        """Wait until the process has ended. Returns its exit status."""
        return 0 if self._process is None else await self._process.wait()

    async def stop(self) -> None:
        """Stop it with SIGTERM; after `STOP_SECONDS`, kill it."""
        if self._process is None or self._process.returncode is not None:
            return
        try:
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                self._process.terminate()
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
        finally:
            # Also if a signal cancels this task here: nothing else would end the process.
            await self.kill()

    async def kill(self) -> int:
        """Kill it without a warning, like a crash. Returns the signal that ended it; 0 if it exited."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return max(0, -await self._process.wait())

    async def metrics(self) -> str:
        """The text of /metrics.

        Raises:
            DemoError: It does not answer.
        """
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=5) as http:
                return (await http.get(f"{self.url}/metrics")).raise_for_status().text
        except httpx2.HTTPError as error:
            msg = f"{self.url}/metrics cannot be read: {error!r}"
            raise DemoError(msg) from None

    async def _healthy(self) -> None:
        async with (
            within(START_SECONDS, f"{self.url}/healthz to answer 200"),
            # Without the environment's proxy: everything is on this machine.
            httpx2.AsyncClient(trust_env=False, timeout=START_SECONDS) as http,
        ):
            while not await _answers(http, f"{self.url}/healthz"):
                if self._process is not None and self._process.returncode is not None:
                    msg = f"the worker for {self.url} ended with status {self._process.returncode}"
                    raise DemoError(msg)
                await asyncio.sleep(_LOOK_SECONDS)


async def _answers(http: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).is_success
    except httpx2.TransportError:
        return False


def _text_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")
