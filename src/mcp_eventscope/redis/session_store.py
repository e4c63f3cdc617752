"""The part of the store that is one session's: its streams are lists, and its events are numbered by the worker."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import anyio
from mcp.types import RequestId

from mcp_eventscope.errors import StoreError, StoreUnavailableError
from mcp_eventscope.redis import run_entry
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import AnyRedis, address_of, call
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.read.cursor import Cursor, parse
from mcp_eventscope.redis.read.delivery import Delivery
from mcp_eventscope.redis.read.elements import Chunk
from mcp_eventscope.redis.read.followers import POLL_SECONDS, RunFollowers, Watch
from mcp_eventscope.redis.read.run_reader import RunReader
from mcp_eventscope.redis.run_entry import request_id_of
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.worker_id import WorkerId
from mcp_eventscope.redis.workers import Workers
from mcp_eventscope.redis.write.runs import Run, SessionQueue, worker_of
from mcp_eventscope.redis.write.session_writer import SessionWriter
from mcp_eventscope.store import codec
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.jsonrpc_errors import not_stored, orphaned, superseded
from mcp_eventscope.store.messages import FINAL, GET_STREAM_KEY, EventCallback, EventId, JSONRPCMessage, StreamId
from mcp_eventscope.store.results import AppendResult, BacklogStatus, FollowEnd, FollowResult, Miss, ReplayResult

_MICROSECONDS = 1_000_000
_answer = Script("answer.lua")
_open_standalone = Script("open_standalone.lua")


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

    `append` returns an event's id immediately; the event is stored in the background, once and in order, also across
    an outage of Redis. A stream belongs to a request: `begin` opens it, and its response closes it.

    Args:
        resources: What it shares with other sessions.
        keys: The session's keys.
        session_id: The MCP session id.
    """

    shared = True
    """A follower is woken whichever process stores."""

    def __init__(self, resources: SessionResources, keys: Keys, session_id: str) -> None:
        self._shared = resources
        self._keys = keys
        self._session_id = session_id
        self._queue: SessionQueue = resources.writer.session(keys)

    @property
    def ttl(self) -> int | None:
        """Seconds that events are kept; None: without expiry."""
        return self._shared.ttl

    @property
    def key_prefix(self) -> str:
        """The prefix of every key of the session."""
        return self._keys.prefix

    @property
    def session_id(self) -> str:
        """The session."""
        return self._session_id

    @property
    def coordinator(self) -> Workers:
        """This worker, among the others that use the store."""
        return self._shared.workers

    @property
    def address(self) -> str:
        """Where Redis is, for people: never with a credential."""
        return address_of(self._shared.redis)

    @property
    def backlog(self) -> BacklogStatus:
        """The events of this process that are not acknowledged, and why Redis is unreachable, if it is."""
        return self._shared.backlog()

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Call back with background events; see `RedisEventStore.observe`."""
        self._shared.observers.subscribe(callback)

    def bind(self, *, ended: Callable[[], None], fenced: Callable[[StreamId], None]) -> None:
        """Call back when a commit finds that something has ended here.

        Args:
            ended: Called when the session was ended on another worker.
            fenced: Called with a stream whose request was answered in this worker's place: nothing more of it
                must be sent.
        """
        self._queue.on_ended, self._queue.on_fenced = ended, fenced

    def followed(self, stream_id: StreamId) -> None:
        """Commit the events of a request without the pause in which others are collected.

        Args:
            stream_id: The stream, which a client follows through another process.
        """
        run = self._queue.runs.get(stream_id)
        if run is not None:
            self._shared.writer.followed(run)

    def close(self) -> None:
        """End this process's run of the standalone stream: the session is not served here any more."""
        self._shared.writer.close(self._queue)

    def for_session(self, session_id: str) -> Self:
        """Refuse: this is a session's part already.

        Raises:
            ValueError: Always.
        """
        msg = "this is one session's part of a store; call for_session() of the root store"
        raise ValueError(msg)

    async def flush(self, seconds: float) -> int:
        """Store the pending events of all sessions; see `RedisEventStore.flush`."""
        return await self._shared.flush(seconds)

    async def ping(self) -> None:
        """Return when Redis answers.

        Raises:
            StoreError: It does not.
        """
        redis = self._shared.redis
        await call("reach", redis, self._shared.breaker, redis.ping)

    # -- writing ------------------------------------------------------------------------------------------------------

    def begin(self, stream_id: StreamId, request_id: RequestId) -> None:
        """Open the stream of a request that this process runs.

        A stream of the same name that is still open is ended with an error: the client has used its id again.

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
        """Answer a request that this process ran, and runs no longer, with an error.

        Args:
            stream_id: The stream.
            request_id: The request's id, with its JSON type.
        """
        await self.append(stream_id, orphaned(request_id))

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Accept one event, and have it stored in the background.

        It waits only while too much of this session or process is not acknowledged: at most the store's time limit.

        Args:
            stream_id: The stream: of an open request, or the standalone one.
            message: The message, or None for a priming event.
            traceparent: The span that produced it, in W3C notation, for `ReplayResult.producers`; "": it is not kept.

        Returns:
            Its id and size. `refused` when the stream has no open request.
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
            # The response has no JSON form: the transport could not send it either.
            error = not_stored(request_id_of(run.entry), "it cannot be encoded as JSON")
            kind, payload = type(error), codec.encode(error)
        event = writer.accept(run, kind, payload, traceparent, final=final)
        if writer.full(queue):
            await writer.wait_for_room(queue)
        if final and self._shared.workers.lapsed and self._shared.breaker.reason is None:
            # This process was suspended: another worker may have answered, and the commit decides.
            with anyio.move_on_after(self._shared.breaker.call_timeout):
                await event.acknowledged()
        return AppendResult(event.event_id, len(payload), refused=run.refused, pending=event)

    # -- reading ------------------------------------------------------------------------------------------------------

    def readable(self, stream_id: StreamId, after: EventId) -> bool:
        """Whether a replay is worth a try: Redis is not known to be unreachable, or this process has the next event.

        Args:
            stream_id: The stream.
            after: The event after which is read.
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
        """Deliver the events after an event, up to the response or the last one so far.

        Events in the memory of this process are delivered without Redis.

        Args:
            last_event_id: The last event that the client has. A text that is no id is a miss, not an error.
            send: Awaited with each event, in order. What it raises ends the replay, and is passed on.
            stream_id: The stream.

        Returns:
            What was delivered, and what could not be.

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
        delivery = Delivery(stream_id, cursor, send, standalone=standalone)
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
            corrupt=tuple(delivery.corrupt),
            gap=delivery.missing > 0,
            age=age,
            completed=delivery.completed,
            producers=tuple(delivery.producers),
        )

    async def _replay_run(self, delivery: Delivery) -> Miss | None:
        cursor = delivery.cursor
        name, asked = cursor.run, cursor.number
        local = self._shared.reader.local(self._keys, delivery.stream, name)
        if local is not None and asked > local.last:
            return Miss.UNKNOWN  # It was never given out.
        chunk = await self._advance(delivery, name)
        if delivery.completed or chunk is None:
            return None
        if chunk.entry is None and asked > chunk.last - chunk.ended:
            # Redis knows no such event, and no such run that is open: it may not have been stored yet.
            if self._shared.reader.local(self._keys, delivery.stream, name) is not None:
                return None
            worker, ttl = worker_of(name), self.ttl
            if not chunk.last and ttl is not None and chunk.clock - cursor.time > ttl * _MICROSECONDS:
                return Miss.EXPIRED  # What an open request has in Redis is renewed.
            if worker == self._shared.worker.name or await self._shared.workers.expired({worker}):
                return Miss.UNKNOWN
        return None

    async def _replay_standalone(self, delivery: Delivery) -> Miss | None:
        cursor, shared = delivery.cursor, self._shared
        name = cursor.run
        local = shared.reader.local(self._keys, delivery.stream, name) is not None
        try:
            _, found = await shared.reader.standalone_runs(self._keys)
        except StoreUnavailableError:
            if not local:
                raise
            await shared.reader.advance(self._keys, delivery, name)  # The other workers' follow when Redis is back.
            return None
        if cursor.number and name not in found and not local:
            worker = worker_of(name)
            if worker == shared.worker.name or await shared.workers.expired({worker}):
                # Nothing is known of this cursor: the stream goes on from now.
                own = self._queue.runs.get(GET_STREAM_KEY) or shared.writer.begin(self._queue, GET_STREAM_KEY, None)
                delivery.cursor = Cursor(shared.clock.now(), own.name, found | {own.name: own.last})
                return Miss.UNKNOWN
        await self._advance_standalone(delivery, found)
        return None

    async def _advance(self, delivery: Delivery, run: str) -> Chunk | None:
        """Deliver the events of a request's run; the response may have been delivered, or stand in `requests`."""
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
        """Deliver the events of the standalone stream's runs: those that Redis names, or that are given."""
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
        """A cursor for a client that opens the standalone stream without one.

        The session's first one reads from the session's start: earlier messages had no reader. A later one
        reads from now. While Redis is unreachable, this process knows only the openings that it served.
        """
        shared, queue = self._shared, self._queue
        own = queue.runs.get(GET_STREAM_KEY)
        if own is None:
            own = shared.writer.begin(queue, GET_STREAM_KEY, None)
        first, queue.opened = not queue.opened, True
        positions = {own.name: own.last}
        with suppress(StoreError), anyio.move_on_after(shared.breaker.call_timeout):
            if first and not shared.breaker.unreachable:
                script, keys, arguments = _open_standalone, [self._keys.session], [shared.ttl or 0]
                first = await call(
                    "write to", shared.redis, shared.breaker, partial(script, shared.redis, keys, arguments)
                )
            if not first:
                _, found = await shared.reader.standalone_runs(self._keys)
                positions = found | positions
        if first:
            positions = {own.name: 0}
        return Cursor(shared.clock.now(), own.name, positions).event_id()

    async def follow(self, stream_id: StreamId, after: EventId, send: EventCallback, *, limit: float) -> FollowResult:
        """Deliver the events that any process stores on a stream from now on, until its response or the limit.

        Args:
            stream_id: The stream.
            after: The event up to which it has been read: `ReplayResult.last_event_id`.
            send: Awaited with each event, in order. What it raises ends the following, and is passed on.
            limit: Seconds to follow at most.

        Returns:
            What was delivered, and why it ended. A read that failed is counted, and tried again.
        """
        cursor = parse(after)
        if cursor is None:
            return FollowResult(last_event_id=after, end=FollowEnd.TIMEOUT)
        standalone = stream_id == GET_STREAM_KEY
        delivery = Delivery(stream_id, cursor, send, standalone=standalone)
        following = _Following(limit)
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
            corrupt=tuple(delivery.corrupt),
            failures=following.failures,
            orphaned=following.orphaned,
        )

    async def _follow_run(self, delivery: Delivery, following: "_Following") -> None:
        shared, name = self._shared, delivery.cursor.run
        watch = Watch(self._keys, delivery, name)
        local = shared.reader.local(self._keys, delivery.stream, name)
        if local is not None and not local.refused:
            # In memory: Redis may be unreachable, and is not needed.
            local.watchers.add(watch.wake)
            try:
                await self._follow_local(delivery, watch, local, following)
            finally:
                local.watchers.discard(watch.wake)
            if delivery.completed or following.over:
                return
        with shared.followers.watching(watch, delivery.stream):
            while True:
                read = not shared.breaker.unreachable and await self._tried(
                    self._advance_or_answer(delivery, watch, name, following), following
                )
                if delivery.completed or following.over or following.gone:
                    return
                await watch.wait(following.remaining if read else min(following.remaining, POLL_SECONDS))

    async def _advance_or_answer(self, delivery: Delivery, watch: Watch, name: str, following: "_Following") -> None:
        await self._advance(delivery, name)
        if watch.orphaned and not delivery.completed:
            watch.orphaned = False
            await self._answer(delivery, name, following)

    async def _tried(self, reading: Awaitable[object], following: "_Following") -> bool:
        """Whether a read succeeded. A failure is counted, and tried again: the client is still there."""
        try:
            await reading
        except StoreError:
            following.failures += 1
            return False
        return True

    async def _follow_local(self, delivery: Delivery, watch: Watch, run: Run, following: "_Following") -> None:
        """Follow a run of this process, until it ends, or is answered elsewhere."""
        while not run.refused:
            read = await self._tried(self._advance(delivery, run.name), following)
            if delivery.completed or following.over:
                return
            await watch.wait(following.remaining if read else min(following.remaining, POLL_SECONDS))

    async def _follow_standalone(self, delivery: Delivery, following: "_Following") -> None:
        shared, queue = self._shared, self._queue
        watch = Watch(self._keys, delivery, None)
        own = queue.runs.get(GET_STREAM_KEY) or shared.writer.begin(queue, GET_STREAM_KEY, None)
        own.watchers.add(watch.wake)
        try:
            with shared.followers.watching(watch, delivery.stream):
                while True:
                    if own.next_is_here(delivery.cursor.positions.get(own.name, 0)):
                        await shared.reader.advance(self._keys, delivery, own.name)
                    unreachable = shared.breaker.unreachable
                    read = not unreachable and await self._tried(self._advance_standalone(delivery), following)
                    if following.over:
                        return
                    await watch.wait(following.remaining if read else min(following.remaining, POLL_SECONDS))
        finally:
            own.watchers.discard(watch.wake)

    async def _answer(self, delivery: Delivery, name: str, following: "_Following") -> None:
        """Answer a request in place of its worker, which is dead."""
        shared, keys = self._shared, self._keys
        entry = await shared.reader.call(lambda: self._entry(name))
        if entry is None:
            following.gone = True  # Nothing is stored for it: the cursor may be invented.
            return
        if run_entry.is_open(entry):
            error = codec.encode(orphaned(request_id_of(entry)))
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


class _Following:
    """The state of following one stream, beside its delivery."""

    def __init__(self, limit: float) -> None:
        self._until = time.monotonic() + limit
        self.failures = 0
        self.orphaned = False
        self.gone = False

    @property
    def remaining(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def over(self) -> bool:
        return self.remaining <= 0

    def end(self, *, completed: bool) -> FollowEnd:
        if completed:
            return FollowEnd.COMPLETED
        return FollowEnd.WORKER_LOST if self.gone else FollowEnd.TIMEOUT
