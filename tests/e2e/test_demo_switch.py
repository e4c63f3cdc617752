"""The demonstration's switch: a cut is a cut, and it hits what carries a stream, and nothing else."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mcp_eventscope.demo.switch import HOST, Switch

STREAM = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"9\r\ndata: 1\n\n\r\n")
END = b"0\r\n\r\n"


@asynccontextmanager
async def backend(*answer: bytes) -> AsyncIterator[int]:
    """A server that answers each line with these pieces, each in a packet of its own. Yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline():
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await reader.readline()  # The client asks for the next piece, so that no two travel together.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Caller:
    """A connection through the switch."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def of(cls, switch: Switch) -> AsyncIterator["Caller"]:
        """Connect, until the block ends."""
        reader, writer = await asyncio.open_connection(HOST, switch.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def ask(self, size: int) -> bytes:
        """Ask for the next piece, and wait until it is all there."""
        self.writer.write(b"\n")
        return await self.reader.readexactly(size)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(bounded())


async def first(switch: Switch) -> bytes:
    """The first byte that a new connection is answered; nothing when it is closed."""
    async with Caller.of(switch) as caller:
        caller.writer.write(b"\n")
        return await caller.reader.read(1)


async def read(caller: Caller, *pieces: bytes) -> None:
    """Read an answer, piece by piece."""
    for number, piece in enumerate(pieces):
        if number == 0:
            caller.writer.write(b"\n")
        assert await caller.ask(len(piece)) == piece


def test_connections_go_round_and_pass_over_the_dead() -> None:
    """Each new connection goes to the next backend; one that refuses is no obstacle, and none at all is an end."""

    async def test() -> None:
        async with backend(b"a") as one, backend(b"b") as other:
            ports = [one, other]
            switch = Switch(ports)
            async with switch.running():
                assert [await first(switch) for _ in range(4)] == [b"a", b"b", b"a", b"b"]
                ports[0] = 1  # Nothing listens there.
                assert [await first(switch) for _ in range(3)] == [b"b", b"b", b"b"]
                ports[1] = 1
                assert await first(switch) == b""

    run(test)


def test_switch_takes_no_route_that_is_cut() -> None:
    """Only the backend's own connections are reset, and new ones go elsewhere, until the way is mended."""

    async def test() -> None:
        async with backend(b"a") as one, backend(b"b") as other:
            switch = Switch([one, other])
            async with switch.running(), Caller.of(switch) as to_one, Caller.of(switch) as to_other:
                assert (await to_one.ask(1), await to_other.ask(1)) == (b"a", b"b")
                assert switch.led_to(to_one.writer.get_extra_info("sockname")) == one
                assert switch.led_to(to_other.writer.get_extra_info("sockname")) == other
                assert switch.led_to(("127.0.0.1", 1)) is None
                assert switch.sever(one) == 0, "none carried a stream"
                with pytest.raises(ConnectionResetError):
                    await to_one.reader.read()
                to_other.writer.write(b"\n")
                assert await to_other.ask(1) == b"b"
                assert [await first(switch) for _ in range(3)] == [b"b", b"b", b"b"]
                switch.mend()
                assert {await first(switch) for _ in range(2)} == {b"a", b"b"}

    run(test)


@pytest.mark.parametrize(
    "pieces",
    [STREAM, (STREAM[0][:30], STREAM[0][30:], STREAM[1]), (*STREAM, END, *STREAM)],
    ids=["stream", "split header", "second stream"],
)
def test_switch_resets_a_live_stream(pieces: tuple[bytes, ...]) -> None:
    """Both sides of a connection in the middle of a stream are reset, not closed."""

    async def test() -> None:
        async with backend(*pieces) as port:
            switch = Switch([port])
            async with switch.running(), Caller.of(switch) as caller:
                await read(caller, *pieces)
                assert switch.sever(port) == 1
                with pytest.raises(ConnectionResetError):
                    await caller.reader.read()

    run(test)


@pytest.mark.parametrize(
    "pieces",
    [(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}",), (*STREAM, END), (*STREAM, END[:2], END[2:])],
    ids=["json", "ended stream", "split end"],
)
def test_switch_keeps_connections_without_a_stream(pieces: tuple[bytes, ...]) -> None:
    """Nothing is cut when nothing streams: the verdict then reports that nothing was shown."""

    async def test() -> None:
        async with backend(*pieces) as port:
            switch = Switch([port])
            async with switch.running(), Caller.of(switch) as caller:
                await read(caller, *pieces)
                assert switch.sever(port) == 0

    run(test)


@pytest.mark.parametrize("turns", range(6))
def test_switch_that_ends_closes_a_connection_that_has_just_begun(turns: int) -> None:
    """However far the connection has come, the client reads its end."""

    async def test() -> None:
        async with backend(b"a") as port:
            switch = Switch([port])
            async with switch.running():
                reader, writer = await asyncio.open_connection(HOST, switch.port)
                for _ in range(turns):
                    await asyncio.sleep(0)
            with contextlib.suppress(ConnectionResetError):  # Of what the event loop did not accept.
                assert await reader.read() == b""
            writer.close()

    run(test)


@pytest.mark.parametrize("turns", range(6))
def test_switch_that_ends_closes_connections_that_were_accepted(turns: int) -> None:
    """Also those that the event loop has accepted and not yet reported."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with backend(b"a") as port:
            switch = Switch([port])
            with contextlib.ExitStack() as clients:
                async with switch.running():
                    connections = [clients.enter_context(socket.socket()) for _ in range(3)]
                    for each in connections:
                        each.settimeout(0)
                        with contextlib.suppress(BlockingIOError):
                            each.connect((HOST, switch.port))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                for each in connections:
                    with contextlib.suppress(ConnectionResetError):
                        assert await loop.sock_recv(each, 1) == b""

    run(test)
