"""Statistics of Redis: memory, keys, and keys without TTL, polled in bounded steps."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.client import AnyRedis, UnexpectedReplyError, map_redis_errors, parsing
from mcp_eventscope.redis.keys import Keys, pattern_of
from mcp_eventscope.redis.masters import Master, at, info, masters
from mcp_eventscope.redis.workers.worker_id import WorkerId

SCANNED_PER_SCRIPT = 250
"""Keys that one script scans, approximately: it blocks Redis for 0.5 ms."""
SCANNED_PER_POLL = 10_000
"""Keys that one poll scans, approximately; the next poll continues."""
SCAN_SECONDS = 0.25
"""Seconds after which a poll stops scanning."""
WEIGHED_PER_SCRIPT = 8
"""Events that one script weighs."""
HELD_INTERVALS = 3
"""Intervals after which a worker that no longer polls loses its turn."""

_KINDS = frozenset(
    {
        *(
            "announcements",
            "commit",
            "counter",
            "deleting",
            "event",
            "inbox",
            "index",
            "large",
            "poller",
            "probe",
            "requests",
        ),
        *("server", "session", "sizes", "stream", "trimmed", "worker"),
    }
)


@dataclass(frozen=True, slots=True)
class RedisStats:
    """The result of a poll.

    `keys` and `without_ttl` are those of the last full scan, and None before it. `lasting` counts the keys without TTL
    in the part that this poll scanned, by type. On Redis Cluster all counts are those of all masters together, and the
    memory is that of the fullest master, since keys are evicted or refused there first.
    """

    keys: int | None
    without_ttl: int | None
    lasting: Mapping[str, int]
    db_keys: int
    event_bytes: float | None
    """Average memory per event of those that were weighed; None without any."""
    memory_bytes: int
    memory_limit: int
    """0: unlimited."""
    evicted: int
    """Keys evicted since the previous poll of this poller; 0 in the first."""


@dataclass(slots=True)
class _Scan:
    """A scan of all keys, which may take several polls."""

    nodes: deque[str | None] = field(default_factory=deque)
    """The masters of a cluster that are not scanned yet, the current one first; None stands for the only server."""
    cursor: str = "0"
    keys: int = 0
    without_ttl: int = 0
    weighed: int = 0
    bytes: int = 0


class RedisStatsPoller:
    """Polls statistics of Redis: one of the workers that share a prefix does it for all.

    Args:
        redis: The client.
        keys: The keys of the root store.
        worker: This process.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: WorkerId) -> None:
        self._redis = redis
        self._prefix = keys.prefix
        self._turn = keys.poller
        self._worker = worker
        self._scan = _Scan()
        self._scanned: _Scan | None = None
        self._evicted: dict[str | None, int] = {}
        """The evicted keys by master, as counted in the previous poll."""

    async def poll(self, every: float) -> RedisStats | None:
        """Read the statistics, and scan the next part of the keys.

        Args:
            every: Seconds between polls, which determine how long this worker keeps its turn.

        Returns:
            The statistics; None if another worker polls.

        Raises:
            StoreError: Redis could not be read.
        """
        with map_redis_errors("read the statistics of", self._redis):
            if not await self._my_turn(round(every * HELD_INTERVALS * 1000)):
                # A worker that takes over starts a new scan.
                self._scan, self._scanned, self._evicted = _Scan(), None, {}
                return None
            nodes = await masters(self._redis)
            memories = [await info(self._redis, node, "memory") for node in nodes]
            stats = {node: _number(await info(self._redis, node, "stats"), "evicted_keys") for node in nodes}
            with parsing("DBSIZE"):
                db_keys = sum([int(await self._redis.dbsize(**at(self._redis, node))) for node in nodes])
            lasting = await self._scan_part(nodes)
        before, self._evicted = self._evicted, stats
        memory = max(memories, key=_fullness)
        latest = self._scanned if self._scanned is not None and not self._scan.weighed else self._scan
        return RedisStats(
            keys=None if self._scanned is None else self._scanned.keys,
            without_ttl=None if self._scanned is None else self._scanned.without_ttl,
            lasting=lasting,
            db_keys=db_keys,
            event_bytes=latest.bytes / latest.weighed if latest.weighed else None,
            memory_bytes=_number(memory, "used_memory"),
            memory_limit=_number(memory, "maxmemory"),
            # Fewer than before: Redis restarted, and counts from 0.
            evicted=sum(
                now - was if now >= (was := before[node]) else now for node, now in stats.items() if node in before
            ),
        )

    async def leave(self) -> None:
        """Release the turn to another worker.

        Raises:
            StoreError: Redis could not be written to.
        """
        with map_redis_errors("write to", self._redis):
            if await self._whose_turn() == self._worker.name:
                await self._redis.delete(self._turn)

    async def _whose_turn(self) -> str | None:
        worker: str | bytes | None = await self._redis.get(self._turn)
        if not isinstance(worker, str | bytes | None):
            raise UnexpectedReplyError(command="GET")
        return worker.decode("ascii", "replace") if isinstance(worker, bytes) else worker

    async def _my_turn(self, milliseconds: int) -> bool:
        """Take or extend the turn. Two workers that poll at the same time do no harm."""
        if await self._redis.set(self._turn, self._worker.name, px=milliseconds, nx=True):
            return True
        if await self._whose_turn() != self._worker.name:
            return False
        await self._redis.pexpire(self._turn, milliseconds)
        return True

    async def _scan_part(self, nodes: list[str | None]) -> Mapping[str, int]:
        """Continue the scan within the limits of a poll; returns the keys without TTL, by type."""
        until, lasting = time.monotonic() + SCAN_SECONDS, Counter[str]()
        if not set(nodes).issuperset(self._scan.nodes):  # Other masters have their keys now.
            self._scan = _Scan()
        for _ in range(SCANNED_PER_POLL // SCANNED_PER_SCRIPT):
            scan = self._scan
            if not scan.nodes:
                scan.nodes.extend(nodes)
            seen = await scripts.survey(
                Master(self._redis, scan.nodes[0]),
                scan.cursor,
                self._prefix,
                f"{pattern_of(self._prefix)}*",
                keys=SCANNED_PER_SCRIPT,
                events=WEIGHED_PER_SCRIPT,
            )
            scan.cursor = seen.cursor
            scan.keys += seen.keys
            scan.weighed += seen.weighed
            scan.bytes += seen.bytes
            for kind, number in seen.lasting.items():
                scan.without_ttl += number
                lasting[kind if kind in _KINDS else "other"] += number
            if scan.cursor == "0":
                scan.nodes.popleft()
            if not scan.nodes:
                self._scanned, self._scan = scan, _Scan()
                break
            if time.monotonic() > until:
                break
        return dict(lasting)


def _number(facts: Mapping[str, Any], name: str) -> int:
    """A number of INFO; 0 if this server does not report it."""
    value = facts.get(name, 0)
    return int(value) if isinstance(value, int | float) else 0


def _fullness(memory: Mapping[str, Any]) -> tuple[float, int]:
    """How full a server is: the part of its limit, then its memory."""
    used, limit = _number(memory, "used_memory"), _number(memory, "maxmemory")
    return used / limit if limit else 0.0, used
