"""Leases, session records and messages between workers: an optional capability of a store."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mcp_eventscope.store.events import DropReason

DEFAULT_WORKER_LEASE = 10.0
"""Seconds after which a worker that does not renew its lease is declared dead."""
MESSAGE_SECONDS = 60.0
"""Seconds for which a message between workers is retried while the store is unreachable."""
LEAVE_SECONDS = 1.0
"""Maximum seconds that a stopping worker spends on releasing its lease; after that the lease expires."""

RECORD_SECONDS = 2.0
"""Maximum seconds for which `initialize` waits for the record of its session, while the store is slow."""


class MessageKind(StrEnum):
    """The subject of a message between workers."""

    STOP = "stop"
    """A stream was opened on the sending worker: older connections of it must end. Its content is the stream's name."""
    DELIVER = "deliver"
    """A message of the client that the receiving worker may have asked for. Its content is the message as JSON."""
    OFFER = "offer"
    """The sender holds a large answer of the client. Its content is the answer's request id, as JSON."""
    WANTED = "wanted"
    """The sender asked for the answer that was offered. Its content is that of the offer."""
    BEGAN = "began"
    """A session was recorded. Its content is the record."""
    ENDED = "ended"
    """A session was ended."""
    LOST = "lost"
    """Not sent by a worker: messages may have been lost."""


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """A message from another worker."""

    kind: MessageKind
    session: str = ""
    """The `session_digest` of the session it concerns."""
    content: str = ""
    sender: str = ""
    """The name of the worker that sent it."""
    age: float = 0.0
    """Seconds since it was sent, accurate to milliseconds; 0.0 if that is not known."""


def session_digest(session_id: str) -> str:
    """The name of a session in messages between workers. Without authentication the session id is a credential."""
    return hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A session to be recorded."""

    session_id: str
    owner: str
    """A digest of the session's principal; "" without one."""
    handshake: str
    """The parameters of the session's `initialize` request, as JSON."""
    server: str = ""
    """The server's name, and the audience of the principal's token if it has one."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The record of a session as its owner reads it.

    `state` is `live`, `ended`, `other` (of another principal), `other_server`, `absent`, or `lost`: absent, although a
    live worker runs a request of the session, and will write the record again.
    """

    state: str
    handshake: str = ""
    owner: str = ""
    """The digest of its principal, where it was announced by another worker."""
    server: str = ""
    """Its server as in `NewRecord`, where it was announced by another worker."""


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
    def slow(self) -> bool:
        """Whether the store is degraded, and may answer all the same: late, or now."""
        ...

    @property
    def started_recently(self) -> bool:
        """Whether this worker started less than a lease ago, and cannot know of earlier outages."""
        ...

    def hold_lease(
        self, lease: float, on_message: Callable[[WorkerMessage], None], republish: Callable[[], Awaitable[None]]
    ) -> AbstractAsyncContextManager[None]:
        """Hold a lease, and receive the messages of other workers, until the block ends.

        Several parts of a process may hold it at the same time; the last one releases it.

        Args:
            lease: Seconds without a renewal after which this worker is declared dead.
            on_message: Called with each message, once. It must not block.
            republish: Called when the store has recovered or lost data, to republish the state that it may lack.
        """
        ...

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Send a message in the background, as soon as the store is reachable.

        A message that could not be sent within `MESSAGE_SECONDS` is dropped and counted. Workers that serve the session
        and register late, after a data loss of the store, receive it, too.

        Args:
            session_id: The session that the message concerns.
            kind: The subject.
            content: As the kind demands.
            to: The name of the receiving worker; None: all other workers that serve the session.
        """
        ...

    def drop(self, reason: DropReason) -> None:
        """Count a message that is dropped instead of sent.

        Args:
            reason: The reason.
        """
        ...

    async def record(self, record: NewRecord, *, ttl: int) -> str:
        """Record a session, unless it belongs to another principal or server, or has ended.

        Args:
            record: The session.
            ttl: Seconds until the record expires.

        Returns:
            `live`; or `other` or `ended`, in which case nothing was changed.

        Raises:
            StoreError: The write failed.
        """
        ...

    async def record_all(self, records: Sequence[NewRecord], *, ttl: int) -> list[str]:
        """Record many sessions in few round trips. Arguments, results and errors as in `record`."""
        ...

    async def touch(self, records: Sequence[NewRecord], *, ttl: int) -> list[str]:
        """Renew the records of many sessions in few round trips, without reading or creating them.

        Args:
            records: The sessions, with their principals and servers.
            ttl: Seconds until the records expire.

        Returns:
            The state of each session; see `SessionRecord`.

        Raises:
            StoreError: The write failed.
        """
        ...

    async def read(self, session_id: str, *, owner: str, server: str, ttl: int) -> SessionRecord:
        """Renew and return the record of a session on behalf of its owner.

        Args:
            session_id: The session.
            owner: The digest of the caller's principal; "" without one.
            server: The caller's server, as in `NewRecord`.
            ttl: Seconds until the record expires.

        Raises:
            StoreError: The read failed.
        """
        ...

    async def claim(self, server: str, *, ttl: int) -> str:
        """Name the server that uses this store, unless another one does.

        Args:
            server: The server's name.
            ttl: Seconds until the name expires.

        Returns:
            The name of the server that uses the store.

        Raises:
            StoreError: The write failed.
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
