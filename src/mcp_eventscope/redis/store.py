"""The Redis event store: append, replay and follow, each returning facts. It knows nothing of telemetry."""

import asyncio
import copy
import time
import uuid
import warnings
from collections.abc import Iterable
from typing import Self

from mcp_eventscope.answers import orphaned
from mcp_eventscope.errors import StoreError, UnscopedStoreWarning
from mcp_eventscope.redis import codec, scripts
from mcp_eventscope.redis.connection import AnyRedis, address_of, require_async, told_as
from mcp_eventscope.redis.follow import Followers
from mcp_eventscope.redis.keys import EVENT_ID, Keys
from mcp_eventscope.redis.reading import Reading, age_of, lost_after, miss_of
from mcp_eventscope.redis.sampling import Sampler
from mcp_eventscope.redis.signals import Signals
from mcp_eventscope.redis.workers import Workers
from mcp_eventscope.types import (
    GET_STREAM_KEY,
    Appended,
    EventCallback,
    EventId,
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
READS_AT_ONCE = 8
"""The most reads of a process that are under way, each on a connection of the client's pool: when thousands are to read
at the same moment, after a restart say, more would exhaust the pool and not be faster, for Redis reads one by one."""
WRITES_AT_ONCE = 32
"""The most appends of a process that are under way, for the same reason."""
MAX_TTL = 10 * 365 * 24 * 3600
"""The longest TTL in seconds, ten years: Redis refuses far larger ones in the middle of a write."""


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
        self._worker = uuid.uuid4().hex[:16]
        signals = Signals(redis)
        self._workers = Workers(redis, self._keys, self._worker, signals)
        self._followers = Followers(redis, self._worker, self._workers, signals)
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._writes = asyncio.Semaphore(WRITES_AT_ONCE)
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
    def shared(self) -> bool:
        """True: a follower is woken whichever process stores."""
        return True

    @property
    def workers(self) -> Workers:
        """This process, among the others that use the store: leases, sessions, notices."""
        return self._workers

    def sampler(self) -> Sampler:
        """Looks at the store's Redis, now and then.

        Raises:
            ValueError: It is a cluster.
        """
        return Sampler(self._redis, self._keys, self._worker)

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
            Its id and size. It is refused when the request was given up before, and has its response: what its worker
            says afterwards is not stored.

        Raises:
            StoreError: Redis did not take it.
            ValueError: The message has no JSON form.
        """
        # As bytes: the client would encode text in whatever encoding it was made for.
        payload = codec.encode(message).encode()
        role = "final" if is_final(stream_id, message) else "part"
        if stream_id == GET_STREAM_KEY:
            role = "standalone"
        # Who runs what is known within a session only: elsewhere stream ids are anything.
        worker = "" if self._session is None else self._worker
        event_id = await self._append(worker, scripts.Entry(stream_id, payload, role))
        return Appended(event_id, len(payload), refused=not event_id)

    async def finish(self, stream_id: StreamId, message: JSONRPCMessage | None) -> None:
        """Store a response that could not be stored before, unless it was, and only its acknowledgement was lost.

        Raises:
            StoreError: Redis did not take it.
            ValueError: The message has no JSON form.
        """
        await self._append(self._worker, scripts.Entry(stream_id, codec.encode(message).encode(), "late"))

    async def give_up(self, stream_id: StreamId, worker: str | None = None) -> bool:
        """Answer a request whose worker is gone: an error is stored as its response, unless there is one.

        Args:
            stream_id: The stream of the request.
            worker: Who ran it; None: this process.

        Returns:
            Whether it was given up now, by this call.

        Raises:
            StoreError: Redis did not take it.
        """
        payload = codec.encode(orphaned(stream_id)).encode()
        entry = scripts.Entry(stream_id, payload, "orphaned")
        return bool(await self._append(self._worker if worker is None else worker, entry))

    async def claim(self, stream_ids: Iterable[StreamId]) -> None:
        """Say again that this process runs the requests of these streams: Redis has lost it.

        Raises:
            StoreError: Redis did not take it.
        """
        with told_as("write to", self._redis):
            for stream_id in stream_ids:
                await self._redis.hsetnx(self._keys.running, stream_id, self._worker)
            if self._ttl is not None:
                await self._redis.expire(self._keys.running, self._ttl)

    async def _append(self, worker: str, entry: scripts.Entry) -> EventId:
        async with self._writes:
            with told_as("append to", self._redis):
                (event_id,) = await scripts.append(self._redis, self._keys, self._ttl, worker, [entry])
        self._followers.notify(self._keys.stream(entry.stream_id))
        return event_id

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
        age = age_of(chunk, cursor)
        if miss := miss_of(chunk, cursor, stream_id, self._ttl):
            return Replayed(miss=miss, age=age if miss is Miss.EXPIRED else None)
        stream = chunk.named_stream if stream_id is None else stream_id
        if stream is None:  # `miss_of` has said so already; mypy cannot know.
            return Replayed(miss=Miss.UNKNOWN)
        until_response = stream_id is not None
        reading = Reading(stream, last_event_id, send, until_response=until_response)
        if not (until_response and chunk.cursor_final):
            await self._deliver(reading, chunk)
        return Replayed(
            stream_id=stream,
            last_event_id=reading.cursor,
            delivered=reading.delivered,
            payload_bytes=reading.payload_bytes,
            missing=reading.missing,
            corrupt=tuple(reading.corrupt),
            gap=reading.missing > 0 or lost_after(chunk, cursor),
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
        reading = Reading(stream_id, after, send, until_response=True)
        failures, orphaned = 0, False
        tracked = self._session is not None and stream_id != GET_STREAM_KEY
        with self._followers.watching(self._keys, stream_id, after, tracked=tracked) as watch:
            while True:
                try:
                    if watch.orphan_of is not None:
                        orphaned |= await self.give_up(stream_id, watch.orphan_of)
                        watch.orphan_of = None
                    await self._deliver(reading, await self._read(reading.cursor, stream_id))
                except StoreError:
                    failures += 1  # Redis may be restarting; the client is still there.
                watch.cursor = reading.cursor
                remaining = until - time.monotonic()
                if reading.completed or remaining <= 0:
                    break
                await watch.wait(remaining)
        return Followed(
            last_event_id=reading.cursor,
            end=FollowEnd.COMPLETED if reading.completed else FollowEnd.LIMIT,
            delivered=reading.delivered,
            payload_bytes=reading.payload_bytes,
            missing=reading.missing,
            corrupt=tuple(reading.corrupt),
            failures=failures,
            orphaned=orphaned,
        )

    async def _read(self, cursor: str, stream_id: str | None) -> scripts.Chunk:
        async with self._reads:
            with told_as("read from", self._redis):
                return await scripts.read(
                    self._redis, self._keys, cursor, stream_id, max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES
                )

    async def _deliver(self, reading: Reading, chunk: scripts.Chunk) -> None:
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


def _check_ttl(ttl: int | None) -> None:
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        msg = f"ttl must be a whole number of seconds, or None to keep events for ever; not {ttl!r}"
        raise TypeError(msg)
    if not 0 < ttl <= MAX_TTL:
        msg = f"ttl must be between 1 and {MAX_TTL} seconds, or None to keep events for ever; not {ttl}"
        raise ValueError(msg)
