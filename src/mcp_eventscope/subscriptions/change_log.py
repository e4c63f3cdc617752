"""The log of changes in Redis: a stream of numbered batches, and a position in it."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.redis.blocking_read import wait_for_entries
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.subscriptions.facts import GapReason

KEPT_SECONDS = 3600
"""Seconds until the log expires. Every reader and publisher renews it."""
KEPT_BATCHES = 2048
"""Approximate maximum number of batches that Redis keeps, for workers that are frozen or cut off."""
_BATCHES = 64
"""Maximum batches of one read."""
_UNREAD = 1024
"""Maximum number of own batches whose presence in Redis is checked."""
_BLOCK_SECONDS = 2.0
"""Maximum seconds between two reads: if Redis loses its data without a broken connection, a read notices it."""
_ID = re.compile(rb"([0-9]+)-0")

_append = Script("changes_append.lua")
_read = Script("changes_read.lua")


@dataclass(frozen=True, slots=True)
class Position:
    """The last batch that was read or appended.

    The name distinguishes a batch from another one with its number, which replaces it if Redis loses the first one.
    """

    epoch: bytes
    """The name of the batch with which the numbering began."""
    number: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of a read."""

    position: Position
    """The position behind it."""
    gap: GapReason | None
    """Why batches before the position are unknown; None: all of them were read."""
    batches: tuple[tuple[bytes, bytes], ...] = ()
    """The name and the changes of each batch."""
    more: bool = False
    """Whether there may be more batches."""


class ChangeLog:
    """Appends to the log of one prefix, and reads it from a position.

    Args:
        backend: The Redis, and the name of this worker.
        kept: Approximate maximum number of batches in the log.
    """

    def __init__(self, backend: RedisBackend, kept: int) -> None:
        self._backend = backend
        self._keys = [backend.keys.changes]
        self._kept = kept
        self._numbers = itertools.count(1)
        self.position: Position | None = None
        """The last batch that was read; None: the log was not read."""
        self._unread: dict[bytes, Position] = {}
        """The own batches, by name, that Redis has acknowledged and this worker has not read, oldest first.

        Redis may lose them before any worker has read them, and give their numbers to others.
        """

    def is_own(self, name: bytes) -> bool:
        """Whether this worker has appended a batch."""
        return name.startswith(f"{self._backend.worker.name}-".encode())

    def forget(self) -> None:
        """Forget the position: changes are no longer read."""
        self.position = None
        self._unread.clear()

    async def append(self, batch: bytes) -> None:
        """Append a batch. After an error it may or may not have been appended.

        Args:
            batch: As encoded by `event_codec`.

        Raises:
            StoreError: Redis was not reached, or refused.
        """
        name = self._new_name()
        function = partial(_append, self._backend.redis, self._keys, [name, batch, self._kept, KEPT_SECONDS])
        number, epoch = await self._backend.call("write to", function)
        self._unread[name] = Position(epoch, int(number), name)
        if len(self._unread) > _UNREAD:
            del self._unread[next(iter(self._unread))]

    async def read(self) -> Reading:
        """Read the batches behind the position. The first read establishes the position, and returns none.

        The caller sets `position` once it has handled the result.

        Raises:
            StoreError: Redis was not reached, or refused.
        """
        position = self.position
        epoch = b"" if position is None else position.epoch
        oldest = next((own for own in self._unread.values() if position is None or own.epoch == epoch), None)
        known = position or oldest
        args: list[str | bytes | int] = [self._new_name(), "" if known is None else known.epoch]
        for each in (position, oldest):
            args += ["", ""] if each is None else [each.number, each.name]
        args += [_BATCHES, KEPT_SECONDS]
        reply = await self._backend.call("read from", partial(_read, self._backend.redis, self._keys, args))
        self._backend.clock.synchronize(int(reply[0]))
        reading = judge(position, reply)
        if oldest is not None and oldest.number <= reading.position.number:
            self._unread.pop(oldest.name, None)  # The script has found it, or has begun another epoch.
        for name, _ in reading.batches:
            self._unread.pop(name, None)
        if known is not None and known.epoch != reading.position.epoch:  # Which has every worker repaired.
            self._unread = {name: own for name, own in self._unread.items() if own.epoch != known.epoch}
        return reading

    async def wait(self) -> None:
        """Wait until there are batches behind the position, or for two seconds.

        Raises:
            TimeoutError: Redis did not answer in time.
            RedisError: Redis was not reached, or refused.
        """
        if self.position is not None:
            read = {self._keys[0]: f"{self.position.number}-0"}
            await wait_for_entries(self._backend.redis, read, _BLOCK_SECONDS)

    def _new_name(self) -> bytes:
        return f"{self._backend.worker.name}-{next(self._numbers)}".encode()


def judge(position: Position | None, reply: Sequence[Any]) -> Reading:
    """Find out whether a read continues from a position without a gap.

    Args:
        position: The last batch that was read; None: no position is known yet.
        reply: The reply of `changes_read.lua`.

    Returns:
        The batches. If some were missed: the end of the log as the position, the reason, and no batches.
    """
    _, lost, first, number, epoch, name, at_position, entries = reply
    end = Position(epoch, int(number), name)
    if position is None:
        return Reading(end, None)
    gap = None
    if lost:
        gap = GapReason.ROLLED_BACK
    elif end.epoch != position.epoch:
        gap = GapReason.LOST
    elif at_position != position.name:
        gap = GapReason.TRIMMED if int(first) > position.number else GapReason.DAMAGED
    return _follow(position, entries, end) if gap is None else Reading(end, gap)


def _follow(position: Position, entries: Sequence[Any], end: Position) -> Reading:
    """Read entries of the log that must follow a position without a hole."""
    batches: list[tuple[bytes, bytes]] = []
    for entry_id, fields in entries:
        found = _ID.fullmatch(entry_id)
        if found is None or int(found[1]) != position.number + 1 or fields[0:5:2] != [b"e", b"n", b"b"]:
            return Reading(end, GapReason.DAMAGED)
        if fields[1] != position.epoch:
            return Reading(end, GapReason.LOST)
        position = Position(fields[1], int(found[1]), fields[3])
        batches.append((position.name, fields[5]))
    return Reading(position, None, tuple(batches), more=len(batches) == _BATCHES)
