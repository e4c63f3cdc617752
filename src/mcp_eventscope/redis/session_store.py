"""The store of one session. Its streams are lists, and each worker numbers its own events."""

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import anyio

from mcp_eventscope.errors import StoreError, StoreUnavailableError
from mcp_eventscope.redis import run_entry
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, address_of, call
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.limits import PROBE_SECONDS
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.read.cursor import Cursor, parse
from mcp_eventscope.redis.read.delivery import Delivery
from mcp_eventscope.redis.read.elements import Chunk
from mcp_eventscope.redis.read.followers import POLL_SECONDS, Follower, RunFollowers
from mcp_eventscope.redis.read.run_reader import RunReader
from mcp_eventscope.redis.run_entry import request_id_of, stored_request_id_of
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.workers.leases import Workers
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.runs import Run, SessionQueue, worker_of
from mcp_eventscope.redis.write.session_writer import SessionWriter
from mcp_eventscope.store import codec
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.jsonrpc_errors import not_stored, orphaned, superseded
from mcp_eventscope.store.messages import (
    FINAL,
    GET_STREAM_KEY,
    EventCallback,
    EventId,
    EventMessage,
    JSONRPCMessage,
    RequestId,
    StreamId,
)
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowEnd, FollowResult, Miss, ReplayResult

RENEWAL_SECONDS = 5.0
"""Seconds within which a worker renews its lease after a suspension, if Redis is reachable."""
_MICROSECONDS = 1_000_000
_MANY_RUNS = 64
"""The number of runs of a standalone stream at which those without events are forgotten. An event id has a position for
each run, and each worker that serves the session adds a run."""
_FORGOTTEN_AT_ONCE = 16
"""Maximum number of runs that one resume forgets: it reads the lease of each one's worker."""
_answer = Script("answer.lua")
_forget_runs = Script("forget_runs.lua")
_standalone_sent = Script("standalone_sent.lua")


@dataclass(frozen=True, slots=True)
class SessionResources:
    """The objects that the sessions of one store share."""

    redis: AnyRedis
    ttl: int | None
    worker: WorkerId
    workers: Workers
    clock: EventClock
    breaker: CircuitBreaker
    observers: Observers
    writer: SessionWriter
    reader: RunReader
    followers: RunFollowers
    flush: Callable[[float], Awaitable[int]]
    backlog: Callable[[], BacklogStatus]


class RedisSessionStore:
    """One session's streams (`RedisEventStore.for_session`).

    `append` returns the event's id immediately. The event is stored in the background, once and in order, even across
    an outage of Redis. A stream belongs to a request: `begin` opens it, and the response closes it.

    Args:
        resources: The objects that all sessions of the store share.
        keys: The session's keys.
        session_id: The MCP session id.
    """

    shared = True
    """Events of any process wake a follower."""

    def __init__(self, resources: SessionResources, keys: Keys, session_id: str) -> None:
        self._shared = resources
        self._keys = keys
        self._session_id = session_id
        self._queue: SessionQueue = resources.writer.session(keys)

    @property
    def ttl(self) -> int | None:
        """Seconds that events are kept; None: no expiry."""
        return self._shared.ttl

    @property
    def key_prefix(self) -> str:
        """The prefix of every key of the session."""
        return self._keys.prefix

    @property
    def session_id(self) -> str:
        """The MCP session id."""
        return self._session_id

    @property
    def coordinator(self) -> Workers:
        """This worker and its connection to the other workers of the store."""
        return self._shared.workers

    @property
    def address(self) -> str:
        """The address of Redis, without credentials."""
        return address_of(self._shared.redis)

    @property
    def backlog(self) -> BacklogStatus:
        """The unacknowledged events of this process, and why Redis is unreachable, if it is."""
        return self._shared.backlog()

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Register a callback for background events; see `RedisEventStore.observe`."""
        self._shared.observers.subscribe(callback)

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Register callbacks for a session or a request that another worker has ended.

        Args:
            ended: Called when the session was ended on another worker.
            fenced: Called with a stream whose request was answered in this worker's place. No further event of the
                stream may be sent.
        """
        self._queue.bound, self._queue.ended = self, False  # If it has ended, the next commit reports it to this store.
        self._queue.on_ended, self._queue.on_fenced = ended, fenced

    def followed(self, stream_id: StreamId) -> None:
        """Commit the events of a request without lingering.

        Args:
            stream_id: The stream, which a client follows through another process.
        """
        run = self._queue.runs.get(stream_id)
        if run is not None:
            self._shared.writer.followed(run)

    def close(self) -> None:
        """End this process's run of the standalone stream: it no longer serves the session.

        Nothing happens if another store has been bound meanwhile: this process serves the session again.
        """
        if self._queue.bound in (None, self):
            self._shared.writer.close(self._queue)

    def for_session(self, session_id: str) -> Self:
        """Refuse: this is already the store of a session.

        Raises:
            ValueError: Always.
        """
        msg = "for_session() must be called on the root store, got the store of a session"
        raise ValueError(msg)

    async def flush(self, seconds: float) -> int:
        """Store the pending events of all sessions; see `RedisEventStore.flush`."""
        return await self._shared.flush(seconds)

    async def probe(self) -> None:
        """Write a key of the session; see `RedisEventStore.probe`."""
        redis, key = self._shared.redis, self._keys.probe(self._shared.worker.name)
        await call("write to", redis, self._shared.breaker, lambda: redis.set(key, "", ex=PROBE_SECONDS))

    # -- writing ------------------------------------------------------------------------------------------------------

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Open the stream of a request that this process runs.

        An open stream of the same name is ended with an error: the client has reused its request id.

        Args:
            stream_id: The stream.
            request_id: The request's id, with its JSON type.
        """
        writer = self._shared.writer
        replaced = self._queue.runs.get(stream_id)
        if replaced is not None:
            error = superseded(request_id_of(replaced.entry))
            writer.accept(replaced, type(error), codec.encode(error), final=True)
        writer.begin(self._queue, stream_id, request_id)

    async def give_up(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Answer with an error a request that this process no longer runs.

        Args:
            stream_id: The stream.
            request_id: The request's id, with its JSON type.
        """
        await self.append(stream_id, orphaned(request_id))

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Accept one event and store it in the background.

        Waits, for at most `store_timeout`, only while the session or the process has too many unacknowledged events.

        Args:
            stream_id: The stream of an open request, or the standalone stream.
            message: The message, or None for a priming event.
            traceparent: The producer's W3C traceparent, for `ReplayResult.producers`; "": none.

        Returns:
            The event's id and size. `refused` if the stream has no open request.
        """
        queue, writer = self._queue, self._shared.writer
        run = queue.runs.get(stream_id)
        if run is None:
            if stream_id != GET_STREAM_KEY or queue.ended:
                return AppendResult("", 0, refused=True)
            run = writer.begin(queue, stream_id, None)
        kind, final = type(message), not run.standalone and type(message) in FINAL
        try:
            payload = codec.encode(message)
        except ValueError:
            if not final:
                raise
            # The transport could not send this response either.
            error = not_stored(request_id_of(run.entry), "it cannot be encoded as JSON")
            kind, payload = type(error), codec.encode(error)
        event = writer.accept(run, kind, payload, traceparent, final=final)
        if writer.full(queue):
            await writer.wait_for_room(queue)
        if not run.standalone and self._shared.workers.lapsed and self._shared.breaker.reason is None:
            # This process was suspended: another worker may have answered the request. The commit decides.
            with anyio.move_on_after(self._shared.breaker.call_timeout):
                await event.acknowledged()
        return AppendResult(event.event_id, len(payload), run.refused, False, event)  # noqa: FBT003 - faster by position

    # -- reading ------------------------------------------------------------------------------------------------------

    def lag(self, event_id: EventId) -> float | None:
        """Seconds since another worker accepted an event, by Redis's clock; None: this worker did, or no such id.

        Args:
            event_id: The id.
        """
        cursor = parse(event_id)
        if cursor is None or worker_of(cursor.run) == self._shared.worker.name:
            return None
        return max(0, self._shared.clock.now() - cursor.time) / _MICROSECONDS

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether a replay can succeed: from memory, or from Redis unless known unreachable.

        Args:
            stream_id: The stream.
            after: The event after which the replay starts.
        """
        if not self._shared.breaker.unreachable or (cursor := parse(after)) is None:
            return True
        local = self._shared.reader.local(self._keys, stream_id, cursor.run)
        if local is None or local.refused:
            return False
        return local.standalone or cursor.number >= local.last or local.next_is_here(cursor.number)

    async def replay(
        self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver the events after an event, up to the response or the last event.

        Events in the memory of this process are delivered without Redis.

        Args:
            last_event_id: The last event that the client has. A malformed id is a miss, not an error.
            send: Awaited with each event, in order. Its exceptions end the replay and propagate.
            stream_id: The stream.

        Returns:
            The delivered events, and the ones that are missing or corrupt.

        Raises:
            StoreError: Redis could not be read.
        """
        cursor = parse(last_event_id)
        if cursor is None:
            return ReplayResult(miss=Miss.MALFORMED)
        if stream_id is None:
            run = self._shared.writer.find(cursor.run)
            if run is None or run.session is not self._queue:
                return ReplayResult(miss=Miss.UNKNOWN)
            stream_id = run.stream
        standalone = stream_id == GET_STREAM_KEY
        send = self._sending(send) if standalone else send
        delivery = Delivery(stream_id, cursor, send, standalone=standalone, horizon=self._horizon)
        began_at = cursor.time
        miss = await (self._replay_standalone(delivery) if standalone else self._replay_run(delivery))
        now = self._shared.clock.now()
        age = max(0, now - began_at) / _MICROSECONDS
        if miss is not None:
            expired = self.ttl is not None and age >= self.ttl
            miss = Miss.EXPIRED if expired else miss
            after = delivery.cursor.event_id() if standalone else ""
            return ReplayResult(miss=miss, last_event_id=after, age=age if expired else None)
        return ReplayResult(
            stream_id=stream_id,
            last_event_id=delivery.cursor.event_id(),
            delivered=delivery.delivered,
            payload_bytes=delivery.payload_bytes,
            missing=delivery.missing,
            gaps=delivery.gaps,
            corrupt=tuple(delivery.corrupt),
            gap=delivery.missing > 0,
            age=age,
            completed=delivery.completed,
            producers=tuple(delivery.producers),
            origin="" if standalone else delivery.origin,
        )

    def _horizon(self) -> int:
        """The time before which events have expired, in microseconds since 1970."""
        return self._shared.clock.now() - self.ttl * _MICROSECONDS if self.ttl else 0

    async def _replay_run(self, delivery: Delivery) -> Miss | None:
        cursor = delivery.cursor
        name, after = cursor.run, cursor.number
        local = self._shared.reader.local(self._keys, delivery.stream, name)
        if local is not None and after > local.last:
            return Miss.UNKNOWN  # The number was never assigned.
        chunk = await self._advance(delivery, name)
        if delivery.completed or chunk is None:
            return None
        if chunk.entry is None and after > chunk.last - chunk.ended:
            # Redis has neither the event nor an open run: it may not be stored yet.
            if self._shared.reader.local(self._keys, delivery.stream, name) is not None:
                return None
            if not chunk.last and self.ttl is not None and chunk.clock - cursor.time > self.ttl * _MICROSECONDS:
                return Miss.EXPIRED  # The keys of an open request are renewed: this run has ended.
            if await self._never_stored(cursor):
                return Miss.UNKNOWN
        return None

    async def _never_stored(self, cursor: Cursor) -> bool:
        """Whether an event that is neither in Redis nor in memory will never be stored.

        Then its worker is this one, or dead.
        """
        worker = worker_of(cursor.run)
        return worker == self._shared.worker.name or (
            not self._may_be_stored(cursor) and bool(await self._shared.workers.expired({worker}))
        )

    def _may_be_stored(self, cursor: Cursor) -> bool:
        """Whether an event may still be stored although its worker has no lease.

        An event id proves that its worker was alive at that time. A worker that was suspended for longer than its
        lease may serve requests before it renews the lease.
        """
        shared = self._shared
        recent = min(shared.workers.lease, RENEWAL_SECONDS) * _MICROSECONDS
        return worker_of(cursor.run) != shared.worker.name and abs(shared.clock.now() - cursor.time) < recent

    async def _replay_standalone(self, delivery: Delivery) -> Miss | None:
        cursor, shared = delivery.cursor, self._shared
        name = cursor.run
        local = shared.reader.local(self._keys, delivery.stream, name) is not None
        try:
            _, found = await shared.reader.standalone_runs(self._keys)
        except StoreUnavailableError:
            if not local:
                raise
            # The events of other workers follow when Redis has recovered.
            await shared.reader.advance(self._keys, delivery, name)
            return None
        if cursor.number and name not in found and not local and await self._never_stored(cursor):
            own = self._queue.runs.get(GET_STREAM_KEY) or shared.writer.begin(self._queue, GET_STREAM_KEY, None)
            if shared.writer.find(name) is None:
                # The run is lost, and whether events of it are missing is unknown. Those of other runs follow. Every
                # position is kept: a worker that was suspended and not killed may store its run again from memory.
                positions = {own.name: 0} | cursor.positions
            else:  # It belongs to another session.
                positions = found | {own.name: own.last}
            delivery.cursor = Cursor(shared.clock.now(), own.name, positions)
            return Miss.UNKNOWN
        if len(found.keys() | cursor.positions) >= _MANY_RUNS:
            await self._forget_runs(cursor, found)
        await self._advance_standalone(delivery, found)
        return None

    async def _forget_runs(self, cursor: Cursor, found: dict[str, int]) -> None:
        """Remove runs that have no more events, and never will, from Redis, a cursor and `found`."""
        shared, own = self._shared, self._shared.worker.name
        others = [
            run
            for run in found.keys() | cursor.positions
            if run != cursor.run and shared.reader.local(self._keys, GET_STREAM_KEY, run) is None
        ]
        tried = random.sample(others, min(len(others), _FORGOTTEN_AT_ONCE))
        with suppress(StoreError):
            dead = await shared.workers.expired({worker_of(run) for run in tried} - {own})
            ended = [run for run in tried if worker_of(run) in dead or worker_of(run) == own]
            keys = [self._keys.requests, *(self._keys.run(GET_STREAM_KEY, run) for run in ended)]
            for name in await shared.reader.call(lambda: _forget_runs(shared.redis, keys, ended)):
                found.pop(name.decode(), None)
                cursor.positions.pop(name.decode(), None)

    async def _advance(self, delivery: Delivery, run: str) -> Chunk | None:
        """Deliver a run's events, or the answer in `requests` that replaces the response."""
        chunk = await self._shared.reader.advance(self._keys, delivery, run)
        position = delivery.cursor.positions[run]
        if delivery.completed:
            return chunk
        if chunk is None:
            local = self._shared.reader.local(self._keys, delivery.stream, run)
            delivery.completed = local is not None and local.closed and position == local.last
        elif chunk.ended and position == chunk.last:
            delivery.completed = True
        elif (answer := run_entry.answer_of(chunk.entry)) is not None:
            await delivery.answer(answer)
        return chunk

    async def _advance_standalone(self, delivery: Delivery, found: dict[str, int] | None = None) -> None:
        """Deliver the events of the standalone stream's runs: of `found`, or of all in Redis."""
        shared, keys = self._shared, self._keys
        own = self._queue.runs.get(GET_STREAM_KEY)
        if own is not None and own.next_is_here(delivery.cursor.positions.get(own.name, 0)):
            await shared.reader.advance(keys, delivery, own.name)
        if found is None:
            _, found = await shared.reader.standalone_runs(keys)
        for run, last in found.items():
            if last > delivery.cursor.positions.get(run, 0):
                await shared.reader.advance(keys, delivery, run)

    async def open_standalone(self) -> EventId:
        """Return a cursor for a client that opens the standalone stream without one.

        Until a message of the stream was sent to a client, it begins at the session's start: earlier messages had no
        reader, or the response to an earlier request was lost. Then it begins now. While Redis is unreachable, this
        process knows only of the messages that it has sent.
        """
        shared, queue = self._shared, self._queue
        own = queue.runs.get(GET_STREAM_KEY)
        if own is None:
            own = shared.writer.begin(queue, GET_STREAM_KEY, None)
        sent = queue.standalone_sent
        positions = {own.name: own.last}
        with suppress(StoreError), anyio.move_on_after(shared.breaker.call_timeout):
            if not sent and not shared.breaker.unreachable:
                sent = await shared.reader.call(self._was_sent)
            if sent:
                _, found = await shared.reader.standalone_runs(self._keys)
                positions = found | positions
        if not sent:
            positions = {own.name: 0}
        return Cursor(shared.clock.now(), own.name, positions).event_id()

    async def _was_sent(self) -> bool:
        """Whether Redis knows that a message of the standalone stream was sent to a client."""
        return bool(await self._shared.redis.execute_command("HEXISTS", self._keys.session, "standalone"))

    async def _record_sent(self) -> None:
        """Record that a message of the standalone stream was sent to a client."""
        shared, keys = self._shared, [self._keys.session]
        await call(
            "write to",
            shared.redis,
            shared.breaker,
            lambda: _standalone_sent(shared.redis, keys, [shared.ttl or 0]),
        )
        self._queue.sent_recorded = True

    def _sending(self, send: EventCallback) -> EventCallback:
        """A callback of the standalone stream that also notes that a message was sent."""

        async def note(event: EventMessage) -> None:
            self._queue.standalone_sent = True
            await send(event)

        return note

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver the events of any process from now on, until the response or the limit.

        Args:
            stream_id: The stream.
            after: The last event read from the stream: `ReplayResult.last_event_id`.
            send: Awaited with each event, in order. Its exceptions stop it and propagate.
            limit: Maximum seconds to follow.

        Returns:
            The delivered events, and why following ended. A failed read is counted and retried.
        """
        cursor = parse(after)
        if cursor is None:
            return FollowResult(last_event_id=after, end=FollowEnd.TIMEOUT)
        standalone = stream_id == GET_STREAM_KEY
        send = self._sending(send) if standalone else send
        delivery = Delivery(stream_id, cursor, send, standalone=standalone, horizon=self._horizon)
        following = _FollowState(limit)
        if standalone:
            await self._follow_standalone(delivery, following)
        else:
            await self._follow_run(delivery, following)
        return FollowResult(
            last_event_id=cursor.event_id(),
            end=following.end(completed=delivery.completed),
            delivered=delivery.delivered,
            payload_bytes=delivery.payload_bytes,
            missing=delivery.missing,
            gaps=delivery.gaps,
            corrupt=tuple(delivery.corrupt),
            failures=following.failures,
            producers=tuple(delivery.producers),
            origin="" if standalone else delivery.origin,
            orphaned=following.orphaned,
        )

    async def _follow_run(self, delivery: Delivery, following: "_FollowState") -> None:
        shared, name = self._shared, delivery.cursor.run
        follower = Follower(self._keys, delivery, name)
        local = shared.reader.local(self._keys, delivery.stream, name)
        if local is not None and not local.refused:
            # Followed in memory, without Redis, which may be unreachable.
            local.watchers.add(follower.wake)
            try:
                await self._follow_local(delivery, follower, local, following)
            finally:
                local.watchers.discard(follower.wake)
            if delivery.completed or following.over:
                return
        with shared.followers.following(follower, delivery.stream):
            while True:
                read = not shared.breaker.unreachable and await self._attempt(
                    self._advance_or_answer(delivery, follower, name, following), following
                )
                if delivery.completed or following.over or following.unknown_request:
                    return
                await follower.wait(following.remaining if read else min(following.remaining, POLL_SECONDS))

    async def _advance_or_answer(
        self, delivery: Delivery, follower: Follower, name: str, following: "_FollowState"
    ) -> None:
        await self._advance(delivery, name)
        if follower.orphaned and not delivery.completed:
            follower.orphaned = False
            await self._answer(delivery, name, following)

    async def _attempt(self, reading: Awaitable[object], following: "_FollowState") -> bool:
        """Return whether a read succeeded. A failure is counted; the caller retries."""
        try:
            await reading
        except StoreError:
            following.failures += 1
            return False
        return True

    async def _follow_local(self, delivery: Delivery, follower: Follower, run: Run, following: "_FollowState") -> None:
        """Follow a run of this process until it ends or is answered by another worker."""
        while not run.refused:
            read = await self._attempt(self._advance(delivery, run.name), following)
            if delivery.completed or following.over:
                return
            await follower.wait(following.remaining if read else min(following.remaining, POLL_SECONDS))

    async def _follow_standalone(self, delivery: Delivery, following: "_FollowState") -> None:
        shared, queue = self._shared, self._queue
        follower = Follower(self._keys, delivery, None)
        own = queue.runs.get(GET_STREAM_KEY) or shared.writer.begin(queue, GET_STREAM_KEY, None)
        own.watchers.add(follower.wake)
        try:
            with shared.followers.following(follower, delivery.stream):
                while True:
                    if own.next_is_here(delivery.cursor.positions.get(own.name, 0)):
                        await shared.reader.advance(self._keys, delivery, own.name)
                    unreachable = shared.breaker.unreachable
                    read = not unreachable and await self._attempt(self._advance_standalone(delivery), following)
                    if read and queue.standalone_sent and not queue.sent_recorded:
                        read = await self._attempt(self._record_sent(), following)
                    if following.over:
                        return
                    await follower.wait(following.remaining if read else min(following.remaining, POLL_SECONDS))
        finally:
            own.watchers.discard(follower.wake)

    async def _answer(self, delivery: Delivery, name: str, following: "_FollowState") -> None:
        """Answer a request in place of its dead worker."""
        shared, keys = self._shared, self._keys
        entry = await shared.reader.call(lambda: self._entry(name))
        if entry is None:
            await self._advance(delivery, name)  # The response may have been stored since the list was read.
            # Else there is no such request: the cursor may be invented. A recent one may not be stored yet.
            following.unknown_request = not delivery.completed and not self._may_be_stored(delivery.cursor)
            return
        if run_entry.is_open(entry):
            request_id = stored_request_id_of(entry)
            if request_id is None:  # Damaged. The answer names the request by its stream.
                following.unknown_request = True
                return
            error = codec.encode(orphaned(request_id))
            answered = run_entry.answer(shared.clock.now(), error)
            arguments: list[str | bytes | int] = [name, entry, answered, shared.ttl or 0]
            stored = await call(
                "write to",
                shared.redis,
                shared.breaker,
                lambda: _answer(shared.redis, [keys.requests, keys.run(delivery.stream, name)], arguments),
            )
            following.orphaned |= bool(stored)
        await self._advance(delivery, name)

    async def _entry(self, name: str) -> bytes | None:
        entry: bytes | None = await self._shared.redis.execute_command(
            "HGET", self._keys.requests.encode(), name, NEVER_DECODE=True
        )
        return entry


class _FollowState:
    """The state of following one stream, apart from its delivery."""

    def __init__(self, limit: float) -> None:
        self._until = time.monotonic() + limit
        self.failures = 0
        self.orphaned = False
        self.unknown_request = False

    @property
    def remaining(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def over(self) -> bool:
        return self.remaining <= 0

    def end(self, *, completed: bool) -> FollowEnd:
        if completed:
            return FollowEnd.COMPLETED
        return FollowEnd.WORKER_LOST if self.unknown_request else FollowEnd.TIMEOUT
