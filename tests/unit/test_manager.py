"""The session manager refuses to serve on an SDK that it does not know, and gives every session its own view."""

from collections.abc import Callable

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import JSONRPCNotification
from prometheus_client import CollectorRegistry

from mcp_eventscope import (
    IncompatibleSDKError,
    InstrumentedEventStore,
    RedisEventStore,
    ResumableSessionManager,
)
from mcp_eventscope.sessions.view import SessionView


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
    """`_admit_session` wants more than it did."""

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
    """`_admit_session` does not register the session where it did."""

    def admit(self: StreamableHTTPSessionManager, _: object) -> StreamableHTTPServerTransport:
        """Admit."""
        return StreamableHTTPServerTransport("id", event_store=self.event_store)

    patch.setattr(StreamableHTTPSessionManager, "_admit_session", admit)


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
def test_a_changed_sdk_is_refused(change: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Whatever is different where sessions are scoped, nothing is served, and the message says what to do."""
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        with pytest.raises(IncompatibleSDKError, match="Install a version of mcp"):
            manager()
    assert manager()._views == {}


@pytest.mark.anyio
async def test_the_guard_stores_and_replays_nothing() -> None:
    """A session that slipped past its view has no store at all."""
    guard = manager().event_store
    assert guard is not None
    with pytest.raises(IncompatibleSDKError):
        await guard.store_event("1", None)
    with pytest.raises(IncompatibleSDKError):
        await guard.replay_events_after("1", lambda _: pytest.fail("delivered"))


@pytest.mark.anyio
async def test_sessions_have_views_of_their_own() -> None:
    """Two sessions, the same stream id: two streams."""
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
    assert seen == []


def test_without_a_store_it_is_the_sdks() -> None:
    """No store, no views: the sessions are not resumable, as in the SDK."""
    server = MCPServer("s")
    server.streamable_http_app()
    plain = ResumableSessionManager(server.session_manager.app)
    transport = plain._admit_session(None)
    assert transport is not None
    assert transport._event_store is None


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_follow_limit_is_positive(limit: float) -> None:
    """A limit that ends every resume at once is refused."""
    with pytest.raises(ValueError, match="follow_limit"):
        manager(follow_limit=limit)
