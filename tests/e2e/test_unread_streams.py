"""Streams whose clients do not read end when nothing is due to them, over real HTTP: each takes memory and a task."""

from collections.abc import AsyncIterator

import pytest

from mcp_eventscope import ResumableSessionManager, http_app
from mcp_eventscope.sessions import manager, sse_writer
from mcp_eventscope.sessions.transport import ResumableTransport
from support.controlled_server import ControlledServer
from support.http_client import Connect, HTTPClient, events
from support.serving import serving
from support.waiting import until

pytestmark = pytest.mark.anyio

STEPS = ["x" * 256 * 1024] * 64
"""Events that do not fit in the buffers between a server and a client that does not read."""


@pytest.fixture
def controlled() -> ControlledServer:
    """The server."""
    return ControlledServer()


@pytest.fixture
async def client(
    controlled: ControlledServer, valkey_url: str, key_prefix: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[HTTPClient]:
    """A client with a session, on a worker that looks for unread streams all the time."""
    monkeypatch.setattr(manager, "_MEASURE_SECONDS", 0.05)
    app = http_app(
        controlled.mcp, redis_url=valkey_url, key_prefix=key_prefix, max_session_bytes=1 << 26, registry=None
    )
    async with serving(app) as url:
        client = connect(url)
        await client.initialize()
        yield client


def transport_of(controlled: ControlledServer) -> ResumableTransport:
    """The transport of the only session."""
    manager = controlled.mcp.session_manager
    assert isinstance(manager, ResumableSessionManager)
    (transport,) = manager._served()
    return transport


async def blocked(transport: ResumableTransport, responses: int = 1) -> None:
    """Return once so many responses are open, all of which wait for their clients."""

    def waiting() -> bool:
        sending = [each._sending_since is not None for each in transport._responses]
        return all(sending) and len(sending) == responses

    await until(waiting)


async def cursor_of_a_call(client: HTTPClient, controlled: ControlledServer) -> str:
    """The cursor before the first event of a finished call."""
    async with client.call(1, "steps", name="work") as response:
        stream = events(response)
        first = await anext(stream)
        controlled.step("work", *STEPS)
        controlled.finish("work")
        async for _ in stream:
            pass
    return first.id


async def test_unread_resume_ends_when_a_newer_one_replaces_it(
    client: HTTPClient, controlled: ControlledServer
) -> None:
    """A client that resumes one stream in a loop without reading has one open stream in the end."""
    cursor = await cursor_of_a_call(client, controlled)
    transport = transport_of(controlled)
    async with client.get(cursor):
        await blocked(transport)
        (older,) = transport._responses
        async with client.get(cursor):
            await until(lambda: older not in transport._responses)
            await blocked(transport)
        await until(lambda: not transport._responses)
    assert len(await client.resume(cursor)) == len(STEPS) + 1


async def test_unread_call_ends_when_it_is_resumed(client: HTTPClient, controlled: ControlledServer) -> None:
    """The client may be gone without a trace: its old connection must not stay for as long as TCP retries."""
    transport = transport_of(controlled)
    async with client.call(1, "steps", name="work") as response:
        stream = events(response)
        first = await anext(stream)
        controlled.step("work", *STEPS)
        controlled.finish("work")
        await blocked(transport)
        assert len(await client.resume(first.id)) == len(STEPS) + 1
        await until(lambda: not transport._responses)


async def test_unread_streams_end_with_their_session(client: HTTPClient, controlled: ControlledServer) -> None:
    """Neither a call nor a resume keeps an ended session in memory."""
    cursor = await cursor_of_a_call(client, controlled)
    transport = transport_of(controlled)
    async with client.get(cursor), client.call(2, "steps", name="other") as call:
        stream = events(call)
        await anext(stream)
        controlled.step("other", *STEPS)
        await blocked(transport, 2)
        assert await client.delete() == 200
        await until(lambda: not transport._responses)


async def test_unread_resume_ends_after_a_time(
    client: HTTPClient, controlled: ControlledServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client resumes, and loses nothing."""
    cursor = await cursor_of_a_call(client, controlled)
    transport = transport_of(controlled)
    async with client.get(cursor):
        await blocked(transport)
        await end_stalled(transport, monkeypatch)
        assert len(await client.resume(cursor)) == len(STEPS) + 1


async def test_unread_call_ends_after_a_time(
    client: HTTPClient, controlled: ControlledServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then its full queue delays the other calls of its session."""
    transport = transport_of(controlled)
    async with client.call(1, "steps", name="work") as response:
        stream = events(response)
        first = await anext(stream)
        controlled.step("work", *STEPS)
        controlled.finish("work")
        await blocked(transport)
        await end_stalled(transport, monkeypatch)
        async with client.call(2, "echo", text="x") as other:
            assert "result" in [event async for event in events(other)][-1].message
        assert len(await client.resume(first.id)) == len(STEPS) + 1


async def end_stalled(transport: ResumableTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time pass after which an unread stream ends, for those that are open."""
    with monkeypatch.context() as hurried:
        hurried.setattr(sse_writer, "STALL_SECONDS", 0.0)
        hurried.setattr(sse_writer, "SLOWEST_READ", 1 << 30)
        await until(lambda: not transport._responses)
