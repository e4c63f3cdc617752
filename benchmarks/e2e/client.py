"""A cheap client of revision 2025-11-25: prepared bytes on a connection that is kept alive."""

import asyncio
import itertools
import json
import re
import time
from dataclasses import dataclass

from benchmarks.processes import HOST, BenchmarkError
from benchmarks.wire import VERSION

_SESSION = re.compile(rb"(?im)^mcp-session-id: *(\S+)")
_EVENT_ID = re.compile(rb"(?m)^id: *(\S+)\r?$")
_MESSAGE = b'"jsonrpc"'
_PROGRESS = b'"notifications/progress"'
_END = b"\r\n0\r\n\r\n"
"""How a chunked body ends."""
_PATIENCE = 60.0
request_ids = itertools.count(1)
"""Never used twice: the SDK's example store keeps the streams of all sessions together, by request id."""


@dataclass(frozen=True)
class Called:
    """One call: when its response was complete, on the clock of `time.perf_counter`, and how many messages preceded."""

    began: float
    answered: float
    messages: int

    @property
    def milliseconds(self) -> float:
        """From the beginning to the response."""
        return (self.answered - self.began) * 1e3


class _Connection(asyncio.Protocol):
    """A connection that carries one request at a time. Bytes are stamped as they arrive and read afterwards."""

    def __init__(self) -> None:
        self._arrived: list[tuple[float, bytes]] = []
        self._complete: asyncio.Future[None] | None = None
        self._tail = b""
        self._transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived.append((time.perf_counter(), data))
        self._tail = (self._tail + data)[-len(_END) :]
        complete = self._tail == _END or (len(self._arrived) == 1 and data.startswith(b"HTTP/1.1 202"))
        if complete and self._complete is not None and not self._complete.done():
            self._complete.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._complete is not None and not self._complete.done():
            self._complete.set_exception(BenchmarkError(f"the server closed the connection: {self.text[:300]!r}"))

    @property
    def text(self) -> bytes:
        return b"".join(data for _, data in self._arrived)

    async def exchange(self, request: bytes) -> list[tuple[float, bytes]]:
        """Send a request; return the answer's pieces and when each arrived."""
        self._arrived, self._tail = [], b""
        self._complete = asyncio.get_running_loop().create_future()
        if self._transport is None or self.closed:
            msg = "the server closed the connection between two requests"
            raise BenchmarkError(msg)
        self._transport.write(request)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._complete
        except TimeoutError:
            msg = f"no complete answer in {_PATIENCE:g} seconds: {self.text[-300:]!r}"
            raise BenchmarkError(msg) from None
        return self._arrived

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """One session; each call takes an idle connection, or opens one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []
        self._head = (
            f"POST /mcp HTTP/1.1\r\nhost: {HOST}:{port}\r\naccept: application/json, text/event-stream\r\n"
            "content-type: application/json\r\n"
        )

    @classmethod
    async def open(cls, port: int) -> "Client":
        """Open a session."""
        client = cls(port)
        params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "0"}}
        pieces = await client._post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        text = b"".join(data for _, data in pieces)
        if not (match := _SESSION.search(text)):
            msg = f"the server opened no session: {text[:300]!r}"
            raise BenchmarkError(msg)
        client._head += f"mcp-session-id: {match[1].decode()}\r\nmcp-protocol-version: {VERSION}\r\n"
        await client._post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return client

    async def call(self, times: int, began: float | None = None) -> Called:
        """Call the tool that reports progress so many times.

        Args:
            times: How many messages precede the response.
            began: When the call was due, on the clock of `time.perf_counter`; None: now.
        """
        began = time.perf_counter() if began is None else began
        number, pieces = await self._call(times)
        text = b"".join(data for _, data in pieces)
        messages, place = text.count(_PROGRESS), text.rfind(b'"id":%d,"result"' % number)
        if messages != times or place < 0 or b'"isError":true' in text:
            msg = f"a call was answered with {messages} of {times} messages: {text[-300:]!r}"
            raise BenchmarkError(msg)
        # The piece that completes the event of the response, which is the last event.
        end = text.index(b"\n", place)
        arrived = itertools.accumulate(len(data) for _, data in pieces)
        answered = next(stamp for (stamp, _), size in zip(pieces, arrived, strict=True) if size > end)
        return Called(began, answered, messages)

    async def cursor_of_call(self, times: int) -> bytes:
        """Make such a call. Return the id of its first event, after which there are `times` more and the response."""
        _, pieces = await self._call(times)
        text = b"".join(data for _, data in pieces)
        if not (match := _EVENT_ID.search(text)):
            msg = f"no event of a call has an id: {text[:300]!r}"
            raise BenchmarkError(msg)
        return match[1]

    async def resume(self, cursor: bytes, events: int) -> float:
        """Resume a stream on a connection of its own.

        Args:
            cursor: The id of the last event that the client has.
            events: How many the client has missed. Some contestants never end the stream after the last one.

        Returns:
            Milliseconds from the request until the last event has arrived.
        """
        reader, writer = await asyncio.open_connection(HOST, self._port, limit=1 << 20)
        try:
            request = self._head.encode("latin-1").replace(b"POST", b"GET", 1) + b"last-event-id: %b\r\n\r\n" % cursor
            began = time.perf_counter()
            writer.write(request)
            text, received = b"", 0
            async with asyncio.timeout(_PATIENCE):
                while received < events:
                    data = await reader.read(1 << 20)
                    if not data:
                        msg = f"a resume was answered with {received} of {events} events"
                        raise BenchmarkError(msg)
                    text = text[-len(_MESSAGE) + 1 :] + data
                    received += text.count(_MESSAGE)
            return (time.perf_counter() - began) * 1e3
        finally:
            writer.close()

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _call(self, times: int) -> tuple[int, list[tuple[float, bytes]]]:
        number = next(request_ids)
        params = {"name": "count", "arguments": {"times": times}, "_meta": {"progressToken": number}}
        return number, await self._post({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})

    async def _post(self, message: dict[str, object]) -> list[tuple[float, bytes]]:
        body = json.dumps(message).encode()
        connection = self._idle.pop() if self._idle else await self._connected()
        pieces = await connection.exchange(f"{self._head}content-length: {len(body)}\r\n\r\n".encode("latin-1") + body)
        self._idle.append(connection)
        return pieces

    async def _connected(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, HOST, self._port)
        return connection


async def open_clients(port: int, count: int) -> list[Client]:
    """Open so many sessions, one after the other."""
    return [await Client.open(port) for _ in range(count)]
