"""`http_app()`: a resumable MCP server over HTTP, with metrics and health endpoints."""

import difflib
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Protocol, TypedDict, Unpack

from mcp.server.auth.provider import OAuthAuthorizationServerProvider, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.server import Server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from mcp_eventscope.frameworks import build
from mcp_eventscope.frameworks.sdk import MCPServer
from mcp_eventscope.health import Endpoint, Health, probe
from mcp_eventscope.instrumentation import InstrumentedEventStore, check_store, instrument
from mcp_eventscope.options import check_text, check_type
from mcp_eventscope.scope import EventScope, scopes_of
from mcp_eventscope.sessions.manager import ResumableSessionManager
from mcp_eventscope.settings import SIMILAR, STORE_OPTIONS, UNSET, Settings, Unset, load, mistyped, variable
from mcp_eventscope.stop_signals import on_stop_signal
from mcp_eventscope.store.messages import EventStore
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.exposition.endpoints import LOOPBACK, MetricsApp, MetricsPort
from mcp_eventscope.telemetry.exposition.rendering import Exposition
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.telemetry.metrics.otel import MeterProvider
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.tracing import TracerProvider

DEFAULT_NAME = "default"
"""The name of a server without a fixed name of its own."""


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


def http_app(  # noqa: PLR0913, PLR0915 - the options of an application, and all that starts with it
    mcp: "MCPServer[Any] | Server[Any] | FastMCPServer",
    event_store: EventStore | None = None,
    *,
    scope: EventScope | None = None,
    redis_url: str | None = None,
    ttl: int | Unset | None = UNSET,
    key_prefix: str | None = None,
    name: str | None = None,
    store_timeout: float | None = None,
    backlog_bytes: int | None = None,
    backlog_events: int | None = None,
    max_session_bytes: int | None = None,
    follow_timeout: float | None = None,
    worker_lease: float | None = None,
    shutdown_timeout: float | None = None,
    metrics_port: int | None = None,
    metrics_host: str | None = None,
    metrics_token: str | None = None,
    redis_stats_interval: float | None = None,
    console: bool | None = None,
    console_token: str | None = None,
    console_payloads: bool | None = None,
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
    * `/console`, with `console=True`: a page about workers, sessions and Redis.

    An application that mounts this one must run its lifespan: `lifespan=app.router.lifespan_context`. Running only
    `mcp.session_manager`, as with the SDK, would start no embedded Valkey and close no client.

    Each option from `redis_url` to `console_payloads` that is left out or None is taken from its environment
    variable, `EVENTSCOPE_` and the option in capitals (`EVENTSCOPE_TTL`), and otherwise has its default. `ttl=None`
    means no expiry; in the environment that is `none`.

    Args:
        mcp: The server: an `MCPServer` or low-level `Server` of the SDK, or a `FastMCP`. With mcp 1.30 the SDK's own
            `FastMCP`, whose options are those of its constructor, or a `FastMCP` of FastMCP 2.14 or 3.
        event_store: The store, which is instrumented unless it already is. The caller closes it.
        scope: The scope of the server, instead of a store: the application starts and stops its parts. Without a store
            and a scope, the application creates a scope from the options of a store, `name` and `worker_lease`.
        redis_url: The URL of Redis, instead of a store or a scope. The application creates and closes the client.
            Without all three: the environment variable `EVENTSCOPE_REDIS_URL`, else an embedded Valkey, with a warning.
        ttl: Seconds that events are kept (for a store created here); by default 3600; None: no expiry.
        key_prefix: The prefix of every key in Redis (for a store created here). Each server on one Redis needs its own.
            None: the environment variable `EVENTSCOPE_KEY_PREFIX`, else `mcp:`.
        name: The name of the server, the same on all of its workers. It is the label `store` of the metrics of a store
            that is not yet instrumented, and sessions of servers with other names are answered 404.
            None: the environment variable `EVENTSCOPE_NAME`, else the MCP server's own name; `default` if FastMCP has
            generated that name, which is a different one in each process.
        store_timeout: As in `RedisEventStore`, in seconds (for a store created here).
        backlog_bytes: As in `RedisEventStore` (for a store created here).
        backlog_events: As in `RedisEventStore` (for a store created here).
        max_session_bytes: As in `RedisEventStore` (for a store created here).
        follow_timeout: As in `ResumableSessionManager`, in seconds.
        worker_lease: As in `ResumableSessionManager`, in seconds.
        shutdown_timeout: As in `ResumableSessionManager`, in seconds.
        metrics_port: A separate port for `/metrics`, which the application itself then does not serve. The first of
            several workers to open the port serves it for all; another worker takes over when that one ends.
        metrics_host: The address of `metrics_port`; None: 127.0.0.1, so that metrics are not public by default.
        metrics_token: The bearer token that a scrape must send; None: no authentication.
        redis_stats_interval: Seconds between polls of Redis statistics (keys, memory, keys without TTL); None: none.
        console: Whether `/console` shows workers, sessions, streams and Redis, for reading only. It needs
            `console_token`.
        console_token: The token that the console requires of each request, of at least 16 characters: a bearer token,
            or the password of Basic authentication, for which browsers ask.
        console_payloads: Whether a viewer of the console may read the contents of messages.
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
        ValueError: Both a store and options of one are given, an instrumented store is combined with other telemetry,
            an argument or an environment variable is invalid, the server has a route of the same path, or Redis
            statistics are not supported for the store.
        IncompatibleSDKError: The installed SDK has changed the internals on which session isolation relies.
        EmbeddedUnavailableError: No Redis is given, and the embedded Valkey is unavailable.
    """
    arguments: dict[str, object] = {
        "redis_url": redis_url,
        "ttl": ttl,
        "key_prefix": key_prefix,
        "name": name,
        "store_timeout": store_timeout,
        "backlog_bytes": backlog_bytes,
        "backlog_events": backlog_events,
        "max_session_bytes": max_session_bytes,
        "follow_timeout": follow_timeout,
        "worker_lease": worker_lease,
        "shutdown_timeout": shutdown_timeout,
        "metrics_port": metrics_port,
        "metrics_host": metrics_host,
        "metrics_token": metrics_token,
        "redis_stats_interval": redis_stats_interval,
        "console": console,
        "console_token": console_token,
        "console_payloads": console_payloads,
    }
    settings = load(arguments)
    log = Log(logger)
    _report_mistyped(log)
    telemetry = {"registry": registry, "tracer_provider": tracer_provider, "meter_provider": meter_provider}
    _check_combination(mcp, event_store, scope, arguments, telemetry)
    _check_option_names(options)
    _check_framework_paths(options)
    application = build(mcp, options)
    app = application.app
    name = settings.name or _own_name(mcp)
    lease = settings.worker_lease
    registry = DEFAULT_REGISTRY if registry is None else registry
    connected: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    parts: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    if event_store is None:
        scope = scope or EventScope(
            name,
            redis_url=redis_url,
            ttl=ttl,
            key_prefix=key_prefix,
            store_timeout=store_timeout,
            backlog_bytes=backlog_bytes,
            backlog_events=backlog_events,
            max_session_bytes=max_session_bytes,
            worker_lease=worker_lease,
            registry=registry,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger=logger,
        )
        event_store, name, lease = scope.event_store, scope.name, scope.worker_lease
        connected, parts = scope.connected, scope.parts
        scope.install(mcp)
    store = instrument(
        event_store,
        name=name,
        registry=registry,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        logger=logger,
    )
    registry = store.registry or DEFAULT_REGISTRY
    log.report_failures(store.log_failed)
    manager = _Manager(
        application.server,
        store,
        **application.manager_options,
        follow_timeout=settings.follow_timeout,
        worker_lease=lease,
        shutdown_timeout=settings.shutdown_timeout,
        name=name,
        logger=logger,
    )
    if scope is not None and scope.modern:
        manager.serves_modern_clients()
    application.install(manager)
    exposition = Exposition(registry, settings.metrics_token)
    port = _metrics_port(exposition, settings.metrics_port, settings.metrics_host, log)
    if port is None:
        _add_route(app, "/metrics", MetricsApp(exposition))
    for path, endpoint in Health(store, manager).endpoints.items():
        _add_route(app, path, endpoint)
    observed: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    if settings.console:
        observed = _add_console(app, store, settings)
    interval = settings.redis_stats_interval
    polling = nullcontext() if interval is None else store.poll_redis_stats(interval)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(connected())
            if port is not None:
                await stack.enter_async_context(port.served())
            await stack.enter_async_context(polling)
            await stack.enter_async_context(observed())
            store.started(log)
            await stack.enter_async_context(store.test_redis())
            await _report_unreachable(store, log)
            await stack.enter_async_context(application.lifespan())
            await stack.enter_async_context(manager.run())
            await _check_tasks(mcp)
            await stack.enter_async_context(parts())  # Tasks end before the lifespan of the server, which they may use.
            stack.enter_context(on_stop_signal(manager.drain))
            yield

    app.router.lifespan_context = lifespan
    return app


async def _check_tasks(server: object) -> None:
    """Check the names of the tools that run as tasks. Now, because tools may be registered until here.

    Raises:
        ValueError: The server lacks one of them.
    """
    if getattr(server, "_extensions", None):
        from mcp_eventscope.tasks.extension import check_tools  # noqa: PLC0415 - mcp 2.x

        await check_tools(server)


def _report_mistyped(log: Log) -> None:
    """Log the environment variables that have no effect because their names are mistyped."""
    for wrong, meant in mistyped().items():
        log.announce(catalog.start.SETTING_UNKNOWN, variable=wrong, fix=f"rename it to {meant}, or unset it")


def _check_combination(
    mcp: object,
    event_store: object,
    scope: EventScope | None,
    arguments: Mapping[str, object],
    telemetry: Mapping[str, object],
) -> None:
    """Validate a store or scope of the application's, together with the other options.

    Raises:
        TypeError: The store or the scope has another type.
        ValueError: Options contradict each other, or the server has parts of a scope that is not passed.
    """
    if event_store is not None:
        _check_given_store(event_store, scope, arguments, telemetry)
    if scope is not None:
        _check_given_scope(scope, arguments, telemetry)
    if any(owner is not scope for owner in scopes_of(mcp)):
        got = "none" if scope is None else "another one"
        msg = f"scope must be the EventScope whose parts the server has, got {got}; pass scope=scope"
        raise ValueError(msg)


def _check_given_store(
    event_store: object, scope: object, arguments: Mapping[str, object], telemetry: Mapping[str, object]
) -> None:
    """Validate a store of the application's, which has its own options.

    Args:
        event_store: The store.
        scope: The scope, which must not be given, too.
        arguments: The options that have environment variables.
        telemetry: The destinations of its signals.

    Raises:
        TypeError: It is not an event store.
        ValueError: A scope or options of a store are given, too, or other telemetry than that of an instrumented store.
    """
    check_store("event_store", event_store)
    given = [*_given(STORE_OPTIONS, arguments), *(["scope"] if scope is not None else [])]
    if given:
        msg = f"pass either event_store or {', '.join(given)}, not both; configure the store that you pass"
        raise ValueError(msg)
    if isinstance(event_store, InstrumentedEventStore):
        own = {"registry": event_store.registry, "tracer_provider": None, "meter_provider": None}
        if any(value not in (None, own[name]) for name, value in telemetry.items()):
            msg = (
                "registry, tracer_provider and meter_provider must be omitted with an InstrumentedEventStore; "
                "pass them to its constructor"
            )
            raise ValueError(msg)


def _check_given_scope(scope: object, arguments: Mapping[str, object], telemetry: Mapping[str, object]) -> None:
    """Validate a scope, which has its own options. Arguments as in `_check_given_store`.

    Raises:
        TypeError: It is not a scope.
        ValueError: Options of a scope are given, too.
    """
    check_type("scope", scope, EventScope, "an EventScope", 'pass EventScope("orders"), for example')
    given = _given((*STORE_OPTIONS, "name", "worker_lease"), arguments)
    given += [name for name, value in telemetry.items() if value is not None]
    if given:
        msg = f"{', '.join(given)} must be omitted with a scope, got both; pass them to EventScope"
        raise ValueError(msg)


def _given(names: Iterable[str], arguments: Mapping[str, object]) -> list[str]:
    """The options among `names` that are given as arguments."""
    return [name for name in names if arguments[name] is not (UNSET if name == "ttl" else None)]


def _check_option_names(options: Mapping[str, object]) -> None:
    """Refuse a mistyped option, which the framework would call an option of its own function.

    Raises:
        TypeError: The name of an option resembles that of another one, and is not a keyword of a framework.
    """
    known = {*StreamableHTTPOptions.__annotations__, *inspect.signature(http_app).parameters}
    for name in options.keys() - known:
        if meant := difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR):
            msg = f"{name} must be an option of http_app() or of the server's framework, got a name that is neither; "
            raise TypeError(msg + f"write {meant[0]}=")


def _check_framework_paths(options: Mapping[str, object]) -> None:
    """Validate the paths among the framework's options, whose own error names none of them.

    Raises:
        TypeError: A path is not a string.
        ValueError: A path does not begin with a slash.
    """
    for name in ("streamable_http_path", "path"):
        path = options.get(name)
        if path is None:
            continue
        check_text(name, path, '"/mcp"', "leave it out for the default")
        if not str(path).startswith("/"):
            msg = f'{name} must begin with a slash, got {path!r}; write "/{path}"'
            raise ValueError(msg)


class _Manager(ResumableSessionManager):
    """The session manager of an application that keeps a FastMCP's authentication, routes and middleware."""

    @staticmethod
    def _check_server(app: object) -> None:
        """Accept any server."""


def _metrics_port(exposition: Exposition, port: int | None, host: str | None, log: Log) -> MetricsPort | None:
    if port is not None:
        return MetricsPort(exposition, LOOPBACK if host is None else host, port, log)
    if host is not None:
        msg = (
            f"metrics_host ({variable('metrics_host')}) must be used with metrics_port ({variable('metrics_port')}), "
            "got no port; pass both or neither"
        )
        raise ValueError(msg)
    return None


def _own_name(mcp: object) -> str:
    """The server's own name, unless its framework generates another one in each process."""
    name = str(getattr(mcp, "name", "") or "")
    generated = re.fullmatch(rf"{re.escape(type(mcp).__name__)}-[0-9a-f]{{4}}", name)
    return DEFAULT_NAME if generated else name or DEFAULT_NAME


def _add_console(
    app: Starlette, store: InstrumentedEventStore, settings: Settings
) -> Callable[[], AbstractAsyncContextManager[object]]:
    """Serve the console. Returns what runs while the application does.

    Raises:
        ValueError: There is no token, the store is a third-party one, or the server already has a route at the path.
    """
    if settings.console_token is None:
        # No address shows that a request comes from this host: proxies on it may add no header, and keep any `Host`.
        msg = (
            f"console_token must be a secret text with console=True, got none; pass one, or set "
            f"{variable('console_token')}; the command mcp-eventscope console needs none"
        )
        raise ValueError(msg)
    from mcp_eventscope.console.app import PATH, Console, redirect  # noqa: PLC0415 - for those that want it

    shown = store.inspected("console")
    console = Console(
        shown.inspector(),
        address=shown.address,
        max_session_bytes=shown.max_session_bytes,
        token=settings.console_token,
        payloads=settings.console_payloads,
        worker=shown,
    )
    if any(str(getattr(route, "path", "")).startswith(f"{PATH}/") for route in app.routes):
        msg = f"the MCP server already serves {PATH}/, which console=True needs; move that route"
        raise ValueError(msg)
    _add_route(app, PATH, redirect)
    app.router.routes.insert(0, Mount(PATH, console.app))
    return console.running


def _add_route(app: Starlette, path: str, endpoint: ASGIApp | Endpoint) -> None:
    """Add a GET route before the server's routes, which may match every path.

    Raises:
        ValueError: The server already has a route at the path.
    """
    # Also with a slash at the end: requests would meet one or the other by a slash.
    if any(str(getattr(route, "path", "")).removesuffix("/") == path for route in app.routes):
        msg = f"the MCP server already serves {path}, which http_app() needs; move that route"
        raise ValueError(msg)
    app.router.routes.insert(0, Route(path, endpoint, methods=["GET"]))


async def _report_unreachable(store: InstrumentedEventStore, log: Log) -> None:
    if error := (await probe(store)).error:
        log.announce(
            catalog.store.UNREACHABLE,
            address=store.address,
            error=error,
            fix="start Redis, or let it accept writes: this process recovers; or correct redis_url, and restart",
        )
