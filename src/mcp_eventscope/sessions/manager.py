"""A drop-in for the SDK's session manager that gives every session its own view of the event store."""

import logging
from importlib.metadata import version
from typing import Any, NoReturn

from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import (
    DEFAULT_MAX_REQUEST_BODY_SIZE,
    DEFAULT_MAX_SESSIONS,
    DEFAULT_SESSION_IDLE_TIMEOUT,
    StreamableHTTPSessionManager,
)
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from mcp_eventscope.errors import IncompatibleSDKError
from mcp_eventscope.instrumented import InstrumentedEventStore, instrument
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.types import EventCallback, EventId, EventStore, JSONRPCMessage, StreamId

_sdk_log = logging.getLogger(StreamableHTTPSessionManager.__module__)

DEFAULT_FOLLOW_LIMIT = 300.0
"""Seconds that a resumed stream is followed at most."""


class ResumableSessionManager(StreamableHTTPSessionManager):
    """`StreamableHTTPSessionManager`, with a view of its own for every session.

    The SDK hands one store to all sessions, and tells it a request id only, which every client counts from 0: they
    would share streams. Here no session can store on, or be replayed, another's stream.

    Args:
        app: The low-level server.
        event_store: The store; it is instrumented, unless it is already. None: nothing can be resumed.
        json_response: As in the SDK. Responses are then no streams, and cannot be resumed: `event_store.inert`.
        stateless: As in the SDK. There are then no sessions to resume: `event_store.inert`.
        security_settings: As in the SDK.
        retry_interval: As in the SDK, in milliseconds.
        session_idle_timeout: As in the SDK, in seconds.
        max_request_body_size: As in the SDK, in bytes.
        max_sessions: As in the SDK.
        follow_limit: Seconds that a resumed stream is followed at most; the client then comes back by itself.
        logger: Where the log events of the manager go; None: as in `InstrumentedEventStore`.

    Raises:
        ValueError: A number is out of its range.
        TypeError: `event_store` is no event store, or `logger` takes no fields.
        IncompatibleSDKError: The installed SDK has changed in what sessions are scoped by.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the SDK's arguments, in the SDK's order
        self,
        app: Server[Any],
        event_store: EventStore | None = None,
        json_response: bool = False,  # noqa: FBT001, FBT002 - positional in the SDK
        stateless: bool = False,  # noqa: FBT001, FBT002
        security_settings: TransportSecuritySettings | None = None,
        retry_interval: int | None = None,
        session_idle_timeout: float | None = DEFAULT_SESSION_IDLE_TIMEOUT,
        max_request_body_size: int = DEFAULT_MAX_REQUEST_BODY_SIZE,
        max_sessions: int | None = DEFAULT_MAX_SESSIONS,
        *,
        follow_limit: float = DEFAULT_FOLLOW_LIMIT,
        logger: Logger | None = None,
    ) -> None:
        if not follow_limit > 0:
            msg = f"follow_limit must be a positive number of seconds, not {follow_limit!r}"
            raise ValueError(msg)
        super().__init__(
            app,
            event_store=None if event_store is None else _Guard(),
            json_response=json_response,
            stateless=stateless,
            security_settings=security_settings,
            retry_interval=retry_interval,
            session_idle_timeout=session_idle_timeout,
            max_request_body_size=max_request_body_size,
            max_sessions=max_sessions,
        )
        self._follow_limit = follow_limit
        self._views: dict[str, SessionView] = {}
        self._store: InstrumentedEventStore | None = None
        self._log = Log(logger)
        self._told_revision = False
        if event_store is None:
            return
        self._store = instrument(event_store, logger=logger)
        self._check_sdk()
        for mode, on in (("stateless", stateless), ("json_response", json_response)):
            if on:
                self._log.announce(
                    catalog.INERT,
                    mode=mode,
                    fix=f"serve without {mode} to let clients resume, or without an event store",
                )

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the SDK does; say once when a client speaks a revision that never asks an event store."""
        if self._store is not None and not self._told_revision:
            revision = Headers(scope=scope).get(MCP_PROTOCOL_VERSION_HEADER)
            if revision in MODERN_PROTOCOL_VERSIONS:
                self._told_revision = True
                self._log.write(
                    catalog.INERT,
                    mode=f"protocol revision {revision}",
                    fix="nothing, where clients do not need to resume; else have them speak 2025-11-25: "
                    'the SDK\'s client does with mode="legacy"',
                )
        await super()._handle_request(scope, receive, send)

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Register a session as the SDK does, and put its own view where the SDK put the guard."""
        transport = super()._admit_session(requestor)
        if transport is None or self._store is None:
            return transport
        session_id = transport.mcp_session_id
        if session_id is None or not isinstance(transport._event_store, _Guard):
            _incompatible("a session's transport has no id, or does not keep its store in `_event_store`")
        view = SessionView(self._store.for_session(session_id), follow_limit=self._follow_limit)
        self._views[session_id] = view
        transport._event_store = view
        return transport

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        """End what the session is resuming, and forget it as the SDK does."""
        if view := self._views.pop(session_id, None):
            view.close()
        await super()._discard_session(session_id, transport)

    def _check_sdk(self) -> None:
        """Try on this very SDK, before anything is served, what every session depends on.

        Raises:
            IncompatibleSDKError: It is not as it was.
        """
        sdk = StreamableHTTPSessionManager
        for caller, called in (
            ("_handle_stateful_request", "_admit_session"),
            ("_handle_stateful_request", "_discard_session"),
            ("_serve_opening_request", "_discard_session"),
        ):
            function = getattr(sdk, caller, None)
            if not hasattr(sdk, called) or called not in _names_in(function):
                _incompatible(f"StreamableHTTPSessionManager.{caller} does not call {called}")
        try:
            # The first session of all: made as any other, and forgotten before it is connected. Nobody has to
            # read of it in the SDK's log.
            _sdk_log.addFilter(_nothing)
            transport = self._admit_session(None)
        except (AttributeError, TypeError) as error:
            _incompatible(f"a session cannot be admitted: {error}")
        finally:
            _sdk_log.removeFilter(_nothing)
        if transport is None or transport.mcp_session_id not in self._server_instances:
            _incompatible("StreamableHTTPSessionManager does not keep its sessions in `_server_instances`")
        self._server_instances.clear()
        self._views.clear()


class _Guard(EventStore):
    """Stands where the SDK expects the store. Only a session's view may be asked; this never stores or replays."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Refuse."""
        _incompatible("a session was not given its own view of the event store")

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Refuse."""
        _incompatible("a session was not given its own view of the event store")


def _nothing(_: logging.LogRecord) -> bool:
    """A filter that lets nothing through."""
    return False


def _names_in(function: object) -> tuple[str, ...]:
    """The names that a function's code refers to."""
    code = getattr(function, "__code__", None)
    return () if code is None else code.co_names


def _incompatible(what: str) -> NoReturn:
    msg = (
        f"mcp {version('mcp')} is not an SDK that sessions can be kept apart on: {what}. "
        "Nothing is served, since sessions could read each other's events. "
        "Install a version of mcp that this version of mcp-eventscope names, or a newer mcp-eventscope"
    )
    raise IncompatibleSDKError(msg)
