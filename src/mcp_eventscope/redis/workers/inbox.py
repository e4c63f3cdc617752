"""The messages of other workers to this one, read from Redis Streams."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

import anyio
import pydantic_core

from mcp_eventscope.redis.blocking_read import wait_for_entries
from mcp_eventscope.redis.client import ANSWER_TIMEOUT, AnyRedis, map_redis_errors
from mcp_eventscope.redis.clock import EventClock, boot_microseconds
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.store.coordination import MessageKind, WorkerMessage
from mcp_eventscope.store.events import DropReason, MessagesDropped

_RETRY_SECONDS = 0.25
"""Seconds until a failed read is retried."""
_ENTRIES = 100
"""Maximum entries of one read."""
_REMEMBERED = 10_000
"""Messages that are recognized when they arrive twice, since a sender repeats what it has seen no reply for."""
_OLDEST = 10.0
"""Maximum age of a message in seconds. A larger one is a step of Redis's clock, or of another program."""
_FIRST = "0-0"

_keep_inbox = Script("keep_inbox.lua")
_receive = Script("receive.lua")


class Inbox:
    """Reads the messages to this worker, and the announcements to all.

    A message waits in Redis until it is read, so a lost connection loses none, and neither publish permission nor a
    cluster's lack of subscriptions matters. Only a program that may write the keys of this prefix can send one.

    Args:
        redis: The client. The read that waits for messages occupies one of its connections.
        keys: The keys of the root store.
        worker: This process.
        clock: Synchronized with Redis.
        observers: Report entries that are no messages.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: WorkerId, clock: EventClock, observers: Observers) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker
        self._clock = clock
        self._read: dict[str, str] = {}
        """The ids of the last entries that were handled, by key."""
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._observers = observers

    async def open(self, milliseconds: int) -> bool:
        """Keep this worker's inbox, or open it. A key of another type in its place is deleted, and counted.

        If Redis has lost or restored entries, those that are left are read again. Messages are recognized.

        Args:
            milliseconds: Until the inbox of a dead worker expires.

        Returns:
            Whether it was absent or restored: messages may have been lost.

        Raises:
            StoreError: Redis was not reached, or refused.
        """
        keys = [self._keys.inbox(self._worker.name), self._keys.announcements]
        read = [self._read.get(each, _FIRST) for each in keys]
        with map_redis_errors("write to", self._redis):
            opened, deleted, *short = await _keep_inbox(self._redis, keys, [milliseconds, *read])
        if deleted:
            self._drop(DropReason.MALFORMED, deleted)
        for key, position, ended_before in zip(keys, read, short, strict=True):
            if ended_before and self._read.get(key) == position:
                self._read[key] = _FIRST
        if opened:
            self._read[keys[0]] = opened.decode("ascii")
        elif short[0]:
            self._drop(DropReason.LOST)
        return bool(opened or short[0])

    def _drop(self, reason: DropReason, messages: int = 1) -> None:
        self._observers.emit(MessagesDropped(reason=reason, messages=messages))

    async def run(self, on_message: Callable[[WorkerMessage], None]) -> None:
        """Receive messages for ever.

        Args:
            on_message: Called with each message, once. It does not raise.
        """
        inbox, announcements = self._keys.inbox(self._worker.name), self._keys.announcements
        arrived = True
        while True:
            try:
                if arrived:
                    arrived = await self._receive(inbox, announcements, on_message)
                if not arrived:
                    read = {each: self._read.get(each, _FIRST) for each in (inbox, announcements)}
                    arrived = await wait_for_entries(self._redis, read)
            except Exception:  # noqa: BLE001 - messages wait in Redis; nothing else would read them
                await asyncio.sleep(_RETRY_SECONDS)

    async def _receive(self, inbox: str, announcements: str, on_message: Callable[[WorkerMessage], None]) -> bool:
        """Handle what has arrived; returns whether there may be more."""
        keys = [inbox, announcements]
        asked = boot_microseconds()
        with anyio.fail_after(ANSWER_TIMEOUT):
            read = [self._read.get(each, _FIRST) for each in keys]
            missing, now, *arrived = await _receive(self._redis, keys, [*read, _ENTRIES])
        self._clock.synchronize(now)
        if missing:
            self._drop(DropReason.LOST)
            on_message(WorkerMessage(MessageKind.LOST))
        for key, entries in zip(keys, arrived, strict=True):
            for entry_id, fields in entries:
                self._read[key] = entry_id.decode("ascii")
                if (message := self._message(now - int(entry_id.partition(b"-")[0]) * 1000, asked, fields)) is not None:
                    on_message(message)
        return any(len(entries) >= _ENTRIES for entries in arrived)

    def _message(self, stored_for: int, asked: int, fields: list[bytes]) -> WorkerMessage | None:
        """Parse one entry; None for this worker's own, one that was handled already, and what is no message.

        Args:
            stored_for: Microseconds between the writing and the reading of the entry, on Redis's clock, or up to a
                millisecond more, since the time of the writing is rounded down.
            asked: When Redis was asked, in `boot_microseconds`.
            fields: The message and its delay, as an outbox wrote them.
        """
        if len(fields) == 2 and not fields[1]:  # A name and its value: the inbox was opened.
            return None
        try:
            _, body, _, delay = fields
            sender, number, kind, session, content, sent = pydantic_core.from_json(body)
            if not (
                isinstance(number, int)
                and isinstance(sent, int)
                and all(isinstance(text, str) for text in (sender, session, content))
            ):
                raise ValueError  # noqa: TRY301 - one treatment for all that is no message
            # The clocks of two workers differ by the delays of the replies from which each learned Redis's time. So the
            # age by these clocks is only taken within what Redis's clock alone allows.
            least = stored_for - 999 + int(delay)
            most = least + 999 + boot_microseconds() - asked
            age = min(max(self._clock.now() - sent, least), most) / 1e6
            message = WorkerMessage(MessageKind(kind), session, content, sender, age if 0 <= age <= _OLDEST else 0.0)
        except Exception:  # noqa: BLE001 - whatever another program wrote, the entries after it are read
            self._drop(DropReason.MALFORMED)
            return None
        if sender == self._worker.name or (sender, number) in self._seen:
            return None
        self._seen[sender, number] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return message
