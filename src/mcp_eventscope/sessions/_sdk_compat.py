"""The private parts of the SDK that sessions depend on, and their check before anything is served."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import INTERNAL_ERROR, ErrorData, JSONRPCError
from starlette.responses import Response

from mcp_eventscope.errors import IncompatibleSDKError
from mcp_eventscope.sdk_versions import TESTED
from mcp_eventscope.store.messages import SDK_1, EventCallback, EventId, EventStore, JSONRPCMessage, StreamId

if TYPE_CHECKING or not SDK_1:
    from mcp_eventscope.sessions._sdk_2 import (
        DISPATCHER_ATTRIBUTES,
        LATEST_HANDSHAKE_VERSION,
        LIFESPAN_ATTRIBUTES,
        MCP_PROTOCOL_VERSION_HEADER,
        MODERN_PROTOCOL_VERSIONS,
        NO_REQUEST,
        accepts_sse,
        end_subscriptions,
        is_version_at_least,
        missing,
        negotiated_version,
        serve_adopted,
    )
else:
    from mcp_eventscope.sessions._sdk_1 import (
        DISPATCHER_ATTRIBUTES,
        LATEST_HANDSHAKE_VERSION,
        LIFESPAN_ATTRIBUTES,
        MCP_PROTOCOL_VERSION_HEADER,
        MODERN_PROTOCOL_VERSIONS,
        NO_REQUEST,
        accepts_sse,
        end_subscriptions,
        is_version_at_least,
        missing,
        negotiated_version,
        serve_adopted,
    )

__all__ = [
    "CALLS",
    "DISPATCHER_ATTRIBUTES",
    "LATEST_HANDSHAKE_VERSION",
    "MANAGER_ATTRIBUTES",
    "MCP_PROTOCOL_VERSION_HEADER",
    "MODERN_PROTOCOL_VERSIONS",
    "TRANSPORT_ATTRIBUTES",
    "TRANSPORT_METHODS",
    "Guard",
    "accepts_sse",
    "check_calls",
    "check_manager",
    "end_subscriptions",
    "incompatible",
    "is_version_at_least",
    "log",
    "negotiated_version",
    "serve_adopted",
    "unavailable",
    "unlogged",
]

log = logging.getLogger(StreamableHTTPSessionManager.__module__)

CALLS = (
    ("_handle_request", "_handle_stateful_request"),
    ("_handle_stateful_request", "_admit_session"),
    ("_handle_stateful_request", "_serve_opening_request"),
    ("_handle_stateful_request", "_discard_session"),
    ("_serve_opening_request", "_discard_session"),
)
"""Methods of the SDK's manager and the methods they call, which are overridden here."""


MANAGER_ATTRIBUTES = (
    *LIFESPAN_ATTRIBUTES,
    "_server_instances",
    "_session_creation_lock",
    "_session_owners",
    "_task_group",
)
TRANSPORT_ATTRIBUTES = (
    "_event_store",
    "_idle_timeout",
    "_read_stream_writer",
    "_request_streams",
    "_requests_in_flight",
    "_retry_interval",
    "_write_stream",
    "_write_stream_reader",
)
TRANSPORT_METHODS = (
    "_create_error_response",
    "_create_event_data",
    "_handle_get_request",
    "_handle_post_request",
    "_mint_priming_event",
    "_run_sse_writer",
    "_validate_request_headers",
)
"""The private names of the SDK that this package uses beside `CALLS`. A test compares them with the source."""


class Guard(EventStore):
    """The event store of the SDK's manager. It refuses every call, since each session has a view of its own."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Refuse."""
        incompatible("a session was not given its own view of the event store")

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Refuse."""
        incompatible("a session was not given its own view of the event store")


def check_calls() -> None:
    """Check that the SDK's manager still calls the methods that are overridden.

    Raises:
        IncompatibleSDKError: It does not.
    """
    for caller, called in CALLS:
        code = getattr(getattr(StreamableHTTPSessionManager, caller, None), "__code__", None)
        if not hasattr(StreamableHTTPSessionManager, called) or code is None or called not in code.co_names:
            incompatible(f"StreamableHTTPSessionManager.{caller} does not call {called}")


@contextmanager
def unlogged() -> Iterator[None]:
    """Silence the SDK's log, which would report a session that is only made to check the SDK."""
    log.addFilter(_nothing)
    try:
        yield
    finally:
        log.removeFilter(_nothing)


def unavailable(message: str, *, retry_after: int | None = None) -> Response:
    """A 503 response, in the form of the SDK's at its session limit.

    Args:
        message: The reason.
        retry_after: Seconds after which the client may retry; None: the header is omitted.
    """
    body = JSONRPCError(jsonrpc="2.0", id=NO_REQUEST, error=ErrorData(code=INTERNAL_ERROR, message=message))
    headers = None if retry_after is None else {"retry-after": str(retry_after)}
    return Response(body.model_dump_json(by_alias=True, exclude_unset=True), 503, headers, "application/json")


def incompatible(what: str) -> NoReturn:
    """Refuse to serve.

    Raises:
        IncompatibleSDKError: Always.
    """
    msg = (
        f"mcp {version('mcp')} does not support isolated sessions: {what}. "
        "Nothing is served, since sessions could read each other's events. "
        f"Install {TESTED}, or a newer mcp-eventscope"
    )
    raise IncompatibleSDKError(msg)


def _nothing(_: logging.LogRecord) -> bool:
    """A filter that rejects every record."""
    return False


def check_manager(manager: StreamableHTTPSessionManager) -> None:
    """Check the private parts of the installed SDK that every session depends on.

    Raises:
        IncompatibleSDKError: One of them is missing or has changed.
    """
    check_calls()
    try:
        # A session is made as any other, and removed before it is connected.
        with unlogged():
            transport = manager._admit_session(None)
    except (AttributeError, TypeError) as error:
        incompatible(f"a session cannot be admitted: {error}")
    if transport is None:
        incompatible("a session is not admitted")
    for owner, names in (
        (manager, MANAGER_ATTRIBUTES),
        (transport, TRANSPORT_ATTRIBUTES),
        (StreamableHTTPServerTransport, TRANSPORT_METHODS),
    ):
        for name in names:
            if not hasattr(owner, name):
                incompatible(f"{_class_of(owner)} has no `{name}`")
    for reason in missing():
        incompatible(reason)
    if transport.mcp_session_id not in manager._server_instances:
        incompatible("StreamableHTTPSessionManager does not keep its sessions in `_server_instances`")
    manager._server_instances.clear()


def _class_of(owner: object) -> str:
    return owner.__name__ if isinstance(owner, type) else type(owner).__mro__[-2].__name__
