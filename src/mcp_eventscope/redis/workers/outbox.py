"""The messages of this worker to others, sent in the background."""

import asyncio
import heapq
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, TypeAlias

import anyio
import pydantic_core
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from mcp_eventscope.redis.client import AnyRedis, is_refusal
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.scripts import SERVING, Serving, serving
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.store.coordination import MESSAGE_SECONDS, MessageKind, session_digest
from mcp_eventscope.store.events import DropReason, MessagesDropped

_RETRY_SECONDS = 0.25
"""Seconds until a failed write is retried, also one to a worker whose inbox is full or missing."""
_LOOK_SECONDS = 1.0
"""Seconds between reads of a record that may not name all workers yet."""
_STOP_SECONDS = 5.0
"""Seconds for which a stop is retried. Later its stream has other connections."""
_BATCH = 256
"""Maximum number of messages in a round trip."""
_PENDING_BYTES = 16 * 1024 * 1024
"""Maximum bytes of pending messages. Beyond it, the session with the most bytes loses its oldest messages."""
_INBOX_LENGTH = 1024
"""Approximate maximum length of an inbox. Further messages wait for room, and displace none. It must exceed the number
that the receiver reads at once, since those are deleted with its next read."""
_ANNOUNCEMENTS = 8192
"""Approximate maximum number of announcements that Redis keeps."""

Command: TypeAlias = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A message that is not yet sent to all of its receivers."""

    number: int
    kind: MessageKind
    session_id: str
    to: str | None
    """The receiving worker; None: those that serve the session."""
    announced_for: int | None
    """Of an announcement to all workers: seconds that Redis keeps it."""
    body: bytes
    sent: float
    expires: float
    """On the monotonic clock, as `sent`."""
    reached: set[str] = field(default_factory=set)
    """The workers to which it was sent, or that refuse it."""
    unsent: bool = True
    """Whether a known receiver lacks it, or none is known because the session has no record."""

    @property
    def fields(self) -> tuple[str | bytes | int, ...]:
        """The fields of its entry in Redis: the message, and microseconds from `send` until now."""
        return "m", self.body, "delay", int((time.monotonic() - self.sent) * 1_000_000)


@dataclass(frozen=True, slots=True)
class _Receivers:
    """The workers that a message concerns."""

    names: AbstractSet[str] = frozenset()
    known: bool = True
    """Whether there is a record that names them."""
    complete: bool = True
    """Whether there are certainly no others."""


class Outbox:
    """Sends messages in the background, in batches, and retries those that have not reached all of their receivers.

    After a data loss in Redis, workers open their inboxes and register in the records again within a lease. Until then
    a message without a receiver waits. The messages of a session displace none of another one: sessions take turns, a
    full inbox accepts no further message, and beyond the bound the session with the most loses its oldest.

    Args:
        redis: The client.
        keys: The keys of the root store.
        worker: This process.
        clock: Synchronized with Redis.
        observers: Report messages that were dropped.
        call: Calls Redis, as in `Workers`.
        expired: Returns those workers whose lease has expired.
        complete: Returns whether a record of an age in microseconds names all workers that serve its session.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        redis: AnyRedis,
        keys: Keys,
        worker: WorkerId,
        clock: EventClock,
        observers: Observers,
        call: Callable[[str, Callable[[], Awaitable[list[Any]]]], Awaitable[list[Any]]],
        *,
        expired: Callable[[set[str]], Awaitable[set[str]]],
        complete: Callable[[int], bool],
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._clock = clock
        self._call = call
        self._expired = expired
        self._complete = complete
        self._pending: OrderedDict[str, deque[_Outgoing]] = OrderedDict()
        """The messages that are sent next, by session, in the order of the sessions' turns."""
        self._bytes: Counter[str] = Counter()
        """The size of the pending messages, by session."""
        self._total = 0
        self._later: list[tuple[float, int, _Outgoing]] = []
        """The messages that are retried, as a heap, with the time of the retry on the monotonic clock."""
        self._retried: Counter[str] = Counter()
        """Their number, by session."""
        self._sending: list[_Outgoing] = []
        self._filled = asyncio.Event()
        self._number = 0
        self._observers = observers

    def put(
        self,
        session_id: str,
        kind: MessageKind,
        content: str,
        *,
        to: str | None = None,
        announced_for: int | None = None,
    ) -> None:
        """Send a message soon; see `Coordinator.send`.

        Args:
            session_id: The session it concerns.
            kind: The subject.
            content: As the kind demands.
            to: The receiving worker; None: the other workers that serve the session.
            announced_for: Seconds for which Redis keeps the message, as an announcement to all workers; None: it
                is not announced.
        """
        self._number += 1
        row = [self._worker.name, self._number, kind, session_digest(session_id), content, self._clock.now()]
        seconds = _STOP_SECONDS if kind is MessageKind.STOP else MESSAGE_SECONDS
        body, now = pydantic_core.to_json(row), time.monotonic()
        self._enqueue(_Outgoing(self._number, kind, session_id, to, announced_for, body, now, now + seconds))
        self._filled.set()

    def _enqueue(self, outgoing: _Outgoing) -> None:
        self._pending.setdefault(outgoing.session_id, deque()).append(outgoing)
        self._account(outgoing, len(outgoing.body))
        while self._total > _PENDING_BYTES:
            ((largest, _),) = self._bytes.most_common(1)
            self._drop(DropReason.OVERFLOW, [self._dequeue(largest)])

    def _dequeue(self, session_id: str) -> _Outgoing:
        """Remove the oldest message of a session, and move the session to the end of the queue."""
        messages = self._pending.pop(session_id)
        outgoing = messages.popleft()
        if messages:
            self._pending[session_id] = messages
        self._account(outgoing, -len(outgoing.body))
        return outgoing

    def _account(self, outgoing: _Outgoing, size: int) -> None:
        self._total += size
        self._bytes[outgoing.session_id] += size
        if outgoing.session_id not in self._pending:
            del self._bytes[outgoing.session_id]

    def _drop(self, reason: DropReason, dropped: Iterable[_Outgoing]) -> None:
        """Count the messages that are dropped although a receiver may lack them."""
        self._count(reason, sum(each.unsent for each in dropped))

    def _count(self, reason: DropReason, messages: int) -> None:
        if messages:
            self._observers.emit(MessagesDropped(reason=reason, messages=messages))

    async def run(self) -> None:
        """Send messages for ever."""
        self._filled = asyncio.Event()  # Of this event loop.
        while True:
            if not self._pending and not self._sending:
                with anyio.move_on_after(self._later[0][0] - time.monotonic() if self._later else inf):
                    await self._filled.wait()
            self._filled.clear()
            try:
                await self.send()
            except Exception:  # noqa: BLE001 - sent when Redis has recovered, until the messages expire
                await asyncio.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        """Send all messages, once more where they are retried, and drop those that are left.

        Raises:
            StoreError: Redis was not reached.
        """
        try:
            self._resume(inf)
            await self.send()
        finally:
            self._resume(inf)
            left, self._sending = self._sending, []
            while self._pending:
                left.append(self._dequeue(next(iter(self._pending))))
            self._drop(DropReason.EXPIRED, left)

    async def send(self) -> None:
        """Send the messages that are due.

        Raises:
            StoreError: Redis was not reached. Unsent messages are kept until they expire.
        """
        self._resume(time.monotonic())
        while True:
            while self._pending and len(self._sending) < _BATCH:
                self._sending.append(self._dequeue(next(iter(self._pending))))
            now = time.monotonic()
            self._drop(DropReason.EXPIRED, [each for each in self._sending if each.expires <= now])
            self._sending = [each for each in self._sending if each.expires > now]
            if not self._sending:
                return
            await self._send(self._sending)
            self._sending = []

    def _resume(self, until: float) -> None:
        """Queue the messages that are retried up to a time."""
        while self._later and self._later[0][0] <= until:
            outgoing = heapq.heappop(self._later)[2]
            self._retried[outgoing.session_id] -= 1
            if not self._retried[outgoing.session_id]:
                del self._retried[outgoing.session_id]
            self._enqueue(outgoing)

    def _retry(self, outgoing: _Outgoing, seconds: float) -> None:
        # Of one session, no more than an inbox has room for: a client that sends many messages to a frozen worker must
        # not occupy this one with retries.
        seconds += self._retried[outgoing.session_id] // _INBOX_LENGTH * _RETRY_SECONDS
        self._retried[outgoing.session_id] += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, outgoing.number, outgoing))

    async def _send(self, batch: Sequence[_Outgoing]) -> None:
        """Send one batch. Receivers recognize a message that is sent twice because a reply was lost."""
        unannounced = await self._announce([each for each in batch if each.announced_for is not None])
        addressed = [each for each in batch if each.announced_for is None]
        records = await self._records(sorted({each.session_id for each in addressed if each.to is None}))
        receivers = [_Receivers({each.to}) if each.to is not None else records[each.session_id] for each in addressed]
        absent = await self._deliver(
            [
                (each, name)
                for each, found in zip(addressed, receivers, strict=True)
                for name in found.names - each.reached
            ]
        )
        # A worker without an inbox is dead, or opens it again within a lease.
        dead = await self._expired(absent) if absent else set()
        lacking = [found.names - each.reached for each, found in zip(addressed, receivers, strict=True)]
        forgotten = {
            (each.session_id, name)
            for each, names in zip(addressed, lacking, strict=True)
            for name in names & dead
            if each.to is None
        }
        await self._all(
            "write to",
            [
                ("HDEL", self._keys.for_session(session_id).session, (SERVING + name).encode())
                for session_id, name in forgotten
            ],
        )
        # From here on nothing fails, or the batch would be sent again beside its messages that are retried.
        for each in unannounced:
            self._retry(each, _RETRY_SECONDS)
        for each, found, names in zip(addressed, receivers, lacking, strict=True):
            each.unsent = bool(names - dead) or not found.known
            if each.unsent:
                self._retry(each, _RETRY_SECONDS)
            elif not found.complete and each.kind is not MessageKind.STOP:  # A stop without effect does no harm.
                self._retry(each, _LOOK_SECONDS)

    async def _announce(self, batch: Sequence[_Outgoing]) -> list[_Outgoing]:
        """Send announcements to all workers; return those that are to be retried."""
        key = self._keys.announcements
        commands: list[Command] = []
        for each in batch:
            commands += [
                ("XADD", key, "MAXLEN", "~", _ANNOUNCEMENTS, "*", *each.fields),
                ("EXPIRE", key, each.announced_for),
            ]
        replies = (await self._all("write to", commands))[::2]
        refused = sum(isinstance(reply, Exception) and not _is_foreign(reply) for reply in replies)
        self._count(DropReason.REFUSED, refused)
        return [each for each, reply in zip(batch, replies, strict=True) if _is_foreign(reply)]

    async def _records(self, session_ids: Sequence[str]) -> dict[str, _Receivers]:
        """Read which workers serve sessions."""
        at_once = _BATCH if isinstance(self._redis, aioredis.Redis) else 1  # A cluster has them on different nodes.
        found: list[Serving] = []
        for start in range(0, len(session_ids), at_once):
            some = session_ids[start : start + at_once]
            found += await self._call("read from", partial(serving, self._redis, self._keys, some))
        return {each: self._receivers(record) for each, record in zip(session_ids, found, strict=True)}

    def _receivers(self, record: Serving) -> _Receivers:
        if record.state == "absent":
            return _Receivers(known=False, complete=False)
        if record.state == "other":  # Another program wrote to the key.
            self._count(DropReason.REFUSED, 1)
        if record.state != "live":
            return _Receivers()
        return _Receivers(record.workers - {self._worker.name}, complete=self._complete(record.age))

    async def _deliver(self, addressed: Sequence[tuple[_Outgoing, str]]) -> set[str]:
        """Write messages to the inboxes of workers, as far as those have room.

        Returns:
            The workers without an inbox.
        """
        names = sorted({name for _, name in addressed})
        lengths = await self._all("read from", [("XLEN", self._keys.inbox(name)) for name in names])
        room = {
            name: 0 if isinstance(length, Exception) else _INBOX_LENGTH - length
            for name, length in zip(names, lengths, strict=True)
        }
        written: list[tuple[_Outgoing, str]] = []
        for each, name in addressed:
            if room[name] > 0:
                room[name] -= 1
                written.append((each, name))
        replies = await self._all(
            "write to",
            [("XADD", self._keys.inbox(name), "NOMKSTREAM", "*", *each.fields) for each, name in written],
        )
        for (each, name), reply in zip(written, replies, strict=True):
            refused = isinstance(reply, Exception) and not _is_foreign(reply)
            self._count(DropReason.REFUSED, refused)
            if refused or isinstance(reply, bytes):
                each.reached.add(name)
        return {name for (_, name), reply in zip(written, replies, strict=True) if reply is None}

    async def _all(self, operation: str, commands: Sequence[Command]) -> list[Any]:
        """Send commands, in one round trip except on a cluster.

        Returns:
            Their replies; the error in place of a command that Redis refused and would refuse again.

        Raises:
            StoreError: Redis was not reached, or has failed one of them.
        """
        if not commands:
            return []
        redis = self._redis

        async def together() -> list[Any]:
            if not isinstance(redis, aioredis.Redis):  # A cluster's pipeline decodes its replies.
                return [await _reply(redis.execute_command(*command, NEVER_DECODE=True)) for command in commands]
            pipeline = redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command, NEVER_DECODE=True)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and not is_refusal(reply):
                    raise reply
            return replies

        return await self._call(operation, together)


async def _reply(replying: Awaitable[Any]) -> Any:
    try:
        return await replying
    except ResponseError as error:
        if is_refusal(error):
            return error
        raise


def _is_foreign(reply: Any) -> bool:
    """Whether a key of ours has another type, until a worker that reads it replaces it."""
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")
