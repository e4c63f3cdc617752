"""The unbuffered stream between the server and a transport's router."""

import asyncio

import anyio
import pytest
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification

from mcp_eventscope.sessions.outbound_pipe import outbound_pipe, replace_outbound_streams

pytestmark = pytest.mark.anyio


async def turns(count: int = 3) -> None:
    """Let other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_send_to_a_waiting_receiver_returns_immediately() -> None:
    """A receiver that waits gets the item immediately."""
    writer, reader = outbound_pipe()
    receiving = asyncio.create_task(reader.receive())
    await turns()
    await writer.send("a")
    assert await receiving == "a"


async def test_send_without_receiver_waits_in_order() -> None:
    """A sender waits until its item is taken; items are taken in the order they were sent."""
    writer, reader = outbound_pipe()
    sending = [asyncio.create_task(writer.send(number)) for number in range(3)]
    await turns()
    assert not any(task.done() for task in sending)
    assert [await reader.receive() for _ in range(3)] == [0, 1, 2]
    await asyncio.gather(*sending)


async def test_send_after_a_handed_item_waits() -> None:
    """A second sender waits for the receiver that has just got an item."""
    writer, reader = outbound_pipe()
    receiving = asyncio.create_task(reader.receive())
    await turns()
    await writer.send("a")
    second = asyncio.create_task(writer.send("b"))
    assert await receiving == "a"
    assert not second.done()
    assert await reader.receive() == "b"
    await second


async def test_send_that_is_cancelled_is_not_delivered() -> None:
    """The item of a cancelled sender is not delivered."""
    writer, reader = outbound_pipe()
    first, second = asyncio.create_task(writer.send("a")), asyncio.create_task(writer.send("b"))
    await turns()
    first.cancel()
    assert await reader.receive() == "b"
    await second
    assert first.cancelled()


async def test_receive_that_is_cancelled_takes_no_item() -> None:
    """A cancelled receiver gets no item."""
    writer, reader = outbound_pipe()
    receiving = asyncio.create_task(reader.receive())
    await turns()
    receiving.cancel()
    sending = asyncio.create_task(writer.send("a"))
    await turns()
    assert await reader.receive() == "a"
    await sending


async def test_close_of_the_write_end_ends_the_stream() -> None:
    """The receiver is at the end of the stream, and later senders are refused."""
    writer, reader = outbound_pipe()
    receiving = asyncio.create_task(reader.receive())
    await turns()
    await writer.aclose()
    with pytest.raises(anyio.EndOfStream):
        await receiving
    with pytest.raises(anyio.EndOfStream):
        await reader.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await writer.send("a")


async def test_close_of_the_read_end_refuses_senders() -> None:
    """Waiting and later senders are refused, and so is the receiver."""
    writer, reader = outbound_pipe()
    sending = asyncio.create_task(writer.send("a"))
    await turns()
    await reader.aclose()
    with pytest.raises(anyio.BrokenResourceError):
        await sending
    with pytest.raises(anyio.BrokenResourceError):
        await writer.send("b")
    with pytest.raises(anyio.ClosedResourceError):
        await reader.receive()


async def test_close_of_the_read_end_refuses_a_waiting_receiver() -> None:
    """A receiver that waits is refused when its own end is closed."""
    _, reader = outbound_pipe()
    receiving = asyncio.create_task(reader.receive())
    await turns()
    reader.close()
    with pytest.raises(anyio.ClosedResourceError):
        await receiving


async def test_outbound_pipe_in_the_sdk_transport_passes_the_senders_context() -> None:
    """The SDK's transport sends messages through it, with the sender's context."""
    transport = StreamableHTTPServerTransport("s")
    message = SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="n"))
    async with transport.connect() as (_, writer):
        replace_outbound_streams(transport)
        inner = getattr(writer, "_inner", None)
        await writer.send(message)
        await turns()
    assert type(inner) is type(outbound_pipe()[0])
    assert getattr(transport._write_stream_reader, "last_context", None) is not None
