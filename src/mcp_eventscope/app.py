"""`http_app()`: a resumable MCP server over HTTP, with metrics and health endpoints."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Protocol, TypedDict, Unpack

from mcp.server.auth.provider import OAuthAuthorizationServerProvider, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.frameworks import build
from mcp_eventscope.frameworks.sdk import MCPServer
from mcp_eventscope.health import Endpoint, Health, probe
from mcp_eventscope.instrumentation import InstrumentedEventStore, instrument
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.sessions.manager import DEFAULT_FOLLOW_TIMEOUT, ResumableSessionManager
from mcp_eventscope.stop_signals import on_stop_signal
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
"""The environment variable with the Redis URL, used without a store and a URL."""
DEFAULT_TTL = 3600
"""Seconds that events are kept: twice the SDK's session idle timeout."""


class FastMCPServer(Protocol):
    """A `FastMCP` server of the package fastmcp, which is not imported."""

    @property
    def http_app(self) -> Callable[..., Starlette]:
        """The function that builds the HTTP application."""
        ...


class StreamableHTTPOptions(TypedDict, total=False):
    """The keywords of the SDK's `streamable_http_app()` and FastMCP's `http_app()`.

    Each kind of server accepts its own.
    """

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


def http_app(  # noqa: PLR0913 - the options of an application
    mcp: "MCPServer[Any] | Server[Any] | FastMCPServer",
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
    """Build an ASGI application for an MCP server whose clients can resume.

    It is the framework's own application (the SDK's `streamable_http_app()`, FastMCP's `http_app()`), with its routes,
    authentication and middleware. Each session has its own view of the event store, and there are more routes:

    * `/metrics`: the registry in Prometheus format, unless it has a separate port. With several workers that share
      `PROMETHEUS_MULTIPROC_DIR`, it shows the metrics of all workers.
    * `/livez`, `/readyz` and `/healthz`: the health of the process, of the worker and of the store, as in `Health`.

    An application that mounts this one must run its lifespan: `lifespan=app.router.lifespan_context`. Running only
    `mcp.session_manager`, as with the SDK, would start no embedded Valkey and close no client.

    Args:
        mcp: The server: an `MCPServer` or low-level `Server` of the SDK, or a `FastMCP`. With mcp 1.30 the SDK's own
            `FastMCP`, whose options are those of its constructor, or a `FastMCP` of FastMCP 2.14 or 3.
        event_store: The store, which is instrumented unless it already is. The caller closes it.
        redis_url: The URL of Redis, instead of a store. The application creates and closes the client.
            Without both: the environment variable `EVENTSCOPE_REDIS_URL`, else an embedded Valkey, with a warning.
        ttl: Seconds that events are kept, for a store created here; None: no expiry.
        follow_timeout: As in `ResumableSessionManager`, in seconds.
        worker_lease: As in `ResumableSessionManager`, in seconds.
        shutdown_timeout: As in `ResumableSessionManager`, in seconds.
        metrics_port: A separate port for `/metrics`, which the application itself then does not serve. The first of
            several workers to open the port serves it for all; another worker takes over when that one ends.
        metrics_host: The address of `metrics_port`; None: 127.0.0.1, so that metrics are not public by default.
        metrics_token: The bearer token that a scrape must send; None: no authentication.
        redis_stats_interval: Seconds between polls of Redis statistics (keys, memory, keys without TTL); None: none.
        registry: The registry of the metrics, which `/metrics` shows; None: that of an instrumented store, else
            prometheus_client's global registry.
        tracer_provider: As in `InstrumentedEventStore`; only for a store that is not yet instrumented.
        meter_provider: As in `InstrumentedEventStore`; only for a store that is not yet instrumented.
        logger: As in `InstrumentedEventStore`. With an instrumented store, the logger of the application only.
        **options: The keywords of the framework's own function for that kind of server, with the same meaning.

    Returns:
        The application. `mcp.session_manager` is its session manager, as in the SDK.

    Raises:
        TypeError: `event_store` is not an event store, `logger` accepts no fields, an argument has another type, or
            the framework does not know an option.
        ValueError: Both a store and a URL are given, an instrumented store is combined with other telemetry, an
            argument is out of range, or Redis statistics are not supported for the store.
        IncompatibleSDKError: The installed SDK has changed the internals on which session isolation relies.
        EmbeddedUnavailableError: No Redis is given, and the embedded Valkey is unavailable.
    """
    application = build(mcp, options)
    app = application.app
    log = Log(logger)
    resources: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    if redis_url is not None and not redis_url:
        msg = f"redis_url must be a URL, got {redis_url!r}; leave it out to use {URL_VARIABLE} or the embedded Valkey"
        raise ValueError(msg)
    if event_store is None:
        event_store, resources = _own_store(redis_url or os.environ.get(URL_VARIABLE), ttl, log)
    elif redis_url is not None or ttl != DEFAULT_TTL:
        msg = "pass either event_store or redis_url/ttl, not both"
        raise ValueError(msg)
    if isinstance(event_store, InstrumentedEventStore):
        if tracer_provider is not None or meter_provider is not None or registry not in (None, event_store.registry):
            msg = (
                "registry, tracer_provider and meter_provider must be omitted with an InstrumentedEventStore; "
                "pass them to its constructor"
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
    for path, endpoint in Health(store, manager).endpoints.items():
        _add_route(app, path, endpoint)
    polling = nullcontext() if redis_stats_interval is None else store.poll_redis_stats(redis_stats_interval)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(resources())
            if port is not None:
                await stack.enter_async_context(port.served())
            await stack.enter_async_context(polling)
            await _report_unreachable(store, log)
            await stack.enter_async_context(application.lifespan())
            await stack.enter_async_context(manager.run())
            stack.enter_context(on_stop_signal(manager.drain))
            yield

    app.router.lifespan_context = lifespan
    return app


def _metrics_port(exposition: Exposition, port: int | None, host: str | None, log: Log) -> MetricsPort | None:
    if port is not None:
        return MetricsPort(exposition, LOOPBACK if host is None else host, port, log)
    if host is not None:
        msg = "metrics_host must be used with metrics_port; pass both or neither"
        raise ValueError(msg)
    return None


def _own_store(
    url: str | None, ttl: int | None, log: Log
) -> tuple[RedisEventStore, Callable[[], AbstractAsyncContextManager[object]]]:
    """Create a store and the context manager of its resources."""
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


def _add_route(app: Starlette, path: str, endpoint: ASGIApp | Endpoint) -> None:
    """Add a GET route before the server's routes, which may match every path.

    Raises:
        ValueError: The server already has a route at the path.
    """
    if any(getattr(route, "path", None) == path for route in app.routes):
        msg = f"the MCP server already serves {path}, which http_app() needs; move that route"
        raise ValueError(msg)
    app.router.routes.insert(0, Route(path, endpoint, methods=["GET"]))


async def _report_unreachable(store: InstrumentedEventStore, log: Log) -> None:
    if error := (await probe(store)).error:
        log.announce(
            catalog.UNREACHABLE,
            address=store.address,
            error=error,
            fix="start Redis, let it accept writes, or correct its address; this process recovers without a restart",
        )
