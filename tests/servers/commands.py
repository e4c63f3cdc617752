"""The ASGI servers under test: how each is started with two workers, and how it ends and replaces them."""

from collections.abc import Callable
from dataclasses import dataclass

from support.servers import HOST
from support.worker_trees import uvicorn_command

APP = "support.worker_app:app"


@dataclass(frozen=True)
class ASGIServer:
    """One server.

    Attributes:
        command: Arguments of Python for a port.
        survives: Whether the other worker serves on when one is killed, and the killed one is replaced.
        ends_streams: Whether a worker with an open stream runs the application's shutdown on SIGTERM.
    """

    command: Callable[[int], list[str]]
    survives: bool = True
    ends_streams: bool = True


def _gunicorn(port: int, *more: str) -> list[str]:
    return [
        *("-m", "gunicorn", f"{APP}()", "--bind", f"{HOST}:{port}", "--log-level", "warning", *more),
        *("--worker-class", "uvicorn_worker.UvicornWorker", "--workers", "2"),
    ]


def _hypercorn(port: int) -> list[str]:
    return [
        *("-m", "hypercorn", f"{APP}()", "--bind", f"{HOST}:{port}", "--workers", "2", "--log-level", "WARNING"),
        *("--graceful-timeout", "1"),
    ]


def _granian(port: int) -> list[str]:
    return [
        *("-m", "granian", APP, "--factory", "--interface", "asgi", "--host", HOST, "--port", str(port)),
        *(
            "--workers",
            "2",
            "--no-ws",
            "--respawn-failed-workers",
            "--workers-kill-timeout",
            "3",
            "--log-level",
            "warning",
        ),
    ]


SERVERS = {
    "uvicorn": ASGIServer(lambda port: uvicorn_command(port, 2)),
    "gunicorn": ASGIServer(_gunicorn),
    "gunicorn --preload": ASGIServer(lambda port: _gunicorn(port, "--preload")),
    "hypercorn": ASGIServer(_hypercorn, survives=False, ends_streams=False),
    "granian": ASGIServer(_granian),
}
