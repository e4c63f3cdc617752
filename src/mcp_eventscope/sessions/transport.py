"""The SDK's transport, for a session that any worker may serve."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from http import HTTPStatus
from typing import Any

import anyio
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
from starlette.types import Message, Receive, Scope, Send

from mcp_eventscope.sessions import wire
from mcp_eventscope.sessions.view import SessionView
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
        view.given_up = super().close_sse_stream
        self._stopped = stopped
        self._elsewhere = elsewhere

    @asynccontextmanager
    async def connect(
        self,
    ) -> AsyncGenerator[tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]], None]:
        """Connect as the SDK does, and look through what the client sends for what is another worker's."""
        async with super().connect() as streams:
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
        """Serve as the SDK does, in the trace that the request names."""
        body = b""
        with suppress(Exception):  # The SDK reads it again, and says what is wrong.
            body = await request.body()
        with propagation.continued(body):
            await super()._handle_post_request(scope, request, receive, send)

    def close_sse_stream(self, request_id: RequestId) -> None:
        """Close the stream of a request, whether it is the first one or was resumed, here or on another worker."""
        super().close_sse_stream(request_id)
        self.view.stop(str(request_id))
        self._stopped(str(request_id))

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the SDK does, and end a stream in order when the server is stopped.

        A client takes a broken stream for a failure: the SDK's gives its standalone stream up after two.
        """
        streaming = False

        async def watched(message: Message) -> None:
            nonlocal streaming
            streaming = message["type"] == "http.response.start" or (streaming and message.get("more_body", False))
            await send(message)

        try:
            await super().handle_request(scope, receive, watched)
        finally:
            if streaming:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORD_SECONDS), suppress(Exception):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _handle_get_request(self, request: Request, send: Send) -> None:
        """Serve a GET: a resume, or the standalone stream from now on, which is resumed from a cursor of its own."""
        cursor = request.headers.get(LAST_EVENT_ID_HEADER)
        if cursor:
            parts = wire.split(cursor)
            if parts is None:
                # An empty stream would make the client ask again for ever; a refusal it understands.
                refusal = self._create_error_response(
                    "Bad Request: this Last-Event-ID was not given out here", HTTPStatus.BAD_REQUEST
                )
                await refusal(request.scope, request.receive, send)
                return
            standalone = parts[1] == GET_STREAM_KEY
        else:
            standalone = True
            _, accepts = check_accept_headers(request)
            version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER, DEFAULT_NEGOTIATED_VERSION)
            primed = is_version_at_least(version, _PRIMED_SINCE)
            cursor = await self.view.open_standalone(primed=primed) if accepts else ""
            if cursor:
                name = LAST_EVENT_ID_HEADER.encode()  # Once: it may be there, and empty.
                headers = [*(row for row in request.scope["headers"] if row[0] != name), (name, cursor.encode())]
                request = Request({**request.scope, "headers": headers}, request.receive)
        if standalone:
            # One connection at a time gets each message: the newest, for the older one may be half-open.
            self.view.stop(GET_STREAM_KEY)
            self._stopped(GET_STREAM_KEY)
        await super()._handle_get_request(request, send)


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

    async def aclose(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            await self._stream.aclose()
