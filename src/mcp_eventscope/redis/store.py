"""The Redis event store: append, replay and follow, without telemetry."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mcp_eventscope.errors import SessionsNotIsolatedWarning, StoreError
from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import (
    AnyRedis,
    address_of,
    call,
    correct_cluster_client,
    is_cluster,
    kind_of,
    require_async,
    require_one_slot,
)
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import EVENT_ID, Keys
from mcp_eventscope.redis.limits import (
    BACKLOG_BYTES,
    BACKLOG_EVENTS,
    FLUSH_SECONDS,
    MAX_SESSION_BYTES,
    PROBE_SECONDS,
    STORE_TIMEOUT,
    check_limits,
)
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.pubsub import Subscriptions
from mcp_eventscope.redis.read.followers import RunFollowers
from mcp_eventscope.redis.read.run_reader import RunReader
from mcp_eventscope.redis.root.backlog import Backlog, PendingEvent
from mcp_eventscope.redis.root.batch_codec import BatchCodec
from mcp_eventscope.redis.root.chunk_reader import ChunkReader
from mcp_eventscope.redis.root.follow import Followers
from mcp_eventscope.redis.root.replay import ReplayCursor, age_of, gaps_of, lost_after, miss_of
from mcp_eventscope.redis.root.writer import RootWriter
from mcp_eventscope.redis.self_test import SelfTest
from mcp_eventscope.redis.session_store import RedisSessionStore, SessionResources
from mcp_eventscope.redis.stats import RedisStatsPoller
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.sender import Sender
from mcp_eventscope.redis.write.session_limit import SessionLimit
from mcp_eventscope.redis.write.session_writer import SessionWriter
from mcp_eventscope.store import codec
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.jsonrpc_errors import not_stored, orphaned
from mcp_eventscope.store.messages import (
    FINAL,
    GET_STREAM_KEY,
    EventCallback,
    EventId,
    EventStore,
    JSONRPCMessage,
    RequestId,
    StreamId,
    unwrapped,
    wrapping,
)
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowEnd, FollowResult, Gap, Miss, ReplayResult

if TYPE_CHECKING:
    from mcp_eventscope.redis.inspection import Inspector


class RedisEventStore(EventStore):
    """An MCP event store on Redis or Valkey.

    On the root store `append` returns once Redis has acknowledged the event, which is then visible to every process.
    Concurrent appends share a batch on one connection. A replay reads bounded chunks. `Keys` documents the layout.

    While Redis is unreachable or slow, `append` blocks for at most `store_timeout`. The event is then deferred in a
    bounded backlog and stored later, once and in order. A full backlog drops whole streams, oldest first, which
    `observe` reports; a later resume of such a stream reports a gap.

    A store that is passed to the SDK directly cannot distinguish sessions: clients number their requests from 0, so
    sessions would share streams. Use `http_app` or `ResumableSessionManager`, which give each session its own store
    (`for_session`).

    Args:
        redis: A `redis.asyncio.Redis` or `RedisCluster`, with either value of `decode_responses`. The caller closes it.
            The store uses one connection of its pool for writes, one for subscriptions, and up to eight for replays.
        key_prefix: The prefix of every key.
        ttl: Seconds that a key is kept after its last write; None: no expiry, which fills Redis. It should exceed the
            time that clients stay disconnected: twice the session idle timeout is a good start.
        store_timeout: Seconds after which a reply of Redis counts as an outage, and for which an append waits for Redis
            at most before its event is deferred.
        backlog_bytes: Maximum bytes of deferred events in this process.
        backlog_events: Maximum number of deferred events in this process.
        max_session_bytes: Maximum bytes that the events of a session may use in Redis. Beyond it the oldest events
            are evicted: those of finished requests first, responses last. A resume that misses them reports a gap.

    Raises:
        TypeError: `redis` is not an asyncio client; `key_prefix` is not a string; a number has another type.
        ValueError: `key_prefix` is empty or has misplaced braces; `ttl` is not between 1 second and ten years;
            `store_timeout` is not between a millisecond and an hour; a bound of the backlog is below 1;
            `max_session_bytes` is below 1 MiB.
    """

    def __init__(  # noqa: PLR0913 - the options of an operator
        self,
        redis: AnyRedis,
        *,
        key_prefix: str = "mcp:",
        ttl: int | None = None,
        store_timeout: float = STORE_TIMEOUT,
        backlog_bytes: int = BACKLOG_BYTES,
        backlog_events: int = BACKLOG_EVENTS,
        max_session_bytes: int = MAX_SESSION_BYTES,
    ) -> None:
        require_async(redis)
        check_limits(
            ttl=ttl,
            store_timeout=store_timeout,
            backlog_bytes=backlog_bytes,
            backlog_events=backlog_events,
            max_session_bytes=max_session_bytes,
        )
        self._redis = correct_cluster_client(redis)
        self._keys = Keys(key_prefix)
        self._ttl = ttl
        self._worker = WorkerId()
        self._observers = observers = Observers()
        self._breaker = breaker = CircuitBreaker(store_timeout, observers, cluster=is_cluster(redis))
        self._writer = RootWriter(
            redis,
            breaker,
            Backlog(backlog_bytes, backlog_events),
            BatchCodec(self._keys, ttl, self._worker),
            observers,
            self._wake,
            self._on_stored,
        )
        clock = EventClock()
        self._max_session_bytes = max_session_bytes
        self._limit = SessionLimit(redis, self._worker, clock, ttl, breaker, observers, max_session_bytes)
        self._session_writer = session_writer = SessionWriter(
            self._worker,
            clock,
            ttl,
            breaker,
            observers,
            self._wake,
            self._limit,
            lambda request_id, reason: codec.encode(not_stored(request_id, reason)),
            backlog_bytes,
            backlog_events,
        )
        self._sender = Sender(
            redis,
            [session_writer, self._writer],
            breaker,
            observers,
            session_writer.verify,
            lambda: self._keys.probe(self._worker.name),
        )
        subscriptions = Subscriptions(redis)
        self._workers = Workers(redis, self._keys, self._worker, clock, breaker, observers, self._close_circuit)
        self._followers = Followers(redis, self._keys, self._worker, subscriptions)
        self._reader = ChunkReader(redis, breaker)
        self._workers.on_tick(session_writer.renew, session_writer.verify)
        reader = RunReader(redis, breaker, clock, session_writer.find)
        self._sessions = SessionResources(
            redis,
            ttl,
            self._worker,
            self._workers,
            clock,
            breaker,
            observers,
            session_writer,
            reader,
            RunFollowers(redis, breaker, self._worker, self._workers, subscriptions),
            self.flush,
            lambda: self.backlog,
        )
        self._backend = RedisBackend(
            redis, self._keys, self._worker, self._workers, clock, breaker, observers, subscriptions, ttl
        )
        self._warned = False

    @property
    def backend(self) -> RedisBackend:
        """The objects that other parts on the same Redis and prefix share with this store."""
        return self._backend

    @property
    def ttl(self) -> int | None:
        """Seconds that a key is kept after its last write; None: no expiry."""
        return self._ttl

    @property
    def max_session_bytes(self) -> int:
        """Maximum bytes that the events of a session may use in Redis."""
        return self._max_session_bytes

    @property
    def key_prefix(self) -> str:
        """The prefix of every key of this store."""
        return self._keys.prefix

    @property
    def session_id(self) -> str | None:
        """None: this is the root store."""
        return None

    @property
    def shared(self) -> bool:
        """True: events of any process wake a follower."""
        return True

    @property
    def coordinator(self) -> Workers:
        """This worker and its connection to the other workers of the store."""
        return self._workers

    def redis_stats_poller(self) -> RedisStatsPoller:
        """Return a poller of the statistics of the store's Redis."""
        return RedisStatsPoller(self._redis, self._keys, self._worker)

    def self_test(self) -> SelfTest:
        """Return a self-test of what the store's Redis allows."""
        return SelfTest(self._redis, self._keys, self._worker)

    def inspector(self) -> "Inspector":
        """Return a reader of facts about workers and sessions."""
        from mcp_eventscope.redis.inspection import Inspector  # noqa: PLC0415 - for operators

        return Inspector(self._redis, self._keys)

    @property
    def kind(self) -> str:
        """The kind of Redis: alone, a cluster, or behind Sentinel."""
        return kind_of(self._redis)

    @property
    def worker(self) -> str:
        """The name of this process among the workers of the store. A forked child has another one."""
        return self._worker.name

    @property
    def address(self) -> str:
        """The address of Redis, without credentials: `host:port` or a socket's path."""
        return address_of(self._redis)

    def for_session(self, session_id: str) -> RedisSessionStore:
        """Return the store of one session, on the same client and with the same TTL.

        Its keys are under `{prefix}{session}:`, with literal braces. This Redis hash tag lets one script access all of
        them on Redis Cluster. No session can see another session's events.

        Args:
            session_id: The MCP session id. It is percent-encoded in keys.
        """
        return RedisSessionStore(self._sessions, self._keys.for_session(session_id), session_id)

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Do nothing: a stream of the root store begins with its first event."""

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Do nothing: the root store has neither sessions nor runs."""

    def followed(self, stream_id: StreamId) -> None:
        """Do nothing: the root store does not linger."""

    def close(self) -> None:
        """Do nothing: the root store holds no state of a session."""

    def lag(self, event_id: EventId) -> None:
        """None: the ids of the root store contain no time."""

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether Redis is not known to be unreachable."""
        del stream_id, after
        return not self._breaker.unreachable

    async def open_standalone(self) -> EventId:
        """Return a cursor from which the standalone stream is read from now on."""
        return (await self.append(GET_STREAM_KEY, None)).event_id

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Store an error as the response of a request."""
        await self.append(stream_id, orphaned(request_id))

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Register a callback for background events: commits, retries, outages, recoveries, losses.

        Args:
            callback: Called with each event. It must not block; its exceptions are dropped.
        """
        self._observers.subscribe(callback)

    @property
    def backlog(self) -> BacklogStatus:
        """This process's pending events, sessions included, and why Redis is unreachable, if it is."""
        events, payload_bytes = self._writer.deferred
        sessions = self._session_writer
        return BacklogStatus(
            events=events + sessions.events, payload_bytes=payload_bytes + sessions.bytes, failure=self._breaker.reason
        )

    async def flush(self, seconds: float = FLUSH_SECONDS) -> int:
        """Store the pending events and release the connections that are kept between calls.

        Call it before the process ends and the client is closed. The store may be used again afterwards.

        Args:
            seconds: Maximum seconds to take. Events that are not stored by then are lost and reported (`observe`).

        Returns:
            The number of events that were lost.
        """
        until = time.monotonic() + seconds
        with self._session_writer.flushing():
            left = await self._sender.drain(seconds)
        await self._limit.drain(max(0.0, until - time.monotonic()))
        await self._sessions.reader.release()
        for batch in left:
            batch.abandon()
        lost = self._writer.clear() + self._session_writer.clear()
        if not self._workers.holding:  # Else the lease is about to be given up, and its end closes the circuit.
            self._breaker.reset()
        return lost

    async def _close_circuit(self) -> None:
        """Stop the probes of an unreachable Redis when the lease ends, unless events are still to be stored."""
        if self._breaker.reason is None or self.backlog.events:
            return
        for batch in await self._sender.drain(0):  # Before the reset, or the next probe would report another outage.
            batch.abandon()
        self._breaker.reset()

    def _wake(self) -> None:
        self._sender.wake()

    async def probe(self) -> None:
        """Write a key that expires within a minute, and return when Redis has acknowledged it.

        Raises:
            StoreError: Redis does not answer, or refuses writes.
        """
        redis, key = self._redis, self._keys.probe(self._worker.name)
        await call("write to", redis, self._breaker, lambda: redis.set(key, "", ex=PROBE_SECONDS))

    # -- the SDK's interface ------------------------------------------------------------------------------------------

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event (`EventStore.store_event` of the SDK).

        Args:
            stream_id: The stream.
            message: The message, or None for a priming event.

        Returns:
            The event's id; "" if the event is deferred: see `append`.

        Raises:
            StoreRejectedError: Redis refused this event permanently.
        """
        self._check_isolated()
        return (await self.append(stream_id, unwrapped(message))).event_id

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send the events after an event (`EventStore.replay_events_after` of the SDK).

        Args:
            last_event_id: The last event that the client has. Untrusted input: any text is accepted.
            send_callback: Awaited with each event, in order.

        Returns:
            The stream, or None when there is nothing to resume from.

        Raises:
            StoreError: Redis could not be read.
        """
        self._check_isolated()
        facts = await self.replay(last_event_id, wrapping(send_callback))
        return facts.stream_id if facts.miss is None else None

    def _check_isolated(self) -> None:
        """Warn once that the SDK's interface does not pass the session to a root store."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                "event_store.sessions_not_isolated: a RedisEventStore passed to the SDK directly cannot distinguish "
                "sessions; clients number their requests from 0, so sessions share streams and receive each other's "
                "events; serve with mcp_eventscope.http_app() or ResumableSessionManager (mcp 1.30, or 2.2 and later)",
                SessionsNotIsolatedWarning,
                stacklevel=3,
            )

    # -- the same, with results ---------------------------------------------------------------------------------------

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store one event.

        Args:
            stream_id: The stream.
            message: The message without the `RootModel` of mcp 1.x, or None for a priming event.
            traceparent: The producer's W3C traceparent, for `ReplayResult.producers`; "": none.

        Returns:
            The event's id and size. If Redis does not acknowledge the event within `store_timeout`, it is deferred: it
            has no id yet, and is stored later.

        Raises:
            StoreRejectedError: Redis refused this event permanently.
            ValueError: The message has no JSON form.
        """
        require_one_slot(self._redis, self._keys.prefix)
        payload = codec.encode(message)
        final = type(message) in FINAL and stream_id != GET_STREAM_KEY
        acknowledged = self._writer.submit(PendingEvent(stream_id, payload, traceparent, final=final))
        # Cancelling the caller does not cancel the write.
        event_id = None if acknowledged is None else await acknowledged
        if event_id is None:
            return AppendResult("", len(payload), deferred=True)
        return AppendResult(event_id, len(payload))

    def _on_stored(self, events: Sequence[PendingEvent]) -> None:
        self._followers.notify(event.stream_id for event in events)

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver the events after an event, up to the response or the last stored event.

        Args:
            last_event_id: The last event that the client has. A malformed id is a miss, not an error.
            send: Awaited with each event, in order. Its exceptions end the replay and propagate.
            stream_id: The stream, to which the event must belong. Without it, the stored event determines the stream,
                and the replay continues past a response.

        Returns:
            The delivered events, and the ones that are missing or corrupt.

        Raises:
            StoreError: Redis could not be read.
        """
        if not EVENT_ID.fullmatch(last_event_id):
            return ReplayResult(miss=Miss.MALFORMED)
        cursor = int(last_event_id)
        chunk = await self._reader.read(self._keys, last_event_id, stream_id)
        age = age_of(chunk, cursor)
        if miss := miss_of(chunk, cursor, stream_id, self._ttl):
            return ReplayResult(miss=miss, age=age if miss is Miss.EXPIRED else None)
        stream = chunk.named_stream if stream_id is None else stream_id
        if stream is None:  # Excluded by `miss_of`, for mypy.
            return ReplayResult(miss=Miss.UNKNOWN)
        until_response = stream_id is not None
        replay = ReplayCursor(stream, last_event_id, send, until_response=until_response)
        if not (until_response and chunk.cursor_final):
            await self._reader.deliver(self._keys, replay, chunk)
        return ReplayResult(
            stream_id=stream,
            last_event_id=replay.cursor,
            delivered=replay.delivered,
            payload_bytes=replay.payload_bytes,
            missing=replay.missing,
            gaps=gaps_of(replay.missing, chunk, cursor),
            corrupt=tuple(replay.corrupt),
            gap=replay.missing > 0 or lost_after(chunk, cursor),
            age=age,
            completed=replay.completed or chunk.cursor_final,
            producers=replay.producers,
        )

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver the events of any process from now on, until the response or the limit.

        No event is lost between a replay and this call: both read the index after an id.

        Args:
            stream_id: The stream.
            after: The last event read from the stream: `ReplayResult.last_event_id`.
            send: Awaited with each event, in order. Its exceptions stop it and propagate.
            limit: Maximum seconds to follow.

        Returns:
            The delivered events, and why following ended. A failed read is counted and retried.
        """
        until = time.monotonic() + limit
        replay = ReplayCursor(stream_id, after, send, until_response=True)
        failures = 0
        with self._followers.following(stream_id, after) as follower:
            while True:
                try:
                    chunk = await self._reader.read(self._keys, replay.cursor, stream_id)
                    await self._reader.deliver(self._keys, replay, chunk)
                except StoreError:
                    failures += 1  # Redis may be restarting.
                follower.cursor = replay.cursor
                remaining = until - time.monotonic()
                if replay.completed or remaining <= 0:
                    break
                await follower.wait(remaining)
        return FollowResult(
            last_event_id=replay.cursor,
            end=FollowEnd.COMPLETED if replay.completed else FollowEnd.TIMEOUT,
            delivered=replay.delivered,
            payload_bytes=replay.payload_bytes,
            missing=replay.missing,
            gaps={Gap.STORE_LOST: replay.missing} if replay.missing else {},
            corrupt=tuple(replay.corrupt),
            failures=failures,
            producers=replay.producers,
        )
