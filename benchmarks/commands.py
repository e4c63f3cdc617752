"""The commands that a store sends to Redis, byte for byte, as Redis reports them."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_END = b"end-of-the-monitored-block"
_PATIENCE = 60.0
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


@asynccontextmanager
async def monitored(url: str) -> AsyncIterator[list[list[bytes]]]:
    """Record the scripts that clients call during the block, as commands with their arguments."""
    recorded: list[list[bytes]] = []
    ended = asyncio.Event()
    place = urlsplit(url)
    # Not redis-py's monitor, which loses the boundaries between arguments.
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 24)
    writer.write(b"MONITOR\r\n")
    await reader.readline()

    async def listen() -> None:
        while line := await reader.readline():
            head, _, rest = line.partition(b"] ")
            if not head.endswith(b" lua"):
                command = [_ESCAPE.sub(_plain, argument) for argument in _ARGUMENT.findall(rest)]
                if command and command[0].upper() in {b"EVALSHA", b"FCALL"}:
                    recorded.append(command)
                elif command == [b"ECHO", _END]:
                    ended.set()

    async def mark() -> None:
        """Return once the monitor has reported a command that is sent now, and so every one before it."""
        _, asking = await asyncio.open_connection(place.hostname, place.port)
        asking.write(b"ECHO " + _END + b"\r\n")
        await ended.wait()
        asking.close()

    task = asyncio.create_task(listen())
    try:
        yield recorded
        async with asyncio.timeout(_PATIENCE):
            await mark()
    finally:
        task.cancel()
        writer.close()


def _plain(escape: "re.Match[bytes]") -> bytes:
    what = escape[1]
    return bytes.fromhex(what[1:].decode()) if len(what) == 3 else _NAMED.get(what, what)
