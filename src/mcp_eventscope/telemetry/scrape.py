"""Where a scrape is answered: an ASGI application to mount, and a port of its own."""

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

from mcp_eventscope.telemetry import catalog, multiprocess
from mcp_eventscope.telemetry.exposition import PLAIN, Answer, Exposition
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.prometheus import Registry

PATH = "/metrics"
LOOPBACK = "127.0.0.1"
RETRY_SECONDS = 1.0
"""How often a worker that does not have the port looks whether it has become free."""
_STALLED_SECONDS = 10.0
"""How long a connection to the port may stay silent."""
_STOP_SECONDS = 0.1
"""How soon the port's thread hears that it is to end."""
_METHODS = ("GET", "HEAD")


class MetricsApp:
    """The ASGI application of `metrics_app()`: an instance, which `Route` and `Mount` both take."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._one_at_a_time: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape."""
        if scope["type"] != "http":
            msg = f"metrics_app() answers HTTP requests, and this is {scope['type']}: mount it in an application"
            raise RuntimeError(msg)
        answer = await self._answer(scope)
        await Response(answer.body, answer.status, answer.headers)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Answer:
        if scope["method"] not in _METHODS:
            return _NOT_ALLOWED
        headers = Headers(scope=scope)
        if refused := self._exposition.refusal(headers.getlist("authorization")):
            return refused
        if self._one_at_a_time is None:
            # Scrapes must not use up the threads that the application has for its own work.
            self._one_at_a_time = anyio.CapacityLimiter(1)
        return await to_thread.run_sync(
            lambda: self._exposition.render(
                accept=",".join(headers.getlist("accept")),
                encoding=",".join(headers.getlist("accept-encoding")),
                query=scope.get("query_string", b"").decode("latin-1"),
            ),
            limiter=self._one_at_a_time,
        )


def metrics_app(registry: Registry | None = None, *, token: str | None = None) -> MetricsApp:
    """An ASGI application that answers Prometheus, in OpenMetrics or the text format, as the request accepts.

    For applications that serve metrics themselves: `Route("/metrics", metrics_app())`, or `app.mount(…)`. A scrape is
    rendered in a thread, and does no I/O to Redis. In multiprocess mode (`PROMETHEUS_MULTIPROC_DIR`) it is the sum of
    all workers, and gauges of workers that are gone are left out.

    Args:
        registry: What is exposed; None: prometheus_client's global one. In multiprocess mode everything in the
            directory is exposed, whatever registry it is in.
        token: What `Authorization: Bearer …` has to bring; None: nothing is asked for.

    Returns:
        The application.

    Raises:
        TypeError: `token` is no string, or `registry` no registry.
        ValueError: `token` cannot be a bearer token, or `PROMETHEUS_MULTIPROC_DIR` is set in a way that cannot work.
    """
    return MetricsApp(Exposition(registry, token))


_NOT_ALLOWED = Answer(405, {"Allow": ", ".join(_METHODS)}, b"")
_NOT_FOUND = Answer(404, PLAIN, f"the metrics are at {PATH}\n".encode())
_FAILED = Answer(500, PLAIN, b"the metrics could not be rendered; the log says why\n")


class _Handler(BaseHTTPRequestHandler):
    """Answers one scrape, on the port."""

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
        except Exception as error:  # noqa: BLE001 - whatever a collector of the application's raises
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
        """Not which Python this is."""
        return "mcp-eventscope"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Nothing: what is asked for may hold what nobody should read."""


class _Server(ThreadingHTTPServer):
    """The port, in threads: it answers while the event loop is busy, which is when it is asked."""

    daemon_threads = True
    allow_reuse_port = False  # Two that listen would each get some of the scrapes.

    def __init__(self, host: str, port: int, exposition: Exposition, failed: Callable[[Exception], None]) -> None:
        self.exposition = exposition
        self.failed = failed
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server who we are."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a scrape that was broken off is the business of who broke it off."""


class MetricsPort:
    """`/metrics` on a port of its own, for one of the workers of a host: the first that gets it.

    The others go on, and look now and then whether it has become free.

    Args:
        exposition: What answers.
        host: The address to listen on.
        port: The port.
        log: Where it is told that the port cannot be had.
        retry: Seconds between two looks.

    Raises:
        TypeError: `port` is no int, or `host` no string.
        ValueError: `port` is no port, or `host` empty.
    """

    def __init__(self, exposition: Exposition, host: str, port: int, log: Log, *, retry: float = RETRY_SECONDS) -> None:
        if isinstance(port, bool) or not isinstance(port, int):
            msg = f"metrics_port must be a port number, not {port!r}"
            raise TypeError(msg)
        if not 0 < port < 1 << 16:
            msg = f"metrics_port must be between 1 and 65535, not {port}"
            raise ValueError(msg)
        if not isinstance(host, str):
            msg = f'metrics_host must be an address such as "127.0.0.1" or "0.0.0.0", not {host!r}'
            raise TypeError(msg)
        if not host:
            msg = 'metrics_host must not be empty; for every address of the machine write "0.0.0.0" or "::"'
            raise ValueError(msg)
        self._exposition = exposition
        self._host = host
        self._port = port
        self._log = log
        self._retry = retry
        self._told = False
        self._server: _Server | None = None
        self._held: int | None = None

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Serve the port, or wait for it, until the block ends."""
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
        """Take the port, if it can be had; in multiprocess mode the workers know who of them has it."""
        try:
            if multiprocess.directory() is not None:
                self._held = multiprocess.hold(f"eventscope-port-{self._port}.held")
                if self._held is None:
                    return  # A worker beside us serves it, for all.
            self._server = _Server(self._host, self._port, self._exposition, self._failed)
        except (OSError, ValueError) as error:
            self._let_go()
            self._tell(error)
            return
        threading.Thread(
            target=self._server.serve_forever, args=(_STOP_SECONDS,), name="eventscope-metrics", daemon=True
        ).start()

    async def _close(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await to_thread.run_sync(server.shutdown)
            server.server_close()
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _failed(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._log.write_seldom(catalog.TELEMETRY_FAILED, sink="metrics", error=type(error).__qualname__)

    def _tell(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        fix = "name another metrics_port or metrics_host"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE and multiprocess.VARIABLE not in os.environ:
            fix = (
                f"with several workers set {multiprocess.VARIABLE} to an empty directory, and the one that has the "
                "port serves the metrics of all; else name another metrics_port"
            )
        self._log.announce(
            catalog.METRICS_UNSERVED,
            address=f"{self._host}:{self._port}",
            error=getattr(error, "strerror", None) or str(error),
            fix=fix,
        )
