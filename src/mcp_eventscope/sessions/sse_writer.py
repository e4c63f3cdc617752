"""Write events to a client, with fewer tasks and streams than the SDK.

In the SDK a live event passes two streams and two tasks between the session's router and the ASGI server, and a
replayed event one unbuffered stream between two tasks. Here the task that renders the live events of a request also
sends them, and pending events are joined into one piece.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.streamable_http import REQUEST_STREAM_BUFFER_SIZE
from sse_starlette.event import ServerSentEvent, ensure_bytes
from starlette.types import Message, Send

from mcp_eventscope.store.messages import EventMessage

BUFFER_BYTES = 64 * 1024
"""Rendered bytes of a resumed stream that wait for the client, as many as asyncio buffers for a socket."""
STALL_SECONDS = 300.0
"""Seconds after which a stream ends whose client does not read. The client can resume, and loses nothing."""
SLOWEST_READ = 4096
"""Bytes per second that a client must read of a large event, within which the server's `send` shows no progress."""
STREAM_END_SECONDS = 1.0
"""Maximum seconds for which the end of a stream waits for a client that does not read."""


class Response:
    """The ASGI `send` of one response, and the state of the response.

    Args:
        send: The server's `send`.
        resumable: Whether the client can resume the stream before it has received an event id.
        farewell: Returns the last bytes of a stream that the server ends before its time.
    """

    __slots__ = (
        "_begin",
        "_begun",
        "_ended",
        "_event_stream",
        "_farewell",
        "_leaving",
        "_resumable",
        "_send",
        "_sending_since",
        "_size",
        "scope",
        "streaming",
    )

    def __init__(self, send: Send, *, resumable: bool = False, farewell: Callable[[], bytes] = bytes) -> None:
        self._send = send
        self._farewell = farewell
        self._resumable = resumable
        self._event_stream = False
        self._sending_since: float | None = None
        """Since when the server has been sending a part; None: it has sent all."""
        self._size = 0
        """Bytes of the last part."""
        self.scope = anyio.CancelScope()
        """The scope of the request: its handler ends when the client does not read (`hurry`, `end_if_stalled`)."""
        self._leaving = False
        """Whether the stream is to end once its client can resume it."""
        self._ended = False
        """Whether `end` has begun to complete the response."""
        self._begun = False
        """Whether the headers were sent."""
        self._begin: asyncio.Future[None] | None = None
        self.streaming = False
        """Whether the response has begun and is not complete."""

    async def __call__(self, message: Message) -> None:
        """Send a part of the response."""
        if self._ended:
            return
        starts = message["type"] == "http.response.start"
        self.streaming = starts or (self.streaming and message.get("more_body", False))
        self._sending_since = monotonic()
        await self._send(message)
        self._sending_since = None
        if starts:
            self._begun = True
            self._event_stream = _is_event_stream(message)
            self._resumable = self._resumable and self._event_stream
            _wake(self._begin)
        await self._sent(message.get("body", b""))

    async def write(self, body: bytes) -> None:
        """Send a piece of the body after the headers, unless the response has ended."""
        if not self._begun:
            self._begin = asyncio.get_running_loop().create_future()
            await self._begin
        if self.streaming and not self._ended:
            self._sending_since = monotonic()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._sending_since = None
            await self._sent(body)

    async def leave(self) -> None:
        """End the stream as soon as its client can resume it, which is after the first event id."""
        self._leaving = True
        await self._sent(b"")

    async def end(self) -> None:
        """Complete a response that has begun, after the farewell. Later parts are dropped."""
        if self.streaming:
            self._ended = True
            await self._send({"type": "http.response.body", "body": self._farewell(), "more_body": False})
            self.streaming = False

    def hurry(self) -> None:
        """End a stream that has no further events soon, even if its client does not read the pending ones."""
        if self._event_stream:
            self.scope.deadline = min(self.scope.deadline, anyio.current_time() + STREAM_END_SECONDS)

    def end_if_stalled(self, now: float) -> None:
        """End a stream whose client has not read for long, and can resume.

        Args:
            now: The time of the monotonic clock.
        """
        if self._sending_since is None or not (self._resumable and self._event_stream):
            return
        if now - self._sending_since > STALL_SECONDS + self._size / SLOWEST_READ:
            self.scope.cancel()

    async def _sent(self, body: bytes) -> None:
        """Look for an event id in what was sent, and end a stream that is to be left."""
        self._size = len(body)
        self._resumable = self._resumable or body.startswith(b"id: ") or b"\nid: " in body
        if self._leaving and self._resumable and not self._ended:
            await self.end()


class EventQueue:
    """The unsent events of one request: both ends of a stream, which replaces the SDK's.

    Args:
        idle: Awaited when the reader has received all events, before it waits for more.
        response: The response that sends the events.
    """

    __slots__ = ("_arrival", "_closed", "_events", "_idle", "_room", "response")

    def __init__(self, idle: Callable[[], Awaitable[None]], response: Response) -> None:
        self._idle = idle
        self.response = response
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
        """Add an event. While the queue has as many events as the SDK allows, wait for the client.

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
        """End the stream and drop the unsent events, which a client receives when it resumes."""
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
    """Sends the events of one request directly, without the SDK's sending task.

    Args:
        response: The response.
        stream: The SDK's stream. Closing it ends the response.
    """

    __slots__ = ("_failure", "_pieces", "_response", "_stream", "events")

    def __init__(self, response: Response, stream: MemoryObjectSendStream[Any]) -> None:
        self._response = response
        self._stream = stream
        self._pieces: list[bytes] = []
        self._failure: Exception | None = None
        self.events = EventQueue(self._flush, response)
        """The source of the events."""

    async def send(self, event: Any) -> None:
        """Add a rendered event or bytes, which are sent when no further events are pending."""
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
            # `raise_failure` reports the error; this is the only error of a writer that the SDK does not log.
            raise anyio.ClosedResourceError from error

    def raise_failure(self) -> None:
        """Raise the error of the server's `send`, so that it ends the response.

        The SDK only logs the errors of a writer.
        """
        if self._failure is not None:
            raise self._failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._flush()
        finally:
            self._stream.close()


class SSEBuffer:
    """The rendered events of a resumed stream. As an iterator for its response, it joins all pending events."""

    __slots__ = ("_arrival", "_closed", "_pieces", "_room", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._closed = False
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def send(self, event: Any) -> None:
        """Add a rendered event or bytes. While `BUFFER_BYTES` are pending, wait for the client."""
        while self._size >= BUFFER_BYTES:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)
        piece = ensure_bytes(event, ServerSentEvent.DEFAULT_SEPARATOR)
        self._pieces.append(piece)
        self._size += len(piece)
        _wake(self._arrival)

    def close(self) -> None:
        """End the stream after the pending events."""
        self._closed = True
        _wake(self._arrival)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._closed:
                raise StopAsyncIteration
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        piece = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        _wake(self._room)
        self._room = None
        return piece


def _is_event_stream(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
