"""The way of a request's events to its client: one task and two streams less than the SDK's.

In the SDK an event passes two streams and two tasks between the session's router and the ASGI server. Here the task
that renders the events also sends them, several in one piece where several are pending.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.streamable_http import REQUEST_STREAM_BUFFER_SIZE
from sse_starlette.event import ServerSentEvent, ensure_bytes
from starlette.types import Message, Send

from mcp_eventscope.store.messages import EventMessage


class Response:
    """The ASGI `send` of one response, with its progress."""

    __slots__ = ("_begin", "_begun", "_send", "streaming")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        """Whether the head was sent."""
        self._begin: asyncio.Future[None] | None = None
        self.streaming = False
        """Whether it has begun, and is not complete."""

    async def __call__(self, message: Message) -> None:
        """Send a part of the response."""
        starts = message["type"] == "http.response.start"
        self.streaming = starts or (self.streaming and message.get("more_body", False))
        await self._send(message)
        if starts:
            self._begun = True
            _wake(self._begin)

    async def write(self, body: bytes) -> None:
        """Send a piece of the body once the head was sent, unless the response has ended."""
        if not self._begun:
            self._begin = asyncio.get_running_loop().create_future()
            await self._begin
        if self.streaming:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


class EventQueue:
    """The events of one request that are not sent yet: both ends of a stream, in place of the SDK's.

    Args:
        idle: Awaited when the reader has taken all events, before it waits for more.
    """

    __slots__ = ("_arrival", "_closed", "_events", "_idle", "_room")

    def __init__(self, idle: Callable[[], Awaitable[None]]) -> None:
        self._idle = idle
        self._events: deque[EventMessage] = deque()
        self._closed = False
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def take_over(self, stream: MemoryObjectReceiveStream[EventMessage]) -> None:
        """Move the events of the SDK's stream here, and close it.

        Raises:
            ClosedResourceError: The stream was closed.
        """
        try:
            while True:
                self._events.append(stream.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            stream.close()

    async def send(self, event: EventMessage) -> None:
        """Add an event; wait while the client is slow, and as many are pending as the SDK allows.

        Raises:
            ClosedResourceError: The stream is closed.
        """
        while len(self._events) >= REQUEST_STREAM_BUFFER_SIZE and not self._closed:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)
        if self._closed:
            raise anyio.ClosedResourceError
        self._events.append(event)
        _wake(self._arrival)

    def close(self) -> None:
        """End the stream, and drop the events that are not sent: a client receives them when it resumes."""
        self._closed = True
        self._events.clear()
        _wake(self._arrival)
        _wake(self._room)

    async def aclose(self) -> None:
        """Close the stream."""
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventMessage:
        if not self._events:
            await self._idle()
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        _wake(self._room)
        self._room = None
        return self._events.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class SSEWriter:
    """Sends the events of one request, in place of the stream to the task that would send them.

    Args:
        response: The response.
        stream: The SDK's stream to the task that ends the response when the stream is closed.
    """

    __slots__ = ("_failure", "_pieces", "_response", "_stream", "events")

    def __init__(self, response: Response, stream: MemoryObjectSendStream[Any]) -> None:
        self._response = response
        self._stream = stream
        self._pieces: list[bytes] = []
        self._failure: Exception | None = None
        self.events = EventQueue(self._flush)
        """The source of the events."""

    async def send(self, event: Any) -> None:
        """Take an event, as the SDK renders it or as bytes; it is sent when no other is pending behind it."""
        self._pieces.append(ensure_bytes(event, ServerSentEvent.DEFAULT_SEPARATOR))

    async def _flush(self) -> None:
        if not self._pieces:
            return
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        try:
            await self._response.write(piece)
        except Exception as error:
            self._failure = error
            # Logged with the response: of a writer the SDK logs every error but this.
            raise anyio.ClosedResourceError from error

    def raise_failure(self) -> None:
        """Raise the error of the server's `send`: it ends the response, while the SDK only logs errors of a writer."""
        if self._failure is not None:
            raise self._failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._flush()
        finally:
            self._stream.close()


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
