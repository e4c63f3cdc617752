"""A TCP load balancer that can cut all connections to one worker."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_END_OF_BODY = b"\r\n0\r\n\r\n"
_TAIL = 64
"""Bytes kept between two reads, because a header may be split over them."""
_ACCEPT_TURNS = 5
"""Turns of the event loop within which it reports a connection that it has accepted, and closes it."""

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listener:
    """Accepts connections on a loopback port, and reports each one, also those accepted when it is closed.

    `asyncio.Server.close` fails for a connection that the event loop has accepted and not yet reported: the connection
    stays open, and nothing serves it.

    Args:
        accept: Called with each connection.
    """

    def __init__(self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> None:
        self._accept = accept
        self._socket: socket.socket | None = None

    async def listen(self, port: int = 0) -> int:
        """Accept connections until `close`.

        Args:
            port: The port; 0 chooses a free one.

        Returns:
            The port.
        """
        self._socket = socket.create_server((HOST, port))
        await asyncio.start_server(self._accept, sock=self._socket)
        chosen: int = self._socket.getsockname()[1]
        return chosen

    def close(self) -> None:
        """Refuse connections from now on. Those that were accepted are reported in the next turns of the event loop."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def drain(self) -> None:
        """Wait until all accepted connections are reported, and those are closed that `accept` closes."""
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)


class Switch:
    """Forwards each new connection to the next backend in turn, whatever the client.

    A backend that refuses, or that is cut off, is skipped. If none is left the connection is closed.

    Args:
        ports: The ports of the backends, on the loopback interface. Changes of the list apply to new connections.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = ports
        self.port = 0
        self._turn = 0
        self._cut: set[int] = set()
        self._links: set[_Link] = set()
        self._led_to: dict[Any, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://{HOST}:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on a free port until the block ends."""
        self._ended = False
        listener = Listener(self._accept)
        self.port = await listener.listen()
        try:
            yield
        finally:
            listener.close()
            self._ended = True
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await listener.drain()

    def reset_streams(self) -> None:
        """Reset every connection that carries an event stream; new ones go to any backend."""
        for link in [link for link in self._links if link.streaming]:
            link.reset()

    def sever(self, port: int) -> int:
        """Cut one backend off until `mend`: its connections are reset on both sides, and new ones go elsewhere.

        Args:
            port: The port of the backend. Its process keeps running.

        Returns:
            The number of connections that carried an event stream.
        """
        self._cut.add(port)
        links = [link for link in self._links if link.port == port]
        for link in links:
            link.reset()
        return sum(link.streaming for link in links)

    def mend(self) -> None:
        """Let new connections go to all backends again."""
        self._cut.clear()

    def led_to(self, client: Any) -> int | None:
        """The port of the backend behind a client's connection; None if there was none.

        Args:
            client: The client's address of the connection, which may have ended.
        """
        return self._led_to.get(client)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ended:  # The event loop accepted it before, and reports it after the end of the server.
            writer.close()
            return
        task = asyncio.create_task(self._serve((reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # Also if it is cancelled before it has begun.

    async def _serve(self, client: _Connection) -> None:
        found = await self._next_backend()
        if found is None:
            return
        port, backend = found
        self._led_to[client[1].get_extra_info("peername")] = port
        link = _Link(client, backend, port)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def _next_backend(self) -> tuple[int, _Connection] | None:
        for _ in range(len(self.ports)):
            port = self.ports[self._turn % len(self.ports)]
            self._turn += 1
            if port in self._cut:
                continue
            with contextlib.suppress(OSError):
                backend = await asyncio.open_connection(HOST, port)
                if port not in self._cut:
                    return port, backend
                backend[1].close()  # It was cut off meanwhile.
        return None


class _Link:
    """One client's connection and the connection to its backend."""

    def __init__(self, client: _Connection, backend: _Connection, port: int) -> None:
        self.port = port
        self.streaming = False
        self._client = client
        self._backend = backend
        self._tail = b""

    async def run(self) -> None:
        """Carry bytes in both directions until either side ends."""
        directions = {
            asyncio.create_task(self._carry(self._client[0], self._backend[1])),
            asyncio.create_task(self._carry(self._backend[0], self._client[1], answers=True)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            self._client[1].close()
            self._backend[1].close()

    def reset(self) -> None:
        """Reset both connections immediately; unsent bytes are lost."""
        for _, writer in (self._client, self._backend):
            with contextlib.suppress(OSError):  # It has just ended.
                # Lingering for zero seconds closes the connection with RST instead of FIN.
                lingering = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
            writer.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if answers:
                    self._watch(data)
                writer.write(data)
                await writer.drain()

    def _watch(self, data: bytes) -> None:
        """Detect the start and the end of an event stream's body."""
        seen = (self._tail + data).lower()
        began = seen.rfind(b"content-type: text/event-stream")
        if began >= 0:
            self.streaming = True
        if seen.find(_END_OF_BODY, max(began, 0)) >= 0:
            self.streaming = False
        self._tail = seen[-_TAIL:]
