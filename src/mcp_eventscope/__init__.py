"""Resumable SSE for MCP servers: a Redis event store with metrics, traces and logs."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from mcp_eventscope.sdk_versions import MODERN, SESSIONS, require_sdk

if TYPE_CHECKING:
    from mcp_eventscope.app import http_app
    from mcp_eventscope.errors import (
        CorruptEventError,
        EmbeddedUnavailableError,
        EventscopeError,
        IncompatibleSDKError,
        SessionsNotIsolatedWarning,
        StoreError,
        StoreRejectedError,
        StoreUnavailableError,
    )
    from mcp_eventscope.instrumentation import InstrumentedEventStore
    from mcp_eventscope.redis.store import RedisEventStore
    from mcp_eventscope.request_state.instrumented import InstrumentedRequestState
    from mcp_eventscope.request_state.store import RedisRequestState
    from mcp_eventscope.scope import EventScope
    from mcp_eventscope.sessions.manager import ResumableSessionManager
    from mcp_eventscope.subscriptions.ending import EndSubscriptionsOnStop
    from mcp_eventscope.subscriptions.instrumented import InstrumentedSubscriptionBus
    from mcp_eventscope.subscriptions.redis_bus import RedisSubscriptionBus
    from mcp_eventscope.tasks.client import TasksClient
    from mcp_eventscope.tasks.extension import TasksExtension
    from mcp_eventscope.tasks.instrumented import InstrumentedTaskStore
    from mcp_eventscope.tasks.memory_store import InMemoryTaskStore
    from mcp_eventscope.tasks.protocol import TaskStore
    from mcp_eventscope.tasks.redis_store import RedisTaskStore
    from mcp_eventscope.telemetry.exposition.endpoints import metrics_app

__all__ = [
    "CorruptEventError",
    "EmbeddedUnavailableError",
    "EndSubscriptionsOnStop",
    "EventScope",
    "EventscopeError",
    "InMemoryTaskStore",
    "IncompatibleSDKError",
    "InstrumentedEventStore",
    "InstrumentedRequestState",
    "InstrumentedSubscriptionBus",
    "InstrumentedTaskStore",
    "RedisEventStore",
    "RedisRequestState",
    "RedisSubscriptionBus",
    "RedisTaskStore",
    "ResumableSessionManager",
    "SessionsNotIsolatedWarning",
    "StoreError",
    "StoreRejectedError",
    "StoreUnavailableError",
    "TaskStore",
    "TasksClient",
    "TasksExtension",
    "http_app",
    "metrics_app",
]

_MODULES: Mapping[str, str] = {
    "http_app": "app",
    "EndSubscriptionsOnStop": "subscriptions.ending",
    "EventScope": "scope",
    "InstrumentedEventStore": "instrumentation",
    "InstrumentedRequestState": "request_state.instrumented",
    "InstrumentedSubscriptionBus": "subscriptions.instrumented",
    "RedisEventStore": "redis.store",
    "RedisRequestState": "request_state.store",
    "RedisSubscriptionBus": "subscriptions.redis_bus",
    "ResumableSessionManager": "sessions.manager",
    "metrics_app": "telemetry.exposition.endpoints",
    "InMemoryTaskStore": "tasks.memory_store",
    "InstrumentedTaskStore": "tasks.instrumented",
    "RedisTaskStore": "tasks.redis_store",
    "TaskStore": "tasks.protocol",
    "TasksClient": "tasks.client",
    "TasksExtension": "tasks.extension",
}
"""The modules of the public names; the exceptions are all in `errors`."""

_SESSIONS = ("http_app", "ResumableSessionManager")
"""The names that need the SDK's session manager. The others need its event store at most, which `store` checks."""
_MODERN = frozenset(
    name for name, module in _MODULES.items() if module.startswith(("subscriptions.", "request_state.", "tasks."))
)
"""The names that need revision 2026-07-28."""


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that a bare store imports no telemetry."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    if name in _SESSIONS:
        require_sdk(name, SESSIONS)
    if name in _MODERN:
        require_sdk(name, MODERN)
    value: object = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
