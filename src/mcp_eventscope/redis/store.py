"""The Redis event store: append, replay and follow, each returning facts. It knows nothing of telemetry."""

import asyncio
import copy
import time
import warnings
from typing import Self

from mcp_eventscope.errors import CorruptEventError, StoreError, UnscopedStoreWarning
from mcp_eventscope.redis import codec, scripts
from mcp_eventscope.redis.connection import AnyRedis, address_of, require_async, told_as
from mcp_eventscope.redis.follow import POLL_SECONDS, Wakeups
from mcp_eventscope.redis.keys import EVENT_ID, Keys
from mcp_eventscope.types import (
    Appended,
    EventCallback,
    EventId,
    EventMessage,
    EventStore,
    Followed,
    FollowEnd,
    JSONRPCMessage,
    Miss,
    Replayed,
    StreamId,
    is_final,
)

CHUNK_EVENTS = 256
"""The most events that one read brings: a replay holds one chunk in memory, and Redis is blocked for one."""
CHUNK_BYTES = 1 << 20
"""Payload bytes after which a read stops early; a single larger event still comes whole."""
MAX_TTL = 10 * 365 * 24 * 3600
"""The longest TTL in seconds, ten years: Redis refuses far larger ones in the middle of a write."""

_MICROSECONDS = 1_000_000
_FIRST_CLOCK_ID = 10**15
"""Ids below this (the year 2001, in microseconds) were counted, not read off a clock: they have no age."""


class RedisEventStore(EventStore):
    """An MCP event store on Redis or Valkey.

    One append is one round trip; a replay reads bounded chunks. The keys are those of `Keys`.

    Handed straight to the SDK, a store cannot tell one session from another: clients number their requests from 0,
    so sessions would share streams. Use `http_app` or `ResumableSessionManager`, which give each session its own
    part (`for_session`).

    Args:
        redis: A `redis.asyncio.Redis` or `RedisCluster`, with `decode_responses` either way. It is not closed here.
            One that retries, as redis-py's do by default, stores an event twice when the reply to the first try is
            lost; one made with `retry=Retry(NoBackoff(), 0)` does not.
        key_prefix: What every key begins with.
        ttl: Seconds that every key is kept after it was last written; None keeps them for ever, which fills Redis.
            Longer than clients stay away: twice the session idle timeout is a good start.

    Raises:
        TypeError: `redis` is no asyncio client; `key_prefix` is no string; `ttl` is no int.
        ValueError: `key_prefix` is empty or has braces in the wrong place; `ttl` is not between 1 and ten years.
    """

    def __init__(self, redis: AnyRedis, *, key_prefix: str = "mcp:", ttl: int | None = None) -> None:
        require_async(redis)
        _check_ttl(ttl)
        self._redis = redis
        self._keys = Keys(key_prefix)
        self._ttl = ttl
        self._wakeups = Wakeups()
        self._session: str | None = None
        self._warned = False

    @property
    def ttl(self) -> int | None:
        """Seconds that every key is kept after it was last written; None: for ever."""
        return self._ttl

    @property
    def key_prefix(self) -> str:
        """What every key of this store begins with."""
        return self._keys.prefix

    @property
    def session_id(self) -> str | None:
        """The session whose part this is; None for the root store."""
        return self._session

    @property
    def address(self) -> str:
        """Where Redis is: `host:port` or a socket's path, never a credential."""
        return address_of(self._redis)

    def for_session(self, session_id: str) -> Self:
        """The part of the store that is one session's.

        Its keys are under `{prefix}{session}:`, the braces literal: a Redis hash tag, so that one script may touch
        all of them on Redis Cluster, and no two sessions can see each other's events.

        Args:
            session_id: The MCP session id. It is percent-encoded in keys.

        Returns:
            A store on the same client, with the same TTL.
        """
        part = copy.copy(self)
        part._keys = self._keys.for_session(session_id)
        part._session = session_id
        return part

    async def ping(self) -> None:
        """Return when Redis answers.

        Raises:
            StoreError: It does not.
        """
        with told_as("reach", self._redis):
            await self._redis.ping()

    # -- the SDK's interface ------------------------------------------------------------------------------------------

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event (`EventStore.store_event` of the SDK).

        Args:
            stream_id: The stream.
            message: The message, or None for a priming event.

        Returns:
            The event's id.

        Raises:
            StoreError: Redis did not take it.
        """
        self._check_scoped()
        return (await self.append(stream_id, message)).event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send what is stored after an event (`EventStore.replay_events_after` of the SDK).

        Args:
            last_event_id: The last event that the client has, in any shape: it comes from outside.
            send_callback: Awaited with each event, in order.

        Returns:
            The stream, or None when there is nothing to resume from.

        Raises:
            StoreError: Redis could not be read.
        """
        self._check_scoped()
        facts = await self.replay(last_event_id, send_callback)
        return facts.stream_id if facts.miss is None else None

    def _check_scoped(self) -> None:
        """Say once, and loudly, that the SDK's interface does not tell a root store which session it serves."""
        if self._session is None and not self._warned:
            self._warned = True
            warnings.warn(
                "event_store.unscoped: a RedisEventStore handed straight to the SDK cannot tell sessions apart; "
                "clients number their requests from 0, so sessions share streams and are replayed each other's events. "
                "Serve with mcp_eventscope.http_app() or ResumableSessionManager",
                UnscopedStoreWarning,
                stacklevel=3,
            )

    # -- the same, as facts -------------------------------------------------------------------------------------------

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None) -> Appended:
        """Store one event, in one round trip.

        Args:
            stream_id: The stream.
            message: The message, or None for a priming event.

        Returns:
            Its id and size.

        Raises:
            StoreError: Redis did not take it.
            ValueError: The message has no JSON form.
        """
        # As bytes: the client would encode text in whatever encoding it was made for.
        payload = codec.encode(message).encode()
        entry = scripts.Entry(stream_id, payload, is_final(stream_id, message))
        with told_as("append to", self._redis):
            (event_id,) = await scripts.append(self._redis, self._keys, self._ttl, [entry])
        self._wakeups.notify(self._keys.stream(stream_id))
        return Appended(event_id, len(payload))

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> Replayed:
        """Deliver what is stored after an event, up to the response of the request or the end of what is stored.

        Args:
            last_event_id: The last event that the client has. Anything that is no id is a miss, not an error.
            send: Awaited with each event, in order. What it raises ends the replay, and is passed on.
            stream_id: The stream, when it is known from elsewhere; the event must then belong to it. Without it, the
                event must still be there to name it, and the replay goes on past a response.

        Returns:
            What was delivered, and what could not be.

        Raises:
            StoreError: Redis could not be read.
        """
        if not EVENT_ID.fullmatch(last_event_id):
            return Replayed(miss=Miss.MALFORMED)
        cursor = int(last_event_id)
        chunk = await self._read(last_event_id, stream_id)
        age = _age(chunk, cursor)
        if miss := _miss(chunk, cursor, stream_id, self._ttl):
            return Replayed(miss=miss, age=age if miss is Miss.EXPIRED else None)
        stream = chunk.named_stream if stream_id is None else stream_id
        if stream is None:  # `_miss` has said so already; mypy cannot know.
            return Replayed(miss=Miss.UNKNOWN)
        until_response = stream_id is not None
        reading = _Reading(stream, last_event_id, send, until_response=until_response)
        if not (until_response and chunk.cursor_final):
            await self._deliver(reading, chunk)
        return Replayed(
            stream_id=stream,
            last_event_id=reading.cursor,
            delivered=reading.delivered,
            payload_bytes=reading.payload_bytes,
            missing=reading.missing,
            corrupt=tuple(reading.corrupt),
            gap=reading.missing > 0 or _lost_after(chunk, cursor),
            age=age,
            completed=reading.completed or chunk.cursor_final,
        )

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> Followed:
        """Deliver what is stored on a stream from now on, by whichever process, until its response or the limit.

        There is no window between a replay and this: both read the index after an id.

        Args:
            stream_id: The stream.
            after: The event up to which it has been read: `Replayed.last_event_id`.
            send: Awaited with each event, in order. What it raises ends the following, and is passed on.
            limit: Seconds to follow at most.

        Returns:
            What was delivered, and why it ended. A read that failed is counted, and tried again.
        """
        until = time.monotonic() + limit
        reading = _Reading(stream_id, after, send, until_response=True)
        failures = 0
        with self._wakeups.waiting(self._keys.stream(stream_id)) as waiter:
            while True:
                try:
                    await self._deliver(reading, await self._read(reading.cursor, stream_id))
                except StoreError:
                    failures += 1  # Redis may be restarting; the client is still there.
                remaining = until - time.monotonic()
                if reading.completed or remaining <= 0:
                    break
                await waiter.wait(min(POLL_SECONDS, remaining))
        return Followed(
            last_event_id=reading.cursor,
            end=FollowEnd.COMPLETED if reading.completed else FollowEnd.LIMIT,
            delivered=reading.delivered,
            payload_bytes=reading.payload_bytes,
            missing=reading.missing,
            corrupt=tuple(reading.corrupt),
            failures=failures,
        )

    async def _read(self, cursor: str, stream_id: str | None) -> scripts.Chunk:
        with told_as("read from", self._redis):
            return await scripts.read(
                self._redis, self._keys, cursor, stream_id, max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES
            )

    async def _deliver(self, reading: "_Reading", chunk: scripts.Chunk) -> None:
        """Send a chunk, and those after it, until nothing is left or the response has been sent."""
        while True:
            for row in chunk.rows:
                await reading.take(row)
                if reading.completed:
                    return
            if not chunk.after:
                return
            # Events of a long replay are read in one go of the loop; let others have their turn.
            await asyncio.sleep(0)
            chunk = await self._read(chunk.after, reading.stream_id)


class _Reading:
    """One pass over a stream: where it stands, and what it has delivered."""

    __slots__ = (
        "_send",
        "_until_response",
        "completed",
        "corrupt",
        "cursor",
        "delivered",
        "missing",
        "payload_bytes",
        "stream_id",
    )

    def __init__(self, stream_id: StreamId, cursor: EventId, send: EventCallback, *, until_response: bool) -> None:
        self.stream_id = stream_id
        self.cursor = cursor
        self.delivered = self.payload_bytes = self.missing = 0
        self.corrupt: dict[EventId, None] = {}  # Each once: one that is no place to go on from is read again.
        self.completed = False
        self._send = send
        self._until_response = until_response

    async def take(self, row: scripts.Row) -> None:
        """Deliver one row, or count why not. The cursor moves only past what was dealt with."""
        if row.state == "misplaced" or not EVENT_ID.fullmatch(row.event_id):
            self.corrupt[row.event_id] = None
            return
        if row.state == "missing":
            self.missing += 1
        elif row.state == "corrupt":
            self.corrupt[row.event_id] = None
        elif row.payload:  # else a priming event: stored, so that its id is a cursor, and never sent again
            await self._take_payload(row)
        self.cursor = row.event_id

    async def _take_payload(self, row: scripts.Row) -> None:
        try:
            message = codec.decode(row.payload)
        except CorruptEventError:
            self.corrupt[row.event_id] = None
            return
        await self._send(EventMessage(message, row.event_id))
        self.delivered += 1
        self.payload_bytes += len(row.payload)
        self.completed = self._until_response and is_final(self.stream_id, message)


def _age(chunk: scripts.Chunk, cursor: int) -> float | None:
    """Seconds since a cursor's event was stored, by Redis's clock; None for an id that is no clock."""
    return None if cursor < _FIRST_CLOCK_ID else max(0, chunk.clock - cursor) / _MICROSECONDS


def _miss(chunk: scripts.Chunk, cursor: int, stream_id: StreamId | None, ttl: int | None) -> Miss | None:
    """Why there is nothing to resume from; None when there is."""
    if chunk.named_stream is not None:
        return Miss.UNKNOWN if stream_id not in (None, chunk.named_stream) else None
    # Not before: a counter that was rolled back, or restarted by another writer, unmakes no event that is there.
    if chunk.last_given and cursor > chunk.last_given and not chunk.cursor_held:
        return Miss.UNKNOWN
    age = _age(chunk, cursor)
    expired = ttl is not None and age is not None and age >= ttl
    if stream_id is not None and chunk.oldest and (chunk.cursor_held or chunk.trimmed >= cursor or expired):
        return None  # The event itself is gone, and was there: what followed it can still be delivered.
    return Miss.EXPIRED if expired else Miss.UNKNOWN


def _lost_after(chunk: scripts.Chunk, cursor: int) -> bool:
    """Whether events after the cursor were removed: trimmed past it, or with the index that named it."""
    return chunk.trimmed > cursor or (not chunk.cursor_held and chunk.trimmed < cursor)


def _check_ttl(ttl: int | None) -> None:
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        msg = f"ttl must be a whole number of seconds, or None to keep events for ever; not {ttl!r}"
        raise TypeError(msg)
    if not 0 < ttl <= MAX_TTL:
        msg = f"ttl must be between 1 and {MAX_TTL} seconds, or None to keep events for ever; not {ttl}"
        raise ValueError(msg)
