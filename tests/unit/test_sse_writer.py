"""The SSE writer sends a request's events in order, bounded and in batches."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from fakeredis import FakeAsyncRedis
from mcp.server.streamable_http import REQUEST_STREAM_BUFFER_SIZE
from mcp.types import JSONRPCNotification
from sse_starlette.event import ensure_bytes
from starlette.types import Message

from mcp_eventscope import RedisEventStore
from mcp_eventscope.sessions.sse_writer import BUFFER_BYTES, Response, SSEBuffer, SSEWriter
from mcp_eventscope.sessions.transport import ResumableTransport, _Admission, _admitting
from mcp_eventscope.sessions.view import SessionView, WireId
from mcp_eventscope.store.messages import EventMessage

pytestmark = pytest.mark.anyio

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


def event(number: int) -> EventMessage:
    """An event."""
    return EventMessage(JSONRPCNotification(jsonrpc="2.0", method=str(number)))


class Server:
    """An ASGI server's `send`, which can block or fail."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.failure: Exception | None = None

    async def __call__(self, message: Message) -> None:
        """Send."""
        await self.ready.wait()
        if self.failure is not None:
            raise self.failure
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])


class Writing:
    """A writer at work, as the SDK runs it."""

    def __init__(self) -> None:
        self.server = Server()
        self.response = Response(self.server)
        stream, self.rest = anyio.create_memory_object_stream[object](0)
        self.writer = SSEWriter(self.response, stream)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.writer as writer, writer.events as events:
            async for each in events:
                assert isinstance(each.message, JSONRPCNotification)
                await writer.send(b"%b;" % each.message.method.encode())

    async def fill(self) -> None:
        """Block the server, and fill the buffer of pending events."""
        self.server.ready.clear()
        await self.writer.events.send(event(0))
        await self.turns()
        for number in range(1, REQUEST_STREAM_BUFFER_SIZE + 1):
            await self.writer.events.send(event(number))

    async def turns(self) -> None:
        """Let the writer run."""
        for _ in range(5):
            await asyncio.sleep(0)


def session_transport() -> ResumableTransport:
    """The transport of a session that is not connected."""
    view = SessionView(RedisEventStore(FakeAsyncRedis(), ttl=60).for_session("s"), follow_timeout=1)
    return ResumableTransport(
        view,
        stopped=lambda _: None,
        forward=lambda _: None,
        admit_resume=lambda: None,
        reconnection_delay=lambda: 0,
        rested=lambda: None,
        mcp_session_id="s",
    )


@pytest.fixture
async def writing() -> AsyncIterator[Writing]:
    """A writer whose response has begun."""
    begun = Writing()
    await begun.response(START)
    yield begun
    begun.writer.events.close()
    await asyncio.wait({begun.task})
    begun.rest.close()


async def test_sse_writer_sends_pending_events_together(writing: Writing) -> None:
    """Pending events are sent in one piece, in order; a single one is not delayed."""
    for number in range(3):
        await writing.writer.events.send(event(number))
    await writing.turns()
    await writing.writer.events.send(event(3))
    await writing.turns()
    assert writing.server.bodies == [b"0;1;2;", b"3;"]


async def test_sse_writer_before_the_response_head_sends_nothing() -> None:
    """An early event waits for the head of the response."""
    early = Writing()
    await early.writer.events.send(event(0))
    await early.turns()
    assert not early.server.bodies
    await early.response(START)
    await early.turns()
    assert early.server.bodies == [b"0;"]
    early.writer.events.close()
    await early.task
    early.rest.close()


async def test_sse_writer_with_a_slow_client_blocks_the_sender(writing: Writing) -> None:
    """As many events may be pending as in the SDK; then the sender waits."""
    await writing.fill()
    blocked = asyncio.create_task(writing.writer.events.send(event(99)))
    await writing.turns()
    assert not blocked.done()
    writing.server.ready.set()
    await blocked
    await writing.turns()
    assert b"".join(writing.server.bodies).count(b";") == REQUEST_STREAM_BUFFER_SIZE + 2
    assert writing.server.bodies[-1].endswith(b"99;")


async def test_sse_writer_with_a_cancelled_sender_serves_the_others(writing: Writing) -> None:
    """A cancelled sender that waits for room leaves the others alone."""
    await writing.fill()
    first, second = (asyncio.create_task(writing.writer.events.send(event(number))) for number in (98, 99))
    await writing.turns()
    first.cancel()
    writing.server.ready.set()
    await second
    await writing.turns()
    assert b"98;" not in b"".join(writing.server.bodies)
    assert writing.server.bodies[-1].endswith(b"99;")


async def test_sse_writer_that_is_closed_drops_pending_events(writing: Writing) -> None:
    """It refuses further events, and ends the response."""
    writing.server.ready.clear()
    await writing.writer.events.send(event(0))
    await writing.turns()
    await writing.writer.events.send(event(1))
    writing.writer.events.close()
    with pytest.raises(anyio.ClosedResourceError):
        await writing.writer.events.send(event(2))
    writing.server.ready.set()
    await writing.task
    assert writing.server.bodies == [b"0;"]
    with pytest.raises(anyio.EndOfStream):
        await writing.rest.receive()


async def test_sse_writer_closed_while_a_sender_waits_refuses_it(writing: Writing) -> None:
    """A sender that waits for room is refused when the stream is closed."""
    await writing.fill()
    blocked = asyncio.create_task(writing.writer.events.send(event(99)))
    await writing.turns()
    writing.writer.events.close()
    with pytest.raises(anyio.ClosedResourceError):
        await blocked
    writing.server.ready.set()


async def test_sse_writer_after_the_end_sends_nothing(writing: Writing) -> None:
    """The server would refuse anything after the end of the response."""
    await writing.response(END)
    await writing.writer.events.send(event(0))
    await writing.turns()
    assert writing.server.bodies == [b""]


async def test_sse_writer_when_the_server_fails_raises_its_error(writing: Writing) -> None:
    """The response gets the error of the server's `send`; the SDK does not log it as the writer's."""
    writing.server.failure = OSError("closed")
    await writing.writer.events.send(event(0))
    with pytest.raises(anyio.ClosedResourceError):
        await writing.task
    with pytest.raises(OSError, match="closed"):
        writing.writer.raise_failure()


async def test_sse_writer_take_over_sends_earlier_events_first() -> None:
    """Events in the SDK's stream are sent first, and its sender is refused from then on."""
    send, receive = anyio.create_memory_object_stream[EventMessage](2)
    await send.send(event(0))
    await send.send(event(1))
    begun = Writing()
    begun.writer.events.take_over(receive)
    await begun.writer.events.send(event(2))
    await begun.response(START)
    await begun.turns()
    assert begun.server.bodies == [b"0;1;2;"]
    with pytest.raises(anyio.BrokenResourceError):
        await send.send(event(3))
    begun.writer.events.close()
    await begun.task
    send.close()
    begun.rest.close()


async def test_sse_writer_take_over_of_a_closed_stream_is_refused() -> None:
    """A closed stream is not taken over."""
    send, receive = anyio.create_memory_object_stream[EventMessage](2)
    send.close()
    receive.close()
    stream, rest = anyio.create_memory_object_stream[object](0)
    with pytest.raises(anyio.ClosedResourceError):
        SSEWriter(Response(Server()), stream).events.take_over(receive)
    stream.close()
    rest.close()


async def test_sse_writer_of_an_ended_session_ends_the_response() -> None:
    """A writer whose stream a `DELETE` has closed ends the response without an error."""
    transport = session_transport()
    transport._request_streams["1"] = anyio.create_memory_object_stream[EventMessage](2)
    reader = transport._request_streams["1"][1]
    for end in transport._request_streams["1"]:
        end.close()
    stream, rest = anyio.create_memory_object_stream[object](0)
    token = _admitting.set(_Admission(b"", Response(Server())))
    try:
        await transport._run_sse_writer("1", stream, reader, None)
    finally:
        _admitting.reset(token)
    with pytest.raises(anyio.EndOfStream):
        await rest.receive()
    rest.close()
    assert not transport._request_streams


SSE_START: Message = {**START, "headers": [(b"content-type", b"text/event-stream")]}
PING: Message = {"type": "http.response.body", "body": b": ping\r\n\r\n", "more_body": True}
PRIMING: Message = {"type": "http.response.body", "body": b"id: 1\r\ndata: \r\n\r\n", "more_body": True}
RETRY = b"retry: 5\r\n\r\n"


def leaving(*, resumable: bool) -> tuple[Response, Server]:
    """A response of a server that stops, and the server."""
    server = Server()
    return Response(server, resumable=resumable, farewell=lambda: RETRY), server


async def test_sse_buffer_joins_pending_events_and_ends_after_them() -> None:
    """Events sent before the response continues are one piece; an event that arrives later is not delayed."""
    buffer = SSEBuffer()
    for text in (b"0;", b"1;"):
        await buffer.send(text)
    assert await anext(buffer) == b"0;1;"
    arriving = asyncio.create_task(anext(buffer))
    await asyncio.sleep(0)
    await buffer.send({"id": "2", "data": ""})
    buffer.close()
    assert await arriving == b"id: 2\r\ndata: \r\n\r\n"
    with pytest.raises(StopAsyncIteration):
        await anext(buffer)


async def test_sse_buffer_closed_while_the_response_waits_ends_it() -> None:
    """The stream of a request ends with its response."""
    buffer = SSEBuffer()
    waiting = asyncio.create_task(anext(buffer, None))
    await asyncio.sleep(0)
    buffer.close()
    assert await waiting is None


async def test_sse_buffer_with_a_slow_client_blocks_all_senders() -> None:
    """A cancelled sender leaves the others alone."""
    buffer = SSEBuffer()
    await buffer.send(b"x" * BUFFER_BYTES)
    senders = [asyncio.create_task(buffer.send(text)) for text in (b"0;", b"1;", b"2;")]
    await asyncio.sleep(0)
    senders[0].cancel()
    await asyncio.sleep(0)
    assert [each.done() for each in senders] == [True, False, False]
    assert len(await anext(buffer)) == BUFFER_BYTES
    await asyncio.gather(*senders[1:])
    assert await anext(buffer) == b"1;2;"


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b'{"jsonrpc":"2.0", "method":"0"}', b'data: {"jsonrpc":"2.0", "method":"0"}\r\n\r\n'),
        (b'{"jsonrpc":"2.0",\r"method":"0"}', b'data: {"jsonrpc":"2.0","method":"0"}\r\n\r\n'),
        (b'{"jsonrpc":"2.0",\n"method":"0"}', b'data: {"jsonrpc":"2.0","method":"0"}\r\n\r\n'),
        (b"", b'data: {"jsonrpc":"2.0","method":"0"}\r\n\r\n'),
    ],
    ids=["one line", "carriage return", "newline", "not known"],
)
async def test_transport_sends_stored_json_unless_it_would_end_a_line(payload: bytes, data: bytes) -> None:
    """A line of the stream after the data would be another field, such as a forged id."""
    rendered = session_transport()._create_event_data(EventMessage(event(0).message, WireId.of("1-1-a", "1", payload)))
    assert ensure_bytes(rendered, "\r\n") == b"id: 1-1-a.1\r\nevent: message\r\n" + data


async def test_response_with_an_event_id_leaves_immediately() -> None:
    """The stream ends with the farewell, and later parts are dropped."""
    response, server = leaving(resumable=False)
    await response(SSE_START)
    await response(PRIMING)
    await response.leave()
    assert server.bodies == [PRIMING["body"], RETRY]
    await response(PING)
    await response.write(b"late")
    await response(END)
    await response.end()
    assert server.bodies == [PRIMING["body"], RETRY]


async def test_response_without_an_event_id_leaves_after_the_first() -> None:
    """A client without an event id could not resume, and its call would be lost."""
    response, server = leaving(resumable=False)
    await response(SSE_START)
    await response.leave()
    await response(PING)
    assert response.streaming
    await response.write(PRIMING["body"])
    assert server.bodies == [PING["body"], PRIMING["body"], RETRY]


async def test_resume_that_arrives_late_leaves_after_its_headers() -> None:
    """A client that resumes has an event id already."""
    response, server = leaving(resumable=True)
    await response.leave()
    assert server.bodies == []
    await response(SSE_START)
    assert server.bodies == [RETRY]


async def test_response_in_json_does_not_leave() -> None:
    """A refusal of a GET is complete in itself."""
    response, server = leaving(resumable=True)
    await response.leave()
    await response({**START, "headers": [(b"content-type", b"application/json")]})
    await response({**END, "body": b"{}"})
    assert server.bodies == [b"{}"]
