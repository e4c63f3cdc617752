"""`http_app()`: an MCP server over HTTP that resumes, with its metrics and its health beside it."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Protocol, TypedDict, Unpack

import anyio
from mcp.server import MCPServer
from mcp.server.auth.provider import OAuthAuthorizationServerProvider, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.errors import EventscopeError
from mcp_eventscope.frameworks import build
from mcp_eventscope.instrumentation import InstrumentedEventStore, instrument
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.sessions.manager import DEFAULT_FOLLOW_TIMEOUT, ResumableSessionManager
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE
from mcp_eventscope.store.messages import EventStore
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.exposition import Exposition
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.telemetry.otel_metrics import MeterProvider
from mcp_eventscope.telemetry.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.scrape import LOOPBACK, MetricsApp, MetricsPort
from mcp_eventscope.telemetry.tracing import TracerProvider

URL_VARIABLE = "EVENTSCOPE_REDIS_URL"
"""The environment variable that names Redis where neither a store nor a URL is given."""
DEFAULT_TTL = 3600
"""Seconds that events are kept: twice the SDK's session idle timeout."""
HEALTH_TIMEOUT = 2.0
"""Seconds that `/healthz` waits for Redis."""


class FastMCPServer(Protocol):
    """A `FastMCP` server of the package fastmcp, which is not imported."""

    @property
    def http_app(self) -> Callable[..., Starlette]:
        """Builds its HTTP application."""
        ...


class StreamableHTTPOptions(TypedDict, total=False):
    """The keywords of the SDK's `streamable_http_app()` and of FastMCP's `http_app()`; each server knows its own."""

    streamable_http_path: str
    json_response: bool
    stateless_http: bool
    retry_interval: int | None
    max_request_body_size: int
    session_idle_timeout: float | None
    max_sessions: int | None
    transport_security: TransportSecuritySettings | None
    host: str
    auth: AuthSettings | None
    token_verifier: TokenVerifier | None
    auth_server_provider: OAuthAuthorizationServerProvider[Any, Any, Any] | None
    custom_starlette_routes: list[Route] | None
    debug: bool
    path: str | None
    middleware: list[Any] | None
    transport: str
    host_origin_protection: bool | str | None
    allowed_hosts: list[str] | None
    allowed_origins: list[str] | None


def http_app(  # noqa: PLR0913 - what an application chooses, once
    mcp: MCPServer[Any] | Server[Any] | FastMCPServer,
    event_store: EventStore | None = None,
    *,
    redis_url: str | None = None,
    ttl: int | None = DEFAULT_TTL,
    follow_timeout: float = DEFAULT_FOLLOW_TIMEOUT,
    worker_lease: float = DEFAULT_WORKER_LEASE,
    shutdown_timeout: float = 0.0,
    metrics_port: int | None = None,
    metrics_host: str | None = None,
    metrics_token: str | None = None,
    redis_stats_interval: float | None = None,
    registry: Registry | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger: Logger | None = None,
    **options: Unpack[StreamableHTTPOptions],
) -> Starlette:
    """An ASGI application that serves an MCP server, lets its clients resume, and shows that they do.

    It is the framework's own application (the SDK's `streamable_http_app()`, FastMCP's `http_app()`), with its routes,
    authentication and middleware. Each session has its own view of the event store, and there are two more routes:

    * `/metrics`: the registry, for Prometheus, unless it has a port of its own; with several workers that share
      `PROMETHEUS_MULTIPROC_DIR`, what all of them say;
    * `/healthz`: 200 and the latency while Redis answers, 503 and the reason while it does not.

    Mounted in another application, it is started by that one: `lifespan=app.router.lifespan_context`.
    To run `mcp.session_manager` alone, as with the SDK's, would start no embedded Valkey and close no client.

    Args:
        mcp: The server: an `MCPServer` or low-level `Server` of the SDK, or a `FastMCP`.
        event_store: The store; instrumented here, unless it is already. It stays the caller's to close.
        redis_url: Instead of a store: where Redis is. The client is made, and closed, here.
            Without both: the environment variable `EVENTSCOPE_REDIS_URL`, else an embedded Valkey, with a warning.
        ttl: Seconds that events are kept, for a store made here; None keeps them for ever.
        follow_timeout: As in `ResumableSessionManager`, in seconds.
        worker_lease: As in `ResumableSessionManager`, in seconds.
        shutdown_timeout: As in `ResumableSessionManager`, in seconds.
        metrics_port: A port of its own for `/metrics`, which is then not served with the rest. Of several workers the
            first that gets it serves for all, and another takes over when that one ends.
        metrics_host: The address that the port is opened on; None: 127.0.0.1, so that nothing is published unasked.
        metrics_token: What a scrape has to bring as its bearer token; None: nothing.
        redis_stats_interval: Seconds between polls of Redis statistics (keys, memory, keys without TTL); None: none.
        registry: Where metrics go, and what `/metrics` shows; None: that of a store that is instrumented already, else
            prometheus_client's global one.
        tracer_provider: As in `InstrumentedEventStore`; for a store that is not instrumented already.
        meter_provider: As in `InstrumentedEventStore`; for a store that is not instrumented already.
        logger: As in `InstrumentedEventStore`; of a store that is instrumented already, for what the application says.
        **options: The keywords of the framework's own function for that kind of server; they mean the same.

    Returns:
        The application. `mcp.session_manager` is its session manager, as with the SDK's.

    Raises:
        TypeError: `event_store` is no event store, `logger` takes no fields, an argument is of another type, or the SDK
            does not know an option.
        ValueError: Two stores are named, an instrumented store comes with other telemetry than its own, an argument is
            out of its range, or Redis statistics are not supported for the store.
        IncompatibleSDKError: The installed SDK has changed in what sessions are scoped by.
        EmbeddedUnavailableError: No Redis is named, and there is no embedded Valkey.
    """
    application = build(mcp, options)
    app = application.app
    log = Log(logger)
    resources: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    if event_store is None:
        event_store, resources = _own_store(redis_url or os.environ.get(URL_VARIABLE), ttl, log)
    elif redis_url is not None or ttl != DEFAULT_TTL:
        msg = "redis_url and ttl are for a store that is made here; pass either them or event_store"
        raise ValueError(msg)
    if isinstance(event_store, InstrumentedEventStore):
        if tracer_provider is not None or meter_provider is not None or registry not in (None, event_store.registry):
            msg = (
                "registry, tracer_provider and meter_provider are for a store that is instrumented here, and this one "
                "is already; pass them to your InstrumentedEventStore"
            )
            raise ValueError(msg)
        registry = event_store.registry
    registry = registry or DEFAULT_REGISTRY
    store = instrument(
        event_store, registry=registry, tracer_provider=tracer_provider, meter_provider=meter_provider, logger=logger
    )
    log.report_failures(store.log_failed)
    manager = ResumableSessionManager(
        application.server,
        store,
        **application.manager_options,
        follow_timeout=follow_timeout,
        worker_lease=worker_lease,
        shutdown_timeout=shutdown_timeout,
        logger=logger,
    )
    application.install(manager)
    exposition = Exposition(registry, metrics_token)
    port = _metrics_port(exposition, metrics_port, metrics_host, log)
    if port is None:
        _add_route(app, "/metrics", MetricsApp(exposition))
    _add_route(app, "/healthz", _Health(store, manager))
    polling = nullcontext() if redis_stats_interval is None else store.poll_redis_stats(redis_stats_interval)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(resources())
            if port is not None:
                await stack.enter_async_context(port.served())
            await stack.enter_async_context(polling)
            await _report_unreachable(store, log)
            async with manager.run():
                yield

    app.router.lifespan_context = lifespan
    return app


def _metrics_port(exposition: Exposition, port: int | None, host: str | None, log: Log) -> MetricsPort | None:
    if port is not None:
        return MetricsPort(exposition, LOOPBACK if host is None else host, port, log)
    if host is not None:
        msg = "metrics_host is the address of metrics_port, and there is none: pass metrics_port too, or neither"
        raise ValueError(msg)
    return None


def _own_store(
    url: str | None, ttl: int | None, log: Log
) -> tuple[RedisEventStore, Callable[[], AbstractAsyncContextManager[object]]]:
    """The store where none is given, and what has to be open while it is used."""
    valkey = None if url else EmbeddedValkey()
    client = connect(valkey.url if valkey else url or "")
    store = RedisEventStore(client, ttl=ttl)

    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if valkey is not None:
                await stack.enter_async_context(valkey.running())
            stack.push_async_callback(client.aclose)
            yield

    if valkey is not None:
        log.announce(
            catalog.EMBEDDED,
            address=store.address,
            consequence="events are lost when this process ends, and no other worker sees them: not for production",
            fix=f"pass redis_url=, or set {URL_VARIABLE}",
        )
    return store, resources


def _add_route(app: Starlette, path: str, endpoint: ASGIApp) -> None:
    """Add a route for reading, before those of the server: one of them may match every path.

    Raises:
        ValueError: The server has a route there, which this one would hide.
    """
    if any(getattr(route, "path", None) == path for route in app.routes):
        msg = f"the MCP server already serves {path}, which http_app() needs; move that route"
        raise ValueError(msg)
    app.router.routes.insert(0, Route(path, endpoint, methods=["GET"]))


class _Health:
    """Whether sessions are served, and whether the store answers, and how fast."""

    def __init__(self, store: InstrumentedEventStore, manager: ResumableSessionManager) -> None:
        self._store = store
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        about: dict[str, object] = {"address": self._store.address}
        started = time.perf_counter()
        if not self._manager.running:
            idle = "the session manager is not running: mounted in another application, this one's lifespan must run"
            response = JSONResponse({"status": "unavailable", "error": idle}, 503)
        elif error := await _unreachable(self._store):
            response = JSONResponse({"status": "unavailable", "store": {**about, "error": error}}, 503)
        else:
            about["latency_ms"] = round((time.perf_counter() - started) * 1000, 3)
            response = JSONResponse({"status": "ok", "store": about})
        await response(scope, receive, send)


async def _report_unreachable(store: InstrumentedEventStore, log: Log) -> None:
    if error := await _unreachable(store):
        log.announce(
            catalog.UNREACHABLE,
            address=store.address,
            error=error,
            fix="start Redis, or correct its address; nothing has to be restarted here",
        )


async def _unreachable(store: InstrumentedEventStore) -> str | None:
    """Why the store does not answer; None when it does."""
    try:
        with anyio.fail_after(HEALTH_TIMEOUT):
            await store.ping()
    except TimeoutError:
        return f"no answer from {store.address} within {HEALTH_TIMEOUT} seconds"
    except EventscopeError as error:
        return str(error)
    return None
