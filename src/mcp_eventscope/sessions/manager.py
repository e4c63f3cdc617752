"""A drop-in replacement for the SDK's session manager, with a store view per session."""

import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from http import HTTPStatus
from math import ceil, inf
from typing import Any

import anyio
from anyio.abc import TaskStatus
from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, SESSION_ID_PATTERN, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import (
    DEFAULT_MAX_REQUEST_BODY_SIZE,
    DEFAULT_MAX_SESSIONS,
    DEFAULT_SESSION_IDLE_TIMEOUT,
    StreamableHTTPSessionManager,
)
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import InitializeRequestParams
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_eventscope.errors import CorruptEventError
from mcp_eventscope.frameworks.fastmcp import refuse_inner
from mcp_eventscope.instrumentation import InstrumentedEventStore, check_store, instrument
from mcp_eventscope.redis.limits import FLUSH_SECONDS
from mcp_eventscope.sessions import _sdk_compat
from mcp_eventscope.sessions.forwarder import Forwarder
from mcp_eventscope.sessions.handshake import (
    audience_of,
    handshake_of,
    owner_of,
    params_of,
    requestor_of,
    too_large,
)
from mcp_eventscope.sessions.registry import UNREAD, LocalRegistry, SessionRegistry
from mcp_eventscope.sessions.resume_limit import ResumeLimiter, ResumeTurn
from mcp_eventscope.sessions.settings import check_name, check_settings
from mcp_eventscope.sessions.telemetry import SessionTelemetry
from mcp_eventscope.sessions.transport import ResumableTransport
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store import codec
from mcp_eventscope.store.coordination import (
    DEFAULT_WORKER_LEASE,
    LEAVE_SECONDS,
    MessageKind,
    NewRecord,
    SessionRecord,
    WorkerMessage,
)
from mcp_eventscope.store.messages import EventStore
from mcp_eventscope.telemetry.facts import Origin, Refusal, SessionEnd
from mcp_eventscope.telemetry.logs import Log, Logger
from mcp_eventscope.telemetry.tracing import session_hash

DEFAULT_FOLLOW_TIMEOUT = 300.0
"""Maximum seconds for which a resumed stream is followed."""

_RECORD_TTL = 24 * 3600
"""Seconds that a session's record is kept after its last request, without an idle timeout."""
_RENEWAL_FRACTION = 0.1
"""The fraction of a record's TTL after which the end of a request renews the record."""
_RENEWALS_PER_TTL = 4
"""Renewals of the record of a session with a long request, per TTL."""
_RENEWALS_PER_LEASE = 2
"""Renewals of the record of a session with a running call, per lease."""
_MEASURE_SECONDS = 5.0
"""Seconds between updates of the gauges of session ages."""
_CLAIM_LEASES = 10
"""Leases after which another server may use the prefix without a warning."""
_STREAM_WAIT_SECONDS = 20.0
"""Maximum seconds for which a request for a stream waits until its session's record can be read."""
_LATE_RECORD_SECONDS = 1.0
"""Maximum seconds for which a request waits for a record that another worker may be about to write."""
_RECHECK_SECONDS = 0.25
"""Seconds between reads of the record during these waits."""
_DEFAULT_RETRY_MILLISECONDS = 1000
"""How long the SDK's clients wait before they reconnect, unless the server sends `retry:`."""
_RECONNECTS_PER_SECOND = 200
"""The rate at which the clients of a stopped worker reconnect: adopting their sessions is extra work for the others."""
_SPREAD_SECONDS = (1.0, 10.0)
"""The minimum and maximum seconds over which they reconnect: no user should wait longer for a response."""
_NO_SESSION = b"0" * 32
"""A session id that no session has."""
_FIRST_ERROR_STATUS = 400
"""HTTP statuses from here on are errors."""


_LIFESPAN_FIX = (
    "run the lifespan of this application in the one that mounts it: lifespan=app.router.lifespan_context, with the "
    "application that http_app() returned for app"
)


class ResumableSessionManager(StreamableHTTPSessionManager):
    """A `StreamableHTTPSessionManager` with a separate view of the store for each session.

    The SDK passes one store to all sessions, and only the request id to the store. Every client numbers its requests
    from 0, so sessions would share streams. Here no session can write to or replay a stream of another session.

    Args:
        app: The low-level server.
        event_store: The store, which is instrumented unless it already is. None: nothing can be resumed.
        json_response: As in the SDK. Responses are then not streams, and cannot be resumed:
            `event_store.resumption_disabled`.
        stateless: As in the SDK. There are then no sessions to resume: `event_store.resumption_disabled`.
        security_settings: As in the SDK.
        retry_interval: As in the SDK, in milliseconds.
        session_idle_timeout: As in the SDK, in seconds.
        max_request_body_size: As in the SDK, in bytes.
        max_sessions: As in the SDK.
        follow_timeout: Maximum seconds for which a resumed stream is followed; the client then reconnects by itself.
        worker_lease: Seconds without a renewal of its lease after which a worker is declared dead, and its requests are
            answered with an error.
        shutdown_timeout: Seconds for which running calls may finish, from the stop signal (`drain`) or else from the
            end of `run()`. Then they are answered with an error. The process supervisor must allow slightly more.
        name: The name of the server, the same on all of its workers. Sessions of servers with other names are unknown
            here (404). None: the name of `app`.
        logger: The logger of the manager; None: as in `InstrumentedEventStore`.

    Raises:
        ValueError: A number is out of range.
        TypeError: `app` is not a low-level server, or is the one inside of a `FastMCP`; `event_store` is not an event
            store; `logger` accepts no fields; or a number has another type.
        IncompatibleSDKError: The installed SDK has changed the internals on which session isolation relies.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the SDK's arguments, in the SDK's order
        self,
        app: "Server[Any]",
        event_store: EventStore | None = None,
        json_response: bool = False,  # noqa: FBT001, FBT002 - positional in the SDK
        stateless: bool = False,  # noqa: FBT001, FBT002
        security_settings: TransportSecuritySettings | None = None,
        retry_interval: int | None = None,
        session_idle_timeout: float | None = DEFAULT_SESSION_IDLE_TIMEOUT,
        max_request_body_size: int = DEFAULT_MAX_REQUEST_BODY_SIZE,
        max_sessions: int | None = DEFAULT_MAX_SESSIONS,
        *,
        follow_timeout: float = DEFAULT_FOLLOW_TIMEOUT,
        worker_lease: float = DEFAULT_WORKER_LEASE,
        shutdown_timeout: float = 0.0,
        name: str | None = None,
        logger: Logger | None = None,
    ) -> None:
        self._check_server(app)
        if event_store is not None:
            check_store("event_store", event_store)
        check_settings(app, follow_timeout=follow_timeout, worker_lease=worker_lease, shutdown_timeout=shutdown_timeout)
        if name is not None:
            check_name("name", name)
        super().__init__(
            app,
            event_store=None if event_store is None else _sdk_compat.Guard(),
            json_response=json_response,
            stateless=stateless,
            security_settings=security_settings,
            retry_interval=retry_interval,
            session_idle_timeout=session_idle_timeout,
            max_request_body_size=max_request_body_size,
            max_sessions=max_sessions,
        )
        self._follow_timeout = follow_timeout
        self._worker_lease = worker_lease
        self._shutdown_timeout = shutdown_timeout
        self._draining_since: float | None = None
        self._ending = ExitStack()
        """Stops the timer with which `drain` ends subscriptions."""
        self._spread = _SPREAD_SECONDS[0]
        self._name = app.name if name is None else name
        self._begun = False
        """Whether `run()` was entered, now or earlier."""
        self._store: InstrumentedEventStore | None = None
        self._registry: SessionRegistry | LocalRegistry = LocalRegistry()
        if event_store is not None:
            self._store = instrument(event_store, logger=logger)
            if self._store.coordinator is not None and not stateless:
                ttl = ceil(session_idle_timeout or max(self._store.ttl or 0, _RECORD_TTL))
                self._registry = SessionRegistry(self._store.coordinator, ttl, self._store.ttl)
        self._forwarder = Forwarder(self._registry.send, self._registry.drop)
        self._telemetry = SessionTelemetry(self._store, Log(logger))
        self._resumes = ResumeLimiter(self._telemetry.resume_waited)
        if self._store is None:
            return
        _sdk_compat.check_manager(self)
        self._telemetry.configured(
            stateless=stateless,
            json_response=json_response,
            idle_timeout=session_idle_timeout,
            follow_timeout=follow_timeout,
        )

    @staticmethod
    def _check_server(app: object) -> None:
        """Refuse the low-level server inside of a `FastMCP`, which lacks its authentication and middleware."""
        refuse_inner("app", app)

    @property
    def running(self) -> bool:
        """Whether sessions are served, that is, within `run()`."""
        return self._task_group is not None

    def serves_modern_clients(self) -> None:
        """Record that other parts serve clients of revision 2026-07-28, so that their requests need no warning."""
        self._telemetry.expects_modern_clients()

    @property
    def draining(self) -> bool:
        """Whether the worker was asked to stop. It still serves requests, and calls run for `shutdown_timeout`."""
        return self._draining_since is not None

    def drain(self) -> None:
        """Begin to stop: end the streams that clients can resume on another worker. Calls continue.

        Call it within `run()`, when the process is asked to stop: ASGI servers wait for open streams before they leave
        `run()`, which otherwise calls this. Each stream ends with a `retry:` field for its client: the `retry_interval`
        and a random part, so that the clients do not return all at the same time.
        """
        if self._task_group is None or self.draining:
            return
        self._draining_since = anyio.current_time()
        served = self._served()
        least, most = _SPREAD_SECONDS
        self._spread = min(max(least, len(served) / _RECONNECTS_PER_SECOND), most)
        for transport in served:
            self._spawn(transport.drain)
        self._ending.callback(_sdk_compat.end_subscriptions(self.app))

    def _reconnection_delay(self) -> int:
        """A random number of milliseconds after which a client should resume a stream that this worker has ended."""
        least = _DEFAULT_RETRY_MILLISECONDS if self.retry_interval is None else self.retry_interval
        return least + round(random.uniform(0, self._spread * 1000))  # noqa: S311 - it spreads load

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run as the SDK's manager does, with a worker lease if the store supports it."""
        self._begun = True
        async with AsyncExitStack() as stack:
            stack.enter_context(self._ending)
            # The lease is released last, or other workers would answer requests whose events are about to be stored.
            await stack.enter_async_context(
                self._registry.hold_lease(self._worker_lease, self._on_message, self._republish)
            )
            if self._store is not None:
                stack.push_async_callback(_flush, self._store)
            await stack.enter_async_context(super().run())
            self._spawn(self._measure)
            if self._registry.shared:
                self._spawn(self._keep_records)
                self._spawn(self._keep_claim)
            try:
                yield
            finally:
                self.drain()
                await self._finish_running()

    def _spawn(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Start a background task, within `run()` only. Its failure must not end the sessions of the worker."""
        if self._task_group is not None:
            self._task_group.start_soon(self._isolated, function, *arguments)

    @staticmethod
    async def _isolated(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Call a function, and log its failure."""
        try:
            await function(*arguments)
        except Exception:  # noqa: BLE001 - one faulty step must not end the worker
            _sdk_compat.log.exception("%s failed in the background", getattr(function, "__name__", "a task"))

    async def _measure(self) -> None:
        while True:
            self._telemetry.measure()
            for transport in self._served():
                transport.end_stalled()
            await anyio.sleep(_MEASURE_SECONDS)

    async def _finish_running(self) -> None:
        """Wait until the running calls have ended, for at most `shutdown_timeout` from the beginning of the drain."""
        since = self._draining_since or anyio.current_time()
        with anyio.CancelScope(deadline=since + self._shutdown_timeout):
            while any(each.view.busy for each in self._served()):  # noqa: ASYNC110 - calls emit no event when they end
                await anyio.sleep(0.05)

    def _served(self) -> list[ResumableTransport]:
        """The transports of the sessions that are served here with a view."""
        return [each for each in self._server_instances.values() if isinstance(each, ResumableTransport)]

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the request, and serve it as the SDK does; outside of `run()` answer 503, instead of raising."""
        self._telemetry.requested(scope)
        if self._task_group is None:
            if not self._begun:
                self._telemetry.not_running(_LIFESPAN_FIX)
            reason = "the server has stopped" if self._begun else f"the server was not started; {_LIFESPAN_FIX}"
            await _sdk_compat.unavailable(reason)(scope, receive, send)
            return
        await super()._handle_request(scope, receive, send)

    # -- sessions that begin here -------------------------------------------------------------------------------------

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Register a session as the SDK does, with a separate transport and view."""
        transport = super()._admit_session(requestor)
        if transport is None:
            self._telemetry.refused(Refusal.LIMIT)
        if transport is None or self._store is None:
            return transport
        session_id = transport.mcp_session_id
        if session_id is None or not isinstance(transport._event_store, _sdk_compat.Guard):
            _sdk_compat.incompatible("a session's transport has no id, or does not keep its store in `_event_store`")
        self._server_instances[session_id] = own = self._transport_of(self._store, session_id)
        return own

    def _transport_of(self, store: InstrumentedEventStore, session_id: str) -> ResumableTransport:
        """Create the transport of a session."""
        view = SessionView(store.for_session(session_id), follow_timeout=self._follow_timeout)
        view.ended = lambda: self._end_locally(session_id)
        view.operations.report = self._telemetry.operation_ended
        return ResumableTransport(
            view,
            stopped=lambda name: self._registry.send(session_id, MessageKind.STOP, name),
            forward=lambda message: self._forwarder.forward(session_id, message),
            admit_resume=lambda: self._admit_resume(session_id),
            reconnection_delay=self._reconnection_delay,
            rested=lambda: self._renew_soon(session_id),
            mcp_session_id=session_id,
            is_json_response_enabled=self.json_response,
            security_settings=self.security_settings,
            retry_interval=self.retry_interval,
            idle_timeout=self.session_idle_timeout,
        )

    def _admit_resume(self, session_id: str) -> ResumeTurn | None:
        """Admit a resume among those of its principal; None if too many of its session are waiting."""
        turn = self._resumes.admit(owner_of(self._session_owners.get(session_id)) or session_id, session_id)
        if turn is None:
            self._telemetry.refused(Refusal.RESUMES, session_id)
        return turn

    def _end_locally(self, session_id: str) -> None:
        """Discard a session that was ended on another worker."""
        transport = self._server_instances.get(session_id)
        if transport is not None and not transport.is_terminated and self._task_group is not None:
            self._telemetry.ends(session_id, SessionEnd.OTHER_WORKER)
            self._spawn(self._discard_session, session_id, transport)

    async def _serve_opening_request(
        self, http_transport: StreamableHTTPServerTransport, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Record the session before its client receives its id.

        The next request may reach another worker.
        """
        body = bytearray()

        async def keep() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def record_first(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < _FIRST_ERROR_STATUS:
                handshake = handshake_of(bytes(body))
                await self._record(http_transport.mcp_session_id, self._server_of(scope), handshake)
                self._telemetry.began(http_transport.mcp_session_id, Origin.OPENED, handshake)
            elif message["type"] == "http.response.start":
                self._telemetry.refused(Refusal.INVALID)
            await send(message)

        await super()._serve_opening_request(http_transport, scope, keep, record_first)

    async def _record(self, session_id: str | None, server: str, handshake: str | None) -> None:
        if session_id is not None and handshake is not None:
            owner = owner_of(self._session_owners.get(session_id))
            await self._registry.add(NewRecord(session_id, owner, handshake, server))

    def _server_of(self, scope: Scope) -> str:
        """The server that a request addresses: our name, and the audience of its token if there is one."""
        audience = audience_of(scope)
        return f"{self._name}\n{audience}" if audience else self._name

    # -- sessions of other workers ------------------------------------------------------------------------------------

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the SDK does, after adopting a session that another worker opened."""
        headers = Headers(scope=scope)
        session_id = headers.get(MCP_SESSION_ID_HEADER)
        requestor = requestor_of(scope)
        if session_id is None and self._registry.shared and scope["method"] == "POST":
            body, receive = await _body_of(receive)
            if refusal := too_large(body):
                self._telemetry.refused(Refusal.INVALID)
                await refusal(scope, receive, send)
                return
        if session_id is None or not self._registry.shared or not SESSION_ID_PATTERN.fullmatch(session_id):
            if session_id is not None:
                self._telemetry.check(self, session_id, requestor)
            with self._telemetry.using(session_id or ""):
                await super()._handle_stateful_request(scope, receive, send)
            return
        server = self._server_of(scope)
        if answer := await self._prepare(session_id, requestor, server, scope["method"]):
            await answer(scope, receive, send)
            return
        ending = scope["method"] == "DELETE" and session_id in self._server_instances

        async def end_first(message: Message) -> None:
            if ending and message["type"] == "http.response.start" and message["status"] < _FIRST_ERROR_STATUS:
                await registry.end(session_id)
            await send(message)

        registry = self._registry
        began = anyio.current_time()
        with self._telemetry.using(session_id):
            await super()._handle_stateful_request(scope, receive, end_first)
        if anyio.current_time() - began > registry.ttl * _RENEWAL_FRACTION:  # Otherwise the first renewal suffices.
            self._renew_soon(session_id)

    async def _prepare(
        self, session_id: str, requestor: AuthorizationContext | None, server: str, method: str
    ) -> ASGIApp | None:
        """Adopt the requestor's session if another worker serves it, or return an answer.

        A GET waits for Redis: a client that is refused twice stops resuming its stream. A DELETE succeeds even if this
        worker has no room for the session.
        """
        patient = method == "GET"
        if session_id in self._server_instances:
            return self._check_served(session_id, requestor, server)
        owner = owner_of(requestor)
        record = await self._read_record(session_id, owner, server)
        began = anyio.current_time()
        late = _LATE_RECORD_SECONDS if self._registry.late else 0
        # The wait is as long for a session of another principal, which must look like an unknown one.
        limits = {UNREAD: _STREAM_WAIT_SECONDS if patient else 0, "absent": late, "other": late, "other_server": late}
        while session_id not in self._server_instances:
            if anyio.current_time() - began >= limits.get(record.state, 0):
                break
            await anyio.sleep(_RECHECK_SECONDS)
            record = await self._read_record(session_id, owner, server)
        if session_id not in self._server_instances:
            if record.state == UNREAD:
                self._telemetry.refused(Refusal.UNAVAILABLE, session_id)
                return _sdk_compat.unavailable("Session store temporarily unavailable; retry", retry_after=1)
            new = NewRecord(session_id, owner, record.handshake, server)
            if record.state == "live" and not await self._adopt(requestor, new):
                if method == "DELETE":
                    await self._registry.end(session_id)
                    return Response(status_code=HTTPStatus.OK)
                self._telemetry.refused(Refusal.LIMIT, session_id)
                return _sdk_compat.unavailable("Too many open sessions", retry_after=1)
            self._telemetry.check(self, session_id, requestor, record.state)
            return None
        return self._check_served(session_id, requestor, server)

    def _check_served(self, session_id: str, requestor: AuthorizationContext | None, server: str) -> ASGIApp | None:
        """Check a request for a session that is served here; return the refusal of one for another audience."""
        record = self._registry.records.get(session_id)
        if record is not None and record.server != server:
            self._telemetry.refused(Refusal.OTHER_SERVER, session_id)
            return self._answer_unknown
        if self._session_owners.get(session_id) == requestor:
            self._renew_soon(session_id)
        self._telemetry.check(self, session_id, requestor)
        return None

    async def _answer_unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the SDK answers a request for a session that does not exist."""
        name = MCP_SESSION_ID_HEADER.encode()
        headers = [(key, _NO_SESSION if key.lower() == name else value) for key, value in scope["headers"]]
        await super()._handle_stateful_request({**scope, "headers": headers}, receive, send)

    async def _read_record(self, session_id: str, owner: str, server: str) -> SessionRecord:
        """Read the record of a session; while Redis cannot be read, the one that its worker has announced."""
        record = await self._registry.read(session_id, owner=owner, server=server)
        announced = None
        if record.state == UNREAD:
            announced = self._registry.learned(session_id, owner=owner, server=server)
        return record if announced is None else announced

    def _renew_soon(self, session_id: str) -> None:
        """Renew the record of a session in the background, unless it was renewed recently."""
        if self._task_group is not None and self._registry.due(session_id):
            self._spawn(self._renew, [session_id])

    async def _renew(self, session_ids: Sequence[str]) -> None:
        """Renew the records of sessions, write lost ones, and end the sessions that were ended elsewhere."""
        for session_id in await self._registry.renew(session_ids):
            self._end_locally(session_id)

    async def _keep_records(self) -> None:
        """Renew the records of sessions with long requests, so that other workers can adopt them.

        A session with a running call is renewed as often as the worker's lease.
        """
        interval = self._registry.ttl / _RENEWALS_PER_TTL
        renewed = anyio.current_time()
        while True:
            await anyio.sleep(min(interval, self._worker_lease / _RENEWALS_PER_LEASE))
            if anyio.current_time() - renewed >= interval:
                renewed = anyio.current_time()
                await self._isolated(self._renew_used)
            else:
                busy = [each.mcp_session_id or "" for each in self._served() if each.view.busy]
                await self._isolated(self._renew, busy)

    async def _renew_used(self) -> None:
        """Renew the records of all sessions with a request."""
        used = [
            session_id
            for session_id, transport in self._server_instances.items()
            if transport.idle_scope is None or transport.idle_scope.deadline == inf
        ]
        await self._renew(used)

    async def _keep_claim(self) -> None:
        """Claim the prefix for this server, and warn once if another server uses the same Redis and prefix."""
        while True:
            await self._isolated(self._claim)
            await anyio.sleep(self._worker_lease * _CLAIM_LEASES / 3)

    async def _claim(self) -> None:
        found = await self._registry.claim(self._name, ceil(self._worker_lease * _CLAIM_LEASES))
        if found != self._name:
            self._telemetry.shares_prefix(self._name, found)

    async def _adopt(self, requestor: AuthorizationContext | None, record: NewRecord) -> bool:
        """Serve a session of another worker here, too. Return False if there are too many."""
        session_id = record.session_id
        async with self._session_creation_lock:
            if session_id in self._server_instances or self._task_group is None or self._store is None:
                return True
            if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
                return False
            params = params_of(record.handshake)
            if params is None:
                return True
            transport = self._transport_of(self._store, session_id)
            await self._task_group.start(self._serve_adopted, session_id, transport, params)
            # Only now that it is connected: concurrent requests of the session would meet a transport without streams.
            if not transport.is_terminated:
                if requestor is not None:
                    self._session_owners[session_id] = requestor
                self._registry.remember(record)
                self._server_instances[session_id] = transport
                self._telemetry.began(session_id, Origin.ADOPTED, record.handshake)
                self._renew_soon(session_id)  # Another worker may have ended it since its record was read.
        return True

    async def _serve_adopted(
        self,
        session_id: str,
        transport: ResumableTransport,
        params: InitializeRequestParams,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            lifespan_state = getattr(self, "_lifespan_state", None)  # Of mcp 2.x.
            await _sdk_compat.serve_adopted(self.app, transport, params, lifespan_state, task_status=task_status)
        except Exception:  # noqa: BLE001 - as in the SDK: the crash of one session must not affect others
            _sdk_compat.log.exception("Session %s crashed", session_hash(session_id))
        finally:
            await self._discard_session(session_id, transport)

    # -- sessions that end --------------------------------------------------------------------------------------------

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        """Discard the session here and answer its local requests. Other workers may continue it.

        A transport may be discarded twice, and the session may have been adopted again in between.
        """
        await self._isolated(self._discard, session_id, transport)

    async def _discard(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        if isinstance(transport, ResumableTransport):
            transport.view.close()
            transport.hurry()
        if self._server_instances.get(session_id, transport) is transport:
            self._telemetry.ended(session_id, transport, stopping=self._task_group is None)
            self._registry.remove(session_id)
            await super()._discard_session(session_id, transport)
        elif not transport.is_terminated:
            with anyio.CancelScope(shield=True):
                await transport.terminate()
        if isinstance(transport, ResumableTransport):
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_SECONDS):
                await transport.view.give_up()

    async def _republish(self) -> None:
        """Write the records again after a data loss or outage of Redis."""
        served = sorted(self._served(), key=lambda transport: not transport.view.busy)  # Running requests first.
        for session_id in await self._registry.republish([each.mcp_session_id or "" for each in served]):
            self._end_locally(session_id)

    def _on_message(self, message: WorkerMessage) -> None:
        """Handle a message of another worker, or the possible loss of messages."""
        if self._task_group is None:
            return
        if message.kind is MessageKind.LOST:
            self._spawn(self._renew_used)
        session_id = self._registry.session_of(message.session) or ""
        transport = self._server_instances.get(session_id)
        if not isinstance(transport, ResumableTransport):
            return
        if message.kind is MessageKind.STOP:
            transport.stop(message.content, message.age)
            transport.view.followed(message.content)  # The stream was resumed on that worker.
        elif message.kind is MessageKind.DELIVER:
            with contextlib.suppress(CorruptEventError):
                content = codec.decode(message.content.encode())
                self._spawn(transport.deliver, content)
        elif message.kind is MessageKind.OFFER and transport.view.asked(message.content):
            self._registry.send(session_id, MessageKind.WANTED, message.content, to=message.sender)
        elif message.kind is MessageKind.WANTED:
            self._forwarder.hand_over(session_id, message)
        elif message.kind is MessageKind.ENDED:
            self._end_locally(session_id)


async def _body_of(receive: Receive) -> tuple[bytes, Receive]:
    """Receive the body of a request; return it, and a function that receives the same messages again."""
    messages: deque[Message] = deque()
    while True:
        messages.append(await receive())
        if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body", False):
            break

    async def again() -> Message:
        return messages.popleft() if messages else await receive()

    return b"".join(message.get("body", b"") for message in messages), again


async def _flush(store: InstrumentedEventStore) -> None:
    """Flush the store last, because ending sessions still store events."""
    with anyio.CancelScope(shield=True):
        await store.flush(FLUSH_SECONDS)
