"""Two stores on the same data: one accepts events, and both are read."""

import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from mcp.server.streamable_http import EventMessage
from mcp.types import JSONRPCMessage, JSONRPCNotification, JSONRPCResponse, RequestId

from mcp_eventscope.sessions.event_ids import stream_name
from mcp_eventscope.store.events import EventsLost, StoreEvent
from mcp_eventscope.store.messages import StreamId
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.store.results import AppendResult, ReplayResult, StoreOutcome
from mcp_eventscope.testing.collected import Collected, on_the_wire
from mcp_eventscope.testing.conformance import note


class SessionRoot(Protocol):
    """The root store of one process, which creates the stores of sessions."""

    def for_session(self, session_id: str) -> ObservableEventStore:
        """Return the store of one session."""
        ...

    def observe(self, callback: Callable[[StoreEvent], None]) -> None:
        """Register a callback for background events, including lost events."""
        ...

    async def flush(self, seconds: float) -> int:
        """Store the pending events; return the number of lost events."""
        ...


OpenSessionStore: TypeAlias = Callable[[], AbstractAsyncContextManager[SessionRoot]]
"""Opens another store on the same data, as another process would."""


@dataclass
class Accepted:
    """One event that a store has accepted."""

    appended: AppendResult
    message: JSONRPCMessage | None
    outcomes: list[StoreOutcome] = field(default_factory=list)
    """The reported outcomes; finally exactly one."""

    @property
    def event_id(self) -> str:
        """The id of the event."""
        return self.appended.event_id


@dataclass
class Pair:
    """Two stores on the same data: one writes, and its events are read through both."""

    writer: SessionRoot
    reader: SessionRoot
    lost: list[EventsLost] = field(default_factory=list)
    _parts: dict[tuple[str, bool], ObservableEventStore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer.observe(lambda fact: self.lost.append(fact) if isinstance(fact, EventsLost) else None)

    def part(self, session: str) -> ObservableEventStore:
        """The session's store of the writer."""
        return self._part(session, reads=False)

    def reading(self, session: str) -> ObservableEventStore:
        """The session's store of the reader."""
        return self._part(session, reads=True)

    def _part(self, session: str, *, reads: bool) -> ObservableEventStore:
        if (session, reads) not in self._parts:
            self._parts[session, reads] = (self.reader if reads else self.writer).for_session(session)
        return self._parts[session, reads]

    async def append(self, session: str, stream: StreamId, message: JSONRPCMessage | None) -> Accepted:
        """Append an event to the writing store, and record its outcome."""
        appended = await self.part(session).append(stream, message)
        accepted = Accepted(appended, message)
        if appended.pending is not None:
            appended.pending.add_done_callback(accepted.outcomes.append)
        return accepted


class Stream:
    """One request's stream in a separate session, as most tests use it."""

    def __init__(self, pair: Pair, request_id: RequestId = 1, session: str | None = None) -> None:
        self.pair = pair
        self.session = session or uuid.uuid4().hex
        self.request_id = request_id
        self.name = stream_name(request_id)
        self.accepted: list[Accepted] = []
        pair.part(self.session).begin(self.name, request_id)

    async def append(self, message: JSONRPCMessage | None) -> Accepted:
        """Append an event."""
        accepted = await self.pair.append(self.session, self.name, message)
        if accepted.event_id:
            self.accepted.append(accepted)
        return accepted

    async def append_all(self, count: int) -> list[Accepted]:
        """Append `count` notes."""
        return [await self.append(note(number)) for number in range(count)]

    async def replay(self, after: str, *, reads: bool = True) -> tuple[Collected, ReplayResult]:
        """Replay after an event, through the reading or the writing store."""
        part = self.pair.reading(self.session) if reads else self.pair.part(self.session)
        collected = Collected()
        return collected, await part.replay(after, collected, stream_id=self.name)

    async def replayed_messages(self, after: str) -> list[JSONRPCMessage]:
        """The messages that the reading store replays after an event."""
        replayed: list[JSONRPCMessage] = []

        async def collect(event: EventMessage) -> None:
            replayed.append(event.message)

        facts = await self.pair.reading(self.session).replay(after, collect, stream_id=self.name)
        assert facts.completed
        return replayed


def events(accepted: Sequence[Accepted]) -> list[tuple[str, str]]:
    """Ids and texts of events as a replay delivers them, without priming events."""
    return [(one.event_id, on_the_wire(one.message)) for one in accepted if one.message is not None]


def response(request_id: RequestId = 1) -> JSONRPCResponse:
    """The response that ends a stream."""
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result={})


def secret(session: str, request_id: str) -> JSONRPCResponse:
    """A response that contains the only session and request that may receive it."""
    return JSONRPCResponse(jsonrpc="2.0", id=1, result={"session": session, "request": request_id})


def sized(size: int, fill: str = "x") -> JSONRPCNotification:
    """A notification with a payload of exactly `size` bytes."""
    empty = len(on_the_wire(JSONRPCNotification(jsonrpc="2.0", method="log", params={"text": ""})))
    return JSONRPCNotification(jsonrpc="2.0", method="log", params={"text": fill * (size - empty)})
