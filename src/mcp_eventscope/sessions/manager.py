"""A drop-in for the SDK's session manager that gives every session its own view of the event store."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
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
from mcp.types import InitializeRequestParams, jsonrpc_message_adapter
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mcp_eventscope.instrumentation import InstrumentedEventStore, instrument
from mcp_eventscope.redis.limits import FLUSH_SECONDS
from mcp_eventscope.sessions import _sdk_compat
from mcp_eventscope.sessions.adoption import handshake_of, owner_of, params_of, requestor_of, serve_adopted
from mcp_eventscope.sessions.registry import UNREAD, LocalRegistry, SessionRegistry
from mcp_eventscope.sessions.settings import check_settings
from mcp_eventscope.sessions.telemetry import SessionTelemetry
from mcp_eventscope.sessions.transport import ResumableTransport
from mcp_eventscope.sessions.view import SessionView
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE, LEAVE_SECONDS, Notice, SessionRecord
from mcp_eventscope.store.messages import EventStore
from mcp_eventscope.telemetry.facts import Origin, Refusal, SessionEnd
from mcp_eventscope.telemetry.logs import Log, Logger

_MOST_LATE = 10.0
"""Seconds by which a notice may be late; more, or less than none, says that the clocks of two workers differ."""
DEFAULT_FOLLOW_TIMEOUT = 300.0
"""Seconds that a resumed stream is followed at most."""

_RECORD_TTL = 24 * 3600
"""Seconds that a session's record is kept after its last request, where no idle timeout says it."""
_SOON = 0.1
"""Of a record's time to live: how long a request may last before its end renews the record."""
_PATIENT_SECONDS = 20.0
"""How long a request for a stream waits until Redis can be asked for its session."""
_LATE_SECONDS = 1.0
"""How long a request waits for a record that its session's worker may be about to write."""
_ASK_AGAIN_SECONDS = 0.25
"""How often it asks meanwhile."""
_REFUSED = 400
"""HTTP statuses from here on refuse."""


class ResumableSessionManager(StreamableHTTPSessionManager):
    """`StreamableHTTPSessionManager`, with a view of its own for every session.

    The SDK hands one store to all sessions, and tells it a request id only, which every client counts from 0: they
    would share streams. Here no session can store on, or be replayed, another's stream.

    Args:
        app: The low-level server.
        event_store: The store; it is instrumented, unless it is already. None: nothing can be resumed.
        json_response: As in the SDK. Responses are then no streams, and cannot be resumed:
            `event_store.resumption_disabled`.
        stateless: As in the SDK. There are then no sessions to resume: `event_store.resumption_disabled`.
        security_settings: As in the SDK.
        retry_interval: As in the SDK, in milliseconds.
        session_idle_timeout: As in the SDK, in seconds.
        max_request_body_size: As in the SDK, in bytes.
        max_sessions: As in the SDK.
        follow_timeout: Seconds that a resumed stream is followed at most; the client then comes back by itself.
        worker_lease: Seconds after which a worker that does not renew its lease is declared dead, and its requests are
            answered with an error.
        shutdown_timeout: Seconds that running calls have to end when the server is stopped; then they are answered with
            an error. The process supervisor must allow a little more.
        logger: Where the log events of the manager go; None: as in `InstrumentedEventStore`.

    Raises:
        ValueError: A number is out of its range.
        TypeError: `app` is no low-level server, `event_store` is no event store, or `logger` takes no fields.
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
        follow_timeout: float = DEFAULT_FOLLOW_TIMEOUT,
        worker_lease: float = DEFAULT_WORKER_LEASE,
        shutdown_timeout: float = 0.0,
        logger: Logger | None = None,
    ) -> None:
        check_settings(app, follow_timeout=follow_timeout, worker_lease=worker_lease, shutdown_timeout=shutdown_timeout)
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
        self._store: InstrumentedEventStore | None = None
        self._registry: SessionRegistry | LocalRegistry = LocalRegistry()
        if event_store is not None:
            self._store = instrument(event_store, logger=logger)
        self._telemetry = SessionTelemetry(self._store, Log(logger))
        if self._store is None:
            return
        if self._store.coordinator is not None and not stateless:
            ttl = ceil(session_idle_timeout or max(self._store.ttl or 0, _RECORD_TTL))
            self._registry = SessionRegistry(self._store.coordinator, ttl)
        _sdk_compat.check_manager(self)
        self._telemetry.configured(
            stateless=stateless,
            json_response=json_response,
            idle_timeout=session_idle_timeout,
            follow_timeout=follow_timeout,
        )

    @property
    def running(self) -> bool:
        """Whether sessions are served: within `run()`."""
        return self._task_group is not None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run as the SDK's manager does; where the store knows other workers, as one of them."""
        async with AsyncExitStack() as stack:
            # The lease is given up last: other workers would answer for events that are about to be acknowledged.
            await stack.enter_async_context(
                self._registry.hold_lease(self._worker_lease, self._on_message, self._republish)
            )
            if self._store is not None:
                stack.push_async_callback(_flush, self._store)
            await stack.enter_async_context(super().run())
            if self._task_group is not None and self._registry.shared:
                self._task_group.start_soon(self._keep_records, self._registry.ttl)
            try:
                yield
            finally:
                await self._finish_running()

    async def _finish_running(self) -> None:
        """Let the calls that are running end, for as long as was asked for: no new ones come."""
        with anyio.move_on_after(self._shutdown_timeout):
            while any(each.view.busy for each in self._served()):  # noqa: ASYNC110 - the calls do not know of this
                await anyio.sleep(0.05)

    def _served(self) -> list[ResumableTransport]:
        """The sessions here that have views."""
        return [each for each in self._server_instances.values() if isinstance(each, ResumableTransport)]

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the SDK does."""
        self._telemetry.requested(scope)
        await super()._handle_request(scope, receive, send)

    # -- sessions that begin here -------------------------------------------------------------------------------------

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Register a session as the SDK does, with a transport and a view of its own."""
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
        """Make the transport of a session."""
        view = SessionView(store.for_session(session_id), follow_timeout=self._follow_timeout)
        view.ended = lambda: self._ended_elsewhere(session_id)
        return ResumableTransport(
            view,
            stopped=lambda name: self._publish(session=session_id, stop=name),
            elsewhere=lambda message: self._publish(
                session=session_id, deliver=message.model_dump(mode="json", by_alias=True, exclude_unset=True)
            ),
            mcp_session_id=session_id,
            is_json_response_enabled=self.json_response,
            security_settings=self.security_settings,
            retry_interval=self.retry_interval,
            idle_timeout=self.session_idle_timeout,
        )

    def _ended_elsewhere(self, session_id: str) -> None:
        """The session was ended on another worker: forget it here."""
        transport = self._server_instances.get(session_id)
        if transport is not None and not transport.is_terminated and self._task_group is not None:
            self._telemetry.ends(session_id, SessionEnd.OTHER_WORKER)
            self._task_group.start_soon(self._discard_session, session_id, transport)

    async def _serve_opening_request(
        self, http_transport: StreamableHTTPServerTransport, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Record the session before its client learns its id: the next request may reach another worker."""
        body = bytearray()

        async def keep() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def record_first(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < _REFUSED:
                await self._record(http_transport.mcp_session_id, handshake_of(bytes(body)))
                self._telemetry.began(http_transport.mcp_session_id, Origin.OPENED)
            elif message["type"] == "http.response.start":
                self._telemetry.refused(Refusal.INVALID)
            await send(message)

        await super()._serve_opening_request(http_transport, scope, keep, record_first)

    async def _record(self, session_id: str | None, handshake: str | None) -> None:
        if session_id is not None and handshake is not None:
            owner = owner_of(self._session_owners.get(session_id))
            await self._registry.add(session_id, owner=owner, handshake=handshake)

    # -- sessions that others began -----------------------------------------------------------------------------------

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take over the session that is asked for, if it is another's, and serve as the SDK does."""
        headers = Headers(scope=scope)
        session_id = headers.get(MCP_SESSION_ID_HEADER)
        requestor = requestor_of(scope)
        if session_id is None or not self._registry.shared or not SESSION_ID_PATTERN.fullmatch(session_id):
            if session_id is not None:
                self._telemetry.check(self, session_id, requestor)
            await super()._handle_stateful_request(scope, receive, send)
            return
        if refusal := await self._prepare(session_id, requestor, patient=scope["method"] == "GET"):
            await refusal(scope, receive, send)
            return
        ending = scope["method"] == "DELETE" and session_id in self._server_instances

        async def end_first(message: Message) -> None:
            if ending and message["type"] == "http.response.start" and message["status"] < _REFUSED:
                await registry.end(session_id)
            await send(message)

        registry = self._registry
        began = anyio.current_time()
        await super()._handle_stateful_request(scope, receive, end_first)
        if anyio.current_time() - began > registry.ttl * _SOON:  # Else it counts as renewed when it began.
            self._renew_soon(session_id, owner_of(requestor))

    async def _prepare(
        self, session_id: str, requestor: AuthorizationContext | None, *, patient: bool
    ) -> Response | None:
        """Have the session here, if it is anywhere, and the requestor's; or say why it cannot be.

        Who comes for a stream waits for Redis: a client that is refused twice gives its stream up.
        """
        if session_id in self._server_instances:
            self._renew_soon(session_id, owner_of(requestor))
            self._telemetry.check(self, session_id, requestor)
            return None
        record = await self._renew(session_id, owner_of(requestor))
        began = anyio.current_time()
        patience = {UNREAD: _PATIENT_SECONDS if patient else 0, "absent": _LATE_SECONDS if self._registry.late else 0}
        while session_id not in self._server_instances:
            if anyio.current_time() - began >= patience.get(record.state, 0):
                break
            await anyio.sleep(_ASK_AGAIN_SECONDS)
            record = await self._renew(session_id, owner_of(requestor))
        if session_id not in self._server_instances:
            if record.state == UNREAD:
                self._telemetry.refused(Refusal.UNAVAILABLE, session_id)
                return _sdk_compat.unavailable("Whether there is such a session is not known just now", retry_after=1)
            if record.state == "live" and not await self._adopt(session_id, requestor, record):
                self._telemetry.refused(Refusal.LIMIT, session_id)
                return _sdk_compat.unavailable("Too many open sessions")
        self._telemetry.check(self, session_id, requestor, others=record.state == "other")
        return None

    def _renew_soon(self, session_id: str, owner: str) -> None:
        """Renew the record of a session that is served here in the background, unless that has just been done."""
        if self._task_group is not None and self._registry.due(session_id):
            self._task_group.start_soon(self._renew, session_id, owner)

    async def _renew(self, session_id: str, owner: str) -> SessionRecord:
        """Renew the record of a session. One that was ended elsewhere ends here, one that Redis has lost is made."""
        record = await self._registry.renew(session_id, owner=owner)
        transport = self._server_instances.get(session_id)
        if transport is not None and record.state == "ended" and not transport.is_terminated:
            self._telemetry.ends(session_id, SessionEnd.OTHER_WORKER)
            await self._discard_session(session_id, transport)
        elif transport is not None and record.state == "absent":
            await self._record(session_id, self._registry.handshake(session_id))
        return record

    async def _keep_records(self, ttl: int) -> None:
        """Renew the records of sessions whose requests last: another worker could not take them over otherwise."""
        while True:
            await anyio.sleep(ttl / 4)
            await self._renew_busy()

    async def _renew_busy(self) -> None:
        for session_id, transport in tuple(self._server_instances.items()):
            idle = transport.idle_scope is not None and transport.idle_scope.deadline != inf
            owner = owner_of(self._session_owners.get(session_id))
            if not idle and (await self._renew(session_id, owner)).state == UNREAD:
                return

    async def _adopt(self, session_id: str, requestor: AuthorizationContext | None, record: SessionRecord) -> bool:
        """Serve another worker's session here, too."""
        async with self._session_creation_lock:
            if session_id in self._server_instances or self._task_group is None or self._store is None:
                return True
            if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
                return False
            params = params_of(record.handshake)
            if params is None:
                return True
            transport = self._transport_of(self._store, session_id)
            if requestor is not None:
                self._session_owners[session_id] = requestor
            self._registry.remember(session_id, record.handshake)
            await self._task_group.start(self._serve_adopted, session_id, transport, params)
            # Not before it is connected: another request of the session would be served by a transport without streams.
            if not transport.is_terminated:
                self._server_instances[session_id] = transport
                self._telemetry.began(session_id, Origin.ADOPTED)
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
            await serve_adopted(self.app, transport, params, self._lifespan_state, task_status=task_status)
        except Exception:  # noqa: BLE001 - as the SDK does: one session's crash is no other's
            _sdk_compat.log.exception("Session %s crashed", session_id[:64])
        finally:
            await self._discard_session(session_id, transport)

    # -- sessions that end --------------------------------------------------------------------------------------------

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        """Forget the session here, and answer what ran in it here. Other workers may go on with it."""
        self._telemetry.ended(session_id, transport, stopping=self._task_group is None)
        self._registry.remove(session_id)
        if isinstance(transport, ResumableTransport):
            transport.view.close()
        await super()._discard_session(session_id, transport)
        if isinstance(transport, ResumableTransport):
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_SECONDS):
                await transport.view.give_up()

    async def _republish(self) -> None:
        """Write the records again: Redis has lost them, or was unreachable."""
        served = sorted(self._served(), key=lambda transport: not transport.view.busy)  # Running requests first.
        sessions = [transport.mcp_session_id or "" for transport in served]
        await self._registry.republish({each: owner_of(self._session_owners.get(each)) for each in sessions})

    def _on_message(self, notice: Notice) -> None:
        """Another worker has told something, or perhaps has and was not heard."""
        if "lost" in notice and self._task_group is not None:
            self._task_group.start_soon(self._renew_busy)
        session_id = str(notice.get("session"))
        transport = self._server_instances.get(session_id)
        if not isinstance(transport, ResumableTransport) or self._task_group is None:
            return
        if "stop" in notice:
            transport.stop(str(notice["stop"]), self._age_of(notice))
            transport.view.followed(str(notice["stop"]))  # It was resumed there.
        elif "deliver" in notice:
            with contextlib.suppress(ValueError):
                message = jsonrpc_message_adapter.validate_python(notice["deliver"], by_name=False)
                self._task_group.start_soon(transport.deliver, message)
        elif "ended" in notice:
            self._ended_elsewhere(session_id)

    def _age_of(self, notice: Notice) -> float:
        """Seconds since another worker has sent a notice; 0.0 when the clocks do not agree."""
        sent = notice.get("sent")
        if not isinstance(sent, int):
            return 0.0
        age = (self._registry.now - sent) / 1e6
        return age if 0 <= age <= _MOST_LATE else 0.0

    def _publish(self, **notice: object) -> None:
        """Tell the other workers, without waiting for it."""
        if self._task_group is not None:
            self._task_group.start_soon(partial(self._registry.publish, sent=self._registry.now, **notice))


async def _flush(store: InstrumentedEventStore) -> None:
    """The last thing of all, for sessions that end still have things to say: what is lost now is told by the store."""
    with anyio.CancelScope(shield=True):
        await store.flush(FLUSH_SECONDS)
