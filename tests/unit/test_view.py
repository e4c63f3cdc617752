"""The session view: replay without a window, bounded following, no store failure for the SDK."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse

from mcp_eventscope import RedisEventStore, StoreUnavailableError
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.sessions.view import Priming, SessionView, understands_priming
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.store.messages import EventCallback, EventId, EventMessage, StreamId
from mcp_eventscope.store.results import AppendResult, ReplayResult
from support.waiting import until

pytestmark = pytest.mark.anyio


def note(text: str) -> JSONRPCNotification:
    """A notification."""
    return JSONRPCNotification(jsonrpc="2.0", method=text)


RESPONSE = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


class Sent:
    """The messages that a client has received."""

    def __init__(self) -> None:
        self.messages: list[JSONRPCMessage] = []
        self.ids: list[str | None] = []

    async def __call__(self, event: EventMessage) -> None:
        """Receive."""
        self.messages.append(event.message)
        self.ids.append(event.event_id)


@pytest.fixture
def client() -> FakeAsyncRedis:
    """A Redis in memory."""
    return FakeAsyncRedis()


@pytest.fixture
async def store(client: FakeAsyncRedis) -> AsyncIterator[RedisSessionStore]:
    """A session's part of a store."""
    root = RedisEventStore(client, ttl=60)
    yield root.for_session("s")
    await root.flush()


async def test_view_delivers_an_event_stored_between_replay_and_follow(
    store: RedisSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is stored after the last read of the replay, and before following begins."""
    replay = store.replay

    async def replay_then_append(
        last_event_id: EventId, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        facts = await replay(last_event_id, send, stream_id=stream_id)
        await view.store_event("1", note("in the window"))
        await view.store_event("1", RESPONSE)
        return facts

    monkeypatch.setattr(store, "replay", replay_then_append)
    view = SessionView(store, follow_timeout=5)
    cursor = await view.store_event("1", None)
    await view.store_event("1", note("before"))
    sent = Sent()
    await view.replay_events_after(cursor, sent)
    assert sent.messages == [note("before"), note("in the window"), RESPONSE]


async def test_view_on_a_silent_stream_ends_after_the_follow_timeout(store: RedisSessionStore) -> None:
    """A stream without further events is closed after the timeout."""
    view = SessionView(store, follow_timeout=0.05)
    cursor = await view.store_event("1", None)
    sent = Sent()
    with anyio.fail_after(2):
        await view.replay_events_after(cursor, sent)
    assert sent.messages == []


async def test_view_keeps_following_a_standalone_stream(store: RedisSessionStore) -> None:
    """Later messages of a standalone stream are delivered."""
    view = SessionView(store, follow_timeout=0.3)
    cursor = await view.store_event("_GET_stream", None)
    await view.store_event("_GET_stream", note("a"))
    sent = Sent()
    async with anyio.create_task_group() as group:
        group.start_soon(view.replay_events_after, cursor, sent)
        await anyio.sleep(0.01)
        await view.store_event("_GET_stream", note("b"))
    assert sent.messages == [note("a"), note("b")]


async def test_view_of_a_failing_store_raises_nothing(
    store: RedisSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that cannot be stored has no id, and a replay that cannot be read ends."""

    async def unavailable(*_: object, **__: object) -> AppendResult:
        msg = "no Redis"
        raise StoreUnavailableError(msg)

    view = SessionView(store, follow_timeout=0.2)
    cursor = await view.store_event("1", None)
    monkeypatch.setattr(store, "append", unavailable)
    monkeypatch.setattr(store, "replay", unavailable)
    assert await view.store_event("1", note("a")) == ""
    await view.replay_events_after(cursor, Sent())


async def test_view_of_a_stream_of_another_type_ends_with_an_error(
    store: RedisSessionStore, client: FakeAsyncRedis
) -> None:
    """Without the error a client would resume for ever."""
    view = SessionView(store, follow_timeout=5)
    cursor = await view.store_event("1", None)
    await view.store_event("1", note("a"))
    await store.flush(5)
    (key,) = [key async for key in client.scan_iter(match="*:stream:*")]
    await client.set(key, "not a list", ex=60)
    elsewhere = SessionView(RedisEventStore(client, ttl=60).for_session("s"), follow_timeout=5)
    sent = Sent()
    with anyio.fail_after(2):
        await elsewhere.replay_events_after(cursor, sent)
    (error,) = sent.messages
    assert isinstance(error, JSONRPCError)
    assert (error.id, error.error.code) == ("1", EVENTS_GONE)


async def lost_call(client: FakeAsyncRedis) -> tuple[str, str]:
    """A call of a live worker that Redis does not name. Returns a cursor of it, and the key of the worker's lease."""
    root = RedisEventStore(client, ttl=60)
    cursor = await SessionView(root.for_session("s"), follow_timeout=1).store_event("1", None)
    await root.flush(5)
    await client.flushall()
    lease = root.backend.keys.worker(root.backend.worker.name)
    await client.set(lease, "1", ex=60)
    return cursor, lease


async def test_view_of_a_call_that_stored_nothing_gives_one_error(
    store: RedisSessionStore, client: FakeAsyncRedis
) -> None:
    """A resume before its worker is declared dead ends with the same error as one after."""
    cursor, lease = await lost_call(client)
    store._shared.workers.lease = 1.0
    view = SessionView(store, follow_timeout=20)
    before, after = Sent(), Sent()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view.replay_events_after, cursor, before)
            await until(lambda: bool(store._shared.followers._followers))
            await client.delete(lease)
        await view.replay_events_after(cursor, after)
    (error,) = before.messages
    assert isinstance(error, JSONRPCError)
    assert error.error.code == EVENTS_GONE
    assert after.messages == before.messages


async def test_view_of_an_invented_call_of_a_live_worker_gives_one_error(
    store: RedisSessionStore, client: FakeAsyncRedis
) -> None:
    """Redis names no such request for as long as a lease: the events are gone, and no request is orphaned."""
    cursor, _ = await lost_call(client)
    store._shared.workers.lease = 0.1
    sent = Sent()
    with anyio.fail_after(20):
        await SessionView(store, follow_timeout=30).replay_events_after(cursor, sent)
    (error,) = sent.messages
    assert isinstance(error, JSONRPCError)
    assert (error.id, error.error.code) == ("1", EVENTS_GONE)
    assert await client.keys("*:requests") == []


async def test_view_stopped_before_the_first_read_ends_the_resume(store: RedisSessionStore) -> None:
    """A stop between a client's request and the first read of its stream is not missed."""
    view = SessionView(store, follow_timeout=60)
    cursor = await view.store_event("1", None)
    sent = Sent()
    with view.connecting(cursor):
        view.stop(cursor.rpartition(".")[2])
        with anyio.fail_after(2):
            await view.replay_events_after(cursor, sent)
    assert sent.messages == []
    await view.store_event("1", RESPONSE)
    await view.replay_events_after(cursor, sent)
    assert sent.messages == [RESPONSE]


async def test_view_stop_that_arrives_late_leaves_newer_resumes(store: RedisSessionStore) -> None:
    """A late stop of older connections ends no newer one."""
    view = SessionView(store, follow_timeout=60)
    cursor = await view.store_event("1", None)
    ended: list[str] = []

    async def resume(name: str) -> None:
        await view.replay_events_after(cursor, Sent())
        ended.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(resume, "older")
        await anyio.wait_all_tasks_blocked()
        stopped = anyio.current_time()
        await anyio.sleep(0.01)
        group.start_soon(resume, "newer")
        await anyio.wait_all_tasks_blocked()
        view.stop("~1", anyio.current_time() - stopped)
        await anyio.wait_all_tasks_blocked()
        assert ended == ["older"]
        view.stop("~1")


async def test_view_when_the_client_has_closed_raises_to_the_transport(store: RedisSessionStore) -> None:
    """The transport expects the exception of its own callback."""
    view = SessionView(store, follow_timeout=5)
    cursor = await view.store_event("1", None)
    await view.store_event("1", note("a"))

    async def gone(_: EventMessage) -> None:
        raise anyio.ClosedResourceError

    with pytest.raises(anyio.ClosedResourceError):
        await view.replay_events_after(cursor, gone)


async def test_view_that_is_closed_follows_nothing(store: RedisSessionStore) -> None:
    """An ended session has nothing to resume."""
    view = SessionView(store, follow_timeout=60)
    cursor = await view.store_event("1", None)
    async with anyio.create_task_group() as group:
        group.start_soon(view.replay_events_after, cursor, Sent())
        await anyio.wait_all_tasks_blocked()
        view.close()
    sent = Sent()
    await view.store_event("1", note("too late"))
    with anyio.fail_after(1):
        await view.replay_events_after(cursor, sent)
    assert sent.messages == []


@pytest.mark.parametrize("stream", ["", "1", "a.b", "ü/{}:%", "x" * 10_000, "\x00\n", "!", "1.2.3"])
async def test_view_with_hostile_request_id_has_safe_ids(
    store: RedisSessionStore, client: FakeAsyncRedis, stream: str
) -> None:
    """Ids are short visible ASCII and resume that stream only, whatever the request's id."""
    view = SessionView(store, follow_timeout=5)
    cursor = await view.store_event(stream, None)
    await view.store_event("other", None)
    await view.store_event("other", note("other"))
    await view.store_event(stream, RESPONSE)
    assert cursor.isascii()
    assert cursor.isprintable()
    assert " " not in cursor
    assert len(cursor) < 200
    sent = Sent()
    await view.replay_events_after(cursor, sent)
    assert sent.messages == [RESPONSE]
    await store.flush(1)
    keys = [key if isinstance(key, str) else key.decode() for key in await client.keys()]
    assert keys
    assert all(len(key) < 200 and key.startswith("mcp:{s}:") for key in keys)


async def test_view_resume_of_a_request_begins_with_a_priming_event(store: RedisSessionStore) -> None:
    """A client that understands it gets its cursor again, without data; another client does not."""
    view = SessionView(store, follow_timeout=5)
    cursor = await view.store_event("1", None)
    await view.store_event("1", RESPONSE)
    for understands in (True, False):
        token = understands_priming.set(understands)
        sent = Sent()
        await view.replay_events_after(cursor, sent)
        understands_priming.reset(token)
        assert [type(message) for message in sent.messages] == [Priming, JSONRPCResponse][not understands :]
        assert (sent.ids[0] == cursor) is understands


async def test_view_without_an_open_request_stores_nothing(store: RedisSessionStore) -> None:
    """Neither before a request was admitted nor after its response."""
    view = SessionView(store, follow_timeout=5)
    assert await view.store_event("1", note("before")) == ""
    view.begin(1)
    assert await view.store_event("1", RESPONSE)
    assert await view.store_event("1", note("after")) == ""
    assert not view.busy


async def test_view_abandon_of_an_admitted_request_answers_it(store: RedisSessionStore) -> None:
    """The stream ends with an error that has the request's id and JSON type."""
    view = SessionView(store, follow_timeout=5)
    view.begin("7")
    cursor = await view.store_event("7", None)
    await view.abandon(7)
    assert view.busy
    await view.abandon("7")
    sent = Sent()
    await view.replay_events_after(cursor, sent)
    (error,) = sent.messages
    assert isinstance(error, JSONRPCError)
    assert error.id == "7"


async def test_view_of_a_damaged_response_sends_an_error(store: RedisSessionStore, client: FakeAsyncRedis) -> None:
    """The stream ends, and a client that had the response already gets nothing."""
    running = SessionView(store, follow_timeout=5)
    running.begin(1)
    cursor = await running.store_event("1", None)
    last = await running.store_event("1", RESPONSE)
    await store.flush(1)
    (key,) = await client.keys("mcp:{s}:stream:*")
    await client.lset(key, 1, "2 1 f\n{")
    other = RedisEventStore(client, ttl=60)
    view = SessionView(other.for_session("s"), follow_timeout=5)
    sent = Sent()
    await view.replay_events_after(cursor, sent)
    (error,) = sent.messages
    assert isinstance(error, JSONRPCError)
    assert error.id == 1
    sent = Sent()
    await view.replay_events_after(last, sent)
    assert sent.messages == []
    await other.flush()


async def test_view_give_up_twice_concurrently_answers_each_request_once(
    store: RedisSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `DELETE` and the end of the session's task both give up running requests."""
    answered: list[StreamId] = []

    async def slow(stream_id: StreamId, request_id: int | str) -> None:
        del request_id
        answered.append(stream_id)
        await asyncio.sleep(0)

    view = SessionView(store, follow_timeout=1)
    for number in range(3):
        await view.store_event(str(number), None)
    monkeypatch.setattr(store, "give_up", slow)
    async with anyio.create_task_group() as group:
        group.start_soon(view.give_up)
        group.start_soon(view.give_up)
    assert len(answered) == len(set(answered)) == 3
