"""End open `subscriptions/listen` streams in good order when the worker is asked to stop."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import ListenHandler
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_eventscope.options import given
from mcp_eventscope.stop_signals import on_stop_signal

_INTERVAL_SECONDS = 0.1
"""Seconds between two rounds: a server that stops still serves the requests that arrive meanwhile."""


def listen_handler(server: "MCPServer[Any] | Server[Any] | ListenHandler") -> ListenHandler | None:
    """The handler of `subscriptions/listen`; None: the server has none of the SDK's kind, or is not served by HTTP."""
    if isinstance(server, ListenHandler):
        return server
    if isinstance(server, MCPServer):
        try:
            server = server.session_manager.app
        except RuntimeError:  # Its HTTP application was not created.
            return None
    entry = server.get_request_handler("subscriptions/listen")
    return entry.handler if entry is not None and isinstance(entry.handler, ListenHandler) else None


def end_subscriptions(server: "MCPServer[Any] | Server[Any] | ListenHandler") -> Callable[[], None]:
    """End the open streams, and those that are still opened, until the returned function is called.

    Each stream sends its pending changes, then its `SubscriptionsListenResult`, after which its client knows that the
    stream ended in good order (SEP-2575). Without it an ASGI server waits for the streams, and does not stop.

    Args:
        server: The server, or its handler of `subscriptions/listen`.
    """
    loop = asyncio.get_running_loop()
    following: asyncio.TimerHandle | None = None

    def end() -> None:
        nonlocal following
        following = loop.call_later(_INTERVAL_SECONDS, end)
        if (handler := listen_handler(server)) is not None:
            handler.close()

    def stop() -> None:
        if following is not None:
            following.cancel()

    end()
    return stop


class EndSubscriptionsOnStop:
    """ASGI middleware: when the worker is asked to stop, its `subscriptions/listen` streams end in good order.

    Without it a worker with an open stream stops only after the server's time limit, or never. `http_app` needs no
    middleware. Elsewhere:

    ```python
    app = mcp.streamable_http_app()
    app.add_middleware(EndSubscriptionsOnStop, server=mcp)
    ```

    It notices SIGINT and SIGTERM beside the ASGI server, from the start of the application's lifespan on. An
    application that is mounted in another one has no lifespan of its own: there it begins with the first request.

    Args:
        app: The application.
        server: The `MCPServer`, low-level `Server`, or `ListenHandler`, whose streams end.

    Raises:
        TypeError: `server` is none of these.
    """

    def __init__(self, app: ASGIApp, server: "MCPServer[Any] | Server[Any] | ListenHandler") -> None:
        if not isinstance(server, MCPServer | Server | ListenHandler):
            msg = (
                f"server must be an MCPServer, a low-level Server or its ListenHandler, got {given(server)}; "
                "pass the MCP server whose application this is"
            )
            raise TypeError(msg)
        self._app = app
        self._server = server
        self._watched = False
        """Whether stop signals are noticed."""
        self._unended = ExitStack()
        """Of an application without a lifespan: signals are noticed until the process ends."""
        self._stop_ending: Callable[[], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or run the lifespan."""
        if scope["type"] == "lifespan":
            with self._watching():
                await self._app(scope, receive, send)
            return
        if not self._watched:
            self._watched = True
            self._unended.enter_context(on_stop_signal(self._end))
        await self._app(scope, receive, send)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._watched = True
        try:
            with on_stop_signal(self._end):
                yield
        finally:
            self._watched = False
            if self._stop_ending is not None:
                self._stop_ending()
                self._stop_ending = None

    def _end(self) -> None:
        if self._stop_ending is None:
            self._stop_ending = end_subscriptions(self._server)
