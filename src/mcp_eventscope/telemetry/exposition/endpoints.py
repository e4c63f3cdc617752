"""Endpoints for scrapes: an ASGI application to mount, and a separate port."""

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mcp_eventscope.options import Number, given
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.exposition import multiprocess
from mcp_eventscope.telemetry.exposition.rendering import PLAIN, Answer, Exposition
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.metrics.prometheus import Registry

PATH = "/metrics"
LOOPBACK = "127.0.0.1"
RETRY_SECONDS = 1.0
"""Seconds between attempts to open the port while another worker has it."""
_STALLED_SECONDS = 10.0
"""The idle timeout of connections to the port."""
_STOP_SECONDS = 0.1
"""The interval at which the port's thread checks for its end."""
_METHODS = ("GET", "HEAD")


PORT = Number("", 1, 65535, whole=True, fix="leave it out to serve /metrics with the application")
"""The range of `metrics_port`."""


def check_host(option: str, host: object) -> None:
    """Validate the address of a port.

    Args:
        option: The name in the error.
        host: The value.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, or contains spaces.
    """
    if not isinstance(host, str):
        msg = (
            f'{option} must be an address such as "127.0.0.1" or "0.0.0.0", got {given(host)}; '
            f"leave it out for {LOOPBACK}"
        )
        raise TypeError(msg)
    if len(host.split()) != 1:
        problem = "not contain spaces" if host.strip() else "not be empty"
        msg = f'{option} must {problem}, got {host!r}; pass "0.0.0.0" or "::" for all interfaces'
        raise ValueError(msg)


class MetricsApp:
    """The ASGI application of `metrics_app()`: an instance, which `Route` and `Mount` both accept."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape."""
        if scope["type"] != "http":
            msg = f"metrics_app() serves HTTP only, got {scope['type']}; mount it in an application"
            raise RuntimeError(msg)
        answer = await self._answer(scope)
        await Response(answer.body, answer.status, answer.headers)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Answer:
        if scope["method"] not in _METHODS:
            return _NOT_ALLOWED
        headers = Headers(scope=scope)
        if refused := self._exposition.refusal(headers.getlist("authorization")):
            return refused
        if self._limiter is None:
            # Scrapes must not exhaust the worker threads of the application.
            self._limiter = anyio.CapacityLimiter(1)
        return await to_thread.run_sync(
            lambda: self._exposition.render(
                accept=",".join(headers.getlist("accept")),
                encoding=",".join(headers.getlist("accept-encoding")),
                query=scope.get("query_string", b"").decode("latin-1"),
            ),
            limiter=self._limiter,
        )


def metrics_app(registry: Registry | None = None, *, token: str | None = None) -> MetricsApp:
    """An ASGI application for Prometheus scrapes, in OpenMetrics or the text format, by content negotiation.

    For applications that serve metrics themselves: `Route("/metrics", metrics_app())`, or `app.mount(…)`. A scrape is
    rendered in a thread, without I/O to Redis. In multiprocess mode (`PROMETHEUS_MULTIPROC_DIR`) it merges all workers
    and leaves out gauges of dead ones.

    Args:
        registry: The exposed registry; None: the global one of prometheus_client. Multiprocess mode exposes everything
            in the directory, of all registries.
        token: The bearer token that requests must carry; None: none.

    Returns:
        The application.

    Raises:
        TypeError: `token` is no string, or `registry` no registry.
        ValueError: `token` is no valid bearer token, or `PROMETHEUS_MULTIPROC_DIR` is misconfigured.
    """
    return MetricsApp(Exposition(registry, token))


_NOT_ALLOWED = Answer(405, {"Allow": ", ".join(_METHODS)}, b"")
_NOT_FOUND = Answer(404, PLAIN, f"the metrics are at {PATH}\n".encode())
_FAILED = Answer(500, PLAIN, b"the metrics could not be rendered; see the log of the server\n")


class _Handler(BaseHTTPRequestHandler):
    """Handles one scrape on the port."""

    server: "_Server"
    timeout = _STALLED_SECONDS

    def do_GET(self) -> None:
        self._send(self._answer())

    do_HEAD = do_GET  # noqa: N815

    def _answer(self) -> Answer:
        target = urlsplit(self.path)
        if target.path != PATH:
            return _NOT_FOUND
        exposition = self.server.exposition
        if refused := exposition.refusal(self.headers.get_all("authorization", [])):
            return refused
        try:
            return exposition.render(
                accept=",".join(self.headers.get_all("accept", [])),
                encoding=",".join(self.headers.get_all("accept-encoding", [])),
                query=target.query,
            )
        except Exception as error:  # noqa: BLE001 - collectors of the application
            self.server.failed(error)
            return _FAILED

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        """Hide the Python version."""
        return "mcp-eventscope"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Log nothing: request lines may contain secrets."""


class _Server(ThreadingHTTPServer):
    """The server of the port, in threads: it answers while the event loop is busy."""

    daemon_threads = True
    allow_reuse_port = False  # Two listeners would share the scrapes.

    def __init__(self, host: str, port: int, exposition: Exposition, failed: Callable[[Exception], None]) -> None:
        self.exposition = exposition
        self.failed = failed
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind without a reverse DNS lookup."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore scrapes that the client aborted."""


class MetricsPort:
    """`/metrics` on a separate port, which the first of the workers of a host opens.

    The other workers retry in the background.

    Args:
        exposition: Renders the response.
        host: The address to listen on.
        port: The port.
        log: The log for failures to open the port.
        retry: Seconds between attempts.

    Raises:
        TypeError: `port` is no int, or `host` no string.
        ValueError: `port` is out of range, or `host` is empty.
    """

    def __init__(self, exposition: Exposition, host: str, port: int, log: Log, *, retry: float = RETRY_SECONDS) -> None:
        PORT.check("metrics_port", port)
        check_host("metrics_host", host)
        self._exposition = exposition
        self._host = host
        self._port = port
        self._log = log
        self._retry = retry
        self._reported = False
        self._server: _Server | None = None
        self._held: int | None = None

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Serve the port, or retry to open it, until the block ends."""
        self._open()
        waiting = asyncio.create_task(self._wait(), name="eventscope-metrics-port")
        try:
            yield
        finally:
            waiting.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([waiting])
                await self._close()

    async def _wait(self) -> None:
        while self._server is None:
            await anyio.sleep(self._retry)
            self._open()

    def _open(self) -> None:
        """Try to open the port; in multiprocess mode a lock decides which worker does."""
        try:
            if multiprocess.directory() is not None:
                self._held = multiprocess.hold(f"eventscope-port-{self._port}.held")
                if self._held is None:
                    return  # Another worker serves all.
            self._server = _Server(self._host, self._port, self._exposition, self._failed)
        except (OSError, ValueError) as error:
            self._release()
            self._report(error)
            return
        threading.Thread(
            target=self._server.serve_forever, args=(_STOP_SECONDS,), name="eventscope-metrics", daemon=True
        ).start()

    async def _close(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await to_thread.run_sync(server.shutdown)
            server.server_close()
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _failed(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._log.write_limited(catalog.store.TELEMETRY_FAILED, sink="metrics", error=type(error).__qualname__)

    def _report(self, error: Exception) -> None:
        if self._reported:
            return
        self._reported = True
        fix = "choose another metrics_port or metrics_host"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE and multiprocess.VARIABLE not in os.environ:
            fix = (
                f"with several workers, set {multiprocess.VARIABLE} to an empty directory, so that one serves the "
                "metrics of all; otherwise choose another metrics_port"
            )
        self._log.announce(
            catalog.store.METRICS_PORT_UNAVAILABLE,
            address=f"{self._host}:{self._port}",
            error=getattr(error, "strerror", None) or str(error),
            fix=fix,
        )
