"""The connections of one session of the SDK's client: balanced over the workers, cut as scheduled, and recorded."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from soak.client import FINAL, UNANSWERED, describe
from soak.history import INITIALIZE, LIST, PUBLISH, SDK, STANDALONE, Kind, Operation, Outcome, What
from soak.network import Surroundings
from soak.schedule import ClientPlan, LinkPlan
from support.http_client import JSON, Event

_BAD_GATEWAY = 502
_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_NOTES = {"notifications/initialized": "initialized", "notifications/cancelled": "cancelled"}


@dataclass
class WireStream:
    """A stream, as it was seen on its connections."""

    name: str
    request: JSON | None
    connection: int = -1
    cursor: str = ""
    events: int = 0
    """Events on the last connection."""
    waiting: bool = False
    """Whether a request for a connection waits for its answer."""
    open: bool = False
    opened_at: float = 0.0
    closed_at: float = 0.0
    began: bool = False
    outcome: Outcome | None = None
    """How it ended on the wire."""
    where: dict[str, Any] = field(default_factory=dict)

    def given_up(self, seconds: float) -> bool:
        """Whether the client has neither had nor requested a connection for so many seconds."""
        closed_for = asyncio.get_running_loop().time() - self.closed_at
        return not (self.open or self.waiting) and closed_for > seconds


class Wire(httpx2.AsyncBaseTransport):
    """The transport of an HTTP client that serves one session: the SDK above it and the sockets below are real.

    It stands for a load balancer without stickiness: a worker that refuses the connection is skipped, and a request
    whose connection breaks before the response gets 502.

    Args:
        client: The number of the client.
        session: The client's name for the session.
        around: The workers, and the history.
        plan: The schedule of the client.
    """

    def __init__(self, client: int, session: str, around: Surroundings, plan: ClientPlan) -> None:
        self.session = ""
        """The id that the server gave it."""
        self.lost = False
        """Whether a worker does not know the session."""
        self.initialized = False
        """Whether the notification after the handshake was accepted."""
        self.notified = asyncio.Event()
        """Set when it was sent."""
        self.uncut = False
        """Whether the client is about to leave, and no connection is cut any more."""
        self.target: int | None = None
        """The worker for POSTs, instead of the one in the schedule."""
        self._client = client
        self._name = session
        self._inner = around.connections
        self._urls = around.urls
        self._plan = plan
        self._network = around.network
        self._recorder = around.recorder
        self._streams: dict[str, WireStream] = {}
        self._owners: dict[str, str] = {}
        """The stream of each event id."""
        self._left = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request of the SDK's client."""
        body = await request.aread()
        if request.method == "DELETE":
            return await self._end(request)
        if self._left:
            return _failed(request)
        if request.method == "GET":
            cursor = request.headers.get("last-event-id", "")
            stream = self.stream(self._owners[cursor] if cursor else STANDALONE)
            stream.cursor = cursor
            return await self._open(request, b"", stream)
        message = json.loads(body)
        if "id" in message and "method" in message:
            return await self._open(request, body, self._begin(message))
        return await self._notify(request, body, _NOTES.get(message.get("method", ""), "response"))

    def stream(self, name: str) -> WireStream:
        """A stream by its name."""
        return self._streams.setdefault(name, WireStream(name, None))

    def note(self, what: What, stream: WireStream, **values: Any) -> None:
        """Record something that concerns a stream, unless the client has left the session."""
        if self._left and stream.name != "delete":
            return
        self._recorder.note(what, client=self._client, session=self._name, stream=stream.name, **values)

    def leave(self) -> None:
        """Send nothing more, except the end of the session."""
        self._left = True

    def _begin(self, message: JSON) -> WireStream:
        """Record that the client makes a call."""
        arguments: JSON = {}
        kind = {"initialize": INITIALIZE, "tools/list": LIST}.get(message["method"], "count")
        name = kind
        if message["method"] == "tools/call":
            arguments = message["params"]["arguments"]
            name = f"call-{arguments['name'].partition('-')[2]}"
            kind = PUBLISH if message["params"]["name"] == "publish" else kind
        stream = self._streams[name] = WireStream(name, message)
        values = {"number": arguments.get("times", 0), "published": arguments.get("number", 0)}
        self.note(What.CALL, stream, kind=kind, request=json.dumps(message["id"]), note=SDK, **values)
        return stream

    async def _open(self, request: httpx2.Request, body: bytes, stream: WireStream) -> httpx2.Response:
        """Open a connection of a stream."""
        standalone, resumes = stream.request is None, request.method == "GET"
        stream.connection += 1
        link = self._plan.link(self._name, stream.name, stream.connection, standalone=standalone)
        if self.target is not None and not resumes:
            link = LinkPlan(self.target)
        operation = Operation.LISTEN if standalone else Operation.RESUME if resumes else Operation.POST
        stream.where = {"operation": operation, "connection": stream.connection, "worker": link.worker}
        stream.waiting = True
        try:
            response = await self._send(request, body, stream, stream.where)
        finally:
            stream.waiting, stream.closed_at = False, asyncio.get_running_loop().time()
        if response.status_code != httpx2.codes.OK:
            return response
        stream.began, stream.events = True, 0
        stream.open, stream.opened_at = True, asyncio.get_running_loop().time()
        self.note(What.BEGAN, stream, id=stream.cursor if resumes else "", **stream.where)
        if session := response.headers.get("mcp-session-id"):
            self._opened(session, stream)
        read = self._read(stream, dict(stream.where), response, link)
        return httpx2.Response(200, headers=response.headers, stream=_Body(response, read), request=request)

    def _opened(self, session: str, stream: WireStream) -> None:
        if self.session or stream.request is None or stream.request["method"] != "initialize":
            return
        self.session = session
        self._recorder.note(
            What.OPENED, client=self._client, session=self._name, worker=stream.where["worker"], id=session
        )

    async def _send(
        self, request: httpx2.Request, body: bytes, stream: WireStream, where: dict[str, Any]
    ) -> httpx2.Response:
        """Send a request to the first worker that accepts the connection; `where` names it afterwards."""
        first = where["worker"]
        for attempt in range(len(self._urls)):
            where["worker"] = (first + attempt) % len(self._urls)
            headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
            sent = httpx2.Request(
                request.method, f"{self._urls[where['worker']]}/mcp", headers=headers, content=body or None,
                extensions=request.extensions,
            )  # fmt: skip
            try:
                response = await self._inner.handle_async_request(sent)
            except httpx2.ConnectError as error:
                self.note(What.REFUSED, stream, kind="connection", note=_text(error), **where)
                continue
            except httpx2.TransportError as error:
                self.note(What.REFUSED, stream, kind=UNANSWERED, note=_text(error), **where)
                if where["operation"] == Operation.POST:
                    stream.outcome = Outcome.UNANSWERED
                return _failed(request)
            if response.status_code < httpx2.codes.BAD_REQUEST:
                return response
            content = await response.aread()
            note = content[:200].decode(errors="replace")
            self.note(What.REFUSED, stream, kind="status", code=response.status_code, note=note, **where)
            if response.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
                stream.outcome = Outcome.REFUSED
            self.lost |= response.status_code == httpx2.codes.NOT_FOUND
            return httpx2.Response(response.status_code, headers=response.headers, content=content, request=request)
        return _failed(request)

    async def _notify(self, request: httpx2.Request, body: bytes, name: str) -> httpx2.Response:
        stream = WireStream(name, None)
        worker = self._plan.link(self._name, name, 0).worker
        response = await self._send(request, body, stream, {"operation": Operation.NOTIFY, "worker": worker})
        if name == "initialized":
            self.initialized = response.is_success
            self.notified.set()
        return response

    async def _end(self, request: httpx2.Request) -> httpx2.Response:
        self._left = True
        stream = WireStream("delete", None)
        where = {"operation": Operation.DELETE, "worker": self._plan.link(self._name, "delete", 0).worker}
        self.note(What.ENDED, stream, **where)
        return await self._send(request, b"", stream, where)

    async def _read(
        self, stream: WireStream, where: dict[str, Any], response: httpx2.Response, link: LinkPlan
    ) -> AsyncGenerator[bytes]:
        """The events of a connection, until its end or the cut.

        A resumed connection and a standalone one are cut in good order, as proxies do: after a broken one the SDK's
        client asks for the events since an older cursor, and listens at most once more.
        """
        loop = asyncio.get_running_loop()
        source = aiter(response.stream)  # type: ignore[arg-type]
        pending, until = b"", None
        try:
            while True:
                try:
                    cuttable = stream.events > 0 and stream.outcome is None and not self.uncut
                    async with self._network.reading(None if self.uncut else until, cuttable=cuttable):
                        chunk = await anext(source, None)
                except TimeoutError:
                    self._cut(stream, where)
                    return
                except httpx2.TransportError as error:
                    self.note(What.BROKEN, stream, note=_text(error), **where)
                    raise
                if chunk is None:
                    self.note(What.CLOSED, stream, **where)
                    return
                pending += chunk
                while found := _END_OF_EVENT.search(pending):
                    part, pending = pending[: found.end()], pending[found.end() :]
                    self._received(part, stream, where)
                    yield part
                    due = link.after_events is not None and stream.events >= link.after_events
                    if due and stream.outcome is None and not self.uncut:
                        self._cut(stream, where)
                        return
                    if until is None and link.after_seconds is not None and stream.events:
                        until = loop.time() + link.after_seconds
        finally:
            if stream.where == where:
                stream.open, stream.closed_at = False, loop.time()

    def _cut(self, stream: WireStream, where: dict[str, Any]) -> None:
        """Record the cut of a connection.

        Raises:
            ReadError: It is that of a POST, which breaks.
        """
        self.note(What.CUT, stream, kind="closed", **where)
        if where["operation"] == Operation.POST:
            msg = "cut"
            raise httpx2.ReadError(msg)

    def _received(self, part: bytes, stream: WireStream, where: dict[str, Any]) -> None:
        event = _event(part)
        if event is None or self._left:
            return
        stream.events += 1
        if event.id:
            stream.cursor = event.id
            self._owners[event.id] = stream.name
        described = describe(event, f"{self._client}-{stream.name.removeprefix('call-')}", stream.request)
        self.note(What.EVENT, stream, id=event.id, **described, **where)
        if described["kind"] in FINAL and stream.outcome is None:
            stream.outcome = Outcome.RESULT if described["kind"] == Kind.RESULT else Outcome.ERROR


class _Body(httpx2.AsyncByteStream):
    """The body of a response that the wire reads."""

    def __init__(self, response: httpx2.Response, read: AsyncGenerator[bytes]) -> None:
        self._response = response
        self._read = read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._read:
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()
        await self._read.aclose()


def _event(part: bytes) -> Event | None:
    """The event in the bytes of one; None for a comment."""
    fields: dict[str, str] = {}
    for line in part.decode().splitlines():
        if line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
    return Event(fields.get("id", ""), fields["data"]) if "data" in fields else None


def _failed(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(_BAD_GATEWAY, request=request)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
