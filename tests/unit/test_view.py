"""The session view: no window between replay and live, bounded following, no store failure for the SDK."""

import asyncio

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import JSONRPCMessage, JSONRPCNotification, JSONRPCResponse

from mcp_eventscope import RedisEventStore, StoreUnavailableError
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.types import Appended, EventCallback, EventId, EventMessage, Replayed, StreamId

pytestmark = pytest.mark.anyio


def note(text: str) -> JSONRPCNotification:
    """A notification."""
    return JSONRPCNotification(jsonrpc="2.0", method=text)


RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


class Sent:
    """What a client was sent."""

    def __init__(self) -> None:
        self.messages: list[JSONRPCMessage] = []
        self.ids: list[str | None] = []

    async def __call__(self, event: EventMessage) -> None:
        """Receive."""
        self.messages.append(event.message)
        self.ids.append(event.event_id)


@pytest.fixture
def store() -> RedisEventStore:
    """A session's part of a store."""
    return RedisEventStore(FakeAsyncRedis(), ttl=60).for_session("s")


async def test_event_in_the_window(store: RedisEventStore) -> None:
    """What is stored after the replay has read its last, and before anybody listens, is delivered."""

    class Window(RedisEventStore):
        async def replay(
            self, last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
        ) -> Replayed:
            facts = await super().replay(last_event_id, send, stream_id=stream_id)
            await store.append("1", note("in the window"))
            await store.append("1", RESPONSE)
            return facts

    window = Window(store._redis, ttl=60).for_session("s")
    view = SessionView(window, follow_limit=5)
    cursor = await view.store_event("1", None)
    await view.store_event("1", note("before"))
    sent = Sent()
    await view.replay_events_after(cursor, sent)
    assert sent.messages == [note("before"), note("in the window"), RESPONSE]


async def test_follow_limit(store: RedisEventStore) -> None:
    """A stream on which nothing more is said is closed after the limit."""
    view = SessionView(store, follow_limit=0.05)
    cursor = await view.store_event("1", None)
    sent = Sent()
    with anyio.fail_after(2):
        await view.replay_events_after(cursor, sent)
    assert sent.messages == []


async def test_standalone_stream_never_ends_by_itself(store: RedisEventStore) -> None:
    """A response-shaped message on the standalone stream does not end it; what comes later is delivered."""
    view = SessionView(store, follow_limit=0.3)
    cursor = await view.store_event("_GET_stream", None)
    await view.store_event("_GET_stream", note("a"))
    sent = Sent()
    async with anyio.create_task_group() as group:
        group.start_soon(view.replay_events_after, cursor, sent)
        await anyio.sleep(0.01)
        await view.store_event("_GET_stream", note("b"))
    assert sent.messages == [note("a"), note("b")]


async def test_failing_store(store: RedisEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that cannot be stored has no id; a replay that cannot be read ends; nothing is raised."""

    async def unavailable(*_: object, **__: object) -> Appended:
        msg = "no Redis"
        raise StoreUnavailableError(msg)

    view = SessionView(store, follow_limit=0.2)
    cursor = await view.store_event("1", None)
    monkeypatch.setattr(RedisEventStore, "append", unavailable)
    monkeypatch.setattr(RedisEventStore, "replay", unavailable)
    assert await view.store_event("1", note("a")) == ""
    await view.replay_events_after(cursor, Sent())


async def test_closed_callback_is_passed_on(store: RedisEventStore) -> None:
    """What the transport raises when its client is gone reaches the transport, which expects it."""
    view = SessionView(store, follow_limit=5)
    cursor = await view.store_event("1", None)
    await view.store_event("1", note("a"))

    async def gone(_: EventMessage) -> None:
        raise anyio.ClosedResourceError

    with pytest.raises(anyio.ClosedResourceError):
        await view.replay_events_after(cursor, gone)


async def test_closed_view_follows_nothing(store: RedisEventStore) -> None:
    """A session that is over has nothing to resume."""
    view = SessionView(store, follow_limit=60)
    cursor = await view.store_event("1", None)
    async with anyio.create_task_group() as group:
        group.start_soon(view.replay_events_after, cursor, Sent())
        await anyio.wait_all_tasks_blocked()
        view.close()
    sent = Sent()
    await store.append("1", note("too late"))
    with anyio.fail_after(1):
        await view.replay_events_after(cursor, sent)
    assert sent.messages == []


@pytest.mark.parametrize("stream", ["", "1", "a.b", "ü/{}:%", "x" * 10_000, "\x00\n", "!", "1.2.3"])
async def test_hostile_request_ids(store: RedisEventStore, stream: str) -> None:
    """Whatever a client calls its request, ids are short, visible ASCII, and resume that stream only."""
    view = SessionView(store, follow_limit=5)
    cursor = await view.store_event(stream, None)
    await view.store_event("other", note("other"))
    await view.store_event(stream, RESPONSE)
    assert cursor.isascii()
    assert cursor.isprintable()
    assert " " not in cursor
    assert len(cursor) < 200
    sent = Sent()
    await view.replay_events_after(cursor, sent)
    assert sent.messages == [RESPONSE]
    keys = [key if isinstance(key, str) else key.decode() for key in await store._redis.keys()]
    assert all(len(key) < 200 and key.startswith("mcp:{s}:") for key in keys)


async def test_response_does_not_overtake(store: RedisEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that is deferred waits for what was stored before it and a follower has not been sent yet."""
    view = SessionView(store, follow_limit=60)
    cursor = await view.store_event("1", None)
    sent = Sent()
    async with anyio.create_task_group() as group:
        group.start_soon(view.replay_events_after, cursor, sent)
        await anyio.wait_all_tasks_blocked()
        # Stored, and not read: Redis went away at that moment.
        view._last["1"] = "9" * 16

        async def deferred(*_: object, **__: object) -> Appended:
            return Appended("", 1, deferred=True, later=asyncio.get_running_loop().create_future())

        monkeypatch.setattr(RedisEventStore, "append", deferred)
        assert await view.store_event("1", RESPONSE) == ""
        assert sent.messages == []
        assert view._last == {}
        (resume,) = view._resuming["1"]
        assert not resume.scope.cancel_called
        group.cancel_scope.cancel()
