"""A master, its replica and the Sentinel that watches them, as real processes."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from support.servers import HOST, free_port, server_program, short_directory
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, eventually, pace

MASTER = "mymaster"
QUIET_MILLISECONDS = 30_000
"""Until a fault is wanted: no busy machine makes the replica take over."""


class Sentinel:
    """A master and its replica behind a Sentinel.

    Args:
        directory: Where the Sentinel may write.
        master: The first master.
        replica: Its replica.
    """

    def __init__(self, directory: Path, master: OwnValkey, replica: OwnValkey) -> None:
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}"
        """The address of the Sentinel, which only names the master."""
        self.master = master
        self.replica = replica
        settings = {
            "port": self.port,
            "bind": HOST,
            "dir": directory,
            "loglevel": "warning",
            "sentinel monitor": f"{MASTER} {HOST} {master.port} 1",
            "sentinel down-after-milliseconds": f"{MASTER} {QUIET_MILLISECONDS}",
            "sentinel failover-timeout": f"{MASTER} {QUIET_MILLISECONDS}",
        }
        self._file = directory / "sentinel.conf"
        self._file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the Sentinel, and return when it knows the replica."""
        self.replica.follow(self.master)
        self._process = subprocess.Popen([server_program(), str(self._file), "--sentinel"], stdout=subprocess.DEVNULL)
        eventually(self._knows_replica)

    def cut_off(self) -> None:
        """Break the replication: the replica lacks all later writes."""
        self.replica.set(masterauth="wrong")
        with self.master.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            eventually(lambda: client.info("replication")["connected_slaves"] == 0)

    def fail_over(self) -> None:
        """Kill the master, and return when the Sentinel has promoted the replica and names it."""
        self._run("SENTINEL", "SET", MASTER, "down-after-milliseconds", 2000 * pace())
        self.master.kill()
        eventually(lambda: self._named_port() == self.replica.port and _role(self.replica) == "master")

    def close(self) -> None:
        """End the Sentinel."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(CEILING)

    def _named_port(self) -> int:
        return int(self._run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])

    def _knows_replica(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the Sentinel ended at once"
        try:
            found = self._run("SENTINEL", "REPLICAS", MASTER)
        except redis.exceptions.RedisError:
            return False
        fields = [dict(zip(row[::2], row[1::2], strict=True)) for row in found]
        return [(row[b"flags"], row[b"master-link-status"]) for row in fields] == [(b"slave", b"ok")]

    def _run(self, *command: Any) -> Any:
        client: Any = redis.Redis(host=HOST, port=self.port, socket_timeout=CEILING, protocol=2)
        with client:
            return client.execute_command(*command, NEVER_DECODE=True)


def _role(server: OwnValkey) -> str:
    with server.client() as client:
        return str(client.info("replication")["role"])


@contextlib.contextmanager
def watched_pair() -> Iterator[Sentinel]:
    """A master with a replica, and the Sentinel that watches them; all end with the block."""
    with short_directory() as directory, own_valkey() as master, own_valkey() as replica:
        sentinel = Sentinel(directory, master, replica)
        try:
            sentinel.start()
            yield sentinel
        finally:
            sentinel.close()
