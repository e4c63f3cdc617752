"""`EventScope`: everything that one server keeps in Redis, under one name and prefix."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from weakref import WeakKeyDictionary

import anyio

from mcp_eventscope.cancellation import LoopLock
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.process import PROCESS
from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.redis.client import AnyRedis, client_for
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.sdk_versions import MODERN, require_sdk
from mcp_eventscope.settings import UNSET, URL_VARIABLE, Unset, load
from mcp_eventscope.store.coordination import LEAVE_SECONDS
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.telemetry.metrics.otel import MeterProvider
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.tracing import TracerProvider

if TYPE_CHECKING:
    from mcp_eventscope.request_state.instrumented import InstrumentedRequestState
    from mcp_eventscope.subscriptions.instrumented import InstrumentedSubscriptionBus
    from mcp_eventscope.tasks.extension import TasksExtension


class _Owners:
    """The scopes of the parts that were handed out in this process."""

    def __init__(self) -> None:
        self.scopes: WeakKeyDictionary[object, EventScope] = WeakKeyDictionary()


class ServerOptions(TypedDict, total=False):
    """Keywords of `MCPServer`."""

    subscriptions: "InstrumentedSubscriptionBus"
    extensions: "list[TasksExtension]"


class TaskOptions(TypedDict, total=False):
    """Keywords of `RedisTaskStore` and `TasksExtension`."""

    ttl: int
    poll_interval: float
    sync_interval: float
    max_result_bytes: int
    max_tasks: int
    max_tasks_per_principal: int
    max_input_requests: int
    max_input_bytes: int
    input_timeout: float
    shutdown_timeout: float


class _Telemetry(TypedDict):
    """The destinations of the signals of each part."""

    name: str
    registry: Registry | None
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    logger: Logger | None


class EventScope:
    """What a server keeps in Redis: the events of its sessions, and the state of its 2026-07-28 clients.

    Its parts share one client, one key prefix, one circuit breaker, one worker lease, and one set of metrics. A part
    is created when it is first used, which must be before the application starts. Those for 2026-07-28 clients need mcp
    2.2 or later.

    ```python
    scope = EventScope("orders", redis_url="redis://localhost:6379/0")
    mcp = MCPServer("orders", **scope.server_options(tasks={"ship"}))
    app = http_app(mcp, scope=scope)
    ```

    Each option that is left out or None is taken from its environment variable, as in `http_app`, and otherwise has its
    default.

    Args:
        name: The name of the server, the same on all of its workers: the label `store` of its metrics, and the audience
            of its request states. None: the environment variable `EVENTSCOPE_NAME`.
        redis: A `redis.asyncio.Redis` or `RedisCluster`, instead of a URL. The caller closes it.
        redis_url: The URL of Redis, or `redis+cluster://…` of Redis Cluster. The scope creates and closes the client.
            Without both: the environment variable `EVENTSCOPE_REDIS_URL`, else an embedded Valkey, with a warning.
        ttl: Seconds that events are kept; by default 3600; None: no expiry.
        key_prefix: The prefix of every key in Redis. Each server on one Redis needs its own.
        store_timeout: As in `RedisEventStore`, in seconds.
        backlog_bytes: As in `RedisEventStore`.
        backlog_events: As in `RedisEventStore`.
        max_session_bytes: As in `RedisEventStore`.
        worker_lease: Seconds without a renewal after which a worker is declared dead.
        registry: As in `InstrumentedEventStore`.
        tracer_provider: As in `InstrumentedEventStore`.
        meter_provider: As in `InstrumentedEventStore`.
        logger: As in `InstrumentedEventStore`.

    Raises:
        TypeError: An argument has another type.
        ValueError: No name is given, both `redis` and `redis_url` are, or an argument or an environment variable is
            invalid.
        EmbeddedUnavailableError: No Redis is given, and the embedded Valkey is unavailable.
    """

    def __init__(  # noqa: PLR0913 - the options of an operator
        self,
        name: str | None = None,
        *,
        redis: AnyRedis | None = None,
        redis_url: str | None = None,
        ttl: int | Unset | None = UNSET,
        key_prefix: str | None = None,
        store_timeout: float | None = None,
        backlog_bytes: int | None = None,
        backlog_events: int | None = None,
        max_session_bytes: int | None = None,
        worker_lease: float | None = None,
        registry: Registry | None = DEFAULT_REGISTRY,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger: Logger | None = None,
    ) -> None:
        settings = load(
            {
                "name": name,
                "redis_url": redis_url,
                "ttl": ttl,
                "key_prefix": key_prefix,
                "store_timeout": store_timeout,
                "backlog_bytes": backlog_bytes,
                "backlog_events": backlog_events,
                "max_session_bytes": max_session_bytes,
                "worker_lease": worker_lease,
            }
        )
        if redis is not None and redis_url is not None:
            msg = "redis_url must be omitted with redis, got both; pass one of them"
            raise ValueError(msg)
        if settings.name is None:
            msg = 'name must be the name of the server, such as "orders", got none; pass it, or set EVENTSCOPE_NAME'
            raise ValueError(msg)
        self._name = settings.name
        self._worker_lease = settings.worker_lease
        log = Log(logger)
        self._valkey = EmbeddedValkey() if redis is None and settings.redis_url is None else None
        self._owns_client = redis is None
        self._client = redis or client_for(settings.redis_url or "" if self._valkey is None else self._valkey.url)
        self._store = RedisEventStore(
            self._client,
            key_prefix=settings.key_prefix,
            ttl=settings.ttl,
            store_timeout=settings.store_timeout,
            backlog_bytes=settings.backlog_bytes,
            backlog_events=settings.backlog_events,
            max_session_bytes=settings.max_session_bytes,
        )
        if self._valkey is not None:
            log.announce(
                catalog.store.EMBEDDED,
                address=self._store.address,
                consequence="events are lost when this process ends, and no other worker sees them: not for production",
                fix=f"pass redis_url=, or set {URL_VARIABLE}",
            )
        self._telemetry: _Telemetry = {
            "name": self._name,
            "registry": registry,
            "tracer_provider": tracer_provider,
            "meter_provider": meter_provider,
            "logger": logger,
        }
        self._event_store = InstrumentedEventStore(self._store, **self._telemetry)
        log.report_failures(self._event_store.log_failed)
        self._subscriptions: InstrumentedSubscriptionBus | None = None
        self._request_state: InstrumentedRequestState | None = None
        self._parts: list[Callable[[], AbstractAsyncContextManager[object]]] = []
        """What runs within `running`."""
        self._changing = LoopLock()
        """Held while the resources are opened or closed."""
        self._users = 0
        """How many `connected` blocks are open."""
        self._opened = False
        self._resources = AsyncExitStack()
        """The embedded Valkey, if there is one."""
        self._serving = False
        """Whether an application uses this scope, so that further parts would not run."""

    @property
    def name(self) -> str:
        """The name of the server."""
        return self._name

    @property
    def worker_lease(self) -> float:
        """Seconds without a renewal after which a worker is declared dead."""
        return self._worker_lease

    @property
    def event_store(self) -> InstrumentedEventStore:
        """The event store, which makes the streams of sessions resumable."""
        return self._event_store

    @property
    def backend(self) -> RedisBackend:
        """What all parts share, to build one with other options than its defaults."""
        return self._store.backend

    @property
    def subscriptions(self) -> "InstrumentedSubscriptionBus":
        """The bus for `MCPServer(subscriptions=…)`: a change on one worker is signalled to the streams of all."""
        if self._subscriptions is None:
            self._begin("subscriptions")
            from mcp_eventscope.subscriptions.instrumented import InstrumentedSubscriptionBus  # noqa: PLC0415 - mcp 2.x
            from mcp_eventscope.subscriptions.redis_bus import RedisSubscriptionBus  # noqa: PLC0415

            self._subscriptions = InstrumentedSubscriptionBus(RedisSubscriptionBus(self.backend), **self._telemetry)
            self._parts.append(self._subscriptions.running)
            PROCESS.single(_Owners).scopes[self._subscriptions] = self
        return self._subscriptions

    @property
    def request_state(self) -> "InstrumentedRequestState":
        """The request state: any worker accepts an answer to a question, once. `http_app` installs it in the server."""
        if self._request_state is None:
            self._begin("request_state")
            from mcp_eventscope.request_state.instrumented import InstrumentedRequestState  # noqa: PLC0415 - mcp 2.x
            from mcp_eventscope.request_state.store import RedisRequestState  # noqa: PLC0415

            state = RedisRequestState(self.backend, audience=self._name)
            self._request_state = InstrumentedRequestState(state, **self._telemetry)
        return self._request_state

    def tasks(self, tools: Collection[str], **options: Unpack[TaskOptions]) -> "TasksExtension":
        """Create the extension for `MCPServer(extensions=[…])` that runs tools as tasks, which any worker serves.

        Args:
            tools: The names of the tools.
            **options: As in `RedisTaskStore` and `TasksExtension`. Without `ttl`, tasks are kept for an hour after
                their end, whatever the `ttl` of events is.

        Raises:
            TypeError: `tools` is not a collection of names, or an option has another type.
            ValueError: An option is out of range.
        """
        self._begin("tasks")
        from mcp_eventscope.tasks.extension import TasksExtension  # noqa: PLC0415 - mcp 2.x
        from mcp_eventscope.tasks.instrumented import InstrumentedTaskStore  # noqa: PLC0415
        from mcp_eventscope.tasks.redis_store import NUMBERS, RedisTaskStore  # noqa: PLC0415

        limits: dict[str, Any] = dict(options)
        kept = {name: limits.pop(name) for name in NUMBERS if name in limits}
        store = InstrumentedTaskStore(RedisTaskStore(self.backend, **kept), **self._telemetry)
        extension = TasksExtension(store, tools=tools, **limits)
        self._parts.append(extension.running)
        PROCESS.single(_Owners).scopes[extension] = self
        return extension

    def _begin(self, part: str) -> None:
        """Check that a part can be created.

        Raises:
            IncompatibleSDKError: The installed SDK lacks protocol revision 2026-07-28.
            RuntimeError: An application uses the scope already.
        """
        require_sdk(f"EventScope.{part}", MODERN)
        if self._serving:
            msg = f"{part} must be used before http_app(mcp, scope=scope), got its first use afterwards; move it up"
            raise RuntimeError(msg)

    def server_options(self, *, tasks: Collection[str] = ()) -> ServerOptions:
        """Return the keywords with which an `MCPServer` uses all parts of the scope.

        Args:
            tasks: The names of the tools that run as tasks.
        """
        options: ServerOptions = {"subscriptions": self.subscriptions}
        _ = self.request_state  # `http_app` installs it.
        if tasks:
            options["extensions"] = [self.tasks(tasks)]
        return options

    @property
    def modern(self) -> bool:
        """Whether it has parts for 2026-07-28 clients."""
        return bool(self._parts) or self._request_state is not None

    def install(self, server: object) -> None:
        """Install the request state in a server, if it is in use. `http_app` calls this.

        Args:
            server: An `MCPServer`, a low-level `Server`, or a `FastMCP`.

        Raises:
            TypeError: The server is none of these.
            ValueError: The scope has a server already, or the server has a request state already, or a name that
                differs between its processes.
        """
        if self._serving:
            msg = "scope must have one server and one http_app(), got a second one; create an EventScope for each"
            raise ValueError(msg)
        self._serving = True
        if self._request_state is not None:
            self._request_state.install(server)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the parts in use, and hold the worker lease, until the block ends. `http_app` does the same.

        Enter it within the lifespan of the server, whose tools may use what that provides until they have ended.

        Raises:
            EmbeddedUnavailableError: The embedded Valkey did not start.
        """
        async with self.connected(), self.parts():
            yield

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Start the embedded Valkey, if there is one, and hold the worker lease, until the block ends.

        Raises:
            EmbeddedUnavailableError: The embedded Valkey did not start.
        """
        self._serving = True
        lease = self._store.coordinator.hold_lease(self._worker_lease, lambda _: None, _nothing)
        async with self._open(), lease:
            yield

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        """Start the embedded Valkey with the first block; stop it and close the client with the last one."""
        changing = self._changing()
        self._users += 1
        try:
            async with changing:
                if self._valkey is not None and not self._opened:
                    await self._resources.enter_async_context(self._valkey.running())
                self._opened = True
            yield
        finally:
            self._users -= 1
            with anyio.CancelScope(shield=True):
                async with changing:
                    if not self._users:
                        self._opened = False
                        try:
                            if self._owns_client:
                                with anyio.move_on_after(LEAVE_SECONDS):  # A frozen peer takes no more bytes.
                                    await self._client.aclose()
                        finally:
                            await self._resources.aclose()

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[None]:
        """Run the parts in use until the block ends, within `connected`."""
        async with AsyncExitStack() as stack:
            for part in self._parts:
                await stack.enter_async_context(part())
            yield


def scopes_of(server: object) -> list[EventScope]:
    """The scopes whose bus or tasks a server has; empty for a server that the SDK builds in another way.

    Args:
        server: Any server.
    """
    parts = [getattr(server, "_subscriptions", None), *(getattr(server, "_extensions", None) or ())]
    scopes = PROCESS.single(_Owners).scopes
    return [scopes[part] for part in parts if part.__hash__ is not None and part is not None and part in scopes]


async def _nothing() -> None:
    """Publish nothing: the session manager publishes the state of its sessions."""
