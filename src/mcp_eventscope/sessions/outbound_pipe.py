"""An unbuffered stream between tasks, like anyio's, without a loop iteration per call."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import anyio
from mcp.server.streamable_http import StreamableHTTPServerTransport


class _Pipe:
    """Passes items from senders to one receiver, in order. Senders wait until their item was received."""

    __slots__ = ("read_closed", "receiver", "senders", "write_closed")

    def __init__(self) -> None:
        self.senders: deque[tuple[asyncio.Future[bool], Any]] = deque()
        """The waiting senders: a future of whether the item was received, and the item."""
        self.receiver: asyncio.Future[Any] | None = None
        self.read_closed = self.write_closed = False

    def end(self) -> None:
        """Release the waiting callers of both ends after one end was closed."""
        while self.senders:
            taken, _ = self.senders.popleft()
            if not taken.done():
                taken.set_result(False)
        if self.receiver is not None and not self.receiver.done():
            self.receiver.set_result(_NOTHING)


_NOTHING = object()


class _End(ABC):
    """One end of the stream."""

    __slots__ = ("_pipe",)

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    @abstractmethod
    def close(self) -> None:
        """Close this end."""

    async def aclose(self) -> None:
        """Close this end."""
        self.close()


class WriteEnd(_End):
    """The senders' end."""

    __slots__ = ()

    async def send(self, item: Any) -> None:
        """Send an item, and wait until it was received.

        Raises:
            ClosedResourceError: This end was closed.
            BrokenResourceError: The other end was closed.
        """
        pipe = self._pipe
        self._check()
        receiver = pipe.receiver
        if receiver is not None and not receiver.done():
            receiver.set_result(item)
            return
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = taken, item
        pipe.senders.append(entry)
        try:
            was_taken = await taken
        except asyncio.CancelledError:
            if entry in pipe.senders:
                pipe.senders.remove(entry)
            raise
        if not was_taken:
            self._check()

    def _check(self) -> None:
        if self._pipe.write_closed:
            raise anyio.ClosedResourceError
        if self._pipe.read_closed:
            raise anyio.BrokenResourceError

    def close(self) -> None:
        """Close the stream: the receiver gets `EndOfStream`."""
        self._pipe.write_closed = True
        self._pipe.end()


class ReadEnd(_End):
    """The receiver's end."""

    __slots__ = ()

    async def receive(self) -> Any:
        """Receive the next item.

        Raises:
            ClosedResourceError: This end was closed.
            EndOfStream: The other end was closed.
        """
        pipe = self._pipe
        self._check()
        while pipe.senders:
            taken, item = pipe.senders.popleft()
            if not taken.done():  # Else its sender was cancelled.
                taken.set_result(True)
                return item
        if pipe.write_closed:
            raise anyio.EndOfStream
        pipe.receiver = asyncio.get_running_loop().create_future()
        try:
            item = await pipe.receiver
        finally:
            pipe.receiver = None
        if item is _NOTHING:
            self._check()
            raise anyio.EndOfStream
        return item

    def _check(self) -> None:
        if self._pipe.read_closed:
            raise anyio.ClosedResourceError

    def close(self) -> None:
        """Close the stream: senders get `BrokenResourceError`."""
        self._pipe.read_closed = True
        self._pipe.end()


def outbound_pipe() -> tuple[WriteEnd, ReadEnd]:
    """Create a stream and return its two ends."""
    shared = _Pipe()
    return WriteEnd(shared), ReadEnd(shared)


def replace_outbound_streams(transport: StreamableHTTPServerTransport) -> None:
    """Replace the anyio streams of the server's messages, if the SDK allows it.

    Args:
        transport: A newly connected transport: no message was sent, and its router has not run.
    """
    writer: Any = transport._write_stream
    reader: Any = transport._write_stream_reader
    if hasattr(writer, "_inner") and hasattr(reader, "_inner"):
        writer._inner.close()
        reader._inner.close()
        writer._inner, reader._inner = outbound_pipe()
