import importlib.metadata

import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore
from mcp_eventscope.sdk_versions import VERSION, version_of
from support.memory_store import MemoryEventStore


def test_instrumented_store_in_a_loop_reads_no_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading metadata blocks, and applications create stores while they serve."""

    def refuse(package: str) -> str:
        msg = f"read the version of {package}"
        raise AssertionError(msg)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", refuse)
    InstrumentedEventStore(MemoryEventStore(), registry=CollectorRegistry())


def test_version_of_a_package_without_metadata_is_unknown() -> None:
    """A frozen application has none."""
    assert version_of("mcp-eventscope-that-is-not-installed") == "unknown"
    assert importlib.metadata.version("mcp-eventscope") == VERSION
