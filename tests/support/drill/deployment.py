"""Four workers as the documentation recommends: one address, one metrics directory, one target; and a newer version."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.proxy import Proxy, proxy_in_thread
from support.servers import HOST, free_port
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING
from support.worker_trees import WorkerTree, uvicorn_workers

APP = "support.drill.app:app"
WORKERS = 4
MAX_SESSIONS = 12
"""Of each worker: enough for the sessions of the drill on every one."""
NEWER = "999.0.0"
"""The version that a deployment installs."""
PATIENT = f"?socket_timeout={CEILING:g}"
"""For URLs of Redis: a busy machine may take longer than the default for a reply."""
LEASE = 30
"""Seconds: the drill delays replies of Redis, and freezes workers, for some."""


@dataclass
class Target:
    """What Prometheus scrapes."""

    metrics_url: str

    @property
    def port(self) -> int:
        """Of that address."""
        return int(self.metrics_url.rpartition(":")[2])


class Four(Target):
    """The four workers, their Redis, and the faults. `start` starts them.

    Args:
        redis: Their Redis. It keeps its data when it is killed.
        proxy: Between them.
        control_url: The Redis that controls the tools.
        directory: For files.
        stack: Ends what is started.
    """

    def __init__(self, redis: OwnValkey, proxy: Proxy, control_url: str, directory: Path, stack: ExitStack) -> None:
        super().__init__(f"http://{HOST}:{free_port()}")
        self.url = ""
        """Where they serve."""
        self.redis = redis
        self.proxy = proxy
        self.next = Target(f"http://{HOST}:{free_port()}")
        """The target of a worker with a newer version, which `deploy` starts."""
        self._control_url = control_url
        self._directory = directory
        self._stack = stack
        self.trees: list[WorkerTree] = []
        """The running servers: these, then the newer."""

    def freezable(self) -> list[int]:
        """The workers that do not answer scrapes: they may be frozen without being missed."""
        tree = self.trees[0]
        return sorted(tree.workers() - {tree.port_owner(self.port)})

    @property
    def tracing_fails(self) -> Path:
        """A file: while it exists, the tracing of the workers raises."""
        return self._directory / "tracing-fails"

    @property
    def redis_url(self) -> str:
        """Where the workers find Redis: through the proxy, and patient, as `store_timeout` is."""
        return f"{self.proxy.url}{PATIENT}"

    def start(self) -> None:
        """Start the four."""
        self.url = self._started(WORKERS, self)

    def _started(self, workers: int, target: Target, *first_on_path: Path) -> str:
        """Start uvicorn with some workers; returns their address. One answers scrapes for all, from a thread."""
        running = uvicorn_workers(
            workers,
            self.redis_url,
            self._control_url,
            app=APP,
            first_on_path=first_on_path,
            # A busy machine may take longer than the default for a reply.
            store_timeout=CEILING,
            worker_lease=LEASE,
            max_sessions=MAX_SESSIONS,
            metrics_port=target.port,
            tracing_fails_if=str(self.tracing_fails),
        )
        self.trees.append(self._stack.enter_context(running))
        return self.trees[-1].url

    def deploy(self) -> None:
        """Start a worker of a newer version: of its metadata, which is all that it reports."""
        metadata = self._directory / "newer" / f"mcp_eventscope-{NEWER}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: mcp-eventscope\nVersion: {NEWER}\n", "utf-8")
        self._started(1, self.next, metadata.parent.parent)


@contextmanager
def four_workers(directory: Path, control_url: str) -> Iterator[Four]:
    """Start the four workers, which end with the block.

    Args:
        directory: For their files.
        control_url: The Redis that controls the tools, which nothing happens to.
    """
    with ExitStack() as stack:
        redis = stack.enter_context(own_valkey(durable=True))
        proxy = stack.enter_context(proxy_in_thread(redis.socket))
        four = Four(redis, proxy, control_url, directory, stack)
        four.start()
        yield four
