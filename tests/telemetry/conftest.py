"""Real telemetry: a registry, an in-memory span exporter, a recording logger."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx2
import pytest
from fakeredis import FakeAsyncRedis
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from mcp_eventscope import InstrumentedEventStore, InstrumentedTaskStore, RedisEventStore, TaskStore, http_app
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.messages import EventStore
from mcp_eventscope.telemetry import catalog
from support.controlled_server import ControlledServer
from support.http_client import NO_TLS, HTTPClient
from support.logs import Recorder
from support.waiting import CEILING


@dataclass
class Scope:
    """All signals of a store."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    log: Recorder = field(default_factory=Recorder)
    provider: TracerProvider = field(default_factory=TracerProvider)

    def __post_init__(self) -> None:
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def instrument(self, store: EventStore, name: str = "default") -> InstrumentedEventStore:
        """Decorate a store."""
        return InstrumentedEventStore(
            store, name=name, registry=self.registry, tracer_provider=self.provider, logger=self.log
        )

    def instrument_tasks(self, store: TaskStore) -> InstrumentedTaskStore:
        """Decorate a task store."""
        return InstrumentedTaskStore(store, registry=self.registry, tracer_provider=self.provider, logger=self.log)

    def sample(self, name: str, **labels: str) -> float | None:
        """One sample of a metric, without the prefix."""
        return self.registry.get_sample_value(f"eventscope_{name}", {"store": "default", **labels})

    def conventional(self, name: str, **labels: str) -> float | None:
        """One sample of a metric of the semantic conventions."""
        return self.registry.get_sample_value(name, {"store": "default", **labels})

    def spans(self) -> list[ReadableSpan]:
        """Ended spans, in order."""
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def scope() -> Scope:
    """Telemetry for one test."""
    return Scope()


@pytest.fixture
def redis() -> FakeAsyncRedis:
    """A Redis for one test."""
    return FakeAsyncRedis()


@dataclass
class Rig:
    """Workers on one Redis, in this process, with their signals. The store of each worker has a name."""

    scope: Scope
    redis: Redis
    prefix: str
    stack: AsyncExitStack

    async def serve(
        self,
        name: str = "default",
        store: EventStore | None = None,
        steered: ControlledServer | None = None,
        **options: object,
    ) -> HTTPClient:
        """Serve a worker; returns a client of it without a session."""
        bare = store or RedisEventStore(self.redis, key_prefix=self.prefix, ttl=3600)
        instrumented = self.scope.instrument(bare, name)
        served = (steered or ControlledServer()).mcp
        app = http_app(served, instrumented, logger=self.scope.log, **options)  # type: ignore[arg-type]
        # Without sockets: nothing here is cut.
        http = httpx2.AsyncClient(verify=NO_TLS, transport=httpx2.ASGITransport(app), timeout=CEILING)
        await self.stack.enter_async_context(http)
        await self.stack.enter_async_context(app.router.lifespan_context(app))
        return HTTPClient(http, "http://127.0.0.1:8000/mcp")

    def live(self, name: str = "default") -> float | None:
        """Active sessions of a worker."""
        return self._value("eventscope_sessions_active", store=name)

    def begun(self, origin: str, name: str = "default") -> float | None:
        """Sessions that a worker started to serve, by origin."""
        return self._value("eventscope_sessions_started_total", store=name, origin=origin)

    def ended(self, name: str = "default") -> dict[str, float]:
        """Sessions that a worker ended, by reason."""
        return self._by_reason("sessions_ended", name)

    def refused(self, name: str = "default") -> dict[str, float]:
        """Requests that a worker refused, by reason."""
        return self._by_reason("requests_refused", name)

    def _by_reason(self, what: str, name: str) -> dict[str, float]:
        label = catalog.sessions.SESSION_END_REASON if what == "sessions_ended" else catalog.sessions.REFUSAL_REASON
        found = {
            reason: self._value(f"eventscope_{what}_total", store=name, reason=reason) or 0
            for reason in label.values or ()
        }
        return {reason: number for reason, number in found.items() if number}

    def _value(self, name: str, **labels: str) -> float | None:
        return self.scope.registry.get_sample_value(name, labels)


@pytest.fixture
async def rig(scope: Scope, valkey_url: str, key_prefix: str) -> AsyncIterator[Rig]:
    """Workers on a real Valkey."""
    async with connect(valkey_url) as redis, AsyncExitStack() as stack:
        yield Rig(scope, redis, key_prefix, stack)
