"""Leases: each worker renews its own, and whose has run out is gone. Redis alone counts the time."""

import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.connection import AnyRedis, told_as
from mcp_eventscope.redis.keys import Keys

DEFAULT_LEASE = 10.0
"""Seconds after which a worker that does not say that it lives counts as gone."""


class Leases:
    """The leases of all workers, as one of them sees them.

    Args:
        redis: Where they are.
        keys: The root's.
        worker: This process.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: str) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._lease = DEFAULT_LEASE
        self._trusted_from = 0.0

    async def renew(self, lease: float) -> None:
        """Say that this worker lives.

        Args:
            lease: For how many seconds, unless it says so again.

        Raises:
            StoreError: Redis did not take it.
        """
        self._lease = lease
        with self._watched(), told_as("write to", self._redis):
            await self._redis.set(self._keys.worker(self._worker), "1", px=round(lease * 1000))

    async def leave(self) -> None:
        """Say that this worker has ended.

        Raises:
            StoreError: Redis did not take it.
        """
        with told_as("write to", self._redis):
            await self._redis.delete(self._keys.worker(self._worker))

    async def gone(self, workers: AbstractSet[str]) -> set[str]:
        """Those whose lease has run out, this process excepted.

        After Redis has been away nobody is, for the length of a lease: leases run out while nobody can renew them.

        Raises:
            StoreError: Redis could not be read.
        """
        others = sorted(workers - {self._worker})
        with self._watched(), told_as("read from", self._redis):
            alive = [await self._redis.exists(self._keys.worker(worker)) for worker in others]
        if time.monotonic() < self._trusted_from:
            return set()
        return {worker for worker, lives in zip(others, alive, strict=True) if not lives}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notice that Redis was away, or too slow for others to renew in time."""
        began = time.monotonic()
        try:
            yield
        except StoreError:
            self._trusted_from = time.monotonic() + self._lease
            raise
        if time.monotonic() - began > self._lease / 3:
            self._trusted_from = time.monotonic() + self._lease
