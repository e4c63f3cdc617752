"""Requests with any headers, ids and bodies: an honest status, no error of the server, no harm to another client."""

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from mcp_eventscope import http_app
from support.controlled_server import ControlledServer
from support.fuzzing import JSON_TEXTS, MARKER, NUMBERS, RUBBISH, examples
from support.http_client import VERSION
from support.servers import HOST
from support.serving import serving
from support.waiting import CEILING

pytestmark = pytest.mark.slow

STATUSES = {200, 202, 400, 404, 405, 406, 409, 411, 413, 415, 421, 431, 501, 503}
ACCEPT = "application/json, text/event-stream"


@dataclass
class Server:
    """A server in a thread, a session that the examples may use and end, and one that they must not touch."""

    port: int
    errors: list[str] = field(default_factory=list)
    victim: str = ""
    cursor: str = ""
    bystander: str = ""

    def post(self, message: object, session: str = "") -> tuple[int, dict[str, str], str]:
        """A proper request; its status, headers and body."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=CEILING)
        with contextlib.closing(connection):
            headers = {"accept": ACCEPT, "content-type": "application/json", "mcp-protocol-version": VERSION}
            if session:
                headers["mcp-session-id"] = session
            connection.request("POST", "/mcp", json.dumps(message), headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read().decode()

    def open(self) -> tuple[str, str]:
        """Open a session; its id, and the id of an event of a call."""
        params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "fuzz", "version": "0"}}
        status, headers, _ = self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        assert status == 200
        session = headers["mcp-session-id"]
        assert self.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)[0] == 202
        return session, self.echo(session)

    def echo(self, session: str) -> str:
        """Call a tool, which must answer; the id of the first event."""
        params = {"name": "echo", "arguments": {"text": MARKER}}
        status, _, body = self.post({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, session)
        assert status == 200, body
        assert MARKER in body, body
        return next(line[4:] for line in body.splitlines() if line.startswith("id: "))

    def send(self, request: bytes) -> bytes:
        """Send bytes; return the head of the response, and what came with it."""
        with socket.create_connection((HOST, self.port), timeout=CEILING) as connection:
            connection.sendall(request)
            # The server must not wait for more of a body that is shorter than announced.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            text = b""
            while b"\r\n\r\n" not in text and (data := connection.recv(65536)):
                text += data
            return text


class _Errors(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(self.format(record))


@pytest.fixture(scope="module")
def server(valkey_url: str) -> Iterator[Server]:
    """A server for all examples."""
    ready, found = threading.Event(), Server(0)
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        app = http_app(
            ControlledServer().mcp, redis_url=valkey_url, key_prefix="fuzz-http:", ttl=60, registry=CollectorRegistry()
        )
        async with serving(app) as url:
            found.port = int(url.rpartition(":")[2])
            over.append((asyncio.get_running_loop(), asyncio.Event()))
            ready.set()
            await over[0][1].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(CEILING)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "mcp", "asyncio", "mcp_eventscope")]
    handler = _Errors(found.errors)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        found.bystander, _ = found.open()
        found.victim, found.cursor = found.open()
        yield found
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        loop, event = over[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(CEILING)


VISIBLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60).map(str.encode)
CUT = st.integers(0, 80)
IDS = st.sampled_from(["victim", "unknown"]) | VISIBLE | RUBBISH | st.just(b"x" * 5000)
CURSORS = (
    st.none()
    | st.just("cursor")
    | st.tuples(CUT, VISIBLE | RUBBISH)  # The cursor, with something in it.
    | st.builds(
        lambda time, number, run, stream: b"%b-%b-%b.%b" % (time, number, run, stream),
        NUMBERS,
        NUMBERS,
        st.sampled_from([b"0123456789ab1", b"", b"X" * 13, b"0123456789ab1~5-0123456789ab2"]),
        st.sampled_from([b"1", b"~1", b"_GET_stream", b"!00", b"%2E", b"", b"~%ff"]),
    )
    | VISIBLE
    | RUBBISH
)
METHODS = st.sampled_from([b"GET", b"GET", b"POST", b"POST", b"DELETE", b"PUT", b"OPTIONS", b"HEAD", b"PATCH", b"X"])
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"accept", b"content-type", b"mcp-protocol-version", b"origin", b"host", b"authorization"])
        | st.sampled_from([b"content-length", b"transfer-encoding", b"traceparent", b"baggage", b"connection", b"x"]),
        st.sampled_from([b"", b"*/*", b"text/event-stream", b"application/json", b"2025-11-25", b"2026-07-28", b"0"])
        | st.sampled_from([b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"chunked", b"Bearer x", b"-1", b"close"])
        | VISIBLE
        | RUBBISH,
    ),
    max_size=4,
)
_METHODS = ["initialize", "tools/call", "notifications/cancelled", "notifications/progress", "ping", "tasks/get", "x"]
MESSAGES = (
    JSON_TEXTS
    | RUBBISH
    | st.builds(
        lambda method, request_id, params: json.dumps(
            {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        ).encode(),
        st.sampled_from(_METHODS),
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.just([1]) | st.floats(),
        st.none()
        | st.dictionaries(
            st.sampled_from(["name", "arguments", "_meta", "requestId", "progressToken", "protocolVersion", "taskId"]),
            st.none() | st.integers() | st.text(max_size=5) | st.just({"progressToken": 1}) | st.just({"text": "x"}),
            max_size=4,
        ),
    )
    | st.builds(
        lambda request_id, key: json.dumps({"jsonrpc": "2.0", "id": request_id, key: {"x": 1}}).encode(),
        st.none() | st.integers() | st.text(max_size=5),
        st.sampled_from(["result", "error"]),
    )
)


def _cursor(server: Server, chosen: object) -> bytes:
    if isinstance(chosen, tuple):
        place, text = chosen
        whole = server.cursor.encode()
        return whole[:place] + bytes(text) + whole[place:]
    return server.cursor.encode() if chosen == "cursor" else bytes(chosen)  # type: ignore[call-overload]


@examples(150)
@given(METHODS, IDS, CURSORS, HEADERS, MESSAGES)
def test_any_request_has_an_honest_answer_and_harms_no_other(  # noqa: PLR0913, PLR0917 - the parts of a request
    server: Server,
    method: bytes,
    session: str | bytes,
    cursor: object,
    headers: list[tuple[bytes, bytes]],
    message: bytes,
) -> None:
    """No status of a failed server, no exception in a log, no id or payload of another client; which goes on."""
    named = {"victim": server.victim.encode(), "unknown": b"0" * 32}
    lines = [(b"mcp-session-id", named[session] if isinstance(session, str) else session)]
    if cursor is not None:
        lines.append((b"last-event-id", _cursor(server, cursor)))
    standard = {b"host": b"127.0.0.1", b"accept": ACCEPT.encode(), b"content-type": b"application/json"}
    chosen = {**standard, b"content-length": b"%d" % len(message), **dict(headers)}
    lines += [row for row in chosen.items() if row[1] or row[0] not in standard]
    head = b"%b /mcp HTTP/1.1\r\n" % method + b"".join(b"%b: %b\r\n" % row for row in lines)
    answer = server.send(head + b"\r\n" + message)
    assert b"Traceback" not in answer
    assert server.bystander.encode() not in answer
    if answer:  # A connection may be closed after half of a request.
        status = int(answer.split(b" ", 2)[1])
        assert status in STATUSES, answer[:500]
    assert server.errors == []
    assert server.echo(server.bystander)
    if method == b"DELETE":
        server.victim, server.cursor = server.open()
