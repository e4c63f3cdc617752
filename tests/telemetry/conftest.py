"""Real telemetry: a registry, an exporter that keeps spans, a logger that remembers."""

from dataclasses import dataclass, field

import pytest
from fakeredis import FakeAsyncRedis
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore
from mcp_eventscope.types import EventStore
from support.logs import Recorder


@dataclass
class Scope:
    """Everything that a store tells."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    log: Recorder = field(default_factory=Recorder)
    provider: TracerProvider = field(default_factory=TracerProvider)

    def __post_init__(self) -> None:
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def instrument(self, store: EventStore, name: str = "default") -> InstrumentedEventStore:
        """The store, decorated."""
        return InstrumentedEventStore(
            store, name=name, registry=self.registry, tracer_provider=self.provider, logger=self.log
        )

    def sample(self, name: str, **labels: str) -> float | None:
        """One sample of a metric, without the prefix."""
        return self.registry.get_sample_value(f"eventscope_{name}", {"store": "default", **labels})

    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in that order."""
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def scope() -> Scope:
    """Telemetry of this test's own."""
    return Scope()


@pytest.fixture
def redis() -> FakeAsyncRedis:
    """A Redis of this test's own."""
    return FakeAsyncRedis()
