"""A Redis Cluster of real Valkey processes, whose nodes a test kills and freezes, and whose slots it moves."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import redis
from redis import asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot

from support.servers import HOST, short_directory
from support.valkeys import OwnValkey
from support.waiting import CEILING, eventually

SLOTS = 16384
MASTERS = 3
QUIET_MILLISECONDS = 30_000
"""The node timeout of a cluster without faults: no busy machine makes a replica take over."""


class Node:
    """One running node: its process, and its name in the cluster."""

    def __init__(self, server: OwnValkey) -> None:
        self.server = server
        self.name: str = self.run("CLUSTER", "MYID").decode()

    @property
    def port(self) -> int:
        """The port of clients."""
        return self.server.port

    def run(self, *command: Any) -> Any:
        """Run an administrative command on this node; returns its reply as bytes."""
        with self.server.client() as client:
            return client.execute_command(*command, NEVER_DECODE=True)

    @property
    def info(self) -> dict[str, str]:
        """The reply to `CLUSTER INFO`."""
        lines = self.run("CLUSTER", "INFO").decode().split()
        return dict(line.split(":", 1) for line in lines)

    @property
    def rows(self) -> dict[str, list[str]]:
        """The rows of `CLUSTER NODES` by the nodes' names."""
        lines = self.run("CLUSTER", "NODES").decode().splitlines()
        return {row[0]: row[1:] for row in map(str.split, lines)}

    @property
    def is_master(self) -> bool:
        """Whether the node counts itself as a master."""
        return "master" in self.rows[self.name][1].split(",")


class Cluster:
    """Nodes that know each other: masters with a third of the slots each, and a replica of each.

    Args:
        nodes: The processes.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.node_timeout = QUIET_MILLISECONDS

    @property
    def alive(self) -> list[Node]:
        """The nodes whose process runs."""
        return [node for node in self.nodes if node.server.running]

    @property
    def masters(self) -> list[Node]:
        """The living nodes that are masters."""
        return [node for node in self.alive if node.is_master]

    @property
    def url(self) -> str:
        """The URL of all nodes."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def client(self, **options: Any) -> aioredis.RedisCluster:
        """A client that knows all nodes, so that any of them may be dead."""
        return aioredis.RedisCluster(startup_nodes=[ClusterNode(HOST, node.port) for node in self.nodes], **options)

    def master_of(self, key: str) -> Node:
        """The living master that serves the slot of a key."""
        slot = key_slot(key.encode())

        def serving() -> Node | None:
            for node in self.masters:
                for part in node.rows[node.name][7:]:
                    first, _, last = part.partition("-")
                    if not part.startswith("[") and int(first) <= slot <= int(last or first):
                        return node
            return None

        return cast("Node", eventually(serving))

    def replica_of(self, master: Node) -> Node:
        """The living replica of a master."""
        return next(node for node in self.alive if node.rows[node.name][2] == master.name)

    def until_whole(self) -> None:
        """Return when each living node serves, and knows the others of them."""
        eventually(self._whole, otherwise=lambda: str([node.info for node in self.alive]))

    def _whole(self) -> bool:
        alive = self.alive
        views = [node.rows for node in alive]
        return all(node.info["cluster_state"] == "ok" for node in alive) and all(
            node.name in rows and not {"fail", "fail?", "handshake"} & set(rows[node.name][1].split(","))
            for rows in views
            for node in alive
        )

    def until_replicated(self) -> None:
        """Return when three masters have a replica in step with each, as after the start."""
        eventually(lambda: self._whole() and len(self.masters) == MASTERS and all(map(_in_step, self.alive)))

    def revive(self) -> None:
        """Start or continue all nodes, and return when they are a cluster with replicas again."""
        for node in self.nodes:
            node.server.revive()
            node.server.set(masterauth="")
        self.until_replicated()

    def set(self, **settings: object) -> None:
        """Change settings of all living nodes."""
        for node in self.alive:
            node.server.set(**settings)

    def cut_off(self, replica: Node, master: Node) -> None:
        """Break the replication of a master, until the replica is revived."""
        replica.server.set(masterauth="wrong")
        master.run("CLIENT", "KILL", "TYPE", "replica")
        eventually(lambda: not _in_step(replica))

    def begin_move(self, slot: int, to: Node) -> Node:
        """Begin to move a slot: its present and absent keys are redirected by ASK. Returns the node that it leaves."""
        source = self.master_of_slot(slot)
        to.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", to.name)
        return source

    def move_keys(self, slot: int, source: Node, to: Node, most: int = 1000) -> int:
        """Move keys of a slot that is being moved; returns how many."""
        keys = source.run("CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            source.run("MIGRATE", HOST, to.port, "", 0, round(CEILING * 1000), "REPLACE", "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: Node, to: Node) -> None:
        """Move the keys that are left, and give the slot to its new node."""
        while self.move_keys(slot, source, to):
            pass
        for node in (to, source, *(each for each in self.masters if each not in {to, source})):
            node.run("CLUSTER", "SETSLOT", slot, "NODE", to.name)

    def master_of_slot(self, slot: int) -> Node:
        """The living master that serves a slot."""
        return self.master_of(f"{{{_key_of(slot)}}}")


def _key_of(slot: int) -> str:
    return next(str(number) for number in range(SLOTS * 20) if key_slot(str(number).encode()) == slot)


def _in_step(node: Node) -> bool:
    with node.server.client() as client:
        replication = client.info("replication")
    if replication["role"] == "master":
        return int(replication["connected_slaves"]) >= 1
    return bool(replication["master_link_status"] == "up")


@contextlib.contextmanager
def valkey_cluster(*, masters: int = MASTERS, replicas: bool = True, **options: object) -> Iterator[Cluster]:
    """A running cluster, which ends with the block.

    Args:
        masters: How many nodes share the slots.
        replicas: Whether each has a replica.
        options: Settings of all nodes, with underscores for hyphens.
    """
    settings: dict[str, Any] = {
        "cluster_node_timeout": QUIET_MILLISECONDS,
        "cluster_replica_validity_factor": 0,
        "cluster_allow_replica_migration": "no",
        "repl_diskless_load": "swapdb",
        **options,
    }
    with short_directory() as directory, contextlib.ExitStack() as ended:
        nodes: list[Node] = []
        for number in range(masters * (2 if replicas else 1)):
            (home := directory / str(number)).mkdir()
            server = OwnValkey(home, cluster_enabled="yes", **settings)
            ended.callback(server.kill)
            server.start()
            nodes.append(Node(server))
        cluster = Cluster(nodes)
        _form(cluster, masters)
        yield cluster


def _form(cluster: Cluster, masters: int) -> None:
    """Give the masters the slots, and the others a master each."""
    first, *_ = nodes = cluster.nodes
    for number, node in enumerate(nodes):
        node.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number < masters:
            low, high = SLOTS * number // masters, SLOTS * (number + 1) // masters - 1
            node.run("CLUSTER", "ADDSLOTSRANGE", low, high)
    for node in nodes[1:]:
        first.run("CLUSTER", "MEET", HOST, node.port, node.server.bus)
    eventually(lambda: all(len(node.rows) == len(nodes) for node in nodes) and cluster._whole())
    for number, node in enumerate(nodes[masters:]):
        node.run("CLUSTER", "REPLICATE", nodes[number].name)
    if len(nodes) > masters:
        cluster.until_replicated()
        eventually(lambda: all(_replicas(node) == masters for node in nodes))


def _replicas(node: Node) -> int:
    """How many replicas a node knows."""
    return sum("slave" in row[1].split(",") for row in node.rows.values())


def sessions_by_master(cluster: Cluster, key_of: Callable[[str], str], each: int) -> dict[str, list[str]]:
    """Names of sessions whose keys each master serves, by the master's name.

    Args:
        cluster: The cluster.
        key_of: A key of a session.
        each: How many sessions on each master.
    """
    found: dict[str, list[str]] = {node.name: [] for node in cluster.masters}
    number = 0
    while any(len(names) < each for names in found.values()):
        name = f"s{number}"
        number += 1
        names = found[cluster.master_of(key_of(name)).name]
        if len(names) < each:
            names.append(name)
    return found


def reachable(client: redis.Redis) -> bool:
    """Whether a node answers."""
    with contextlib.suppress(redis.exceptions.RedisError, OSError):
        return bool(client.ping())
    return False
