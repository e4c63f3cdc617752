"""The conformance suite on a third-party store, bare and instrumented."""

import pytest
from mcp.server.streamable_http import EventStore
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore
from mcp_eventscope.testing import EventStoreConformance
from support.memory_store import MemoryEventStore


class TestMemoryStore(EventStoreConformance):
    """A store that has only the SDK's interface."""

    ids_increase = False

    @pytest.fixture
    async def store(self) -> EventStore:
        """The store under test."""
        return MemoryEventStore()


class TestInstrumentedMemoryStore(TestMemoryStore):
    """The same, decorated."""

    @pytest.fixture
    async def store(self) -> EventStore:
        """The store under test."""
        return InstrumentedEventStore(MemoryEventStore(), registry=CollectorRegistry())


class TestSessionOfMemoryStore(TestMemoryStore):
    """One session's part of the same, isolated by the names of its streams."""

    @pytest.fixture
    async def store(self) -> EventStore:
        """The store under test."""
        return InstrumentedEventStore(MemoryEventStore(), registry=CollectorRegistry()).for_session("1:1")
