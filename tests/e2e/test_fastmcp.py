"""A FastMCP server keeps its features, and its clients resume on any worker."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest
from fastmcp import Context, FastMCP
from fastmcp.server.auth import StaticTokenVerifier
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_eventscope import IncompatibleSDKError, http_app
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.http_client import Connect, HTTPClient, events
from support.processes import LEASE
from support.serving import serving, serving_each
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

TOKEN = "for-a-test"


@dataclass
class Steps:
    """A FastMCP server with a tool whose steps a test allows, and with each feature that has to be kept."""

    steps: dict[str, anyio.Event] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = {name: anyio.Event() for name in ("first", "second")}

        @asynccontextmanager
        async def lifespan(_: FastMCP[Any]) -> AsyncIterator[dict[str, str]]:
            self.started.append("started")
            yield {"greeting": "hello"}
            self.started.append("ended")

        self.mcp: FastMCP[Any] = FastMCP("steps", lifespan=lifespan, **self.options)

        @self.mcp.tool  # type: ignore[untyped-decorator]
        async def steps(ctx: Context) -> str:
            for number, (name, allowed) in enumerate(self.steps.items(), 1):
                await allowed.wait()
                await ctx.report_progress(number, 2, name)
            return f"{ctx.lifespan_context['greeting']}: done"

        mounted: FastMCP[Any] = FastMCP("mounted")

        @mounted.tool  # type: ignore[untyped-decorator]
        async def echo(text: str) -> str:
            return text

        self.mcp.mount(mounted, "inner")

        @self.mcp.custom_route("/version", methods=["GET"])  # type: ignore[untyped-decorator]
        async def version(_: Request) -> PlainTextResponse:
            return PlainTextResponse("1")


class Named:
    """A middleware that names itself in each response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add a header."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-named", b"yes")]
            await send(message)

        await self._app(scope, receive, named)


@dataclass
class Worker:
    """One worker."""

    server: Steps
    url: str


@pytest.fixture
async def workers(valkey_url: str) -> AsyncIterator[list[Worker]]:
    """Two workers on one Valkey, with authentication and a middleware."""
    verifier = StaticTokenVerifier({TOKEN: {"client_id": "c", "scopes": []}})
    servers = Steps(options={"auth": verifier}), Steps(options={"auth": verifier})
    async with serving_each(
        *(
            http_app(
                each.mcp,
                redis_url=valkey_url,
                registry=CollectorRegistry(),
                worker_lease=LEASE,
                middleware=[Middleware(Named)],
            )
            for each in servers
        )
    ) as urls:
        yield list(map(Worker, servers, urls))


@pytest.fixture
async def pair(workers: list[Worker], connect: Connect) -> tuple[HTTPClient, HTTPClient]:
    """One client with one session, as it speaks to the first worker and to the second."""
    first = connect(workers[0].url, authorization=f"Bearer {TOKEN}")
    await first.initialize()
    return first, replace(first, url=f"{workers[1].url}/mcp")


async def test_fastmcp_cut_call_resumes_on_another_worker(
    workers: list[Worker], pair: tuple[HTTPClient, HTTPClient]
) -> None:
    """The tool runs on one worker; the client receives the rest, once and in order, from the other."""
    on_a, on_b = pair
    server = workers[0].server
    async with on_a.call(1, "steps") as response:
        stream = events(response)
        cursor = (await anext(stream)).id
        server.steps["first"].set()
        first = await anext(stream)
        assert first.message["params"]["message"] == "first"
        cursor = first.id
    server.steps["second"].set()
    with anyio.fail_after(CEILING):
        rest = await on_b.resume(cursor)
    assert rest[0].message["params"]["message"] == "second"
    assert rest[-1].message["result"]["content"][0]["text"] == "hello: done"
    assert len(rest) == 2


async def test_fastmcp_features_are_kept_on_both_workers(
    workers: list[Worker], pair: tuple[HTTPClient, HTTPClient], connect: Connect
) -> None:
    """Authentication, custom routes, middleware, the lifespan and mounted servers work on both workers."""
    for worker, client in zip(workers, pair, strict=True):
        assert worker.server.started == ["started"]
        async with client.call(7, "inner_echo", text="x") as response:
            assert response.headers["x-named"] == "yes"
            answer = [event async for event in events(response)][-1]
        assert answer.message["result"]["content"][0]["text"] == "x"
        assert (await client.http.get(f"{worker.url}/version")).text == "1"
        assert (await client.http.get(f"{worker.url}/healthz")).json()["status"] == "ok"
        assert "eventscope_" in (await client.http.get(f"{worker.url}/metrics")).text
        intruder = connect(worker.url)
        async with intruder.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
            assert response.status_code == 401


async def test_fastmcp_worker_that_shuts_down_answers_its_calls(valkey_url: str, connect: Connect) -> None:
    """A call is answered with an error when its worker is stopped, and the server's lifespan ends."""
    first, second = Steps(), Steps()
    async with serving(http_app(second.mcp, redis_url=valkey_url, registry=CollectorRegistry())) as other:
        app = http_app(first.mcp, redis_url=valkey_url, registry=CollectorRegistry())
        async with serving(app) as url:
            client = connect(url)
            await client.initialize()
            async with client.call(1, "steps") as response:
                cursor = (await anext(events(response))).id
        assert first.started == ["started", "ended"]
        elsewhere = replace(client, url=f"{other}/mcp")
        with anyio.fail_after(CEILING):
            (error,) = await elsewhere.resume(cursor)
    assert error.message["error"]["code"] == REQUEST_ORPHANED


async def test_http_app_with_fastmcps_inner_server_is_refused() -> None:
    """The low-level server inside of a FastMCP has none of its authentication."""
    mcp: FastMCP[Any] = FastMCP("s", auth=StaticTokenVerifier({}))
    with pytest.raises(TypeError, match="pass the FastMCP server itself"):
        http_app(mcp._mcp_server, redis_url="redis://127.0.0.1:1")


async def test_http_app_with_fastmcps_sse_transport_is_refused() -> None:
    """The old SSE transport has no event store."""
    with pytest.raises(ValueError, match="transport must be \"http\", got 'sse'"):
        http_app(FastMCP("s"), redis_url="redis://127.0.0.1:1", transport="sse")


async def test_http_app_with_fastmcp_of_another_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FastMCP that keeps its session manager in another place is refused, with its version."""

    class Moved:
        def __init__(self, _: object) -> None:
            self.manager = None

    monkeypatch.setattr(sys.modules["fastmcp.server.http"], "StreamableHTTPASGIApp", Moved)
    with pytest.raises(IncompatibleSDKError, match=r"fastmcp 4\.\d.* session manager was not found; install fastmcp"):
        http_app(FastMCP("s"), redis_url="redis://127.0.0.1:1")


async def test_http_app_passes_fastmcps_settings_to_the_manager(valkey_url: str) -> None:
    """FastMCP's own keywords mean the same as in `FastMCP.http_app()`."""
    mcp: FastMCP[Any] = FastMCP("s")
    app = http_app(
        mcp,
        redis_url=valkey_url,
        registry=CollectorRegistry(),
        path="/tools",
        retry_interval=250,
        session_idle_timeout=77,
    )
    async with serving(app):
        route = next(each for each in app.routes if getattr(each, "path", "") == "/tools")
        manager = route.endpoint.session_manager  # type: ignore[attr-defined]
        await until(lambda: manager.running)
        assert (manager.retry_interval, manager.session_idle_timeout) == (250, 77)
        assert (manager.json_response, manager.stateless) == (False, False)
