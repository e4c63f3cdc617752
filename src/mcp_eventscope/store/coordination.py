"""Leases, session records and messages between workers: an optional capability of a store."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Notice: TypeAlias = dict[str, Any]
"""A message from one worker to the others: JSON members."""

DEFAULT_WORKER_LEASE = 10.0
"""Seconds after which a worker that does not renew its lease is declared dead."""
LEAVE_SECONDS = 1.0
"""The most seconds that a worker takes to give up its lease when it ends; else the lease expires."""


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A session to be recorded."""

    session_id: str
    owner: str
    """A digest of its principal; "" for none."""
    handshake: str
    """The parameters of its `initialize`, as JSON."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The record of a session, as its owner reads it. `state` is `live`, `ended`, `other` or `absent`."""

    state: str
    handshake: str = ""


class Coordinator(Protocol):
    """This worker, among the others that use the store."""

    @property
    def now(self) -> int:
        """Microseconds since 1970, by a clock that all workers share."""
        ...

    @property
    def uncertain(self) -> bool:
        """Whether the store was unreachable, or has lost data, so recently that records may be missing."""
        ...

    @property
    def young(self) -> bool:
        """Whether this worker began within a lease: it does not know of an earlier outage."""
        ...

    def hold_lease(
        self, lease: float, on_message: Callable[[Notice], None], republish: Callable[[], Awaitable[None]]
    ) -> AbstractAsyncContextManager[None]:
        """Hold a lease, and receive the messages of other workers, until the block ends.

        Args:
            lease: Seconds after which this worker is declared dead when it does not renew.
            on_message: Called with each message; with `lost` after some may have been lost.
            republish: Called when the store has recovered or lost data, to publish again the state that it may lack.
        """
        ...

    async def publish(self, **notice: object) -> None:
        """Send a message to the other workers.

        Raises:
            StoreError: The store did not take it.
        """
        ...

    async def record(self, record: NewRecord, *, ttl: int) -> str:
        """Record a session, unless it is another principal's or has ended.

        Args:
            record: The session.
            ttl: Seconds until the record expires.

        Returns:
            `live`; or `other` or `ended`, and nothing was changed.

        Raises:
            StoreError: The store did not take it.
        """
        ...

    async def record_all(self, records: Sequence[NewRecord], *, ttl: int) -> None:
        """Record many sessions, many in a round trip. Arguments and errors as in `record`."""
        ...

    async def touch(self, session_id: str, *, owner: str, ttl: int) -> SessionRecord:
        """Renew the record of a session for its owner, and read it.

        Raises:
            StoreError: The store could not be read.
        """
        ...

    async def end(self, session_id: str, *, ttl: int) -> None:
        """End a session on all workers.

        Args:
            session_id: The session.
            ttl: Seconds for which the store remembers that it has ended.

        Raises:
            StoreError: The store did not take it.
        """
        ...

    async def wait_for_record(self, task: "asyncio.Task[None]") -> None:
        """Wait until a session is recorded, for a bounded time, also while the store is slow."""
        ...

    def best_effort(self) -> AbstractContextManager[None]:
        """Bound a call in time, and suppress its failure, which the circuit breaker records."""
        ...

    def republish(self) -> None:
        """Publish the state of this worker again soon: something could not be published."""
        ...
