"""A cheap client: a socket whose bytes are stamped as they arrive, and parsed afterwards."""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import HOST, BenchmarkError

VERSION = "2025-11-25"
_SESSION = re.compile(rb"(?im)^mcp-session-id: *(\S+)")
_ID = re.compile(rb"(?m)^id: (\S+)")
_PROGRESS = re.compile(rb'(?m)^id: (\d+)-[^.\s]+\.(?:(?!^id: )[\s\S])*?^data: .*"message":"(\d{16,})"')
_SECONDS = 30.0


@dataclass(frozen=True)
class Notification:
    """One progress notification with its times in nanoseconds: sent by the tool, accepted by the store, received."""

    sent: int
    accepted: int
    received: int


@dataclass(frozen=True)
class Event:
    """One event with data: its id, or "", and its arrival in nanoseconds."""

    id: str
    data: bytes
    received: int


class Stream(asyncio.Protocol):
    """One HTTP exchange on a connection of its own."""

    def __init__(self) -> None:
        self._arrived: list[tuple[int, bytes]] = []
        self._more = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the bytes and their arrival."""
        self._arrived.append((time.time_ns(), data))
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self.ended.set()
        self._more.set()

    def cut(self) -> None:
        """Close the connection immediately."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def text(self) -> bytes:
        """All bytes."""
        return b"".join(data for _, data in self._arrived)

    async def find(self, pattern: re.Pattern[bytes]) -> str:
        """The first group of the pattern, as soon as it has arrived.

        Raises:
            BenchmarkError: It does not arrive in time.
        """
        try:
            async with asyncio.timeout(_SECONDS):
                while not (match := pattern.search(self.text)):
                    if self.ended.is_set():
                        raise BenchmarkError(f"the server answered {self.text[:300]!r}")  # noqa: EM102, TRY003
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            msg = f"waited {_SECONDS:g} seconds for {pattern.pattern!r}, in vain; the server answered {self.text!r}"
            raise BenchmarkError(msg) from None
        return match[1].decode()

    def progress(self) -> list[Notification]:
        """The progress notifications."""
        received, before = [], b""
        done = 0
        for stamp, data in self._arrived:
            before += data
            found = list(_PROGRESS.finditer(before))
            received += [Notification(int(match[2]), int(match[1]) * 1000, stamp) for match in found[done:]]
            done = len(found)
        return received

    def events(self) -> list[Event]:
        """The events; of the HTTP exchange only their lines are parsed."""
        found: list[Event] = []
        rest, event_id = b"", ""
        for stamp, data in self._arrived:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"id: "):
                    event_id = line[4:].strip().decode()
                elif line.startswith(b"data: ") and (text := line[6:].strip()):
                    found.append(Event(event_id, text, stamp))
                    event_id = ""
        return found


@dataclass(frozen=True)
class Session:
    """One session of a client, which may use any worker."""

    session_id: str
    token: str = ""
    """The access token of its client; "": none."""

    @classmethod
    async def open(cls, port: int, token: str = "") -> "Session":
        """Open a session on a worker.

        Args:
            port: The port of the worker.
            token: The access token of the client; "": none.
        """
        params = {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": "benchmark", "version": "0"},
        }
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        stream = await _request(port, "POST", _authorization(token), message)
        session = cls(await stream.find(_SESSION), token)
        await stream.ended.wait()
        ready = await session.post(port, {"jsonrpc": "2.0", "method": "notifications/initialized"})
        await ready.ended.wait()
        return session

    async def call(self, port: int, request_id: int, tool: str, **arguments: object) -> Stream:
        """Call a tool."""
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": request_id}}
        return await self.post(port, {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params})

    async def cut_call(self, port: int, request_id: int, tool: str, **arguments: object) -> str:
        """Call a tool and cut the stream at its first event, whose id is returned."""
        stream = await self.call(port, request_id, tool, **arguments)
        cursor = await stream.find(_ID)
        stream.cut()
        return cursor

    async def post(self, port: int, message: dict[str, Any]) -> Stream:
        """Send a message."""
        return await _request(port, "POST", self.headers, message)

    async def get(self, port: int, cursor: str | None = None) -> Stream:
        """Open a GET stream; with a cursor it resumes. Returns when the server has begun to answer."""
        stream = await _request(port, "GET", self.headers | ({} if cursor is None else {"last-event-id": cursor}))
        await stream.find(re.compile(rb"^HTTP/1.1 200[^\r]*\r\n[\s\S]*?(\r\n\r\n)"))
        return stream

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each of its requests."""
        return {"mcp-session-id": self.session_id, "mcp-protocol-version": VERSION, **_authorization(self.token)}


def _authorization(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def encode_request(port: int, method: str, headers: dict[str, str], message: dict[str, Any] | None = None) -> bytes:
    """Encode a request, whose connection ends with the response.

    Args:
        port: The port of the server.
        method: The HTTP method.
        headers: Further headers.
        message: The body; None: it is empty.
    """
    body = b"" if message is None else json.dumps(message).encode()
    fields = {
        "host": f"{HOST}:{port}",
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **headers,
    }
    head = f"{method} /mcp HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    return head.encode("latin-1") + body


async def _request(port: int, method: str, headers: dict[str, str], message: dict[str, Any] | None = None) -> Stream:
    transport, stream = await asyncio.get_running_loop().create_connection(Stream, HOST, port)
    transport.write(encode_request(port, method, headers, message))
    return stream
