"""The public names and their signatures, whose changes are changes for users."""

import inspect
import subprocess
import sys

import pytest
from fastmcp import FastMCP
from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

import mcp_eventscope
from mcp_eventscope import (
    EndSubscriptionsOnStop,
    EventScope,
    InMemoryTaskStore,
    InstrumentedEventStore,
    InstrumentedRequestState,
    InstrumentedSubscriptionBus,
    InstrumentedTaskStore,
    RedisEventStore,
    RedisRequestState,
    RedisSubscriptionBus,
    RedisTaskStore,
    ResumableSessionManager,
    TasksClient,
    TasksExtension,
    http_app,
    metrics_app,
)
from mcp_eventscope.app import StreamableHTTPOptions


def test_package_exports_these_names_only() -> None:
    """The package exports these names and no others."""
    assert mcp_eventscope.__all__ == [
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
    assert all(hasattr(mcp_eventscope, name) for name in mcp_eventscope.__all__)


def test_bare_store_imports_neither_sessions_nor_telemetry() -> None:
    """The package imports a public name when it is first used."""
    code = "import sys; from mcp_eventscope import RedisEventStore; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mcp_eventscope.redis.store" in loaded
    above = ("mcp_eventscope.sessions", "mcp_eventscope.telemetry", "prometheus_client", "structlog")
    assert [name for name in loaded if name.startswith(above)] == []


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not public is refused as by any module."""
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        _ = mcp_eventscope.Unknown
    assert set(mcp_eventscope.__all__) <= set(dir(mcp_eventscope))


@pytest.mark.parametrize(
    ("called", "parameters"),
    [
        (
            RedisEventStore,
            [
                "redis",
                "*key_prefix",
                "*ttl",
                "*store_timeout",
                "*backlog_bytes",
                "*backlog_events",
                "*max_session_bytes",
            ],
        ),
        (InstrumentedEventStore, ["store", "*name", "*registry", "*tracer_provider", "*meter_provider", "*logger"]),
        (
            RedisRequestState,
            ["backend", "*keys", "*ttl", "*rotation", "*wait_timeout", "*bind_principal", "*audience"],
        ),
        (InstrumentedRequestState, ["state", "*name", "*registry", "*tracer_provider", "*meter_provider", "*logger"]),
        (metrics_app, ["registry", "*token"]),
        (RedisSubscriptionBus, ["backend", "*max_pending", "*kept_batches", "*repair_seconds"]),
        (
            InstrumentedSubscriptionBus,
            ["bus", "*name", "*registry", "*tracer_provider", "*meter_provider", "*logger"],
        ),
        (EndSubscriptionsOnStop, ["app", "server"]),
        (InstrumentedTaskStore, ["store", "*name", "*registry", "*tracer_provider", "*meter_provider", "*logger"]),
        (RedisTaskStore, ["backend", "*ttl", "*poll_interval", "*sync_interval", "*max_result_bytes"]),
        (InMemoryTaskStore, ["*ttl", "*poll_interval", "*sync_interval", "*max_result_bytes"]),
        (
            TasksExtension,
            [
                "store",
                "*tools",
                "*max_tasks",
                "*max_tasks_per_principal",
                "*max_input_requests",
                "*max_input_bytes",
                "*input_timeout",
                "*shutdown_timeout",
            ],
        ),
        (TasksClient, ["on_task", "*retry_timeout"]),
        (
            EventScope,
            [
                "name",
                "*redis",
                "*redis_url",
                "*ttl",
                "*key_prefix",
                "*store_timeout",
                "*backlog_bytes",
                "*backlog_events",
                "*max_session_bytes",
                "*worker_lease",
                "*registry",
                "*tracer_provider",
                "*meter_provider",
                "*logger",
            ],
        ),
        (
            http_app,
            [
                "mcp",
                "event_store",
                "*scope",
                "*redis_url",
                "*ttl",
                "*key_prefix",
                "*name",
                "*store_timeout",
                "*backlog_bytes",
                "*backlog_events",
                "*max_session_bytes",
                "*follow_timeout",
                "*worker_lease",
                "*shutdown_timeout",
                "*metrics_port",
                "*metrics_host",
                "*metrics_token",
                "*redis_stats_interval",
                "*console",
                "*console_token",
                "*console_payloads",
                "*registry",
                "*tracer_provider",
                "*meter_provider",
                "*logger",
                "**options",
            ],
        ),
    ],
)
def test_public_callable_has_these_parameters(called: type, parameters: list[str]) -> None:
    """The parameters are these; a star marks a keyword."""
    marks: dict[object, str] = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    assert [marks.get(p.kind, "") + p.name for p in inspect.signature(called).parameters.values()] == parameters


def test_manager_signature_begins_with_the_sdks() -> None:
    """The manager has the SDK's parameters in order, with the same defaults; more by keyword."""
    theirs = list(inspect.signature(StreamableHTTPSessionManager).parameters.values())
    ours = list(inspect.signature(ResumableSessionManager).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == [(p.name, p.kind, p.default) for p in theirs]
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_http_app_takes_every_option_of_the_frameworks() -> None:
    """No keyword of the frameworks is missing, of any kind of server."""
    theirs: set[str] = set()
    for function in (MCPServer.streamable_http_app, Server.streamable_http_app, FastMCP.http_app):
        theirs |= set(inspect.signature(function).parameters) - {"self"}
    assert set(StreamableHTTPOptions.__annotations__) | {"event_store"} == theirs
