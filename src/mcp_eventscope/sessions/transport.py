"""The SDK's transport, for a session that any worker may serve."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context, ContextVar
from http import HTTPStatus
from typing import Any

import anyio
import pydantic_core
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.streamable_http import (
    GET_STREAM_KEY,
    LAST_EVENT_ID_HEADER,
    StreamableHTTPServerTransport,
    check_accept_headers,
)
from mcp.shared._context_streams import ContextSendStream
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp.shared.message import SessionMessage
from mcp.types import DEFAULT_NEGOTIATED_VERSION, JSONRPCMessage, RequestId
from mcp_types.version import is_version_at_least
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mcp_eventscope.sessions import event_ids
from mcp_eventscope.sessions.handoff import replace_outbound_streams
from mcp_eventscope.sessions.sse_writer import Response, SSEWriter
from mcp_eventscope.sessions.view import Priming, SessionView, WireId, understands_priming
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.telemetry import propagation

_PRIMED_SINCE = "2025-11-25"
"""The first revision whose clients understand an event without data (as in the SDK)."""
_LAST_WORD_SECONDS = 1.0
"""How long a server that is stopped waits for a client that is slow to take the end of its stream."""


class ResumableTransport(StreamableHTTPServerTransport):
    """A transport all of whose GET streams are read from the store, so that it does not matter which worker has them.

    Args:
        view: The session's view of the store.
        stopped: Called with the id of a stream that is to end wherever a client has it, here or elsewhere.
        elsewhere: Called with an answer or a cancellation by the client that concerns nothing that runs here.
        **settings: As in the SDK.
    """

    _inbox: ContextSendStream[SessionMessage | Exception] | None = None

    def __init__(
        self,
        view: SessionView,
        *,
        stopped: Callable[[str], None],
        elsewhere: Callable[[JSONRPCMessage], None],
        **settings: Any,
    ) -> None:
        super().__init__(event_store=view, **settings)
        self.view = view
        view.sender = self._sender
        # Not sent either, then: the client comes back for the answer that it was given.
        view.fenced = super().close_sse_stream
        self._stopped = stopped
        self._elsewhere = elsewhere

    @asynccontextmanager
    async def connect(
        self,
    ) -> AsyncGenerator[tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]], None]:
        """Connect as the SDK does, and look through what the client sends for what is another worker's."""
        async with super().connect() as streams:
            replace_outbound_streams(self)
            self._inbox = self._read_stream_writer
            self._read_stream_writer = _Sorted(self._read_stream_writer, self._sort)  # type: ignore[assignment]
            yield streams

    async def deliver(self, message: JSONRPCMessage) -> None:
        """Take what the client sent to another worker, if it is meant for what runs here."""
        inbox = self._inbox
        if inbox is not None and self.view.concerns(message):
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                await inbox.send(SessionMessage(message))

    def _sort(self, item: SessionMessage | Exception) -> None:
        if isinstance(item, SessionMessage) and self.view.concerns(item.message) is False:
            self._elsewhere(item.message)

    def _sender(self) -> Context | None:
        """The context of whoever sent what is being stored now: messages are stored one by one, as they are taken."""
        # A part of the SDK that may change: then a call is known by its priming event.
        return getattr(getattr(self, "_write_stream_reader", None), "last_context", None)

    async def _handle_post_request(self, scope: Scope, request: Request, receive: Receive, send: Send) -> None:
        """Serve as the SDK does, in the trace that the request names, and see that the request's stream has an end."""
        body = b""
        with suppress(Exception):  # The SDK reads it again, and reports what is wrong.
            body = await request.body()
        admission = _Admission(body, send if isinstance(send, Response) else None)
        token = _admitting.set(admission)
        try:
            with propagation.continued(body):
                await super()._handle_post_request(scope, request, receive, send)
        finally:
            _admitting.reset(token)
            if admission.begun is not None and not admission.dispatched:
                # Admitted, and the server never received it: the session ended, or this task was cancelled.
                with anyio.CancelScope(shield=True):
                    await self.view.abandon(admission.begun)

    async def _mint_priming_event(self, stream_id: str, protocol_version: str) -> Any:
        """Open the request's stream: the SDK calls this where it has admitted a request."""
        admission = _admitting.get(None)
        request_id = None if admission is None else admission.request_id
        if admission is not None and request_id is not None and str(request_id) == stream_id:
            self.view.begin(request_id)
            admission.begun = request_id
        return await super()._mint_priming_event(stream_id, protocol_version)

    def _create_event_data(self, event_message: EventMessage) -> Any:
        """Render an event once: the store has the message as JSON already."""
        event_id, message = event_message.event_id, event_message.message
        if isinstance(event_id, WireId):
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
        """Write the events of a request as the SDK does, directly to the server."""
        admission, streams = _admitting.get(None), self._request_streams.get(request_id)
        response = None if admission is None else admission.response
        if response is None or streams is None or streams[1] is not request_stream_reader:
            await super()._run_sse_writer(request_id, sse_stream_writer, request_stream_reader, priming_event)
            return
        # Both have the methods of the SDK's streams that the SDK calls.
        writer: Any = SSEWriter(response, sse_stream_writer)
        try:
            writer.events.take_over(request_stream_reader)
        except anyio.ClosedResourceError:  # The session is being ended. The SDK ends the response in order.
            await super()._run_sse_writer(request_id, sse_stream_writer, request_stream_reader, priming_event)
            return
        self._request_streams[request_id] = (writer.events, writer.events)
        streams[0].close()
        await super()._run_sse_writer(request_id, writer, writer.events, priming_event)
        writer.raise_failure()

    def close_sse_stream(self, request_id: RequestId) -> None:
        """Close the stream of a request, whether it is the first one or was resumed, here or on another worker."""
        name = self.view.name_of(str(request_id))
        super().close_sse_stream(request_id)
        if name:
            self.view.stop(name)
            self._stopped(name)

    def stop(self, name: str, age: float = 0.0) -> None:
        """End the connections of a stream here: a newer one was made, or the server closes it.

        Args:
            name: The stream's name.
            age: Seconds since it was to end; resumes that began later go on.
        """
        self.view.stop(name, age)
        stream_id = self.view.stream_of(name)
        if stream_id is not None:
            super().close_sse_stream(stream_id)

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the SDK does, and end a stream in order when the server is stopped.

        A client takes a broken stream for a failure: the SDK's gives its standalone stream up after two.
        """
        response = Response(send)
        try:
            await super().handle_request(scope, receive, response)
        finally:
            if response.streaming:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORD_SECONDS), suppress(Exception):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _handle_get_request(self, request: Request, send: Send) -> None:
        """Serve a GET: a resume, or the standalone stream from now on, which is resumed from a cursor of its own."""
        version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER, DEFAULT_NEGOTIATED_VERSION)
        understands_priming.set(is_version_at_least(version, _PRIMED_SINCE))
        cursor = request.headers.get(LAST_EVENT_ID_HEADER)
        if cursor:
            parts = event_ids.split(cursor)
            if parts is None:
                # An empty stream would make the client ask again for ever; a refusal it understands. It is a miss all
                # the same, and counted as every other: nothing is sent for it.
                await self.view.replay_events_after(cursor, _to_nobody)
                refusal = self._create_error_response(
                    "Bad Request: this Last-Event-ID was not given out here", HTTPStatus.BAD_REQUEST
                )
                await refusal(request.scope, request.receive, send)
                return
            name = parts[1]
        else:
            name = GET_STREAM_KEY
            _, accepts = check_accept_headers(request)
            cursor = await self.view.open_standalone() if accepts else ""
            if cursor:
                header = LAST_EVENT_ID_HEADER.encode()  # Once: it may be there, and empty.
                headers = [*(row for row in request.scope["headers"] if row[0] != header), (header, cursor.encode())]
                request = Request({**request.scope, "headers": headers}, request.receive)
        # One connection at a time gets each message: the newest, since the older one may be half-open.
        self.stop(name)
        self._stopped(name)
        with self.view.connecting(cursor):
            await super()._handle_get_request(request, send)


async def _to_nobody(_: EventMessage) -> None:
    """Send nothing."""


class _Admission:
    """A POST, from its arrival until the server has its request."""

    __slots__ = ("_body", "begun", "dispatched", "response")

    def __init__(self, body: bytes, response: Response | None) -> None:
        self._body = body
        self.response = response
        self.begun: RequestId | None = None
        """The request whose stream was opened."""
        self.dispatched = False
        """Whether the server has received the message."""

    @property
    def request_id(self) -> RequestId | None:
        """The request's id, with its JSON type, which the SDK's name of the stream does not tell."""
        with suppress(ValueError):
            message = pydantic_core.from_json(self._body)
            if isinstance(message, dict) and isinstance(request_id := message.get("id"), int | str):
                return request_id
        return None


_admitting: ContextVar[_Admission | None] = ContextVar("admitting", default=None)


class _Sorted:
    """The stream of what the client sends, each item of which is looked at on its way."""

    def __init__(
        self, stream: ContextSendStream[SessionMessage | Exception] | None, look: Callable[[Any], None]
    ) -> None:
        self._stream = stream
        self._look = look

    async def send(self, item: SessionMessage | Exception) -> None:
        """Look, and pass on."""
        self._look(item)
        if self._stream is not None:
            await self._stream.send(item)
            admission = _admitting.get(None)
            if admission is not None:
                admission.dispatched = True

    async def aclose(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            await self._stream.aclose()
