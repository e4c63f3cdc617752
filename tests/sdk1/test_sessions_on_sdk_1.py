"""Sessions on mcp 1.30: servers of the SDK and of FastMCP on two workers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.shared.message import SessionMessage
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from mcp_eventscope import http_app
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.sessions import _sdk_1
from mcp_eventscope.store.messages import unwrapped, wrapped
from sdk1.client import CLIENT, call, cut_after, events, resume, session, step_of
from support.serving import serving_each
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio


class Answer(BaseModel):
    """What the tool `ask` asks for."""

    value: int


@dataclass
class Workers:
    """Two workers of one server, and the gate at which its tool waits."""

    first: str
    second: str
    gate: anyio.Event
    entered: list[str]


def sdk_server(_: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A server of the SDK, and the type of its tools' context. It would enter a lifespan for each session."""
    from mcp.server.fastmcp import Context, FastMCP  # noqa: PLC0415 - beside the other FastMCP

    return FastMCP("sdk1"), Context


def fastmcp_server(lifespan: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A server of FastMCP 2 or 3."""
    fastmcp = pytest.importorskip("fastmcp")
    return fastmcp.FastMCP("fastmcp", lifespan=lifespan), fastmcp.Context


@pytest.fixture(params=[sdk_server, fastmcp_server], ids=["sdk", "fastmcp"])
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[Workers]:
    """Two running workers."""
    gate, entered = anyio.Event(), []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[dict[str, str]]:
        entered.append("entered")
        yield {}

    def app_of(url: str) -> Any:
        server, context = request.param(lifespan)

        async def steps(ctx: Any) -> str:
            for number in (1, 2):
                await ctx.info(str(number))
            await gate.wait()
            for number in (3, 4):
                await ctx.info(str(number))
            return "done"

        async def ask(ctx: Any) -> str:
            answer = await ctx.elicit("value?", Answer)
            return f"got {answer.data.value}"

        for tool in (steps, ask):
            tool.__annotations__["ctx"] = context
            (server.add_tool if request.param is sdk_server else server.tool)(tool)
        return http_app(server, redis_url=url, registry=CollectorRegistry())

    valkey = EmbeddedValkey()
    async with valkey.running(), serving_each(app_of(valkey.url), app_of(valkey.url)) as (first, second):
        yield Workers(f"{first}/mcp", f"{second}/mcp", gate, entered)


async def test_client_that_resumes_on_the_other_worker_receives_all(workers: Workers) -> None:
    """Each missed event arrives once and in order while the tool runs on the first worker, then the response."""
    with in_time(30):
        async with session(workers.first) as http:
            last = await cut_after(http, workers.first, "2")
            received = await resume(http, workers.second, last, workers.gate.set)
    assert [step_of(message) for _, message in received] == ["3", "4", None]
    assert received[-1][1]["result"]["content"][0]["text"] == "done"
    assert len({event_id for event_id, _ in received}) == 3


async def test_adopted_session_asks_its_client_through_the_other_worker(workers: Workers) -> None:
    """A session is adopted initialized, with the client's capabilities. Its questions have ids of their own."""
    with in_time(30):
        async with session(workers.first, elicitation={}) as http:
            for asking, answering, request_id in (
                (workers.second, workers.first, 7),
                (workers.first, workers.second, 8),
                (workers.second, workers.second, 9),
            ):
                assert await ask(http, asking, answering, request_id) == f"got {request_id}"


async def ask(http: httpx.AsyncClient, asking: str, answering: str, request_id: int) -> str:
    """Call the tool that asks, answer it through a worker, and return its result."""
    async with http.stream("POST", asking, json=call("ask", request_id)) as response:
        assert response.status_code == 200
        async for _, message in events(response):
            if message and message.get("method") == "elicitation/create":
                content = {"action": "accept", "content": {"value": request_id}}
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": content}
                (await http.post(answering, json=answer)).raise_for_status()
            elif message and "result" in message:
                text: str = message["result"]["content"][0]["text"]
                return text
    pytest.fail("the stream ended without a response")


async def test_session_cannot_resume_the_stream_of_another_one(workers: Workers) -> None:
    """The cursor of another session replays nothing: the client receives an error at most."""
    workers.gate.set()
    with in_time(30):
        async with session(workers.first) as one, session(workers.first) as other:
            last = await cut_after(one, workers.first, "1")
            for url in (workers.first, workers.second):
                async with other.stream("GET", url, headers={"last-event-id": last}) as response:
                    received = [message async for _, message in events(response) if message is not None]
                assert [list(each) for each in received] == [["jsonrpc", "id", "error"]]


async def test_session_that_is_deleted_on_one_worker_ends_on_both(workers: Workers) -> None:
    """The first worker answers 404 once it has received the message."""
    with in_time(30):
        async with session(workers.first) as http:
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            assert (await http.post(workers.second, json=ping)).status_code == 200
            assert (await http.delete(workers.second)).status_code == 200

            async def ended() -> bool:
                return bool((await http.post(workers.first, json=ping)).status_code == 404)

            await until(ended)


async def test_endpoints_are_served_and_the_lifespan_is_entered(
    workers: Workers, request: pytest.FixtureRequest
) -> None:
    """Each worker of FastMCP enters the server's lifespan once, as FastMCP's own application does."""
    base = workers.first.removesuffix("/mcp")
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{base}/healthz")).json()["status"] == "ok"
        assert "eventscope_sessions_started_total" in (await http.get(f"{base}/metrics")).text
    assert workers.entered == (["entered"] * 2 if "fastmcp" in request.node.name.rpartition("[")[2] else [])


async def test_session_of_fastmcp_belongs_to_its_principal() -> None:
    """Another worker adopts the session for its owner only, and its authentication is kept."""
    fastmcp = pytest.importorskip("fastmcp")
    auth = pytest.importorskip("fastmcp.server.auth").StaticTokenVerifier(
        {token: {"client_id": token, "scopes": []} for token in ("owner", "other")}
    )
    valkey = EmbeddedValkey()
    apps = [
        http_app(fastmcp.FastMCP("s", auth=auth), redis_url=valkey.url, registry=CollectorRegistry()) for _ in range(2)
    ]
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    with in_time(30):
        async with (
            valkey.running(),
            serving_each(*apps) as (first, second),
            session(f"{first}/mcp", token="owner") as http,
        ):
            statuses = [
                (await http.post(f"{second}/mcp", json=ping, headers={"authorization": token})).status_code
                for token in ("", "Bearer other", "Bearer owner")
            ]
    assert statuses == [401, 404, 200]


def test_http_app_of_low_level_server_is_refused() -> None:
    """It has no HTTP application in mcp 1.x."""
    with pytest.raises(TypeError, match="use ResumableSessionManager"):
        http_app(Server("s"))


PARAMS = types.InitializeRequestParams.model_validate(
    {"protocolVersion": types.LATEST_PROTOCOL_VERSION, "capabilities": {}, "clientInfo": CLIENT}
)


class Refusing:
    """A server that refuses each handshake, or never answers it."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers

    def create_initialization_options(self) -> None:
        """Return nothing."""

    async def run(self, read_stream: Any, write_stream: Any, options: None) -> None:
        """Answer with an error."""
        opening = await read_stream.receive()
        if self._answers:
            error = types.ErrorData(code=-1, message="no")
            answer = types.JSONRPCError(jsonrpc="2.0", id=unwrapped(opening.message).id, error=error)
            await write_stream.send(SessionMessage(wrapped(answer)))
        await anyio.sleep_forever()


@pytest.mark.parametrize("answers", [True, False])
async def test_adoption_that_the_server_refuses_terminates_the_transport(
    answers: bool,  # noqa: FBT001 - a case
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session is not served, and no request waits for it."""
    monkeypatch.setattr(_sdk_1, "_HANDSHAKE_SECONDS", 5.0 if answers else 0.1)
    transport = StreamableHTTPServerTransport(mcp_session_id="s")
    with in_time(30):
        async with anyio.create_task_group() as tasks:
            await tasks.start(_sdk_1.serve_adopted, Refusing(answers=answers), transport, PARAMS, None)
            assert transport.is_terminated


def message_of(**members: Any) -> SessionMessage:
    """A message as the transport passes it."""
    wire: Any = types.JSONRPCMessage
    return SessionMessage(wire.model_validate({"jsonrpc": "2.0", **members}))


RENUMBERED: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "a request": ({"id": 3, "method": "ping"}, 100, {"id": 103, "method": "ping"}),
    "a request with progress": (
        {"id": 3, "method": "x", "params": {"_meta": {"progressToken": 3}}},
        100,
        {"id": 103, "method": "x", "params": {"_meta": {"progressToken": 103}}},
    ),
    "a cancellation": (
        {"method": "notifications/cancelled", "params": {"requestId": 3}},
        100,
        {"method": "notifications/cancelled", "params": {"requestId": 103}},
    ),
    "an answer": ({"id": 103, "result": {}}, -100, {"id": 3, "result": {}}),
    "an error": (
        {"id": 103, "error": {"code": 1, "message": ""}},
        -100,
        {"id": 3, "error": {"code": 1, "message": ""}},
    ),
    "progress": (
        {"method": "notifications/progress", "params": {"progressToken": 103, "progress": 1}},
        -100,
        {"method": "notifications/progress", "params": {"progressToken": 3, "progress": 1}},
    ),
}
KEPT: dict[str, tuple[dict[str, Any], int]] = {
    "a response of the server": ({"id": 3, "result": {}}, 100),
    "a request of the client": ({"id": 103, "method": "ping"}, -100),
    "a cancellation by the client": ({"method": "notifications/cancelled", "params": {"requestId": 103}}, -100),
    "progress of the server": (
        {"method": "notifications/progress", "params": {"progressToken": 3, "progress": 1}},
        100,
    ),
    "an answer to the other worker": ({"id": 3, "result": {}}, -100),
    "a request of a task": ({"id": "task-1", "method": "x"}, 100),
}


@pytest.mark.parametrize("name", RENUMBERED)
def test_renumbered_message_has_another_id(name: str) -> None:
    """The ids of the server's requests are shifted wherever a message names them."""
    members, by, expected = RENUMBERED[name]
    changed = _sdk_1._renumbered(message_of(**members), by)
    assert changed.message == message_of(**expected).message
    assert changed.message.model_dump(exclude_unset=True) == {"jsonrpc": "2.0", **expected}


@pytest.mark.parametrize("name", KEPT)
def test_message_of_another_numbering_is_kept(name: str) -> None:
    """The ids of the client's requests, and of other workers, are not touched."""
    members, by = KEPT[name]
    message = message_of(**members)
    assert _sdk_1._renumbered(message, by) is message
