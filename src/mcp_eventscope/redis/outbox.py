"""The messages of this worker to others, sent in the background."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pydantic_core
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from mcp_eventscope.redis.client import AnyRedis, is_refusal
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.scripts import SERVING
from mcp_eventscope.redis.worker_id import WorkerId
from mcp_eventscope.store.coordination import MESSAGE_SECONDS, MessageKind, session_digest
from mcp_eventscope.store.events import DropReason, MessagesDropped

_RETRY_SECONDS = 0.25
"""Seconds until a failed write is retried."""
_STOP_SECONDS = 5.0
"""Seconds for which a stop is retried. Later its stream has other connections."""
_BATCH = 256
"""Maximum number of messages in a round trip."""
_PENDING_BYTES = 16 * 1024 * 1024
"""Maximum bytes of the messages that are kept while Redis is unreachable. The oldest are dropped."""
_INBOX_LENGTH = 1024
"""Approximate maximum number of messages that Redis keeps for a worker that does not read."""
_ANNOUNCEMENTS = 8192
"""Approximate maximum number of announcements that Redis keeps."""
_SERVING = SERVING.encode()

Command: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A message that is not yet sent."""

    session_id: str
    to: str | None
    """The receiving worker; None: those that serve the session."""
    announced_for: int | None
    """Of an announcement to all workers: seconds that Redis keeps it."""
    body: bytes
    expires: float
    """On the monotonic clock."""


class Outbox:
    """Sends messages in the background, in batches, and retries while Redis is unreachable.

    Args:
        redis: The client.
        keys: The keys of the root store.
        worker: This process.
        clock: Synchronized with Redis.
        observers: Report messages that were dropped.
        call: Calls Redis, as in `Workers`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - constructed in one place
        self,
        redis: AnyRedis,
        keys: Keys,
        worker: WorkerId,
        clock: EventClock,
        observers: Observers,
        call: Callable[[str, Callable[[], Awaitable[list[Any]]]], Awaitable[list[Any]]],
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._clock = clock
        self._call = call
        self._pending: deque[_Outgoing] = deque()
        self._bytes = 0
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
            announced_for: Seconds for which Redis keeps an announcement to all workers; None: it is none.
        """
        self._number += 1
        row = [self._worker.name, self._number, kind, session_digest(session_id), content, self._clock.now()]
        seconds = _STOP_SECONDS if kind is MessageKind.STOP else MESSAGE_SECONDS
        body = pydantic_core.to_json(row)
        self._pending.append(_Outgoing(session_id, to, announced_for, body, time.monotonic() + seconds))
        self._bytes += len(body)
        while self._bytes > _PENDING_BYTES:
            self._bytes -= len(self._pending.popleft().body)
            self._drop(DropReason.OVERFLOW, 1)
        self._filled.set()

    async def run(self) -> None:
        """Send messages for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._pending or self._sending:
                try:
                    await self.send()
                except Exception:  # noqa: BLE001 - sent when Redis has recovered, until the messages expire
                    await asyncio.sleep(_RETRY_SECONDS)

    async def send(self) -> None:
        """Send all pending messages.

        Raises:
            StoreError: Redis was not reached. What was not sent is kept until it expires.
        """
        while True:
            now = time.monotonic()
            while self._pending and len(self._sending) < _BATCH:
                outgoing = self._pending.popleft()
                self._bytes -= len(outgoing.body)
                self._sending.append(outgoing)
            kept = [each for each in self._sending if each.expires > now]
            self._drop(DropReason.EXPIRED, len(self._sending) - len(kept))
            self._sending = kept
            if not kept:
                return
            await self._send(kept)
            self._sending = []

    def _drop(self, reason: DropReason, messages: int) -> None:
        if messages:
            self._observers.emit(MessagesDropped(reason=reason, messages=messages))

    async def _send(self, batch: Sequence[_Outgoing]) -> None:
        """Send one batch. Receivers recognize what is sent twice, because a reply was lost."""
        asked = sorted({each.session_id for each in batch if each.to is None and each.announced_for is None})
        records = [self._keys.for_session(each).session for each in asked]
        replies = await self._all("read from", [("HKEYS", record) for record in records])
        serving = {
            session_id: [
                field[len(_SERVING) :].decode("utf-8", "replace") for field in fields if field.startswith(_SERVING)
            ]
            for session_id, fields in zip(asked, replies, strict=True)
            if not isinstance(fields, Exception)  # Another program wrote to the key.
        }
        commands: list[Command] = []
        receivers: list[tuple[str, str] | None] = []
        for each in batch:
            if each.announced_for is not None:
                key = self._keys.announcements
                commands += [
                    ("XADD", key, "MAXLEN", "~", _ANNOUNCEMENTS, "*", "m", each.body),
                    ("EXPIRE", key, each.announced_for),
                ]
                receivers += [None, None]
                continue
            for name in serving.get(each.session_id, ()) if each.to is None else [each.to]:
                if name != self._worker.name:
                    key = self._keys.inbox(name)
                    commands.append(("XADD", key, "NOMKSTREAM", "MAXLEN", "~", _INBOX_LENGTH, "*", "m", each.body))
                    receivers.append((each.session_id, name))
        sent = await self._all("write to", commands)
        self._drop(DropReason.REFUSED, sum(isinstance(reply, Exception) for reply in sent))
        # A worker without an inbox is dead.
        gone = {
            receiver for receiver, reply in zip(receivers, sent, strict=True) if receiver is not None and reply is None
        }
        await self._all(
            "write to",
            [("HDEL", self._keys.for_session(each).session, _SERVING + name.encode()) for each, name in gone],
        )

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
