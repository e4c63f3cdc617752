"""A session's view of the event store: ids on the wire, resumes, and following."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from math import inf

import anyio
from mcp.types import INTERNAL_ERROR

from mcp_eventscope.errors import StoreError, StoreUnavailableError, WrongTypeError
from mcp_eventscope.sessions import event_ids
from mcp_eventscope.sessions.operations import Operations
from mcp_eventscope.sessions.resume_limit import ResumeTurn
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED, events_unavailable, not_stored
from mcp_eventscope.store.messages import (
    GET_STREAM_KEY,
    EventCallback,
    EventId,
    EventMessage,
    EventStore,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    StoredEvent,
    StreamId,
    is_final,
    unwrapped,
)
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.store.results import AppendResult, FollowEnd, ReplayResult
from mcp_eventscope.telemetry.propagation import Calls

_LIVE_SECONDS = 1.0
"""Maximum seconds for which an event that could not be stored waits for a slow client."""
_POLL_SECONDS = 0.1
"""Seconds between checks of a waiting resume whether the store has recovered."""
_RETRY_SECONDS = 0.5
"""Seconds until a resume retries a failed read."""

_connecting: ContextVar["_Resume | None"] = ContextVar("connecting", default=None)
"""The resume of the current request, from the request's arrival."""
understands_priming: ContextVar[bool] = ContextVar("understands_priming", default=False)
"""Whether the client of the current request supports events without data (revisions from 2025-11-25)."""


class WireId(str):
    """An event's id on the wire, with the encoded message of the event."""

    __slots__ = ("payload",)

    payload: bytes
    """b"" if it is not known."""

    @classmethod
    def of(cls, event_id: EventId, stream: str, payload: bytes) -> "WireId":
        """Return the id of a stored event.

        Args:
            event_id: The store's id of the event.
            stream: The stream's name.
            payload: The message as JSON.
        """
        wire_id = cls(event_ids.join(event_id, stream))
        wire_id.payload = payload
        return wire_id


class Priming:
    """The message of a priming event, which has an id and no data."""

    def model_dump_json(self, **_: object) -> str:
        """Return no data."""
        return ""


class _Resume:
    """The state of one resumed stream: its callback, position and cancel scope."""

    def __init__(self, cursor: str, turn: ResumeTurn | None = None, hurry: Callable[[], None] | None = None) -> None:
        self._hurry = hurry
        self.turn = turn
        """Its place among the resumes of its principal; None: it is not limited."""
        self.scope = anyio.CancelScope()
        self.began_at = anyio.current_time()
        event_id, self.name = event_ids.split(cursor) or ("", "")
        self.began = self.cursor = event_id
        self.answered = False
        """Whether the response, or an error in its place, has been sent."""
        self.callback: EventCallback | None = None
        """Awaited with each event; None until the response has begun."""

    def end(self) -> None:
        """End the stream, even if its client does not read."""
        self.scope.cancel()
        if self._hurry is not None:
            self._hurry()

    async def _send(self, event: EventMessage) -> None:
        if self.callback is not None:
            await self.callback(event)

    async def send(self, event: EventMessage) -> None:
        """Send an event from the store."""
        if event.event_id is None:  # An answer in place of a worker: the client keeps its position.
            await self._send(event)
        else:
            payload = event.payload if isinstance(event, StoredEvent) else b""
            await self._send(EventMessage(event.message, WireId.of(event.event_id, self.name, payload)))
            self.cursor = event.event_id
        self.answered = self.answered or is_final(self.name, event.message)

    async def send_live(self, message: JSONRPCMessage) -> None:
        """Send a message that is not stored, without an id."""
        await self._send(EventMessage(message))


class SessionView(EventStore):
    """One session's view of a store.

    Args:
        store: The store of the session, which must report its own failures (`InstrumentedEventStore`).
        follow_timeout: Maximum seconds for which a resumed stream is followed; the client then reconnects by itself.
    """

    def __init__(self, store: ObservableEventStore, *, follow_timeout: float) -> None:
        self._store = store
        self._follow_timeout = follow_timeout
        self._resuming: defaultdict[str, set[_Resume]] = defaultdict(set)
        self._open: dict[StreamId, tuple[str, RequestId]] = {}
        """The requests that run here: stream name and request id, by the transport's stream id."""
        self.operations = Operations()
        """The requests that run here, for the telemetry."""
        self._asked: dict[str, StreamId] = {}
        """The questions to the client without an answer: their request ids as text, with the transport's stream ids."""
        self._opened: set[EventId] = set()
        """Cursors of standalone streams that are opened rather than resumed."""
        self._closed = False
        self._calls = Calls()
        self.sender: Callable[[], Context | None] | None = None
        """Returns the context of the sender of the message that is being stored."""
        self.fenced: Callable[[StreamId], None] | None = None
        """Called with a stream whose running request was answered in this worker's place."""
        self.ended: Callable[[], None] | None = None
        """Called when the session was ended on another worker."""
        self.rested: Callable[[], None] | None = None
        """Called when no request is running here any more, or each one awaits an answer from the client."""
        store.bind(ended=self._ended, fenced=self._fenced)

    def _ended(self) -> None:
        if self.ended is not None:
            self.ended()

    def _fenced(self, name: str) -> None:
        for stream_id, (open_name, _) in tuple(self._open.items()):
            if open_name == name:
                self._close(stream_id)
                self.operations.fail(stream_id, REQUEST_ORPHANED)
                if self.fenced is not None:
                    self.fenced(stream_id)

    @property
    def busy(self) -> bool:
        """Whether a request is running here."""
        return bool(self._open)

    @property
    def working(self) -> bool:
        """Whether a request is running here that does not await an answer from the client."""
        waiting = set(self._asked.values())
        return any(stream_id not in waiting for stream_id in self._open)

    def _close(self, stream_id: StreamId) -> tuple[str, RequestId] | None:
        """Remove a request that has ended; return its stream name and id."""
        found = self._open.pop(stream_id, None)
        for question in [question for question, asker in self._asked.items() if asker == stream_id]:
            del self._asked[question]
        if found is not None and not self._open and self.rested is not None:
            self.rested()
        return found

    # -- storing ------------------------------------------------------------------------------------------------------

    def begin(self, request_id: RequestId) -> None:
        """Open the stream of an admitted request.

        Args:
            request_id: The request id, with its JSON type.
        """
        name = event_ids.stream_name(request_id)
        self._open[str(request_id)] = name, request_id
        self._store.begin(name, request_id)

    async def abandon(self, request_id: RequestId) -> None:
        """Answer with an error an admitted request that never reached the server."""
        stream_id = str(request_id)
        if self._open.get(stream_id, ("", request_id))[1] == request_id:
            await self._give_up(stream_id)

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event of the session.

        Args:
            stream_id: The stream id of the transport: the request id as text, or that of the standalone stream.
            message: The message, or None for a priming event, which opens the stream of a request.

        Returns:
            The event's id on the wire; "" if it is not stored. The transport then sends it live, without an id.
        """
        message = unwrapped(message)
        if isinstance(message, JSONRPCRequest):
            self._asked[str(message.id)] = stream_id
            if not self.working and self.rested is not None:
                self.rested()  # Only its client keeps the session busy now.
        if stream_id == GET_STREAM_KEY:
            name = GET_STREAM_KEY
        else:
            if message is None and stream_id not in self._open:
                self.begin(stream_id)
            # The store refuses streams that are not open.
            name = self.name_of(stream_id) or event_ids.stream_name(stream_id)
        final = stream_id != GET_STREAM_KEY and is_final(stream_id, message)
        try:
            appended = await self._append(name, message, final=final)
        except Exception:  # noqa: BLE001 - reported by the store; if raised, the SDK would end the session
            if message is not None:
                await self._send_live(name, message, final=final)
            return ""
        finally:
            if final:
                self._close(stream_id)
                self.operations.answer(stream_id, message)
        if not appended.event_id or appended.refused:
            return ""
        payload = b"" if appended.pending is None else appended.pending.payload
        return WireId.of(appended.event_id, name, payload)

    async def _append(self, name: str, message: JSONRPCMessage | None, *, final: bool) -> AppendResult:
        """Store one event in the trace of its call."""
        standalone = name == GET_STREAM_KEY
        if message is None:
            if not standalone:
                self._calls.began(name)
            return await self._store.append(name, None)
        sender = None if self.sender is None else self.sender()
        token = self._calls.enter(name, sender, lasting=standalone)
        try:
            return await self._store.append(name, message)
        finally:
            self._calls.leave(token)
            if final:
                self._calls.ended(name)

    async def _send_live(self, name: str, message: JSONRPCMessage, *, final: bool) -> None:
        """Send an event that was not stored to the clients that follow its stream here.

        It raises nothing: the caller is the session's router, and a message may have no JSON form.
        """
        for resume in tuple(self._resuming.get(name, ())):
            with anyio.move_on_after(_LIVE_SECONDS), suppress(Exception):
                await resume.send_live(message)
                if final:
                    resume.scope.cancel()

    # -- resuming -----------------------------------------------------------------------------------------------------

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> None:
        """Deliver the missed events, then new events, until the response of the request.

        The SDK replays and then switches to live events. That loses the events stored in between, and never ends a
        complete stream. So this returns only when no further event is due, and the stream is then closed.

        If there is nothing to resume from, a request is answered with an error, and the standalone stream continues
        with the events that the cursor does not cover. With an empty stream the client would retry forever.

        Args:
            last_event_id: The `Last-Event-ID` (untrusted).
            send_callback: Awaited with each event, in order. Its exceptions are passed on.

        Returns:
            None: the caller closes the stream.
        """
        resume = _connecting.get()
        if resume is None:
            with self.connecting(last_event_id) as resume:
                return await self._deliver(resume, last_event_id, send_callback)
        return await self._deliver(resume, last_event_id, send_callback)

    @contextmanager
    def connecting(
        self, last_event_id: EventId, turn: ResumeTurn | None = None, hurry: Callable[[], None] | None = None
    ) -> Iterator[_Resume]:
        """Register the current request's resume, so that `stop` and `close` can end it.

        Args:
            last_event_id: The `Last-Event-ID`.
            turn: Its place among the resumes of its principal; None: it is not limited.
            hurry: Called when the stream ends: its response must not wait for a client that does not read.
        """
        resume = _Resume(last_event_id, turn, hurry)
        self._resuming[resume.name].add(resume)
        token = _connecting.set(resume)
        try:
            yield resume
        finally:
            _connecting.reset(token)
            self._resuming[resume.name].discard(resume)
            if not self._resuming[resume.name]:
                del self._resuming[resume.name]

    async def _deliver(self, resume: _Resume, last_event_id: EventId, send_callback: EventCallback) -> None:
        name = resume.name
        primes = understands_priming.get()
        if primes and name:
            await send_callback(EventMessage(Priming(), last_event_id))  # type: ignore[arg-type]
        opened = last_event_id in self._opened
        self._opened.discard(last_event_id)
        # A client that received no priming event has no cursor, and could not reconnect after the timeout.
        limit = inf if opened and not primes else self._follow_timeout
        with resume.scope:
            if self._closed:
                return
            resume.callback = send_callback
            try:
                if opened:  # Not a resume, and not counted as one.
                    await self._follow(resume, name, resume.cursor, limit)
                else:
                    await self._resume(resume, name, limit)
            except WrongTypeError:  # Reported by the store. Without an answer the client would retry forever.
                if name != GET_STREAM_KEY:
                    await resume.send_live(not_stored(_request_id(name), "the event store cannot read this stream"))
            except StoreError:
                return  # Reported by the store. The stream ends, and the client reconnects.
            finally:
                resume.callback = None

    async def _resume(self, resume: _Resume, name: str, limit: float) -> None:
        facts = await self._replayed(resume, name, anyio.current_time() + limit)
        after = facts.last_event_id
        if facts.miss is not None:
            if name != GET_STREAM_KEY:
                if name:
                    await resume.send_live(events_unavailable(_request_id(name)))
                return
            after = after or (await self._store.append(name, None)).event_id
        if facts.completed:
            await self._end(resume, name, after)
        elif after:
            await self._follow(resume, name, after, limit)

    async def _follow(self, resume: _Resume, name: str, after: EventId, limit: float) -> None:
        facts = await self._store.follow(name, after, resume.send, limit=limit)
        if facts.end is FollowEnd.WORKER_LOST:
            # The same error as a later resume receives, which finds neither the worker nor any event.
            await resume.send_live(events_unavailable(_request_id(name)))
        elif facts.end is FollowEnd.COMPLETED:
            await self._end(resume, name, facts.last_event_id)

    @staticmethod
    async def _end(resume: _Resume, name: str, last: EventId) -> None:
        """Send an error if the response was skipped because it is corrupt or missing."""
        if not resume.answered and last != resume.began:
            await resume.send_live(events_unavailable(_request_id(name)))

    async def _replayed(self, resume: _Resume, name: str, until: float) -> ReplayResult:
        """Replay once the store is reachable: a client gives up after two empty streams."""
        while True:
            while not self._store.readable(name, resume.cursor) and anyio.current_time() < until:
                if resume.turn is not None:
                    resume.turn.step_aside()
                await anyio.sleep(_POLL_SECONDS)
            try:
                return await self._replay(resume, name)
            except StoreUnavailableError:
                if anyio.current_time() >= until:
                    raise
            await anyio.sleep(_RETRY_SECONDS)

    async def _replay(self, resume: _Resume, name: str) -> ReplayResult:
        """Replay when it is the resume's turn."""
        turn = resume.turn
        if turn is None:
            return await self._store.replay(resume.cursor, resume.send, stream_id=name)
        async with turn.replaying():
            return await self._store.replay(resume.cursor, turn.paced(resume.send), stream_id=name)

    async def open_standalone(self) -> EventId:
        """Return a cursor from which the standalone stream is read.

        Returns:
            The id on the wire; "" if the store cannot wake followers.
        """
        event_id = await self._store.open_standalone()
        if not event_id:
            return ""
        cursor = event_ids.join(event_id, GET_STREAM_KEY)
        self._opened.add(cursor)
        return cursor

    def forget_opened(self, cursor: EventId) -> None:
        """Forget the cursor of a standalone stream whose request has ended."""
        self._opened.discard(cursor)

    def followed(self, name: str) -> None:
        """Store a stream's events without lingering, because a client follows it on another worker.

        Args:
            name: The stream's name.
        """
        self._store.followed(name)

    def name_of(self, stream_id: StreamId) -> str:
        """The stream's name on all workers; "" for a request that does not run here."""
        return GET_STREAM_KEY if stream_id == GET_STREAM_KEY else self._open.get(stream_id, ("", None))[0]

    def stream_of(self, name: str) -> StreamId | None:
        """The transport's stream id; None for a request that does not run here."""
        return next((stream for stream, (open_name, _) in self._open.items() if open_name == name), None)

    def asked(self, request_id: str) -> bool:
        """Whether the server asked the client here, and awaits the answer.

        Args:
            request_id: The request id of the question, as text.
        """
        return request_id in self._asked

    def concerns(self, message: JSONRPCMessage) -> bool | None:
        """Whether a client message concerns a request that runs here.

        Args:
            message: The answer to a server's request, or a notification about one of the client's own requests.

        Returns:
            True: a request here. False: a request on another worker, or an unknown one. None: no request.
        """
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            return self._asked.pop(str(message.id), None) is not None
        if not isinstance(message, JSONRPCNotification):
            return None
        params = message.params or {}
        if message.method == "notifications/cancelled":
            return str(params.get("requestId")) in self._open
        if message.method == "notifications/progress":
            return str(params.get("progressToken")) in self._asked
        return None

    # -- ending -------------------------------------------------------------------------------------------------------

    def stop(self, name: str, age: float = 0.0) -> None:
        """End the resumes of one stream, which its client may resume again.

        Args:
            name: The stream's name.
            age: Seconds since the stop was requested; resumes that began later continue.
        """
        stopped = anyio.current_time() - age
        for resume in tuple(self._resuming.get(name, ())):
            if resume.began_at <= stopped:
                resume.end()

    def close(self) -> None:
        """End all resumes when the session ends here."""
        self._closed = True
        for resumes in tuple(self._resuming.values()):
            for resume in tuple(resumes):
                resume.end()

    async def give_up(self) -> None:
        """Answer all running requests with an error, and release the session."""
        for stream_id in self.operations.running:  # First, as this task may be cancelled before all are answered.
            self._fail(stream_id)
        try:
            for stream_id in tuple(self._open):
                await self._give_up(stream_id)
        finally:
            self._store.close()

    def _fail(self, stream_id: StreamId) -> None:
        """End an operation that is not answered by its handler."""
        # A request without a stream has a JSON response, in which the SDK reports the end of the session.
        self.operations.fail(stream_id, REQUEST_ORPHANED if stream_id in self._open else INTERNAL_ERROR)

    async def _give_up(self, stream_id: StreamId) -> None:
        self._fail(stream_id)
        found = self._close(stream_id)
        if found is None:
            return  # Already answered: a `DELETE` and the end of the session's task may run concurrently.
        name, request_id = found
        with suppress(Exception):  # Reported by the store. Other workers answer when this worker's lease expires.
            await self._store.give_up(name, request_id)


def _request_id(name: str) -> RequestId:
    request_id = event_ids.request_id_of(name)
    return name if request_id is None else request_id
