"""What the transport of one session has as its event store: ids for the wire, following, and no store failures."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from math import inf

import anyio

from mcp_eventscope.answers import events_gone
from mcp_eventscope.errors import StoreError, StoreUnavailableError
from mcp_eventscope.sessions import wire
from mcp_eventscope.telemetry.propagation import Calls
from mcp_eventscope.types import (
    GET_STREAM_KEY,
    Appended,
    EventCallback,
    EventId,
    EventMessage,
    EventStore,
    FactStore,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    Replayed,
    StreamId,
    is_final,
)

_LIVE_SECONDS = 1.0
"""How long what could not be stored waits for a client that is slow to take it, before the session goes on."""
_LOOK_SECONDS = 0.1
"""How often a resume that found the store away looks whether it is back."""
_CLOCKS_APART = 1.0
"""Seconds by which the clocks of this machine and of Redis may differ."""
_PRIMED, _UNPRIMED, _UNSTORED, _ELSE = "primed", "unprimed", "unstored", ""
"""How a standalone stream was opened: with or without a priming event on the wire, or while the store was away."""
_FAILED_SECONDS = 0.5
"""How soon it asks a store again that fails, and is not known to be away."""


class _Resume:
    """One stream that is being resumed: where it stands, how to send on it, and how to end it."""

    def __init__(self, name: str, event_id: EventId, send: EventCallback) -> None:
        self.scope = anyio.CancelScope()
        self.cursor = event_id
        self.caught_up = False
        """Whether all that is stored has been sent, and what is said now may be sent at once."""
        self._awaited: asyncio.Future[EventId] | None = None
        self._name = name
        self._send = send
        self._sent_live: set[EventId] = set()

    async def send(self, event: EventMessage) -> None:
        """Send what was read from the store, unless it was sent when it was said."""
        event_id = event.event_id or ""
        if event_id in self._sent_live:
            self._sent_live.discard(event_id)
        else:
            await self._send(EventMessage(event.message, wire.join(event_id, self._name)))
        self.cursor = event_id
        awaited = self._awaited
        if awaited is not None and awaited.done() and not awaited.cancelled() and awaited.result() == event_id:
            self.caught_up, self._awaited = True, None

    def skip(self, later: "asyncio.Future[EventId]") -> None:
        """What was said now is not sent at once, nor is what is said after it: something is to come before."""
        self.caught_up, self._awaited = False, later

    async def send_live(self, message: JSONRPCMessage, later: "asyncio.Future[EventId] | None") -> None:
        """Send what is not stored yet, without an id. `later` gets the one that it will have."""
        if later is not None:
            later.add_done_callback(self._stored)
        await self._send(EventMessage(message))

    def _stored(self, later: "asyncio.Future[EventId]") -> None:
        if not later.cancelled():
            self._sent_live.add(later.result())


class _Priming:
    """Stands for a message where a priming event is sent: an id, and no data."""

    def model_dump_json(self, **_: object) -> str:
        """No data."""
        return ""


class SessionView(EventStore):
    """One session's view of a store.

    Args:
        store: The session's part of the store. It is expected to tell its own failures (`InstrumentedEventStore`).
        follow_limit: Seconds that a resumed stream is followed at most; the client then comes back by itself.
    """

    def __init__(self, store: FactStore, *, follow_limit: float) -> None:
        self._store = store
        self._follow_limit = follow_limit
        self._resuming: defaultdict[str, set[_Resume]] = defaultdict(set)
        self._running: set[str] = set()
        self._asked: set[str] = set()
        self._opened: dict[EventId, str] = {}
        # Of each stream, the last that was stored from here: who has been sent that has been sent all.
        self._last: dict[str, EventId] = {}
        self._closed = False
        self._calls = Calls()
        self.sender: Callable[[], Context | None] | None = None
        """Tells the context of whoever sent the message that is being stored."""
        self.given_up: Callable[[StreamId], None] | None = None
        """Called with a stream whose request was given up, and answered, while it ran here."""

    @property
    def busy(self) -> bool:
        """Whether a request is running here."""
        return bool(self._running)

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store one event of the session.

        Args:
            stream_id: The stream, named after a request id of the client's.
            message: The message, or None for a priming event.

        Returns:
            Its id on the wire; "" when it could not be stored: the transport then sends it live, without an id.
        """
        name = wire.stream_name(stream_id)
        try:
            if isinstance(message, JSONRPCRequest):
                self._asked.add(str(message.id))
            if is_final(name, message):
                self._running.discard(name)
            elif name != GET_STREAM_KEY:
                self._running.add(name)
            appended = await self._append(name, message)
        except Exception:  # noqa: BLE001 - the store has told it; raised here, the SDK would end the session
            await self._send_live(stream_id, message, None)
            return ""
        if appended.event_id:
            self._last[name] = appended.event_id
        if appended.later is not None:
            appended.later.add_done_callback(partial(self._stored_late, name))
        if appended.deferred:
            await self._send_live(stream_id, message, appended.later)
        if is_final(name, message):  # Not before: it tells who has been sent all that came before the response.
            self._last.pop(name, None)
        if appended.refused and self.given_up is not None:
            self.given_up(stream_id)
        return wire.join(appended.event_id, name) if appended.event_id else ""

    async def _append(self, name: str, message: JSONRPCMessage | None) -> Appended:
        """Store one event, in the trace of the call that it belongs to."""
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
            if is_final(name, message):
                self._calls.ended(name)

    def _stored_late(self, name: str, later: "asyncio.Future[EventId]") -> None:
        if name in self._last and not later.cancelled():
            self._last[name] = later.result() or self._last[name]

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> None:
        """Deliver what the client missed, and go on with what is stored later, until the response of the request.

        The SDK's own way, to replay here and then go live, loses what is stored between the two, and never ends a
        stream that is complete; so this returns only when nothing more is owed, and the stream is then closed.

        Where there is nothing to resume from, a request is answered with an error, and the standalone stream goes on
        from now: a client that is sent an empty stream asks again for ever.

        Args:
            last_event_id: The `Last-Event-ID`, in any shape: it comes from outside.
            send_callback: Awaited with each event, in order. What it raises is passed on.

        Returns:
            None: the stream is to be closed.
        """
        event_id, name = wire.split(last_event_id) or ("", "")
        opened = self._opened.pop(last_event_id, _ELSE)
        if opened is _PRIMED:
            await send_callback(EventMessage(_Priming(), last_event_id))  # type: ignore[arg-type]
        limit = inf if opened in {_UNPRIMED, _UNSTORED} else self._follow_limit
        resume = _Resume(name, event_id, send_callback)
        with resume.scope:
            if self._closed:
                return
            self._resuming[name].add(resume)
            try:
                if opened is not _ELSE:  # Nothing was missed: it is no resume, and not to be counted as one.
                    await self._follow(resume, name, event_id, limit)
                else:
                    await self._resume(resume, name, limit, send_callback)
            except StoreError:
                return  # Told by the store. The stream ends, and the client asks again.
            finally:
                self._resuming[name].discard(resume)
                if not self._resuming[name]:
                    del self._resuming[name]

    async def _resume(self, resume: _Resume, name: str, limit: float, send_callback: EventCallback) -> None:
        facts = await self._replayed(resume, name, anyio.current_time() + limit)
        after = facts.last_event_id
        if facts.miss is not None:
            if name != GET_STREAM_KEY:
                if name:
                    await send_callback(EventMessage(events_gone(name)))
                return
            after = (await self._store.append(name, None)).event_id
        if after and not facts.completed:
            await self._follow(resume, name, after, limit)

    async def _follow(self, resume: _Resume, name: str, after: EventId, limit: float) -> None:
        resume.caught_up = True
        await self._store.follow(name, after, resume.send, limit=limit)

    async def _replayed(self, resume: _Resume, name: str, until: float) -> Replayed:
        """Replay; while the store is away, wait for it: a client that is sent an empty stream twice gives up."""
        while True:
            while (  # noqa: ASYNC110 - many may wait; the store tells its one writer, and not each of them
                (away := self._store.waiting.away) and away.unreachable and anyio.current_time() < until
            ):
                await anyio.sleep(_LOOK_SECONDS)
            try:
                return await self._store.replay(resume.cursor, resume.send, stream_id=name)
            except StoreUnavailableError:
                if anyio.current_time() >= until:
                    raise
            await anyio.sleep(_FAILED_SECONDS)

    async def open_standalone(self, *, primed: bool) -> EventId:
        """A cursor from which the standalone stream is read from now on.

        Args:
            primed: Whether the client understands a priming event (revisions from 2025-11-25). Without one it has no
                cursor until it is sent a message, so its stream is not closed for having been followed for long.

        Returns:
            The id on the wire; "" when a follower would not be woken.
        """
        if not self._store.shared:
            return ""
        cursor = await self.store_event(GET_STREAM_KEY, None)
        if cursor:
            self._opened[cursor] = _PRIMED if primed else _UNPRIMED
        else:
            # The store is away. What is stored when it is back comes after now, whoever says it: ids are clocks.
            last, now = int(self._last.get(GET_STREAM_KEY, 0)), round((time.time() - _CLOCKS_APART) * 1_000_000)
            cursor = wire.join(str(max(last, now)), GET_STREAM_KEY)
            self._opened[cursor] = _UNSTORED
        return cursor

    def concerns(self, message: JSONRPCMessage) -> bool | None:
        """Whether what the client sent is about something that runs here.

        Args:
            message: Sent by the client: the answer to a request that a server sent it, or a notification about one of
                its own requests.

        Returns:
            True: it is, here. False: it is, on another worker, or nowhere. None: it is about nothing of the kind.
        """
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            asked = str(message.id) in self._asked
            self._asked.discard(str(message.id))
            return asked
        if not isinstance(message, JSONRPCNotification):
            return None
        params = message.params or {}
        if message.method == "notifications/cancelled":
            return wire.stream_name(str(params.get("requestId"))) in self._running
        if message.method == "notifications/progress":
            return str(params.get("progressToken")) in self._asked
        return None

    def stop(self, stream: StreamId) -> None:
        """End what is being resumed of one stream; the client comes back for the rest.

        Args:
            stream: The stream, as the transport names it.
        """
        for resume in tuple(self._resuming.get(wire.stream_name(stream), ())):
            resume.scope.cancel()

    def close(self) -> None:
        """End what is being resumed: the session is over here."""
        self._closed = True
        for resumes in tuple(self._resuming.values()):
            for resume in tuple(resumes):
                resume.scope.cancel()

    async def _send_live(
        self, stream: StreamId, message: JSONRPCMessage | None, later: "asyncio.Future[EventId] | None"
    ) -> None:
        """Send what is not stored to those who follow the stream here: it comes out of the store late, or never."""
        if message is None:
            return
        name = wire.stream_name(stream)
        for resume in tuple(self._resuming.get(name, ())):
            if later is not None and not (resume.caught_up and self._last.get(name, resume.cursor) == resume.cursor):
                resume.skip(later)  # It will come out of the store, after what was said before it.
                continue
            with anyio.move_on_after(_LIVE_SECONDS), suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await resume.send_live(message, later)
                if is_final(name, message):
                    resume.scope.cancel()

    async def claim(self) -> None:
        """Say again which requests are running here.

        Raises:
            StoreError: Redis is still away.
        """
        await self._store.claim(tuple(self._running))

    async def give_up(self) -> None:
        """Answer the requests that are running here, and will not end, with an error."""
        running, self._running = self._running, set()
        for name in running:
            try:
                await self._store.give_up(name)
            except Exception:  # noqa: BLE001 - the lease of this worker tells it, a little later
                return
