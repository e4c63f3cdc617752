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
"""Maximum seconds that a stopping worker spends on releasing its lease; after that the lease expires."""


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A session to be recorded."""

    session_id: str
    owner: str
    """A digest of the session's principal; "" without one."""
    handshake: str
    """The parameters of the session's `initialize` request, as JSON."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The record of a session as its owner reads it. `state` is `live`, `ended`, `other` or `absent`."""

    state: str
    handshake: str = ""


class Coordinator(Protocol):
    """This worker and its connection to the other workers of the store."""

    @property
    def now(self) -> int:
        """Microseconds since 1970, from a clock that all workers share."""
        ...

    @property
    def uncertain(self) -> bool:
        """Whether the store was unreachable or lost data so recently that records may be missing."""
        ...

    @property
    def young(self) -> bool:
        """Whether this worker started less than a lease ago, and cannot know of earlier outages."""
        ...

    def hold_lease(
        self, lease: float, on_message: Callable[[Notice], None], republish: Callable[[], Awaitable[None]]
    ) -> AbstractAsyncContextManager[None]:
        """Hold a lease, and receive the messages of other workers, until the block ends.

        Args:
            lease: Seconds without a renewal after which this worker is declared dead.
            on_message: Called with each message; with `lost` when messages may have been lost.
            republish: Called when the store has recovered or lost data, to republish the state that it may lack.
        """
        ...

    async def publish(self, **notice: object) -> None:
        """Send a message to the other workers.

        Raises:
            StoreError: The write failed.
        """
        ...

    async def record(self, record: NewRecord, *, ttl: int) -> str:
        """Record a session, unless it belongs to another principal or has ended.

        Args:
            record: The session.
            ttl: Seconds until the record expires.

        Returns:
            `live`; or `other` or `ended`, in which case nothing was changed.

        Raises:
            StoreError: The write failed.
        """
        ...

    async def record_all(self, records: Sequence[NewRecord], *, ttl: int) -> None:
        """Record many sessions in few round trips. Arguments and errors as in `record`."""
        ...

    async def touch(self, session_id: str, *, owner: str, ttl: int) -> SessionRecord:
        """Renew and return the record of a session on behalf of its owner.

        Raises:
            StoreError: The read failed.
        """
        ...

    async def end(self, session_id: str, *, ttl: int) -> None:
        """End a session on all workers.

        Args:
            session_id: The session.
            ttl: Seconds for which the store remembers the end.

        Raises:
            StoreError: The write failed.
        """
        ...

    async def wait_for_record(self, task: "asyncio.Task[None]") -> None:
        """Wait until a session is recorded, with a time limit, even if the store is slow."""
        ...

    def best_effort(self) -> AbstractContextManager[None]:
        """Limit the duration of a call and suppress its failure, which the circuit breaker records."""
        ...

    def republish(self) -> None:
        """Schedule another publication of this worker's state, after one has failed."""
        ...
