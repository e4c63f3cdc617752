"""`EventScope`: everything that one server keeps in Redis, under one name and prefix."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.redis.client import AnyRedis, connect
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.settings import UNSET, URL_VARIABLE, Unset, load
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.telemetry.otel_metrics import MeterProvider
from mcp_eventscope.telemetry.prometheus import DEFAULT_REGISTRY, Registry
from mcp_eventscope.telemetry.tracing import TracerProvider

DEFAULT_NAME = "default"
"""The name of a server without a fixed name of its own."""


class EventScope:
    """What a server keeps in Redis: the events of its sessions, and the state of its 2026-07-28 clients.

    Its parts share one client, one key prefix, one circuit breaker, one worker lease, and one set of metrics. A part
    is created when it is first used, which must be before the application starts.

    ```python
    scope = EventScope("orders", redis_url="redis://localhost:6379/0")
    mcp = MCPServer("orders", **scope.options)
    app = http_app(mcp, scope=scope)
    ```

    Each option that is left out or None is taken from its environment variable, as in `http_app`, and otherwise has its
    default.

    Args:
        name: The name of the server, the same on all of its workers: the label `store` of its metrics.
            None: the environment variable `EVENTSCOPE_NAME`, else `default`.
        redis: A `redis.asyncio.Redis` or `RedisCluster`, instead of a URL. The caller closes it.
        redis_url: The URL of Redis. The scope creates and closes the client. Without both: the environment variable
            `EVENTSCOPE_REDIS_URL`, else an embedded Valkey, with a warning.
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
        ValueError: Both `redis` and `redis_url` are given, or an argument or an environment variable is invalid.
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
        self._name = settings.name or DEFAULT_NAME
        self._worker_lease = settings.worker_lease
        log = Log(logger)
        self._valkey = EmbeddedValkey() if redis is None and settings.redis_url is None else None
        self._owns_client = redis is None
        self._client = redis or connect(settings.redis_url or "" if self._valkey is None else self._valkey.url)
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
                catalog.EMBEDDED,
                address=self._store.address,
                consequence="events are lost when this process ends, and no other worker sees them: not for production",
                fix=f"pass redis_url=, or set {URL_VARIABLE}",
            )
        self._event_store = InstrumentedEventStore(
            self._store,
            name=self._name,
            registry=registry,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger=logger,
        )
        log.report_failures(self._event_store.log_failed)

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

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the parts in use, and hold the worker lease, until the block ends. `http_app` enters it.

        Raises:
            EmbeddedUnavailableError: The embedded Valkey did not start.
        """
        async with AsyncExitStack() as stack:
            if self._valkey is not None:
                await stack.enter_async_context(self._valkey.running())
            if self._owns_client:
                stack.push_async_callback(self._client.aclose)
            await stack.enter_async_context(
                self._store.coordinator.hold_lease(self._worker_lease, lambda _: None, _nothing)
            )
            yield


async def _nothing() -> None:
    """Publish nothing: the session manager publishes the state of its sessions."""
