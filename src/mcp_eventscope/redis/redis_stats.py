"""A look at Redis now and then: how full it is, and which keys will never expire. Bounded; it knows no telemetry."""

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import asyncio as aioredis

from mcp_eventscope.redis import scripts
from mcp_eventscope.redis.client import AnyRedis, map_redis_errors
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.worker_id import WorkerId

LOOKED_AT_ONCE = 250
"""Keys that one script looks at, about: Redis does nothing else meanwhile, for half a millisecond."""
LOOKED_AT_MOST = 10_000
"""Keys that one sample looks at, about; the next one goes on from there."""
WALK_SECONDS = 0.25
"""Seconds after which a sample looks at no more keys."""
WEIGHED_AT_ONCE = 8
"""Events that one script weighs."""
HELD_INTERVALS = 3
"""Intervals after which a worker that no longer samples has lost its turn."""

_GLOB = re.compile(r"([*?\[\]^\\])")
_KINDS = frozenset(
    {"commit", "counter", "event", "large", "requests", "sampler", "session", "stream", "trimmed", "worker"}
)


@dataclass(frozen=True, slots=True)
class RedisStats:
    """What one look at Redis found.

    `keys` and `without_ttl` are those of the last walk over all keys, and None until there was one. `lasting` is of
    this sample's part of a walk: the keys without TTL, by what they are.
    """

    keys: int | None
    without_ttl: int | None
    lasting: Mapping[str, int]
    db_keys: int
    event_bytes: float | None
    """Of one event, on average of those that were weighed; None while there was none to weigh."""
    memory_bytes: int
    memory_limit: int
    """0: there is no limit."""
    evicted: int
    """Keys evicted since the sample before, by this sampler; 0 in its first."""


@dataclass(slots=True)
class _Walk:
    """One walk over all keys, which may take several samples."""

    cursor: str = "0"
    keys: int = 0
    without_ttl: int = 0
    weighed: int = 0
    bytes: int = 0


class RedisStatsPoller:
    """Samples Redis, if it is this worker's turn: of those that share a prefix one does it for all.

    Args:
        redis: What is sampled.
        keys: The root's.
        worker: This process.

    Raises:
        ValueError: `redis` is a cluster, of which each node would have to be asked.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: WorkerId) -> None:
        if isinstance(redis, aioredis.RedisCluster):
            msg = (
                "a Redis Cluster is not sampled: what is asked here is what one server knows. "
                "Leave sample_redis out, and use an exporter for Redis on each node"
            )
            raise ValueError(msg)  # noqa: TRY004 - a cluster is a client like others; sampling it is what is refused
        self._redis = redis
        self._prefix = keys.prefix
        self._turn = keys.sampler
        self._worker = worker
        self._walk = _Walk()
        self._walked: _Walk | None = None
        self._evicted: int | None = None

    async def poll(self, every: float) -> RedisStats | None:
        """Look at Redis: at what it says of itself, and at the next part of its keys.

        Args:
            every: Seconds between samples, which say how long this worker keeps its turn.

        Returns:
            What was found; None when it is another worker's turn.

        Raises:
            StoreError: Redis could not be read.
        """
        with map_redis_errors("sample", self._redis):
            if not await self._my_turn(round(every * HELD_INTERVALS * 1000)):
                # Whoever has it from here on starts afresh, as this one will.
                self._walk, self._walked, self._evicted = _Walk(), None, None
                return None
            memory = await self._redis.info("memory")
            stats = await self._redis.info("stats")
            db_keys = await self._redis.dbsize()
            lasting = await self._look()
        evicted, before = _number(stats, "evicted_keys"), self._evicted
        self._evicted = evicted
        latest = self._walked if self._walked is not None and not self._walk.weighed else self._walk
        return RedisStats(
            keys=None if self._walked is None else self._walked.keys,
            without_ttl=None if self._walked is None else self._walked.without_ttl,
            lasting=lasting,
            db_keys=int(db_keys),
            event_bytes=latest.bytes / latest.weighed if latest.weighed else None,
            memory_bytes=_number(memory, "used_memory"),
            memory_limit=_number(memory, "maxmemory"),
            # Less than before: Redis was restarted, and counts from 0.
            evicted=0 if before is None else evicted - before if evicted >= before else evicted,
        )

    async def leave(self) -> None:
        """Let another worker have its turn at once.

        Raises:
            StoreError: Redis did not take it.
        """
        with map_redis_errors("write to", self._redis):
            if await self._whose_turn() == self._worker.name:
                await self._redis.delete(self._turn)

    async def _whose_turn(self) -> str | None:
        worker: str | bytes | None = await self._redis.get(self._turn)
        return worker.decode("ascii", "replace") if isinstance(worker, bytes) else worker

    async def _my_turn(self, milliseconds: int) -> bool:
        """Whether it is; two at once, when one is late by as much as it was given, do no harm."""
        if await self._redis.set(self._turn, self._worker.name, px=milliseconds, nx=True):
            return True
        if await self._whose_turn() != self._worker.name:
            return False
        await self._redis.pexpire(self._turn, milliseconds)
        return True

    async def _look(self) -> Mapping[str, int]:
        """Go on with the walk, as far as one sample may; returns the keys without TTL on the way, by kind."""
        until, lasting = time.monotonic() + WALK_SECONDS, Counter[str]()
        for _ in range(LOOKED_AT_MOST // LOOKED_AT_ONCE):
            walk = self._walk
            seen = await scripts.survey(
                self._redis,
                walk.cursor,
                self._prefix,
                _GLOB.sub(r"\\\1", self._prefix) + "*",
                keys=LOOKED_AT_ONCE,
                events=WEIGHED_AT_ONCE,
            )
            walk.cursor = seen.cursor
            walk.keys += seen.keys
            walk.weighed += seen.weighed
            walk.bytes += seen.bytes
            for kind, number in seen.lasting.items():
                walk.without_ttl += number
                lasting[kind if kind in _KINDS else "other"] += number
            if walk.cursor == "0":
                self._walked, self._walk = walk, _Walk()
                break
            if time.monotonic() > until:
                break
        return dict(lasting)


def _number(info: Mapping[str, Any], name: str) -> int:
    """A number out of INFO; 0 where this server does not tell it."""
    value = info.get(name, 0)
    return int(value) if isinstance(value, int | float) else 0
