"""The tests of session isolation, through the views that a session manager creates."""

import uuid
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.server.streamable_http import EventStore
from mcp.types import JSONRPCResponse

from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.testing.collected import Collected, on_the_wire, replay
from mcp_eventscope.testing.strategies import session_ids, stream_ids

FOLLOW_LIMIT = 0.01
"""Seconds for which a view follows a stream without a response."""

HOSTILE = (
    ("1", "1"),
    ("1", "1:1"),
    ("1:1", "1"),
    ("1", "1:1:x"),
    ("1:1:1", "x"),
    ("11", "1"),
    ("1", "11"),
    ("1:", "1"),
    ("{1}", "1"),
    ("}1{", "1"),
    ("1}:stream:1", "1"),
    ("1%7D", "1"),
    ("1", "1.1"),
    ("1.1", "1"),
    ("1", "%31"),
    ("%31", "1"),
    ("a/b", "1"),
    ("a%2Fb", "1"),
    ("*", "*"),
    ("1", "_GET_stream"),
    ("_GET_stream", "1"),
    ("1", ""),
    ("1", "!"),
    ("1", "\u00e9"),
    ("1", "e\u0301"),
    ("1", "\0"),
    ("1", "\n"),
    ("1", "x" * 1000),
    ("1", "x" * 1001),
    ("x" * 1000, "1"),
)
"""Sessions and streams whose naively joined names collide."""

few_examples = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)


class SessionConformance:
    """No session receives the events of another, whatever the names of sessions and streams."""

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.anyio

    async def test_sessions_with_hostile_names(self, store: EventStore) -> None:
        """Each stream replays its own response, and nothing with the ids of other streams."""
        base = uuid.uuid4().hex
        views = {session: view_of(store, base + session) for session, _ in HOSTILE}
        cursors = {}
        for session, stream in HOSTILE:
            cursors[session, stream] = await views[session].store_event(stream, None)
        for session, stream in HOSTILE:
            await views[session].store_event(stream, secret(session, stream))
        for (session, stream), cursor in cursors.items():
            assert (await replay(views[session], cursor)).data == [on_the_wire(secret(session, stream))]
        for (session, stream), cursor in cursors.items():
            for other, view in views.items():
                if other != session:
                    assert stored(await replay(view, cursor)) == [], (session, stream, other)

    @few_examples
    @given(st.lists(st.tuples(session_ids(), stream_ids()), min_size=2, max_size=4, unique=True))
    async def test_sessions_of_any_names(self, store: EventStore, names: list[tuple[str, str]]) -> None:
        """As with hostile names, for any names."""
        base = uuid.uuid4().hex
        views = {session: view_of(store, base + session) for session, _ in names}
        cursors = [await views[session].store_event(stream, None) for session, stream in names]
        for session, stream in names:
            await views[session].store_event(stream, secret(session, stream))
        for (session, stream), cursor in zip(names, cursors, strict=True):
            for other, view in views.items():
                owed = [on_the_wire(secret(session, stream))] if other == session else []
                assert stored(await replay(view, cursor)) == owed

    async def test_sessions_that_number_their_requests_alike(self, store: EventStore) -> None:
        """Two clients that both number requests from 0 each receive their own answers."""
        base = uuid.uuid4().hex
        views = [view_of(store, f"{base}-{number}") for number in range(2)]
        cursors = [[await view.store_event(str(request), None) for request in range(3)] for view in views]
        for request in range(3):
            for number, view in enumerate(views):
                await view.store_event(str(request), secret(str(number), str(request)))
        for number, view in enumerate(views):
            for request in range(3):
                replayed = await replay(view, cursors[number][request])
                assert replayed.data == [on_the_wire(secret(str(number), str(request)))]

    async def test_session_is_not_read_by_ids_of_the_store(self, store: EventStore) -> None:
        """The store's own ids and tampered ids replay nothing through a view."""
        base = uuid.uuid4().hex
        mine, other = view_of(store, f"{base}1"), view_of(store, f"{base}2")
        cursor = await other.store_event("1", None)
        await other.store_event("1", secret("2", "1"))
        own = await mine.store_event("1", None)
        event_id, _, stream = cursor.partition(".")
        for tampered in (
            event_id,
            f"{event_id}.",
            f"{event_id}.{stream}.",
            f".{stream}",
            f"{event_id}.2:{stream}",
            f"{event_id}.{len(base) + 1}:{base}2:1",
            f"{event_id}.*",
            f"{event_id}.%31",
            f"{cursor}\n",
            cursor * 100,
            f"{own.partition('.')[0]}.2",
        ):
            for view in (mine, other):
                assert stored(await replay(view, tampered)) == [], tampered


def view_of(store: EventStore, session_id: str) -> SessionView:
    """A session's view of a store, as the session manager creates it."""
    decorated = store if isinstance(store, InstrumentedEventStore) else InstrumentedEventStore(store, registry=None)
    return SessionView(decorated.for_session(session_id), follow_timeout=FOLLOW_LIMIT)


def stored(collected: Collected) -> list[str]:
    """The replayed stored messages. The error for a failed resume has no event id."""
    return [data for event_id, data in zip(collected.ids, collected.data, strict=True) if event_id]


def secret(session: str, stream: str) -> JSONRPCResponse:
    """A response that contains the only session and stream that may receive it."""
    return JSONRPCResponse(jsonrpc="2.0", id=1, result={"session": session, "stream": stream})
