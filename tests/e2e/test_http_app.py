"""`http_app()`: its routes, its options, its log events and its errors."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx2
import pytest
from fastmcp import FastMCP
from mcp import Client
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.server import Server
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry
from pydantic import AnyHttpUrl
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from structlog.testing import capture_logs

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, ResumableSessionManager, http_app
from support.controlled_server import ControlledServer
from support.http_client import NO_TLS, Connect, events
from support.logs import Recorder
from support.servers import valkey
from support.serving import serving
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def log() -> Recorder:
    """A logger that records its events."""
    return Recorder()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """Plain HTTP."""
    async with httpx2.AsyncClient(verify=NO_TLS, timeout=CEILING) as client:
        yield client


async def test_healthz_reports_redis_and_its_latency(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """`/healthz` has the address of Redis and its latency."""
    async with serving(http_app(MCPServer("s"), redis_url=valkey_url, registry=registry)) as url:
        response = await http.get(f"{url}/healthz")
    assert response.status_code == 200
    health = response.json()
    assert health["status"] == "ok"
    assert health["store"]["address"] == valkey_url.removeprefix("unix://")
    assert 0 < health["store"]["latency_ms"] < 2000
    assert response.headers["cache-control"] == "no-store"


async def test_http_app_without_redis_starts_and_names_the_address(
    registry: CollectorRegistry, http: httpx2.AsyncClient, log: Recorder
) -> None:
    """The server starts, and names host and port of Redis, never the password."""
    app = http_app(MCPServer("s"), redis_url="redis://me:hunter2@127.0.0.1:1/0", registry=registry, logger=log)
    async with serving(app) as url:
        response = await http.get(f"{url}/healthz")
        assert (await http.get(f"{url}/livez")).json() == {"status": "ok"}
    assert response.status_code == 503
    assert response.json()["status"] == "unavailable"
    (unreachable,) = log.named("event_store.unreachable")
    for text in (response.text, str(unreachable)):
        assert "127.0.0.1:1" in text
        assert "hunter2" not in text


async def test_metrics_route_serves_the_requested_format(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """`/metrics` serves the registry in the format that is requested, for reading only."""
    async with serving(http_app(MCPServer("s"), redis_url=valkey_url, registry=registry)) as url:
        text = await http.get(f"{url}/metrics")
        openmetrics = await http.get(f"{url}/metrics", headers={"accept": "application/openmetrics-text"})
        refused = await http.post(f"{url}/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert 'eventscope_ttl_seconds{store="s"} 3600.0' in text.text
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert refused.status_code == 405


async def test_metrics_route_serves_an_instrumented_stores_registry(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """`/metrics` serves the registry of a store that is instrumented already."""
    redis = Redis.from_url(valkey_url)
    store = InstrumentedEventStore(RedisEventStore(redis, ttl=60), registry=registry)
    async with serving(http_app(MCPServer("s"), store)) as url:
        assert 'eventscope_ttl_seconds{store="default"} 60.0' in (await http.get(f"{url}/metrics")).text
    await redis.aclose()


@pytest.mark.parametrize("path", ["readyz", "healthz"])
async def test_health_without_lifespan_is_unavailable(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient, path: str
) -> None:
    """No session can be served there, although the process is alive."""
    inner = http_app(MCPServer("s"), redis_url=valkey_url, registry=registry)
    async with serving(Starlette(routes=[Mount("/tools", inner)])) as url:
        health = await http.get(f"{url}/tools/{path}")
        assert (await http.get(f"{url}/tools/livez")).status_code == 200
    assert health.status_code == 503
    assert health.json()["reason"] == "not_running"
    assert "lifespan" in health.json()["error"]


async def test_readyz_while_draining_is_unavailable(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """A load balancer sends no new clients, while the process and its sessions live on."""
    mcp = MCPServer("s")
    async with serving(http_app(mcp, redis_url=valkey_url, registry=registry)) as url:
        ready = await http.get(f"{url}/readyz")
        assert isinstance(mcp.session_manager, ResumableSessionManager)
        mcp.session_manager.drain()
        draining = await http.get(f"{url}/readyz")
        assert [(await http.get(f"{url}/{path}")).status_code for path in ("livez", "healthz")] == [200, 200]
    assert (ready.status_code, ready.json()["status"], ready.json()["store"]["status"]) == (200, "ready", "ok")
    assert (draining.status_code, draining.json()) == (503, {"status": "unavailable", "reason": "draining"})


async def test_healthz_on_redis_that_refuses_writes_is_unavailable(
    registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """Such a Redis answers a PING. The worker stays ready: its sessions continue from memory."""
    with valkey() as server:
        async with (
            Redis.from_url(server.url) as administrator,
            serving(http_app(MCPServer("s"), redis_url=server.url, registry=registry)) as url,
        ):
            await administrator.replicaof("127.0.0.1", "1")
            replica = await http.get(f"{url}/healthz")
            await administrator.replicaof("NO", "ONE")
            await administrator.config_set("maxmemory", 1)
            full = await http.get(f"{url}/healthz")
            assert (await http.get(f"{url}/readyz")).status_code == 200
    for health, reason in ((replica, "read only"), (full, "maxmemory")):
        assert health.status_code == 503
        assert reason in health.json()["store"]["error"]


async def test_readyz_in_an_outage_reports_it_and_stays_ready(
    registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """Every other worker has the same Redis, so none would remain."""
    app = http_app(MCPServer("s"), redis_url="redis://me:hunter2@127.0.0.1:1/0", registry=registry)
    async with serving(app) as url:

        async def reported() -> bool:
            ready = await http.get(f"{url}/readyz")
            assert ready.status_code == 200
            store: object = ready.json()["store"]
            return store == {"address": "127.0.0.1:1", "status": "degraded", "reason": "connection"}

        await until(reported)


async def test_http_app_without_redis_url_embeds_valkey(
    registry: CollectorRegistry, log: Recorder, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a store or a URL there is a Valkey, and a warning of its limits."""
    monkeypatch.delenv("EVENTSCOPE_REDIS_URL", raising=False)
    controlled = ControlledServer()
    async with serving(http_app(controlled.mcp, registry=registry, logger=log)) as url:
        client = connect(url)
        await client.initialize()
        async with client.call(1, "echo", text="x") as response:
            received = [event async for event in events(response)]
        assert "result" in (await client.resume(received[0].id))[-1].message
    (embedded,) = log.named("event_store.embedded")
    assert "not for production" in str(embedded["consequence"])
    assert "EVENTSCOPE_REDIS_URL" in str(embedded["fix"])


async def test_http_app_started_twice_is_refused(registry: CollectorRegistry) -> None:
    """An application can be started once, as in the SDK."""
    app = http_app(MCPServer("s"), registry=registry)
    async with app.router.lifespan_context(app):
        pass
    with pytest.raises(RuntimeError, match="only be called once"):
        async with app.router.lifespan_context(app):
            pass


async def test_http_app_reads_the_redis_url_from_the_environment(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment variable names Redis when no argument does."""
    monkeypatch.setenv("EVENTSCOPE_REDIS_URL", valkey_url)
    async with serving(http_app(MCPServer("s"), registry=registry)) as url:
        health = (await http.get(f"{url}/healthz")).json()
    assert health["store"]["address"] == valkey_url.removeprefix("unix://")


async def test_http_app_reads_prefix_and_name_from_the_environment(
    valkey_url: str, registry: CollectorRegistry, connect: Connect, monkeypatch: pytest.MonkeyPatch, key_prefix: str
) -> None:
    """The variables name the prefix and the server where no argument does."""
    monkeypatch.setenv("EVENTSCOPE_KEY_PREFIX", key_prefix)
    monkeypatch.setenv("EVENTSCOPE_NAME", "from the environment")
    for name, prefix in ((None, None), ("calc", f"{key_prefix}calc:")):
        app = http_app(MCPServer("s"), redis_url=valkey_url, registry=registry, name=name, key_prefix=prefix)
        async with serving(app) as url, Redis.from_url(valkey_url) as redis:
            client = connect(url)
            await client.initialize()
            record = await redis.hget(f"{prefix or key_prefix}{{{client.session}}}:session", "server")
        expected = name or "from the environment"
        assert record == expected.encode()
        assert (
            registry.get_sample_value("eventscope_sessions_started_total", {"store": expected, "origin": "opened"}) == 1
        )


@pytest.mark.parametrize(
    ("server", "name"),
    [
        (MCPServer("calc"), "calc"),
        (Server("calc"), "calc"),
        (FastMCP("calc"), "calc"),
        (FastMCP(), "default"),
        (MCPServer(), "mcp-server"),
    ],
)
def test_http_app_without_a_name_uses_the_servers_own(
    valkey_url: str, registry: CollectorRegistry, server: Any, name: str
) -> None:
    """FastMCP generates another name in each process, and its workers would not know each other's sessions."""
    http_app(server, redis_url=valkey_url, registry=registry)
    assert registry.get_sample_value("eventscope_sessions_active", {"store": name}) == 0


@pytest.mark.parametrize("name", ["", " ", 7])
def test_http_app_with_an_invalid_name_is_refused(registry: CollectorRegistry, name: Any) -> None:
    """An empty setting of the application must not mean the name of another server."""
    with pytest.raises((TypeError, ValueError), match=r"name must .*, got .*; "):
        http_app(MCPServer("s"), registry=registry, name=name)


async def test_http_app_serves_a_low_level_server(
    valkey_url: str, registry: CollectorRegistry, connect: Connect
) -> None:
    """The low-level server is served in the same way."""
    server: Server[Mapping[str, object]] = Server("low")
    app = http_app(server, redis_url=valkey_url, registry=registry)
    assert isinstance(server.session_manager, ResumableSessionManager)
    async with serving(app) as url:
        client = connect(url)
        await client.initialize()
        async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
            received = [event async for event in events(response)]
        assert await client.resume(received[0].id) == received[1:]


async def test_http_app_keeps_an_instrumented_store(
    valkey_url: str, registry: CollectorRegistry, connect: Connect
) -> None:
    """A store that is instrumented stays as it is, and every event counts once."""
    redis = Redis.from_url(valkey_url)
    store = InstrumentedEventStore(RedisEventStore(redis, ttl=60), name="mine", registry=registry)
    controlled = ControlledServer()
    async with serving(http_app(controlled.mcp, store, registry=registry)) as url:
        client = connect(url)
        await client.initialize()
    await redis.aclose()
    names = {metric.name for metric in registry.collect()}
    assert "eventscope_events_stored" in names
    assert (
        registry.get_sample_value("eventscope_events_stored_total", {"store": "mine", "message_type": "response"}) == 1
    )
    assert (
        registry.get_sample_value("eventscope_events_stored_total", {"store": "default", "message_type": "response"})
        is None
    )


async def test_http_app_passes_options_to_the_sdk(
    valkey_url: str, registry: CollectorRegistry, connect: Connect
) -> None:
    """The options mean the same as in the SDK, limits included."""
    controlled = ControlledServer()
    app = http_app(
        controlled.mcp,
        redis_url=valkey_url,
        registry=registry,
        streamable_http_path="/mcp",
        retry_interval=123,
        max_sessions=1,
        session_idle_timeout=77.0,
        max_request_body_size=2000,
    )
    manager = controlled.mcp.session_manager
    assert isinstance(manager, ResumableSessionManager)
    assert (manager.retry_interval, manager.session_idle_timeout) == (123, 77.0)
    async with serving(app) as url:
        client = connect(url)
        await client.initialize()
        async with connect(url).post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}) as second:
            assert second.status_code == 503
        async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "y" * 3000}}) as large:
            assert large.status_code == 413


async def test_http_app_mounted_under_a_prefix_serves_and_resumes(
    registry: CollectorRegistry, http: httpx2.AsyncClient, connect: Connect
) -> None:
    """Another application mounts and starts it."""
    controlled = ControlledServer()
    app = http_app(controlled.mcp, registry=registry)
    outer = Starlette(routes=[Mount("/inner", app)], lifespan=app.router.lifespan_context)
    async with serving(outer) as url:
        client = connect(f"{url}/inner")
        await client.initialize()
        async with client.call(1, "echo", text="x") as response:
            received = [event async for event in events(response)]
        assert await client.resume(received[0].id) == received[1:]
        assert (await http.get(f"{url}/inner/healthz")).status_code == 200
        assert (await http.get(f"{url}/inner/metrics")).status_code == 200


async def test_http_app_keeps_custom_routes(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient
) -> None:
    """The server's own routes are served beside ours."""
    mcp = MCPServer("s")

    @mcp.custom_route("/hello", methods=["GET"])  # type: ignore[untyped-decorator]
    async def hello(_: Request) -> Response:
        return PlainTextResponse("hello")

    async with serving(http_app(mcp, redis_url=valkey_url, registry=registry)) as url:
        assert (await http.get(f"{url}/hello")).text == "hello"


async def test_http_app_with_a_catch_all_route_serves_its_own_routes(
    valkey_url: str, registry: CollectorRegistry, http: httpx2.AsyncClient, connect: Connect
) -> None:
    """The catch-all route hides none of our routes, and still gets the rest."""
    controlled = ControlledServer()

    @controlled.mcp.custom_route("/{path:path}", methods=["GET"])  # type: ignore[untyped-decorator]
    async def page(_: Request) -> Response:
        return PlainTextResponse("page")

    async with serving(http_app(controlled.mcp, redis_url=valkey_url, registry=registry)) as url:
        assert (await http.get(f"{url}/healthz")).json()["status"] == "ok"
        assert "eventscope_ttl_seconds" in (await http.get(f"{url}/metrics")).text
        assert (await http.get(f"{url}/elsewhere")).text == "page"
        await connect(url).initialize()


class Verifier:
    """Accepts two tokens, of two principals."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token's owner."""
        if token not in {"alice", "bob"}:
            return None
        return AccessToken(token=token, client_id=token, scopes=["use"], subject=token)


async def test_http_app_with_auth_keeps_sessions_to_their_owner(
    valkey_url: str, registry: CollectorRegistry, connect: Connect
) -> None:
    """Without a token 401; the metadata route is served; a session is its owner's alone."""
    settings = AuthSettings(
        issuer_url=AnyHttpUrl("https://issuer.example"),
        resource_server_url=AnyHttpUrl("http://127.0.0.1/mcp"),
        required_scopes=["use"],
        validate_token_resource=False,
    )
    controlled = ControlledServer(auth=settings, token_verifier=Verifier())
    async with serving(http_app(controlled.mcp, redis_url=valkey_url, registry=registry)) as url:
        anonymous, alice, bob = connect(url), connect(url, authorization="Bearer alice"), connect(url)
        async with anonymous.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}) as refused:
            assert refused.status_code == 401
        assert (await anonymous.http.get(f"{url}/.well-known/oauth-protected-resource/mcp")).status_code == 200
        await alice.initialize()
        async with alice.call(1, "echo", text="x") as response:
            received = [event async for event in events(response)]
        bob.headers = {"authorization": "Bearer bob"}
        bob.session = alice.session
        async with bob.get(received[0].id) as stolen:
            assert stolen.status_code == 404
        assert "result" in (await alice.resume(received[0].id))[-1].message


@pytest.mark.parametrize("mode", ["stateless_http", "json_response"])
async def test_http_app_in_a_mode_without_resumption_logs_it(
    valkey_url: str, registry: CollectorRegistry, log: Recorder, mode: str
) -> None:
    """A mode in which nothing can be resumed is logged."""
    options: dict[str, bool] = {mode: True}
    http_app(MCPServer("s"), redis_url=valkey_url, registry=registry, logger=log, **options)  # type: ignore[arg-type]
    (inert,) = log.named("event_store.resumption_disabled")
    assert str(inert["mode"]) in mode


async def test_client_of_a_revision_without_resumption_is_logged_once(
    valkey_url: str, registry: CollectorRegistry, log: Recorder
) -> None:
    """The client is served."""
    controlled = ControlledServer()
    async with serving(http_app(controlled.mcp, redis_url=valkey_url, registry=registry, logger=log)) as url:
        for _ in range(2):
            async with Client(f"{url}/mcp") as client:
                assert (await client.call_tool("echo", {"text": "x"})).structured_content == {"result": "x"}
    (inert,) = log.named("event_store.resumption_disabled")
    assert inert["mode"] == "protocol revision 2026-07-28"
    assert "legacy" in inert["fix"]


async def test_http_app_without_ttl_logs_a_warning(valkey_url: str, registry: CollectorRegistry) -> None:
    """The warning uses the application's structlog."""
    with capture_logs() as logs:
        http_app(MCPServer("s"), redis_url=valkey_url, ttl=None, registry=registry)
    (missing,) = [entry for entry in logs if entry["event"] == "event_store.ttl_missing"]
    assert missing["log_level"] == "warning"
    assert "ttl=3600" in missing["fix"]


async def test_http_app_with_contradictory_arguments_is_refused(valkey_url: str, registry: CollectorRegistry) -> None:
    """The error names the fix."""
    store = RedisEventStore(Redis.from_url(valkey_url), ttl=60)
    with pytest.raises(ValueError, match="not both"):
        http_app(MCPServer("s"), store, redis_url=valkey_url, registry=registry)
    with pytest.raises(ValueError, match="not both"):
        http_app(MCPServer("s"), store, ttl=5, registry=registry)
    with pytest.raises(ValueError, match="not both"):
        http_app(MCPServer("s"), store, key_prefix="mcp:", registry=registry)
    with pytest.raises(ValueError, match="key_prefix must not be empty"):
        http_app(MCPServer("s"), redis_url=valkey_url, key_prefix="", registry=registry)
    instrumented = InstrumentedEventStore(store, registry=registry)
    with pytest.raises(ValueError, match="InstrumentedEventStore"):
        http_app(MCPServer("s"), instrumented, registry=CollectorRegistry())
    with pytest.raises(ValueError, match="InstrumentedEventStore"):
        http_app(MCPServer("s"), instrumented, tracer_provider=NoOpTracerProvider())
    with pytest.raises(TypeError, match="an instance"):
        http_app(MCPServer("s"), RedisEventStore, registry=registry)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="http_app"):
        ResumableSessionManager(MCPServer("s"), store)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nonsense"):
        http_app(MCPServer("s"), store, registry=registry, nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="EventStore"):
        http_app(MCPServer("s"), object(), registry=registry)  # type: ignore[arg-type]
    for path in ("/metrics", "/livez", "/readyz", "/healthz"):
        with pytest.raises(ValueError, match=f"already serves {path}"):
            http_app(MCPServer("s"), store, registry=registry, streamable_http_path=path)
    with pytest.raises(ValueError, match="redis://host") as refused:
        http_app(MCPServer("s"), redis_url="http://me:hunter2@host", registry=registry)
    assert "hunter2" not in str(refused.value)


def test_http_app_with_an_empty_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty setting of the application must not mean an embedded Valkey in each worker."""
    monkeypatch.delenv("EVENTSCOPE_REDIS_URL", raising=False)
    with pytest.raises(ValueError, match=r"redis_url must be a URL, got ''; leave it out"):
        http_app(MCPServer("s"), redis_url="")


@pytest.mark.parametrize("server", [MCPServer, FastMCP])
async def test_http_app_mounted_without_its_lifespan_answers_503_and_warns_once(
    registry: CollectorRegistry, http: httpx2.AsyncClient, log: Recorder, server: Callable[[str], MCPServer[None]]
) -> None:
    """The body and the warning name the argument to add; after a stop they would mislead."""
    app = http_app(server("s"), redis_url="redis://127.0.0.1:1", registry=registry, logger=log)
    async with serving(Starlette(routes=[Mount("/tools", app)])) as url:
        for _ in range(2):
            response = await http.post(f"{url}/tools/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
            assert response.status_code == 503
            assert "lifespan=app.router.lifespan_context" in response.json()["error"]["message"]
    (entry,) = log.named("event_store.lifespan_missing")
    assert (entry["level"], entry["store"]) == ("warning", "s")
    assert "lifespan=app.router.lifespan_context" in entry["fix"]


async def test_http_app_after_its_lifespan_answers_503_without_a_warning(
    registry: CollectorRegistry, http: httpx2.AsyncClient, log: Recorder
) -> None:
    """A worker that has stopped is not one that was never started."""
    app = http_app(MCPServer("s"), redis_url="redis://127.0.0.1:1", registry=registry, logger=log)
    async with app.router.lifespan_context(app):
        pass
    async with serving(Starlette(routes=[Mount("/tools", app)])) as url:
        response = await http.post(f"{url}/tools/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert response.status_code == 503
    assert "the server has stopped" in response.json()["error"]["message"]
    assert log.named("event_store.lifespan_missing") == []
