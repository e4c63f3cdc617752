"""A TCP proxy that adds latency to Redis without limiting throughput.

    python -m benchmarks.e2e.delay_proxy HOST PORT MILLISECONDS

Each chunk is stamped as it arrives and written when it is due, half a round trip later, so that pipelined requests
travel together. The program prints its port on its first line and runs until it is terminated.
"""

import asyncio
import selectors
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from benchmarks.processes import HOST, ROOT, BenchmarkError, stop


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop with timers accurate to microseconds: epoll rounds each wait up to a whole millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@asynccontextmanager
async def distant(url: str, round_trip: float) -> AsyncIterator[str]:
    """The URL of the same Redis at a distance of so many seconds; the proxy ends with the block."""
    place = urlsplit(url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.e2e.delay_proxy"),
        *(str(place.hostname), str(place.port), str(round_trip * 1000)),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdout is None or not (line := await process.stdout.readline()):
            msg = "the delay proxy did not start"
            raise BenchmarkError(msg)
        yield f"redis://{HOST}:{int(line)}/0"
    finally:
        await stop(process)


class _Side(asyncio.Protocol):
    """One side of a connection, whose bytes leave on the other side."""

    def __init__(self, delay: float) -> None:
        self.other: _Side | None = None
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._due: deque[tuple[float, bytes | None]] = deque()
        """Chunks on their way to this side with the time each is due; None closes the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write small chunks immediately, and what arrived before the connection was made."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._due:
                self._release()

    def data_received(self, data: bytes) -> None:
        """Send a chunk on its way to the other side."""
        if self.other is not None:
            self.other.accept(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side once it has received everything."""
        if self.other is not None:
            self.other.accept(None)

    def accept(self, data: bytes | None) -> None:
        """Take a chunk, to be written when it is due."""
        due = self._loop.time() + self._delay
        self._due.append((due, data))
        if len(self._due) == 1 and self._transport is not None:
            self._loop.call_at(due, self._release)

    def _release(self) -> None:
        now = self._loop.time()
        while self._due and self._due[0][0] <= now and self._transport is not None:
            data = self._due.popleft()[1]
            if data is None:
                self._transport.close()
            elif not self._transport.is_closing():
                self._transport.write(data)
        if self._due:
            self._loop.call_at(self._due[0][0], self._release)


async def _serve(host: str, port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[object]] = set()

    def accepted() -> _Side:
        client, server = _Side(delay), _Side(delay)
        client.other, server.other = server, client
        task: asyncio.Task[object] = asyncio.create_task(_connect(client, server))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return client

    async def _connect(client: _Side, server: _Side) -> None:
        try:
            await loop.create_connection(lambda: server, host, port)
        except OSError:
            client.accept(None)

    server = await loop.create_server(accepted, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Run the proxy that the command line describes."""
    host, port, milliseconds = sys.argv[1:]
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(_serve(host, int(port), float(milliseconds) / 2000))


if __name__ == "__main__":
    main()
