"""mcp-eventscope: the event store that MCP servers can be operated on."""

from mcp_eventscope.app import http_app
from mcp_eventscope.errors import (
    CorruptEventError,
    EmbeddedUnavailableError,
    EventscopeError,
    IncompatibleSDKError,
    StoreError,
    StoreRejectedError,
    StoreUnavailableError,
    UnscopedStoreWarning,
)
from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.sessions.manager import ResumableSessionManager
from mcp_eventscope.telemetry.scrape import metrics_app

__all__ = [
    "CorruptEventError",
    "EmbeddedUnavailableError",
    "EventscopeError",
    "IncompatibleSDKError",
    "InstrumentedEventStore",
    "RedisEventStore",
    "ResumableSessionManager",
    "StoreError",
    "StoreRejectedError",
    "StoreUnavailableError",
    "UnscopedStoreWarning",
    "http_app",
    "metrics_app",
]
