"""Scrapes of one process: responses, authorization, formats, and the separate port."""

import gzip
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack

import httpx2
import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import Message

from mcp_eventscope import RedisEventStore, http_app, metrics_app
from mcp_eventscope.telemetry.exposition.endpoints import LOOPBACK, MetricsPort
from mcp_eventscope.telemetry.exposition.rendering import Exposition
from mcp_eventscope.telemetry.logs import Log
from support.binaries import promtool_problems
from support.http_client import NO_TLS
from support.logs import Recorder
from support.servers import free_port
from support.waiting import CEILING, until
from telemetry.conftest import Scope

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-Token=="


@pytest.fixture
def registry(scope: Scope, redis: FakeAsyncRedis) -> CollectorRegistry:
    """The registry of a store."""
    scope.instrument(RedisEventStore(redis, ttl=60))
    return scope.registry


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A plain HTTP client."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as client:
        yield client


async def get(app: object, path: str = "/metrics", method: str = "GET", **headers: str) -> httpx2.Response:
    """Send a request to an application."""
    transport = httpx2.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(verify=NO_TLS, transport=transport, base_url="http://s") as client:
        return await client.request(method, path, headers=headers)


class Raising(Collector):
    """A collector that raises."""

    def collect(self) -> Iterable[Metric]:
        """Raise."""
        msg = "collector"
        raise RuntimeError(msg)


class Watching(Collector):
    """A collector that records the thread of its scrape."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def collect(self) -> Iterable[Metric]:
        """Remember."""
        self.threads.append(threading.get_ident())
        return []


# -- mounted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["route", "mount"])
async def test_metrics_endpoint_can_be_mounted_anywhere(registry: CollectorRegistry, way: str) -> None:
    """The application can be mounted anywhere, as a route or below a path."""
    app = metrics_app(registry)
    outer = Starlette(routes=[Route("/metrics", app) if way == "route" else Mount("/metrics", app)])
    answer = await get(outer, "/metrics" if way == "route" else "/metrics/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'eventscope_ttl_seconds{store="default"} 60.0' in answer.text


async def test_format_follows_the_accept_header(registry: CollectorRegistry) -> None:
    """Text by default, and OpenMetrics."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    answer = await get(metrics_app(registry), accept=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_response_is_compressed_only_for_gzip_clients(registry: CollectorRegistry) -> None:
    """Responses are compressed only for clients that accept gzip."""
    exposition = Exposition(registry)
    plain = exposition.render(accept="", encoding="identity", query="")
    zipped = exposition.render(accept="", encoding="br, gzip", query="")
    assert "Content-Encoding" not in plain.headers
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == plain.body
    assert (await get(metrics_app(registry), accept_encoding="gzip")).text.encode() == plain.body


async def test_name_parameter_selects_metrics(registry: CollectorRegistry) -> None:
    """`name[]=…`, as in prometheus_client."""
    text = (await get(metrics_app(registry), "/metrics?name[]=eventscope_ttl_seconds")).text
    assert {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")} == {"eventscope_ttl_seconds"}


async def test_methods_other_than_get_and_head_are_refused(registry: CollectorRegistry) -> None:
    """Only GET and HEAD are allowed, and only HTTP."""
    app = metrics_app(registry)
    refused = await get(app, method="POST")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert (await get(app, method="HEAD")).status_code == 200

    async def never(_: Message | None = None) -> Message:
        pytest.fail("the callback must not be called")

    with pytest.raises(RuntimeError, match="mount it"):
        await app({"type": "lifespan"}, never, never)  # type: ignore[arg-type]


async def test_rendering_does_not_block_the_event_loop(registry: CollectorRegistry) -> None:
    """Rendering in a thread does not block sessions."""
    watching = Watching()
    registry.register(watching)
    watching.threads.clear()
    assert (await get(metrics_app(registry))).status_code == 200
    assert watching.threads
    assert threading.get_ident() not in watching.threads


async def test_text_format_passes_promtool(registry: CollectorRegistry) -> None:
    """`promtool check metrics` accepts the text format."""
    text = (await get(metrics_app(registry), accept="text/plain;version=0.0.4")).content
    assert not promtool_problems(text)


# -- the token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_request_with_the_token_is_answered(registry: CollectorRegistry, scheme: str) -> None:
    """The scheme is not case-sensitive."""
    assert (await get(metrics_app(registry, token=TOKEN), authorization=f"{scheme} {TOKEN}")).status_code == 200


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"]
)
async def test_request_without_the_token_is_challenged(
    registry: CollectorRegistry, authorization: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests without the token receive a 401 with a challenge only; the token is never logged."""
    caplog.set_level(logging.DEBUG)
    app = metrics_app(registry, token=TOKEN)
    headers = [(b"authorization", authorization.encode("latin-1"))] if authorization else []
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(verify=NO_TLS, transport=transport, base_url="http://s") as client:
        refused = await client.get("/metrics", headers=headers)
    assert refused.status_code == 401
    challenge = refused.headers["www-authenticate"]
    assert challenge == 'Bearer realm="metrics"' + (', error="invalid_token"' if authorization else "")
    assert "eventscope_" not in refused.text
    assert TOKEN not in refused.text + str(refused.headers) + caplog.text


async def test_request_with_two_tokens_is_refused(registry: CollectorRegistry) -> None:
    """In two `Authorization` headers."""
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"authorization", b"Bearer other")]
    async with httpx2.AsyncClient(
        verify=NO_TLS, transport=httpx2.ASGITransport(metrics_app(registry, token=TOKEN)), base_url="http://s"
    ) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == 401


@pytest.mark.parametrize("token", ["", "two words", "caf\xe9", "new\nline"])
async def test_tokens_that_cannot_be_sent(token: str) -> None:
    """Invalid tokens are refused at construction, and not repeated in the error."""
    with pytest.raises(ValueError, match="bearer token") as refused:
        metrics_app(token=token)
    assert not token or token not in str(refused.value)


async def test_metrics_endpoint_with_invalid_arguments_is_refused() -> None:
    """Invalid arguments are refused, with the remedy."""
    with pytest.raises(TypeError, match="must be a string, got bytes"):
        metrics_app(token=b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="CollectorRegistry"):
        metrics_app("x")  # type: ignore[arg-type]


# -- a port of its own ------------------------------------------------------------------------------------------------


def port_of(registry: CollectorRegistry, port: int, log: Recorder, *, token: str | None = None) -> MetricsPort:
    """A free port."""
    return MetricsPort(Exposition(registry, token), LOOPBACK, port, Log(log), retry=0.01)


async def test_port_serves_metrics_at_one_path(
    registry: CollectorRegistry, scope: Scope, http: httpx2.AsyncClient
) -> None:
    """The port serves the same at one path."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    bearer = {"authorization": f"Bearer {TOKEN}"}
    async with port_of(registry, port, scope.log, token=TOKEN).served():
        answer = await http.get(f"{url}/metrics", headers=bearer | {"accept": "application/openmetrics-text"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")
        restricted = await http.get(f"{url}/metrics?name[]=eventscope_ttl_seconds", headers=bearer)
        assert restricted.text.count("\n") == 3
        assert (await http.get(f"{url}/metrics")).status_code == 401
        assert (await http.get(f"{url}/", headers=bearer)).status_code == 404
        assert (await http.post(f"{url}/metrics", headers=bearer)).status_code == 501
        head = await http.head(f"{url}/metrics", headers=bearer)
        assert (head.status_code, head.content) == (200, b"")
        assert "Python" not in answer.headers["server"]
    with pytest.raises(httpx2.TransportError):
        await http.get(f"{url}/metrics", headers=bearer)
    assert scope.log.entries == []


async def test_port_while_the_loop_is_busy(registry: CollectorRegistry, scope: Scope) -> None:
    """The port answers while the event loop is blocked."""
    port = free_port()
    async with port_of(registry, port, scope.log).served():
        # Blocking: nothing else runs here meanwhile.
        with httpx2.Client(verify=NO_TLS, trust_env=False, timeout=CEILING) as blocking:
            assert blocking.get(f"http://{LOOPBACK}:{port}/metrics").status_code == 200


async def test_port_is_taken_over(scope: Scope, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without the port serves, logs it once, and takes over when the port is free."""
    port, first, second = free_port(), CollectorRegistry(), CollectorRegistry()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    Counter("first", "The first.", registry=first)
    Counter("second", "The second.", registry=second)
    url = f"http://{LOOPBACK}:{port}/metrics"
    async with AsyncExitStack() as having, AsyncExitStack() as waiting:
        await having.enter_async_context(port_of(first, port, scope.log).served())
        await waiting.enter_async_context(port_of(second, port, scope.log).served())
        assert "first_total" in (await http.get(url)).text
        (unserved,) = scope.log.named("event_store.metrics_port_unavailable")
        assert unserved["address"] == f"{LOOPBACK}:{port}"
        assert "PROMETHEUS_MULTIPROC_DIR" in unserved["fix"]

        async def taken_over() -> bool:
            try:
                return "second_total" in (await http.get(url)).text
            except httpx2.TransportError:
                return False

        await having.aclose()
        await until(taken_over)
        assert len(scope.log.entries) == 1


async def test_host_that_is_not_ours(registry: CollectorRegistry, scope: Scope) -> None:
    """An invalid address is logged; the server still serves."""
    async with MetricsPort(Exposition(registry), "192.0.2.1", free_port(), Log(scope.log)).served():
        (unserved,) = scope.log.named("event_store.metrics_port_unavailable")
    assert "metrics_host" in unserved["fix"]
    assert "assign" in unserved["error"]


async def test_collector_that_raises_is_a_logged_500(
    registry: CollectorRegistry, scope: Scope, http: httpx2.AsyncClient
) -> None:
    """A failing collector is a 500, and logged."""
    port = free_port()
    exposition = Exposition(registry)
    registry._collector_to_names[Raising()] = []
    async with MetricsPort(exposition, LOOPBACK, port, Log(scope.log)).served():
        answer = await http.get(f"http://{LOOPBACK}:{port}/metrics")
    assert answer.status_code == 500
    (failed,) = scope.log.named("event_store.telemetry_failed")
    assert (failed["sink"], failed["error"]) == ("metrics", "RuntimeError")


async def test_silent_connection_blocks_neither_scrapes_nor_shutdown(
    registry: CollectorRegistry, scope: Scope, http: httpx2.AsyncClient
) -> None:
    """A silent connection blocks neither scrapes nor shutdown."""
    port = free_port()
    with socket.socket() as silent:
        async with port_of(registry, port, scope.log).served():
            silent.connect((LOOPBACK, port))
            assert (await http.get(f"http://{LOOPBACK}:{port}/metrics")).status_code == 200


async def test_invalid_port_is_refused(registry: CollectorRegistry, redis: FakeAsyncRedis) -> None:
    """Invalid ports, and a host without a port."""
    store = RedisEventStore(redis, ttl=60)
    for port, error in ((0, ValueError), (70_000, ValueError), ("9100", TypeError), (True, TypeError)):
        with pytest.raises(error, match="metrics_port must be"):
            http_app(MCPServer("s"), store, registry=registry, metrics_port=port)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass both or neither"):
        http_app(MCPServer("s"), store, registry=registry, metrics_host="::1")
    with pytest.raises(ValueError, match="must not be empty"):
        http_app(MCPServer("s"), store, registry=registry, metrics_port=9100, metrics_host="")
    with pytest.raises(TypeError, match="must be an address"):
        http_app(MCPServer("s"), store, registry=registry, metrics_port=9100, metrics_host=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bearer token"):
        http_app(MCPServer("s"), store, registry=registry, metrics_token="")


async def test_application_with_a_separate_port_serves_no_metrics(
    registry: CollectorRegistry, redis: FakeAsyncRedis, http: httpx2.AsyncClient
) -> None:
    """With a separate port the application does not serve `/metrics`."""
    port = free_port()
    app = http_app(
        MCPServer("s"), RedisEventStore(redis, ttl=60), registry=registry, metrics_port=port, metrics_host="localhost"
    )
    assert "/metrics" not in {getattr(route, "path", None) for route in app.routes}
    async with app.router.lifespan_context(app):
        assert "eventscope_ttl_seconds" in (await http.get(f"http://localhost:{port}/metrics")).text
