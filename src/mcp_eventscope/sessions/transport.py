"""The SDK's transport, extended for sessions that any worker may serve."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from contextvars import Context, ContextVar
from functools import partial
from http import HTTPStatus
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
import pydantic_core
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.streamable_http import (
    CONTENT_TYPE_SSE,
    GET_STREAM_KEY,
    LAST_EVENT_ID_HEADER,
    MCP_SESSION_ID_HEADER,
    StreamableHTTPServerTransport,
)
from mcp.shared.message import SessionMessage
from mcp.types import DEFAULT_NEGOTIATED_VERSION, JSONRPCMessage, JSONRPCRequest, RequestId
from sse_starlette import EventSourceResponse
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mcp_eventscope.sessions import event_ids
from mcp_eventscope.sessions._sdk_compat import (
    MCP_PROTOCOL_VERSION_HEADER,
    accepts_sse,
    is_version_at_least,
    log,
    unavailable,
)
from mcp_eventscope.sessions.outbound_pipe import replace_outbound_streams
from mcp_eventscope.sessions.resume_limit import ResumeTurn
from mcp_eventscope.sessions.sse_writer import STREAM_END_SECONDS, EventQueue, Response, SSEBuffer, SSEWriter
from mcp_eventscope.sessions.view import Priming, SessionView, WireId, understands_priming
from mcp_eventscope.store.messages import EventMessage, JSONRPCError, JSONRPCResponse, unwrapped, wrapped
from mcp_eventscope.telemetry import propagation

if TYPE_CHECKING:  # Of mcp 2.x.
    from mcp.shared._context_streams import ContextSendStream
    from mcp.shared._stream_protocols import ReadStream, WriteStream

_PRIMED_SINCE = "2025-11-25"
"""The first revision whose clients support events without data (as in the SDK)."""


class ResumableTransport(StreamableHTTPServerTransport):
    """A transport that reads all GET streams from the store, so any worker can serve them.

    Args:
        view: The session's view of the store.
        stopped: Called with the name of a stream whose connections to other workers must end.
        forward: Called with an answer or a cancellation by the client that concerns no request on this worker.
        admit_resume: Returns the place of a resume among those of its principal; None: it is refused with 503.
        reconnection_delay: Returns the milliseconds after which a client should resume a stream that the server ends.
        rested: Called when the last running call has ended.
        **settings: As in the SDK.
    """

    _inbox: "ContextSendStream[SessionMessage | Exception] | None" = None

    def __init__(  # noqa: PLR0913 - callbacks of its manager, by keyword
        self,
        view: SessionView,
        *,
        stopped: Callable[[str], None],
        forward: Callable[[JSONRPCMessage], None],
        admit_resume: Callable[[], ResumeTurn | None],
        reconnection_delay: Callable[[], int],
        rested: Callable[[], None],
        **settings: Any,
    ) -> None:
        super().__init__(event_store=view, **settings)
        self.view = view
        view.sender = self._sender
        view.rested = self._restart_idle_time
        # Closes the live stream, too: the client resumes and receives the stored answer.
        view.fenced = self._close_live
        self._stopped = stopped
        self._forward = forward
        self._admit_resume = admit_resume
        self._reconnection_delay = reconnection_delay
        self._rested = rested
        self._responses: set[Response] = set()
        self._draining = False

    @asynccontextmanager
    async def connect(
        self,
    ) -> AsyncGenerator["tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]", None]:
        """Connect as the SDK does, and route the client's messages for other workers."""
        async with super().connect() as streams:
            replace_outbound_streams(self)
            self._inbox = self._read_stream_writer
            self._read_stream_writer = _RoutingStream(self._read_stream_writer, self._route)  # type: ignore[assignment]
            yield streams

    async def deliver(self, message: JSONRPCMessage) -> None:
        """Accept a client message from another worker, if it concerns a request here."""
        inbox = self._inbox
        if inbox is not None and self.view.concerns(message):
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                await inbox.send(SessionMessage(wrapped(message)))

    def _route(self, item: SessionMessage | Exception) -> bool:
        """Forward a message that concerns no request here. Return whether the server here receives it."""
        if not isinstance(item, SessionMessage):
            return True
        message = unwrapped(item.message)
        admission = _admitting.get(None)
        if self.is_json_response_enabled and admission is not None and isinstance(message, JSONRPCRequest):
            # Its response is no stream, so the SDK mints no priming event.
            self._begin_operation(admission, message.id, message.method)
        if self.view.concerns(message) is not False:
            return True
        self._forward(message)
        # The server of mcp 1.x reports answers to unknown requests to the client. Cancellations do no harm, and concern
        # a request here if responses are JSON.
        return not isinstance(message, JSONRPCResponse | JSONRPCError)

    def _begin_operation(self, admission: "_Admission", request_id: RequestId, method: str) -> None:
        self.view.operations.begin(str(request_id), method, admission.received)
        admission.begun = request_id

    def _sender(self) -> Context | None:
        """The context of the sender of the message that is being stored."""
        # Messages are stored one by one, as they are received. If this internal of the SDK changes, priming events
        # identify the calls.
        return getattr(getattr(self, "_write_stream_reader", None), "last_context", None)

    async def _handle_post_request(self, scope: Scope, request: Request, receive: Receive, send: Send) -> None:
        """Serve as the SDK does, in the request's trace, and ensure that the stream ends."""
        body = b""
        with suppress(Exception):  # The SDK reads the body again, and reports errors.
            body = await request.body()
        admission = _Admission(body, send if isinstance(send, Response) else None)
        token = _admitting.set(admission)
        try:
            with propagation.continued(body):
                await super()._handle_post_request(scope, request, receive, send)
        finally:
            _admitting.reset(token)
            if admission.begun is not None and not admission.dispatched:
                # Admitted, but the server never received the request: the session ended, or this task was cancelled.
                with anyio.CancelScope(shield=True):
                    await self.view.abandon(admission.begun)

    async def _mint_priming_event(self, stream_id: str, protocol_version: str) -> Any:
        """Open the request's stream. The SDK calls this when it has admitted a request."""
        admission = _admitting.get(None)
        request_id, method = (None, "") if admission is None else admission.request
        if admission is not None and request_id is not None and str(request_id) == stream_id:
            self.view.begin(request_id)
            self._begin_operation(admission, request_id, method)
        return await super()._mint_priming_event(stream_id, protocol_version)

    def _create_event_data(self, event_message: EventMessage) -> Any:
        """Render an event from the JSON that the store has already encoded."""
        event_id, message = event_message.event_id, event_message.message
        if isinstance(event_id, WireId) and _is_line(event_id.payload):
            return b"id: %b\r\nevent: message\r\ndata: %b\r\n\r\n" % (event_id.encode(), event_id.payload)
        if isinstance(message, Priming):
            priming = {"id": event_id, "data": ""}
            return priming if self._retry_interval is None else {**priming, "retry": self._retry_interval}
        return super()._create_event_data(event_message)

    async def _run_sse_writer(
        self,
        request_id: RequestId,
        sse_stream_writer: MemoryObjectSendStream[Any],
        request_stream_reader: MemoryObjectReceiveStream[EventMessage],
        priming_event: Any,
    ) -> None:
        """Write the events of a request as the SDK does, but directly to the server."""
        admission, streams = _admitting.get(None), self._request_streams.get(request_id)
        response = None if admission is None else admission.response
        if response is None or streams is None or streams[1] is not request_stream_reader:
            await super()._run_sse_writer(request_id, sse_stream_writer, request_stream_reader, priming_event)
            return
        # Writer and queue have the methods that the SDK calls on its streams.
        writer: Any = SSEWriter(response, sse_stream_writer)
        try:
            writer.events.take_over(request_stream_reader)
        except anyio.ClosedResourceError:  # The session is ending. The SDK completes the response.
            await super()._run_sse_writer(request_id, sse_stream_writer, request_stream_reader, priming_event)
            return
        self._request_streams[request_id] = (writer.events, writer.events)
        streams[0].close()
        await super()._run_sse_writer(request_id, writer, writer.events, priming_event)
        writer.raise_failure()

    def close_sse_stream(self, request_id: RequestId) -> None:
        """Close the stream of a request, original or resumed, on this and other workers."""
        name = self.view.name_of(str(request_id))
        self._close_live(request_id)
        if name:
            self.view.stop(name)
            self._stopped(name)

    def stop(self, name: str, age: float = 0.0) -> None:
        """End the local connections of a stream, which a newer connection or the server replaces.

        Args:
            name: The stream's name.
            age: Seconds since the stop was requested; resumes that began later continue.
        """
        self.view.stop(name, age)
        stream_id = self.view.stream_of(name)
        if stream_id is not None:
            self._close_live(stream_id)

    def _close_live(self, request_id: RequestId) -> None:
        """Close the original stream of a request, even if its client does not read."""
        queue, _ = self._request_streams.get(str(request_id), (None, None))
        if isinstance(queue, EventQueue):
            queue.response.hurry()
        super().close_sse_stream(request_id)

    def hurry(self) -> None:
        """End all streams soon, even if their clients do not read: the session has ended."""
        for response in tuple(self._responses):
            response.hurry()

    def end_stalled(self) -> None:
        """End the streams whose clients have not read for long: they can resume, and an unread stream takes memory."""
        now = monotonic()
        for response in tuple(self._responses):
            response.end_if_stalled(now)

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the SDK does, and complete streams when the server is stopped.

        Clients treat a broken stream as a failure: the SDK's client gives up its standalone stream after two.
        """
        response = Response(send, resumable=scope["method"] == "GET", farewell=partial(self._farewell, scope))
        self._responses.add(response)
        try:
            with response.scope:
                if self._draining:
                    await response.leave()
                await super().handle_request(scope, receive, response)
        finally:
            # A session with a running call is not idle, even if its client has disconnected.
            if self.view.working and self.idle_scope is not None:
                self.idle_scope.deadline = inf
            self._responses.discard(response)
            with anyio.CancelScope(shield=True), anyio.move_on_after(STREAM_END_SECONDS), suppress(Exception):
                await response.end()

    async def drain(self) -> None:
        """End the streams that clients can resume on another worker, now and from now on. Calls continue."""
        self._draining = True
        async with anyio.create_task_group() as tasks:
            for response in tuple(self._responses):
                tasks.start_soon(self._leave, response)

    @staticmethod
    async def _leave(response: Response) -> None:
        with anyio.move_on_after(STREAM_END_SECONDS), suppress(Exception):
            await response.leave()

    def _farewell(self, scope: Scope) -> bytes:
        """The reconnection delay, for clients that support events without data."""
        version = Headers(scope=scope).get(MCP_PROTOCOL_VERSION_HEADER, DEFAULT_NEGOTIATED_VERSION)
        return b"retry: %d\r\n\r\n" % self._reconnection_delay() if is_version_at_least(version, _PRIMED_SINCE) else b""

    def _restart_idle_time(self) -> None:
        """Start the session's idle time after its last call, if no client is connected."""
        self._rested()
        if self.idle_scope is not None and self._idle_timeout is not None and not self._requests_in_flight:
            self.idle_scope.deadline = anyio.current_time() + self._idle_timeout

    async def _handle_get_request(self, request: Request, send: Send) -> None:
        """Serve a resume, or the standalone stream, which is read from a new cursor."""
        version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER, DEFAULT_NEGOTIATED_VERSION)
        understands_priming.set(is_version_at_least(version, _PRIMED_SINCE))
        cursor = request.headers.get(LAST_EVENT_ID_HEADER)
        if cursor:
            parts = event_ids.split(cursor)
            if parts is None:
                # With an empty stream the client would retry forever, so it is refused. The replay sends nothing, and
                # counts the miss.
                await self.view.replay_events_after(cursor, _discard)
                refusal = self._create_error_response(
                    "Bad Request: Last-Event-ID is not an event id of this server", HTTPStatus.BAD_REQUEST
                )
                await refusal(request.scope, request.receive, send)
                return
            name = parts[1]
        else:
            name = GET_STREAM_KEY
            cursor = ""
        if not accepts_sse(request) or not await self._validate_request_headers(request, send):
            if not accepts_sse(request):
                await super()._handle_get_request(request, send)  # Refuses it.
            return
        turn = self._admit_resume() if cursor else None
        if cursor and turn is None:
            busy = unavailable("Too many resumes in progress; retry", retry_after=1)
            await busy(request.scope, request.receive, send)
            return
        opened = ""
        with turn or nullcontext():
            if not cursor:
                cursor = opened = await self.view.open_standalone()
            # Only the newest connection receives messages, because an older one may be half-open.
            self.stop(name)
            self._stopped(name)
            try:
                with self.view.connecting(cursor, turn, send.hurry if isinstance(send, Response) else None):
                    if cursor:
                        await self._serve_stream(cursor, request, send)
                    else:
                        await super()._handle_get_request(request, send)
            finally:
                self.view.forget_opened(opened)

    async def _serve_stream(self, cursor: str, request: Request, send: Send) -> None:
        """Serve the events of a stream after a cursor, until no further event is due or the client has gone."""
        buffer = SSEBuffer()

        async def send_event(event: EventMessage) -> None:
            await buffer.send(self._create_event_data(event))

        async def deliver() -> None:
            try:
                await self.view.replay_events_after(cursor, send_event)
            except Exception:  # noqa: BLE001 - the client resumes again, as after an error of the server
                log.exception("a resumed stream has failed, and ends")
            finally:
                buffer.close()

        headers = {"Cache-Control": "no-cache, no-transform", "Content-Type": CONTENT_TYPE_SSE}
        if self.mcp_session_id:
            headers[MCP_SESSION_ID_HEADER] = self.mcp_session_id
        response = EventSourceResponse(buffer, headers=headers, data_sender_callable=deliver)
        await response(request.scope, request.receive, send)


def _is_line(payload: bytes) -> bool:
    """Whether a payload is known, and one line, as those that are written here."""
    return payload != b"" and b"\n" not in payload and b"\r" not in payload


async def _discard(_: EventMessage) -> None:
    """Discard an event."""


class _Admission:
    """A POST, from its arrival until the server has received the message."""

    __slots__ = ("_body", "begun", "dispatched", "received", "response")

    def __init__(self, body: bytes, response: Response | None) -> None:
        self.received = monotonic()
        self._body = body
        self.response = response
        self.begun: RequestId | None = None
        """The request that was admitted."""
        self.dispatched = False
        """Whether the server has received the message."""

    @property
    def request(self) -> tuple[RequestId | None, str]:
        """The request id with its JSON type, which the SDK's stream id does not preserve, and the method."""
        with suppress(ValueError):
            message = pydantic_core.from_json(self._body)
            if isinstance(message, dict) and isinstance(request_id := message.get("id"), int | str):
                return request_id, str(message.get("method", ""))
        return None, ""


_admitting: ContextVar[_Admission | None] = ContextVar("admitting", default=None)


class _RoutingStream:
    """The stream of client messages, with a callback for each message."""

    def __init__(
        self, stream: "ContextSendStream[SessionMessage | Exception] | None", route: Callable[[Any], bool]
    ) -> None:
        self._stream = stream
        self._route = route

    async def send(self, item: SessionMessage | Exception) -> None:
        """Pass an item to the stream if the callback allows it."""
        if self._route(item) and self._stream is not None:
            await self._stream.send(item)
            admission = _admitting.get(None)
            if admission is not None:
                admission.dispatched = True

    async def aclose(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            await self._stream.aclose()
