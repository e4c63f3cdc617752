"""A plain HTTP client of MCP that can cut, resume, and send invalid requests."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2

from support.waiting import CEILING

LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
"""uvicorn closes a connection that was idle for 5 s: a request on it at that moment would get no response."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""`verify=` of every client: servers of tests speak HTTP, and certificates take 40 ms of CPU time to load."""
VERSION = "2025-11-25"
"""The last protocol revision in which streams can be resumed."""

JSON = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One server-sent event: its id, or "" when it had none, and its data as text."""

    id: str
    data: str
    retry: int | None = None
    """Milliseconds after which the server wants the client to reconnect."""

    @property
    def message(self) -> JSON:
        """The data as JSON."""
        message: JSON = json.loads(self.data)
        return message


@dataclass
class HTTPClient:
    """One session of one client."""

    http: httpx2.AsyncClient
    url: str
    session: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    async def initialize(self, name: str = "raw") -> None:
        """Open the session, as a client of this name."""
        assert await self.open(name) == 200
        await self.notify("notifications/initialized")

    async def open(self, name: str = "raw") -> int:
        """Send `initialize`; returns the status."""
        params = {
            "protocolVersion": VERSION,
            "capabilities": {"elicitation": {}},
            "clientInfo": {"name": name, "version": "0"},
        }
        async with self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}) as response:
            if response.status_code == 200:
                self.session = response.headers["mcp-session-id"]
                async for event in events(response):
                    if event.data:
                        break
            return response.status_code

    async def notify(self, method: str) -> None:
        """Send a notification."""
        async with self._served({"jsonrpc": "2.0", "method": method}) as response:
            assert response.status_code == 202, await response.aread()

    @asynccontextmanager
    async def call(self, request_id: int | str, tool: str, **arguments: object) -> AsyncIterator[httpx2.Response]:
        """Call a tool, with its progress reported; leaving the block cuts the stream."""
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": request_id}}
        request = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
        async with self._served(request) as response:
            assert response.status_code == 200, await response.aread()
            yield response

    @asynccontextmanager
    async def _served(self, message: JSON) -> AsyncIterator[httpx2.Response]:
        """Send one message, and repeat it while the server requests that: Redis may be slow."""
        until = anyio.current_time() + CEILING
        while True:
            async with self.post(message) as response:
                if "retry-after" not in response.headers or anyio.current_time() > until:
                    yield response
                    return
            await anyio.sleep(0.1)

    @asynccontextmanager
    async def post(self, message: JSON) -> AsyncIterator[httpx2.Response]:
        """Send one message; leaving the block cuts the connection."""
        async with self.http.stream("POST", self.url, json=message, headers=self.request_headers()) as response:
            yield response

    @asynccontextmanager
    async def get(self, last_event_id: str | bytes | None = None) -> AsyncIterator[httpx2.Response]:
        """Open a GET stream: a resume, when an event is named."""
        headers: dict[str, str | bytes] = dict(self.request_headers())
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        async with self.http.stream("GET", self.url, headers=_as_bytes(headers)) as response:
            yield response

    async def resume(self, last_event_id: str | bytes) -> list[Event]:
        """Resume, and read until the server ends the stream."""
        async with self.get(last_event_id) as response:
            assert response.status_code == 200, await response.aread()
            return [event async for event in events(response)]

    async def delete(self) -> int:
        """End the session; returns the status."""
        return (await self.http.delete(self.url, headers=self.request_headers())).status_code

    def request_headers(self) -> dict[str, str]:
        """The headers of each request of the session."""
        headers = {
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": VERSION,
            **self.headers,
        }
        return headers | ({"mcp-session-id": self.session} if self.session else {})


Connect = Callable[..., HTTPClient]
"""Makes a client of the server at a base URL, with further headers: the fixture `connect`."""


async def events(response: httpx2.Response, *, repeated: bool = False) -> AsyncIterator[Event]:
    """The server-sent events of a response, comments left out.

    Args:
        response: The response.
        repeated: Whether the priming event is wanted that a resumed stream begins with: the client's cursor, repeated.
    """
    cursor = response.request.headers.get("last-event-id", "")
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line:
            repeats = not fields.get("data") and bool(cursor) and fields.get("id") == cursor
            if "data" in fields and (repeated or not repeats):
                retry = fields.get("retry", "")
                yield Event(fields.get("id", ""), fields["data"], int(retry) if retry.isdigit() else None)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


def _as_bytes(headers: Mapping[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
        for name, value in headers.items()
    ]
