"""Operations of a session: each request is reported once, however it ends."""

from collections.abc import AsyncIterator
from time import monotonic

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse

from mcp_eventscope import RedisEventStore, StoreUnavailableError
from mcp_eventscope.redis.session_store import RedisSessionStore
from mcp_eventscope.sessions.operations import Operations
from mcp_eventscope.sessions.view import SessionView

pytestmark = pytest.mark.anyio

RESULT = JSONRPCResponse(jsonrpc="2.0", id=1, result={})
TOOL_ERROR = JSONRPCResponse(jsonrpc="2.0", id=1, result={"content": [], "isError": True})
ERROR = JSONRPCError(jsonrpc="2.0", id=1, error=ErrorData(code=-32602, message="invalid"))


class Reports(list[tuple[str, str]]):
    """The reported methods and error types."""

    def __call__(self, method: str, seconds: float, error_type: str) -> None:
        """Receive a report."""
        assert 5 <= seconds < 500
        self.append((method, error_type))


@pytest.fixture
def reports() -> Reports:
    """The reports of one test."""
    return Reports()


@pytest.fixture
async def view(reports: Reports) -> AsyncIterator[SessionView]:
    """The view of a session in which a tool call, with the id 1, arrived five seconds ago."""
    root = RedisEventStore(FakeAsyncRedis(), ttl=60)
    made = SessionView(root.for_session("s"), follow_timeout=1)
    made.operations.report = reports
    made.begin(1)
    begin(made)
    yield made
    await root.flush()


def begin(view: SessionView, request_id: str = "1", method: str = "tools/call") -> None:
    """Note a request that arrived five seconds ago."""
    view.operations.begin(request_id, method, monotonic() - 5)


@pytest.mark.parametrize(
    ("method", "response", "error_type"),
    [
        ("tools/call", RESULT, ""),
        ("tools/call", TOOL_ERROR, "tool_error"),
        ("tools/call", ERROR, "-32602"),
        ("prompts/get", TOOL_ERROR, ""),
    ],
    ids=["result", "tool error", "error", "field of another method"],
)
async def test_operation_with_response_is_reported_once(
    reports: Reports, method: str, response: JSONRPCMessage, error_type: str
) -> None:
    """With the error type of the response: a JSON-RPC error code, or `tool_error` of a tool."""
    operations = Operations()
    operations.report = reports
    operations.begin("1", method, monotonic() - 5)
    for _ in range(2):
        operations.answer("1", response)
    operations.answer("2", response)
    assert reports == [(method, error_type)]
    assert operations.running == ()


async def test_operation_with_messages_ends_with_the_response(view: SessionView, reports: Reports) -> None:
    """Priming events, notifications and the messages of other streams end nothing."""
    await view.store_event("1", None)
    await view.store_event("1", JSONRPCNotification(jsonrpc="2.0", method="note"))
    await view.store_event("_GET_stream", ERROR.model_copy(update={"id": None}))
    assert reports == []
    await view.store_event("1", RESULT)
    assert reports == [("tools/call", "")]


async def test_operation_whose_response_cannot_be_stored_is_reported(
    view: SessionView, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response is sent live: the handler has succeeded."""

    async def unavailable(*_: object) -> None:
        msg = "no Redis"
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(RedisSessionStore, "append", unavailable)
    await view.store_event("1", RESULT)
    assert reports == [("tools/call", "")]


async def test_operation_cancelled_while_its_response_is_stored_is_reported(
    view: SessionView, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's router is cancelled at shutdown."""
    monkeypatch.setattr(RedisSessionStore, "append", lambda *_: anyio.sleep_forever())
    with anyio.move_on_after(0.01):
        await view.store_event("1", TOOL_ERROR)
    await view.give_up()
    assert reports == [("tools/call", "tool_error")]


async def test_operation_of_an_ending_session_is_orphaned(view: SessionView, reports: Reports) -> None:
    """Its client deleted the session, it was idle, it crashed, or the worker stops."""
    await view.give_up()
    await view.store_event("1", RESULT)
    assert reports == [("tools/call", "-32010")]


async def test_operation_of_an_ending_session_is_reported_before_redis_replies(
    view: SessionView, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that ends a session lives for two seconds; all its operations are reported."""
    view.begin(2)
    begin(view, "2", "prompts/get")
    monkeypatch.setattr(RedisSessionStore, "give_up", lambda *_: anyio.sleep_forever())
    with anyio.move_on_after(0.01):
        await view.give_up()
    assert reports == [("tools/call", "-32010"), ("prompts/get", "-32010")]


async def test_operation_that_never_reached_the_server_is_orphaned(view: SessionView, reports: Reports) -> None:
    """It was admitted, and its session ended or its client disconnected in that moment."""
    await view.abandon(1)
    assert reports == [("tools/call", "-32010")]


async def test_operation_of_a_fenced_worker_is_orphaned(view: SessionView, reports: Reports) -> None:
    """Another worker has answered; the late response of this one is refused, and not counted."""
    view._fenced("1")
    await view.store_event("1", RESULT)
    assert reports == [("tools/call", "-32010")]


async def test_operation_whose_id_is_reused_is_superseded(view: SessionView, reports: Reports) -> None:
    """As the store answers it; the first response then ends the newer request."""
    begin(view, method="prompts/get")
    await view.store_event("1", RESULT)
    await view.store_event("1", RESULT)
    assert reports == [("tools/call", "-32011"), ("prompts/get", "")]


async def test_operation_without_stream_ends_with_an_internal_error(view: SessionView, reports: Reports) -> None:
    """With JSON responses the SDK answers the requests of an ending session, or of one that it cannot dispatch to."""
    begin(view, "2")
    await view.abandon(2)
    begin(view, "3")
    await view.give_up()
    assert reports == [("tools/call", "-32603"), ("tools/call", "-32010"), ("tools/call", "-32603")]


async def test_operation_without_report_is_forgotten() -> None:
    """A view without telemetry keeps nothing of requests that have ended."""
    operations = Operations()
    operations.begin("1", "ping", monotonic())
    operations.answer("1", RESULT)
    assert operations.running == ()
