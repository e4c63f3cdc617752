"""What is told of sessions and requests, and which sessions that have been told of are still here."""

from math import ceil

from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.types import Scope

from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.telemetry import catalog_sessions
from mcp_eventscope.telemetry.facts import (
    Origin,
    Refusal,
    Requested,
    ResumptionDisabled,
    ServingFact,
    SessionBegan,
    SessionEnd,
    SessionEnded,
    SessionRefused,
    TTLShort,
)
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.tracing import session_hash

_PROTOCOL_VERSIONS = frozenset(catalog_sessions.PROTOCOL_VERSION.values or ())


class SessionTelemetry:
    """Tells a store's telemetry of the sessions that a manager serves. It never raises.

    Args:
        store: The store; None: there is nothing to resume, and nothing is told.
        log: Where the log events of the manager go.
    """

    def __init__(self, store: InstrumentedEventStore | None, log: Log) -> None:
        self._store = store
        self._log = log
        self._here: dict[str, SessionEnd | None] = {}
        """The sessions that began, and were not told to have ended; with why they are about to, where that is known."""
        self._told_version = False

    def configured(
        self, *, stateless: bool, json_response: bool, idle_timeout: float | None, follow_timeout: float
    ) -> None:
        """Warn of settings with which nothing, or less than it seems, can be resumed.

        Args:
            stateless: Whether there are no sessions.
            json_response: Whether responses are no streams.
            idle_timeout: Seconds after which a session that nobody asks for ends; None: never.
            follow_timeout: Seconds for which a resumed stream is followed at most.
        """
        for mode, on in (("stateless", stateless), ("json_response", json_response)):
            if on:
                fix = f"serve without {mode} to let clients resume, or without an event store"
                self._record(ResumptionDisabled(mode, fix))
        ttl = None if self._store is None or stateless else self._store.ttl
        if ttl is None:
            return
        if idle_timeout is not None and ttl < 2 * idle_timeout:
            # Once: a client may be away for that long. Twice: what it comes back for may have been said well before.
            fix = f"set ttl={ceil(2 * idle_timeout)} or more, or session_idle_timeout={ttl / 2:g} or less"
            self._record(TTLShort(ttl, "session_idle_timeout", idle_timeout, fix))
        if ttl < follow_timeout:
            fix = f"set ttl= to more than {follow_timeout:g}, or follow_timeout={ttl} or less"
            self._record(TTLShort(ttl, "follow_timeout", follow_timeout, fix))

    def requested(self, scope: Scope) -> None:
        """A request came. The first of a revision that never asks an event store is logged, too."""
        named = Headers(scope=scope).get(MCP_PROTOCOL_VERSION_HEADER)
        version = "none" if named is None else named if named in _PROTOCOL_VERSIONS else "other"
        self._record(Requested("other" if named == "none" else version))
        if named in MODERN_PROTOCOL_VERSIONS and not self._told_version:
            self._told_version = True
            fix = (
                "nothing, where clients do not need to resume; else have them speak 2025-11-25: "
                'the SDK\'s client does with mode="legacy"'
            )
            self._record(ResumptionDisabled(f"protocol revision {named}", fix))

    def began(self, session_id: str | None, origin: Origin) -> None:
        """A session is served here from now on."""
        if session_id is not None and session_id not in self._here:
            self._here[session_id] = None
            self._record(SessionBegan(origin))

    def ends(self, session_id: str, reason: SessionEnd) -> None:
        """A session is about to end here."""
        if session_id in self._here:
            self._here[session_id] = reason

    def ended(self, session_id: str, transport: StreamableHTTPServerTransport, *, stopping: bool) -> None:
        """A session is no longer served here; told once, whoever finds it first.

        Args:
            session_id: The session.
            transport: Its transport, which may tell why.
            stopping: Whether the manager is.
        """
        if session_id not in self._here:
            return
        reason = self._here.pop(session_id)
        if reason is None:
            idle = transport.idle_scope is not None and transport.idle_scope.cancel_called
            if stopping:
                reason = SessionEnd.SHUTDOWN
            elif idle:
                reason = SessionEnd.IDLE
            else:
                reason = SessionEnd.DELETED if transport.is_terminated else SessionEnd.FAILED
        self._record(SessionEnded(reason))

    def refused(self, reason: Refusal, session_id: str | None = None) -> None:
        """A request got no session."""
        self._record(SessionRefused(reason, session_hash(session_id)))

    def check(
        self,
        manager: StreamableHTTPSessionManager,
        session_id: str,
        requestor: AuthorizationContext | None,
        *,
        others: bool = False,
    ) -> None:
        """Tell, if it is so, that a request is about to be answered 404 by the SDK.

        Args:
            manager: Who answers.
            session_id: The session that is asked for.
            requestor: Who asks.
            others: Whether it is known that there is such a session, of another principal.
        """
        if session_id not in manager._server_instances:
            self.refused(Refusal.NOT_OWNER if others else Refusal.UNKNOWN, session_id)
        elif manager._session_owners.get(session_id) != requestor:
            self.refused(Refusal.NOT_OWNER, session_id)

    def _record(self, fact: ServingFact) -> None:
        if self._store is not None:
            self._store.record(fact, self._log)
