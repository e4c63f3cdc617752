"""Record the telemetry of sessions and requests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from time import monotonic

from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.datastructures import Headers
from starlette.types import Scope

from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.sessions._sdk_compat import (
    LATEST_HANDSHAKE_VERSION,
    MCP_PROTOCOL_VERSION_HEADER,
    MODERN_PROTOCOL_VERSIONS,
    negotiated_version,
)
from mcp_eventscope.sessions.handshake import params_of
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.facts import (
    LifespanMissing,
    OperationEnded,
    Origin,
    PrefixShared,
    Refusal,
    Requested,
    ResumeWaited,
    ResumptionDisabled,
    ServingFact,
    SessionBegan,
    SessionEnd,
    SessionEnded,
    SessionRefused,
    SessionsAged,
    SessionUsed,
    TTLShort,
)
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.tracing import session_hash

_REFUSALS: Mapping[str, Refusal] = {"other": Refusal.NOT_OWNER, "other_server": Refusal.OTHER_SERVER}
"""The reason of a 404, by the state of the session's record."""
_PROTOCOL_VERSIONS = frozenset(catalog.sessions.PROTOCOL_VERSION.values or ())
_METHODS = frozenset(catalog.sessions.METHOD.values or ())
_ERROR_TYPES = frozenset(catalog.sessions.OPERATION_ERROR_TYPE.values or ())


@dataclass(slots=True)
class _Served:
    """A session that is served here."""

    since: float
    """When this worker began to serve it, on a monotonic clock."""
    version: str
    """Its protocol version."""
    end: SessionEnd | None = None
    """The reason of its imminent end, if known."""
    requests: int = 0
    """The requests that are in progress."""


class SessionTelemetry:
    """Records the sessions and requests of a manager in a store's telemetry. It never raises.

    Args:
        store: The store; None: nothing can be resumed, and nothing is recorded.
        log: The log of the manager.
    """

    def __init__(self, store: InstrumentedEventStore | None, log: Log) -> None:
        self._store = store
        self._log = log
        self._here: dict[str, _Served] = {}
        """The sessions that are served here, oldest first."""
        self._idle: dict[str, float] = {}
        """Those without a request, with the time since when, longest first."""
        self._logged_version = False
        self._warned_of_prefix = False
        self._logged_lifespan = False

    def configured(
        self, *, stateless: bool, json_response: bool, idle_timeout: float | None, follow_timeout: float
    ) -> None:
        """Warn about settings that prevent or limit resumption.

        Args:
            stateless: Whether there are no sessions.
            json_response: Whether responses are JSON instead of streams.
            idle_timeout: Seconds after which an unused session ends; None: never.
            follow_timeout: Maximum seconds for which a resumed stream is followed.
        """
        for mode, on in (("stateless", stateless), ("json_response", json_response)):
            if on:
                also = " (of http_app(): stateless_http=)" if mode == "stateless" else ""
                fix = f"leave out {mode}={also} to let clients resume; none if they do not need to"
                self._record(ResumptionDisabled(mode, fix))
        ttl = None if self._store is None or stateless else self._store.ttl
        if ttl is None:
            return
        if idle_timeout is not None and ttl < 2 * idle_timeout:
            # Twice: a client may be disconnected for that long, and miss events that are nearly as old as that already.
            fix = f"set ttl={ceil(2 * idle_timeout)} or more, or session_idle_timeout={ttl / 2:g} or less"
            self._record(TTLShort(ttl, "session_idle_timeout", idle_timeout, fix))
        if ttl < follow_timeout:
            fix = f"set follow_timeout={ttl} or less"
            if follow_timeout < inf:
                fix = f"set ttl= to more than {follow_timeout:g}, or follow_timeout={ttl} or less"
            self._record(TTLShort(ttl, "follow_timeout", follow_timeout, fix))

    def expects_modern_clients(self) -> None:
        """Log no request of a revision without resumption: its clients have other means."""
        self._logged_version = True

    def requested(self, scope: Scope) -> None:
        """Record a request. Also log the first request of a revision without resumption."""
        named = Headers(scope=scope).get(MCP_PROTOCOL_VERSION_HEADER)
        version = "none" if named is None else named if named in _PROTOCOL_VERSIONS else "other"
        self._record(Requested("other" if named == "none" else version))
        if named in MODERN_PROTOCOL_VERSIONS and not self._logged_version:
            self._logged_version = True
            fix = (
                "none, if clients do not need to resume; otherwise let long tools run as tasks (EventScope.tasks), or "
                'let clients use protocol revision 2025-11-25: in the SDK\'s client, mode="legacy"'
            )
            self._record(ResumptionDisabled(f"protocol revision {named}", fix))

    def shares_prefix(self, server: str, other_server: str) -> None:
        """Warn, once, that another server uses the same prefix.

        Args:
            server: The name of this server.
            other_server: The name of the other one.
        """
        if not self._warned_of_prefix:
            self._warned_of_prefix = True
            self._record(PrefixShared(server, other_server))

    def not_running(self, fix: str) -> None:
        """Log the first request that arrived before the manager was started."""
        if not self._logged_lifespan:
            self._logged_lifespan = True
            self._record(LifespanMissing(fix))

    def began(self, session_id: str | None, origin: Origin, handshake: str | None) -> None:
        """Record that a session is served here from now on.

        Args:
            session_id: The session.
            origin: How this worker came to serve it.
            handshake: The parameters of its `initialize` request as JSON; None: unknown.
        """
        if session_id is not None and session_id not in self._here:
            now = monotonic()
            self._here[session_id] = _Served(now, _version_of(handshake))
            self._idle[session_id] = now
            self._record(SessionBegan(origin))

    @contextmanager
    def using(self, session_id: str) -> Iterator[None]:
        """Count a request of a session that is served here, which is not idle until the block ends.

        Args:
            session_id: The session.
        """
        served = self._here.get(session_id)
        if served is None:
            yield
            return
        served.requests += 1
        idle_since = self._idle.pop(session_id, None)
        if idle_since is not None:
            self._record(SessionUsed(monotonic() - idle_since))
        try:
            yield
        finally:
            served.requests -= 1
            if not served.requests and self._here.get(session_id) is served:
                self._idle[session_id] = monotonic()

    def measure(self) -> None:
        """Record the age of the oldest session, and the longest pause. Takes constant time."""
        now = monotonic()
        oldest = next(iter(self._here.values()), None)
        idle_since = next(iter(self._idle.values()), now)
        self._record(SessionsAged(0.0 if oldest is None else now - oldest.since, now - idle_since))

    def ends(self, session_id: str, reason: SessionEnd) -> None:
        """Note the reason of a session's imminent end."""
        if session_id in self._here:
            self._here[session_id].end = reason

    def ended(self, session_id: str, transport: StreamableHTTPServerTransport, *, stopping: bool) -> None:
        """Record, once, that a session is no longer served here.

        Args:
            session_id: The session.
            transport: The session's transport, whose state may show the reason.
            stopping: Whether the manager is stopping.
        """
        if session_id not in self._here:
            return
        served = self._here.pop(session_id)
        reason = served.end
        if reason is None:
            idle = transport.idle_scope is not None and transport.idle_scope.cancel_called
            if stopping:
                reason = SessionEnd.SHUTDOWN
            elif idle:
                reason = SessionEnd.IDLE
            else:
                reason = SessionEnd.DELETED if transport.is_terminated else SessionEnd.FAILED
        now, idle_since = monotonic(), self._idle.pop(session_id, None)
        idle_seconds = None if idle_since is None else now - idle_since
        self._record(SessionEnded(reason, now - served.since, served.version, idle_seconds))

    def operation_ended(self, method: str, seconds: float, error_type: str) -> None:
        """Record that a request within a session has ended.

        Args:
            method: Its method, as the client wrote it.
            seconds: Seconds from its arrival to its end.
            error_type: A JSON-RPC error code, or `tool_error`; "": it succeeded.
        """
        other = catalog.sessions.OTHER
        method = method if method in _METHODS else other
        self._record(OperationEnded(method, seconds, error_type if error_type in _ERROR_TYPES else other))

    def refused(self, reason: Refusal, session_id: str | None = None) -> None:
        """Record a request that no session serves."""
        self._record(SessionRefused(reason, session_hash(session_id)))

    def resume_waited(self, seconds: float) -> None:
        """Record that a resume no longer waits for its turn.

        Args:
            seconds: Seconds for which it waited.
        """
        self._record(ResumeWaited(seconds))

    def check(
        self,
        manager: StreamableHTTPSessionManager,
        session_id: str,
        requestor: AuthorizationContext | None,
        state: str = "",
    ) -> None:
        """Record the refusal if the SDK is about to answer with 404.

        Args:
            manager: The session manager.
            session_id: The requested session.
            requestor: The principal of the request.
            state: The state of the session's record, if it was read (`SessionRecord`).
        """
        if session_id not in manager._server_instances:
            self.refused(_REFUSALS.get(state, Refusal.UNKNOWN), session_id)
        elif manager._session_owners.get(session_id) != requestor:
            self.refused(Refusal.NOT_OWNER, session_id)

    def _record(self, fact: ServingFact) -> None:
        if self._store is not None:
            self._store.record(fact, self._log)


def _version_of(handshake: str | None) -> str:
    """The protocol version of a session; the SDK's default if its handshake was invalid."""
    params = None if handshake is None else params_of(handshake)
    return LATEST_HANDSHAKE_VERSION if params is None else negotiated_version(params)
