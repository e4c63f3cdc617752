"""The SDK's transport, for a session that any worker may serve."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mcp.server.streamable_http import (
    GET_STREAM_KEY,
    LAST_EVENT_ID_HEADER,
    StreamableHTTPServerTransport,
    check_accept_headers,
)
from mcp.types import RequestId
from starlette.requests import Request
from starlette.types import Send

from mcp_eventscope.sessions import wire
from mcp_eventscope.sessions.view import SessionView


class ResumableTransport(StreamableHTTPServerTransport):
    """A transport all of whose GET streams are read from the store, so that it does not matter which worker has them.

    Args:
        view: The session's view of the store.
        stopped: Called with the id of a stream that is to end wherever a client has it, here or elsewhere.
        **settings: As in the SDK.
    """

    def __init__(self, view: SessionView, stopped: Callable[[str], None], **settings: Any) -> None:
        super().__init__(event_store=view, **settings)
        self.view = view
        self._stopped = stopped

    def close_sse_stream(self, request_id: RequestId) -> None:
        """Close the stream of a request, whether it is the first one or was resumed, here or on another worker."""
        super().close_sse_stream(request_id)
        self.view.stop(str(request_id))
        self._stopped(str(request_id))

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
            cursor = await self.view.store_event(GET_STREAM_KEY, None) if accepts else ""
            if cursor:
                name = LAST_EVENT_ID_HEADER.encode()  # Once: it may be there, and empty.
                headers = [*(row for row in request.scope["headers"] if row[0] != name), (name, cursor.encode())]
                request = Request({**request.scope, "headers": headers}, request.receive)
        if standalone:
            # One connection at a time gets each message: the newest, for the older one may be half-open.
            self.view.stop(GET_STREAM_KEY)
            self._stopped(GET_STREAM_KEY)
        await super()._handle_get_request(request, send)
