"""The parts of mcp 1.30 on which sessions rely, and which mcp 2.x has in another form: `_sdk_2`.

The private part `ServerSession` of a server cannot be reached from outside, so a session of another worker is begun by
its recorded handshake, and its requests to the client are renumbered on their way.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import TaskStatus
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.shared.message import SessionMessage
from mcp.shared.version import SUPPORTED_PROTOCOL_VERSIONS
from mcp.types import LATEST_PROTOCOL_VERSION as LATEST_HANDSHAKE_VERSION
from mcp.types import InitializeRequestParams
from starlette.requests import Request

from mcp_eventscope.store.messages import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    unwrapped,
    wrapped,
)

MCP_PROTOCOL_VERSION_HEADER = "mcp-protocol-version"
MODERN_PROTOCOL_VERSIONS: tuple[str, ...] = ()
"""This SDK does not speak the revisions without resumption."""
NO_REQUEST = "server-error"
"""The id of an error that belongs to no request, as in the SDK: the models have no null id."""
LIFESPAN_ATTRIBUTES: tuple[str, ...] = ()
"""Each session enters the server's lifespan itself."""
DISPATCHER_ATTRIBUTES: tuple[str, ...] = ()

_HANDSHAKE = "eventscope-adopt"
"""The request id of the handshake, which is sent to no client."""
_HANDSHAKE_SECONDS = 5.0
"""Maximum seconds for the server's answer to the handshake, which its middleware may delay."""
_CLOSED = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)


def accepts_sse(request: Request) -> bool:
    """Whether the client accepts a stream."""
    accepted = request.headers.get("accept", "").split(",")
    return any(each.strip().startswith("text/event-stream") for each in accepted)


def is_version_at_least(version: str, least: str) -> bool:
    """Whether a protocol revision, which is a date, is a later one or the same."""
    return version >= least


def negotiated_version(params: InitializeRequestParams) -> str:
    """The protocol version of a session with these `initialize` parameters, as the SDK negotiates it."""
    requested: str = params.model_dump(by_alias=True)["protocolVersion"]
    return requested if requested in SUPPORTED_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION


def end_subscriptions(_: object) -> Callable[[], None]:
    """Do nothing: this SDK does not speak the revision with `subscriptions/listen`."""
    return lambda: None


def missing() -> Iterator[str]:
    """The parts that the installed SDK lacks: none, since `serve_adopted` uses public ones."""
    yield from ()


async def serve_adopted(
    app: Any,
    transport: StreamableHTTPServerTransport,
    params: InitializeRequestParams,
    lifespan_state: Any,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a session of another worker until it ends or its idle timeout expires. Arguments as in `_sdk_2`.

    If the server refuses the handshake, the transport is terminated: the client receives 404 and opens a new session.
    """
    del lifespan_state
    # The worker that opened the session numbers its requests to the client from 0. Another range keeps the answers
    # apart.
    offset = secrets.randbelow(2**40) + 2**32
    async with transport.connect() as streams:
        inbox: Any
        outbox: Any
        inbox, outbox = streams
        to_server, read_stream = anyio.create_memory_object_stream[Any](0)
        write_stream, from_server = anyio.create_memory_object_stream[Any](0)

        async def receive() -> None:
            async with to_server:
                with suppress(*_CLOSED):
                    async for item in inbox:
                        await to_server.send(_renumbered(item, -offset))

        async def send() -> None:
            async with from_server:
                with suppress(*_CLOSED):
                    async for item in from_server:
                        await outbox.send(_renumbered(item, offset))

        with transport.idle_scope or anyio.CancelScope():
            async with anyio.create_task_group() as tasks:

                async def serve() -> None:
                    await app.run(read_stream, write_stream, app.create_initialization_options())
                    tasks.cancel_scope.cancel()

                tasks.start_soon(serve)
                begun = False
                with anyio.move_on_after(_HANDSHAKE_SECONDS), suppress(*_CLOSED):
                    begun = await _begin(params, to_server, from_server, outbox)
                if begun:
                    tasks.start_soon(receive)
                    tasks.start_soon(send)
                    task_status.started()
                else:
                    to_server.close()
                    from_server.close()
                    await transport.terminate()
                    task_status.started()
                    tasks.cancel_scope.cancel()


async def _begin(params: InitializeRequestParams, to_server: Any, from_server: Any, outbox: Any) -> bool:
    """Initialize a session, as its client did on another worker. Return whether the server accepts it."""
    members = params.model_dump(mode="json", by_alias=True, exclude_none=True)
    opening = JSONRPCRequest(jsonrpc="2.0", id=_HANDSHAKE, method="initialize", params=members)
    await to_server.send(_session_message(opening))
    while True:
        item = await from_server.receive()
        answer = unwrapped(item.message)
        if getattr(answer, "id", None) == _HANDSHAKE:
            break
        await outbox.send(item)
    if not isinstance(answer, JSONRPCResponse):
        return False
    await to_server.send(_session_message(JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized")))
    return True


def _renumbered(item: Any, by: int) -> Any:
    """Shift the ids of the server's requests: up in messages of the server, down in messages of the client."""
    if not isinstance(item, SessionMessage):
        return item
    message: Any = unwrapped(item.message)
    params = getattr(message, "params", None) or {}
    changed: dict[str, Any] = {}
    if isinstance(message, JSONRPCRequest) and by > 0:
        changed = _shifted("id", message.id, by)
        meta = params.get("_meta")
        if changed and isinstance(meta, dict) and meta.get("progressToken") == message.id:
            changed["params"] = {**params, "_meta": {**meta, "progressToken": changed["id"]}}
    elif isinstance(message, JSONRPCResponse | JSONRPCError) and by < 0:
        changed = _shifted("id", message.id, by)
    elif isinstance(message, JSONRPCNotification):
        name = _NAMED_IN.get((message.method, by > 0))
        shifted = _shifted(name, params.get(name), by) if name else {}
        changed = {"params": {**params, **shifted}} if shifted else {}
    return _session_message(message.model_copy(update=changed), item.metadata) if changed else item


_NAMED_IN: Mapping[tuple[str, bool], str] = {
    ("notifications/cancelled", True): "requestId",
    ("notifications/progress", False): "progressToken",
}
"""The parameter of a notification that names a request of the server, by method and whether the server sends it."""


def _shifted(name: str, number: object, by: int) -> dict[str, Any]:
    """A member with another number; nothing if it is no number, or one of the worker that opened the session."""
    if not isinstance(number, int) or isinstance(number, bool) or number + by < 0:
        return {}
    return {name: number + by}


def _session_message(message: JSONRPCMessage, metadata: Any = None) -> SessionMessage:
    wire: Any = wrapped(message)
    return SessionMessage(wire, metadata)
