"""The session manager checks the SDK, and gives each session its own view."""

from collections.abc import Callable

import anyio.lowlevel
import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import JSONRPCError, JSONRPCNotification
from prometheus_client import CollectorRegistry

from mcp_eventscope import (
    IncompatibleSDKError,
    InstrumentedEventStore,
    RedisEventStore,
    ResumableSessionManager,
)
from mcp_eventscope.sessions.handshake import handshake_of
from mcp_eventscope.sessions.registry import SessionRegistry
from mcp_eventscope.sessions.transport import ResumableTransport
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store.coordination import MessageKind, SessionRecord, WorkerMessage
from mcp_eventscope.store.messages import EventMessage
from support.waiting import until


def manager(**settings: object) -> ResumableSessionManager:
    """A manager with a store."""
    store = InstrumentedEventStore(RedisEventStore(FakeAsyncRedis(), ttl=60), registry=CollectorRegistry())
    server = MCPServer("s")
    server.streamable_http_app()
    return ResumableSessionManager(server.session_manager.app, store, **settings)  # type: ignore[arg-type]


def renamed_admission(patch: pytest.MonkeyPatch) -> None:
    """The SDK no longer has `_admit_session`."""
    patch.delattr(StreamableHTTPSessionManager, "_admit_session")


def inlined_admission(patch: pytest.MonkeyPatch) -> None:
    """The SDK still has `_admit_session`, and does not use it."""

    async def handle(*_: object) -> None:
        """Do something else."""

    patch.setattr(StreamableHTTPSessionManager, "_handle_stateful_request", handle)


def other_arguments(patch: pytest.MonkeyPatch) -> None:
    """`_admit_session` has another parameter."""

    def admit(self: object, requestor: object, more: object) -> None:
        """Admit."""

    patch.setattr(StreamableHTTPSessionManager, "_admit_session", admit)


def store_kept_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """The transport does not keep its store in `_event_store`."""
    before = StreamableHTTPServerTransport.__init__

    def init(self: StreamableHTTPServerTransport, *args: object, **kwargs: object) -> None:
        before(self, *args, **kwargs)  # type: ignore[arg-type]
        self.__dict__["_store"] = self.__dict__.pop("_event_store")
        self._event_store = None

    patch.setattr(StreamableHTTPServerTransport, "__init__", init)


def session_discarded_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """The SDK no longer discards sessions through `_discard_session`."""

    async def serve(*_: object) -> None:
        """Do something else."""

    patch.setattr(StreamableHTTPSessionManager, "_serve_opening_request", serve)


def sessions_kept_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """The SDK keeps its sessions in another attribute."""
    before = StreamableHTTPSessionManager.__init__

    def init(self: StreamableHTTPSessionManager, *args: object, **kwargs: object) -> None:
        before(self, *args, **kwargs)  # type: ignore[arg-type]
        self.__dict__["_sessions"] = self.__dict__.pop("_server_instances")

    patch.setattr(StreamableHTTPSessionManager, "__init__", init)


@pytest.mark.parametrize(
    "change",
    [
        renamed_admission,
        inlined_admission,
        other_arguments,
        store_kept_elsewhere,
        session_discarded_elsewhere,
        sessions_kept_elsewhere,
    ],
)
def test_manager_on_a_changed_sdk_refuses_to_serve(change: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Whatever changed where sessions are scoped, nothing is served, and the message names the fix."""
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        with pytest.raises(IncompatibleSDKError, match=r"Install mcp 2\.3\.0"):
            manager()
    assert manager()._server_instances == {}


@pytest.mark.anyio
async def test_manager_guard_store_refuses_every_operation() -> None:
    """A session that slipped past its view has no store at all."""
    guard = manager().event_store
    assert guard is not None
    with pytest.raises(IncompatibleSDKError):
        await guard.store_event("1", None)
    with pytest.raises(IncompatibleSDKError):
        await guard.replay_events_after("1", lambda _: pytest.fail("delivered"))


@pytest.mark.anyio
async def test_manager_gives_each_session_its_own_view() -> None:
    """The same stream id in two sessions is two streams."""
    sessions = manager()
    assert sessions._server_instances == {}, "the trial session is forgotten"
    first, second = (sessions._admit_session(None) for _ in range(2))
    assert first is not None
    assert second is not None
    assert isinstance(first._event_store, SessionView)
    assert isinstance(second._event_store, SessionView)
    note = JSONRPCNotification(jsonrpc="2.0", method="secret")
    cursor = await first._event_store.store_event("1", None)
    await first._event_store.store_event("1", note)
    await second._event_store.store_event("1", note)
    seen: list[object] = []

    async def send(event: object) -> None:
        seen.append(event)

    await second._event_store.replay_events_after(cursor, send)
    (answer,) = seen
    assert isinstance(answer, EventMessage)
    assert isinstance(answer.message, JSONRPCError)


def test_manager_without_store_behaves_as_the_sdk() -> None:
    """Without a store sessions are not resumable, as in the SDK."""
    server = MCPServer("s")
    server.streamable_http_app()
    plain = ResumableSessionManager(server.session_manager.app)
    transport = plain._admit_session(None)
    assert transport is not None
    assert transport._event_store is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("follow_timeout", value) for value in (0, -1, float("nan"))),
        *(("worker_lease", value) for value in (0.5, 10**12, float("inf"), float("nan"))),
        *(("shutdown_timeout", value) for value in (-1, float("inf"), float("nan"))),
    ],
)
def test_manager_with_timeout_out_of_range_is_refused(option: str, value: float) -> None:
    """A timeout is refused that ends every resume immediately, declares live workers dead, or never ends."""
    with pytest.raises(ValueError, match=rf"{option} must be (between|at least) .* seconds, got .*; leave it out"):
        manager(**{option: value})


@pytest.mark.parametrize("option", ["follow_timeout", "worker_lease", "shutdown_timeout"])
@pytest.mark.parametrize("value", ["60", None, True])
def test_manager_with_timeout_of_another_type_is_refused(option: str, value: object) -> None:
    """A value of an environment variable is a text."""
    with pytest.raises(TypeError, match=rf"{option} must be a number of seconds, got .*; convert it with float"):
        manager(**{option: value})


@pytest.mark.anyio
async def test_manager_with_concurrent_requests_adopts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session exists for a second request only when its transport can serve it."""
    other = manager()
    handshake = handshake_of(
        b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
        b'"capabilities":{},"clientInfo":{"name":"x","version":"0"}}}'
    )
    assert handshake is not None

    async def live(*_: object, **__: object) -> SessionRecord:
        return SessionRecord("live", handshake)

    monkeypatch.setattr(SessionRegistry, "read", live)
    seen: list[ResumableTransport] = []

    async def ask(after: int) -> None:
        for _ in range(after):
            await anyio.lowlevel.checkpoint()
        assert await other._prepare("session", None, "s", "POST") is None
        transport = other._server_instances["session"]
        assert isinstance(transport, ResumableTransport)
        assert transport._read_stream_writer is not None, "it is connected"
        seen.append(transport)

    async with other.run():
        async with anyio.create_task_group() as tasks:
            for turns in range(60):
                tasks.start_soon(ask, turns)
        assert len(set(map(id, seen))) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(("sessions", "retry_interval", "least", "most"), [(1, None, 1000, 2000), (1000, 50, 50, 5050)])
async def test_manager_that_drains_spreads_reconnects(
    monkeypatch: pytest.MonkeyPatch, sessions: int, retry_interval: int | None, least: int, most: int
) -> None:
    """At most 200 clients a second return, over at least a second, and none before its usual delay."""
    draining = manager(retry_interval=retry_interval)
    served = [draining._transport_of(draining._store, str(number)) for number in range(sessions)]  # type: ignore[arg-type]
    async with draining.run():
        monkeypatch.setattr(draining, "_served", lambda: served)
        draining.drain()
        delays = [draining._reconnection_delay() for _ in range(1000)]
        monkeypatch.undo()
    assert least <= min(delays) < least + 100
    assert most - 100 < max(delays) <= most
    assert len(set(delays)) > 400


@pytest.mark.anyio
async def test_manager_drains_at_the_end_of_its_run() -> None:
    """Without a signal the drain begins when the server ends the lifespan."""
    draining = manager()
    draining.drain()
    assert not draining.draining, "it has not started"
    async with draining.run():
        assert not draining.draining
    assert draining.draining


class BrokenStepError(RuntimeError):
    """A fault that no code expects."""


def breaking(*_: object, **__: object) -> None:
    """Fail."""
    raise BrokenStepError


@pytest.mark.anyio
@pytest.mark.parametrize("task", ["renew", "claim", "drain", "deliver", "discard"])
async def test_manager_with_a_failing_background_task_serves_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    """One fault is logged; it ends neither the worker nor its sessions."""
    serving = manager()
    assert serving._store is not None
    transport = serving._transport_of(serving._store, "s")
    message = WorkerMessage(MessageKind.DELIVER, "s", '{"jsonrpc":"2.0","method":"n"}')
    match task:
        case "renew":
            monkeypatch.setattr(SessionRegistry, "due", lambda *_: True)
            monkeypatch.setattr(SessionRegistry, "renew", breaking)
        case "claim":
            monkeypatch.setattr(SessionRegistry, "claim", breaking)
        case "drain" | "deliver":
            monkeypatch.setattr(ResumableTransport, task, breaking)
            monkeypatch.setattr(SessionRegistry, "session_of", lambda *_: "s")
        case _:
            monkeypatch.setattr(SessionView, "close", breaking)
    async with serving.run():
        serving._server_instances["s"] = transport
        serving._renew_soon("s")
        serving._on_message(message)
        serving._end_locally("s")
        if task == "drain":
            serving.drain()
        await until(lambda: any(record.exc_info and record.exc_info[0] is BrokenStepError for record in caplog.records))
        assert serving.running
        assert serving._task_group is not None
        assert not serving._task_group.cancel_scope.cancel_called
        monkeypatch.undo()
        serving._server_instances.clear()
