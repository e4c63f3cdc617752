"""A Valkey for one test to kill, freeze, fill, load or make a replica."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.servers import HOST, free_port, server_program, short_directory
from support.waiting import CEILING, eventually


class OwnValkey:
    """A Valkey process, on a Unix socket and a port of the loopback interface that it keeps over restarts.

    Args:
        directory: Where it may write.
        durable: Whether its data survives a kill: every write goes to disk immediately.
        binary: The program, such as Debian's redis-server; None: the server under test.
        options: Settings, with underscores for hyphens.
    """

    def __init__(self, directory: Path, *, durable: bool = False, binary: str | None = None, **options: object) -> None:
        self._binary = binary or server_program()
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self.port = free_port()
        self.bus = free_port()
        """The port of the other nodes of a cluster. By default it is `port` + 10,000, which may not exist."""
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
            **({"cluster-port": self.bus} if "cluster_enabled" in options else {}),
            **options,
        }
        self._log = directory / "valkey.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, answers: str = "PONG", **options: object) -> None:
        """Start, and return when it answers.

        Args:
            answers: With what: "LOADING" returns when it does that.
            options: Settings for this time only.
        """
        settings = {name.replace("_", "-"): str(value) for name, value in (self._options | options).items()}
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        # A killed server leaves its socket behind, which would refuse new connections for a moment.
        self.socket.unlink(missing_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([self._binary, *arguments], stdout=log, stderr=log)
        process = self._process
        with self.client() as client:

            def answered() -> bool:
                assert process.poll() is None, f"Valkey ended at once: {self._log.read_text(errors='replace')[-1000:]}"
                return self._answer(client) == answers

            eventually(answered)

    def client(self) -> redis.Redis:
        """A blocking client, with which a test administers the server."""
        never = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=CEILING, retry=never)

    def kill(self) -> None:
        """Kill it without notice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(CEILING)

    def save(self) -> None:
        """Write a snapshot, which the next start loads."""
        with self.client() as client:
            client.save()

    def flush(self) -> None:
        """Delete all data."""
        with self.client() as client:
            client.flushall()

    def drop_snapshot(self) -> None:
        """Delete the snapshot: the next start is empty."""
        self._snapshot.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop the process; its sockets stay open, and the kernel accepts new connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process."""
        self._signal(signal.SIGCONT)

    def revive(self) -> None:
        """Start or continue it, and return when it answers."""
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
    def running(self) -> bool:
        """Whether the process runs; frozen counts."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def restart_loading(self, *, keys: int = 1000, microseconds: int = 800) -> None:
        """Kill a durable server, and restart it: it answers LOADING while it reads so many keys.

        Its earlier data is loaded too.
        """
        with self.client() as client:
            client.eval("for i = 1, ARGV[1] do redis.call('SET', 'ballast:' .. i, '', 'EX', 600) end", 0, str(keys))
            client.bgrewriteaof()  # Only a snapshot is loaded with delay.
            eventually(lambda: not _rewriting(client))
        self.kill()
        self.start(answers="LOADING", key_load_delay=microseconds, loading_process_events_interval_bytes=1024)

    def follow(self, other: "OwnValkey | None") -> None:
        """Become a replica of another, and return when in step with it; None: become a primary."""
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
    info = client.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


@contextlib.contextmanager
def own_valkey(*, durable: bool = False, binary: str | None = None, **options: object) -> Iterator[OwnValkey]:
    """A running Valkey, which ends with the block.

    Args:
        durable: Whether its data survives a kill.
        binary: The program; None: the server under test.
        options: Settings, with underscores for hyphens.
    """
    with short_directory() as directory:
        server = OwnValkey(directory, durable=durable, binary=binary, **options)
        try:
            server.start()
            yield server
        finally:
            server.kill()


async def fail_repeatedly(server: OwnValkey) -> None:
    """Kill and freeze a server at different moments of its recovery."""
    for number in range(6):
        if number % 2:
            server.freeze()
            await anyio.sleep(0.05 * number)
            server.thaw()
        server.kill()
        await anyio.sleep(0.1)
        await anyio.to_thread.run_sync(server.start)
        await anyio.sleep(0.04 * number)
