"""Serves an ASGI application with uvicorn within a test, on a loopback socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp

from support.waiting import CEILING, until


@asynccontextmanager
async def serving_each(*apps: ASGIApp) -> AsyncIterator[list[str]]:
    """Serve each application by a server of its own until the block ends. Yields their base URLs."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(app)) for app in apps]


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Serve until the block ends. Yields the base URL, without a slash at its end."""
    # asyncio sends small writes immediately only on sockets that name their protocol; else a call may take 40 ms more.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=2, ws="none")
    )
    task = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started or task.done())
        assert server.started, "the server ended before it had started"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        with anyio.CancelScope(shield=True), anyio.fail_after(CEILING):
            await task
        listener.close()
