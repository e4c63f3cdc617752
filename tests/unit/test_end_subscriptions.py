"""The middleware that ends listen streams on a stop signal."""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mcp_eventscope import EndSubscriptionsOnStop
from mcp_eventscope.sdk_versions import version_of
from mcp_eventscope.subscriptions.ending import end_subscriptions, listen_handler
from support.waiting import until

pytestmark = pytest.mark.anyio


class Handler(ListenHandler):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        super().__init__(InMemorySubscriptionBus())
        self.closed = 0

    def close(self) -> None:
        """Count."""
        self.closed += 1


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that the server has handled; restores its handler."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


async def wait_forever(*_: object) -> None:
    """An application that runs until it is cancelled."""
    await anyio.sleep_forever()


async def nothing(*_: object) -> Any:
    """Receive and send nothing."""


async def test_stop_signal_ends_streams_until_the_lifespan_ends(handled: list[int]) -> None:
    """Repeatedly, since a server that stops still serves requests; the server's own handler runs, too."""
    handler = Handler()
    app = EndSubscriptionsOnStop(wait_forever, handler)
    before = signal.getsignal(signal.SIGTERM)
    lifespan = asyncio.create_task(app({"type": "lifespan"}, nothing, nothing))
    await until(lambda: signal.getsignal(signal.SIGTERM) != before)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: handler.closed >= 3)
    lifespan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lifespan
    assert handled == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
    closed = handler.closed
    await anyio.sleep(0.25)  # Two rounds, of which there are none.
    assert handler.closed == closed


async def test_application_without_a_lifespan_notices_signals_from_its_first_request(handled: list[int]) -> None:
    """As one that is mounted in another application."""
    handler = Handler()

    async def done(*_: object) -> None:
        await asyncio.sleep(0)

    app = EndSubscriptionsOnStop(done, handler)
    for _ in range(3):
        await app({"type": "http"}, nothing, nothing)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: handler.closed >= 2)
    assert handled == [signal.SIGTERM]
    app._unended.close()
    assert app._stop_ending is not None
    app._stop_ending()


async def test_streams_end_before_the_call_returns() -> None:
    """An application may stop its tasks right after the signal."""
    handler = Handler()
    stop = end_subscriptions(handler)
    assert handler.closed == 1
    stop()
    stop()


def test_middleware_passes_requests_through() -> None:
    """It is added as any other middleware."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("served"))])
    app.add_middleware(EndSubscriptionsOnStop, server=Handler())
    with TestClient(app) as client:
        assert client.get("/").text == "served"


def test_streams_of_each_kind_of_server_are_found() -> None:
    """By public interfaces; a server that is not served by HTTP has none to end."""
    handler = Handler()
    assert listen_handler(handler) is handler
    assert listen_handler(Server("low-level", on_subscriptions_listen=handler)) is handler
    assert listen_handler(Server("low-level")) is None
    mcp: MCPServer[object] = MCPServer("high-level")
    assert listen_handler(mcp) is None
    mcp.streamable_http_app()
    assert isinstance(listen_handler(mcp), ListenHandler)


@pytest.mark.skipif(version_of("mcp").startswith("2.2."), reason="each MCPServer of mcp 2.2 has such streams")
def test_server_without_subscriptions_has_no_streams() -> None:
    """`subscriptions=False` leaves nothing to end."""
    without: MCPServer[object] = MCPServer("high-level", subscriptions=False)
    without.streamable_http_app()
    assert listen_handler(without) is None


def test_middleware_refuses_other_servers() -> None:
    """The error names what to pass."""
    with pytest.raises(TypeError, match=r"server must be an MCPServer, .*, got Starlette; pass the MCP server"):
        EndSubscriptionsOnStop(wait_forever, Starlette())  # type: ignore[arg-type]
