"""A stop signal is noticed, and does what it did before."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from mcp_eventscope.stop_signals import on_stop_signal

pytestmark = pytest.mark.anyio


class Server:
    """A server with a signal handler, as uvicorn's."""

    def __init__(self) -> None:
        self.handled: list[int] = []

    def handle_exit(self, number: int, _: FrameType | None) -> None:
        """Take note."""
        self.handled.append(number)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that handles SIGTERM, and no other handlers afterwards."""
    server, before = Server(), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, server.handle_exit)
    yield server
    signal.signal(signal.SIGTERM, before)


async def test_stop_signal_is_noticed_in_the_loop_and_handled(server: Server) -> None:
    """The callback runs in the event loop, and the server's handler runs, too."""
    noticed = asyncio.Event()
    with on_stop_signal(noticed.set):
        handler = signal.getsignal(signal.SIGTERM)
        # sse-starlette looks for uvicorn's server here.
        assert handler.__self__ is server  # type: ignore[union-attr]
        signal.raise_signal(signal.SIGTERM)
        assert server.handled == [signal.SIGTERM]
        await asyncio.wait_for(noticed.wait(), 60)
    assert signal.getsignal(signal.SIGTERM) == server.handle_exit


async def test_stop_signal_of_an_event_loop_handler_is_noticed() -> None:
    """Handlers of `loop.add_signal_handler`, as hypercorn's, run as well."""
    loop, noticed, stopping = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    before = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        with on_stop_signal(noticed.set):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(noticed.wait(), stopping.wait()), 60)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


async def test_stop_signal_with_default_action_keeps_it() -> None:
    """A process without a handler still ends immediately."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with on_stop_signal(pytest.fail):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_stop_signal_handler_installed_later_stays(server: Server) -> None:
    """Two applications in one process may end in any order."""
    noticed: list[str] = []
    first, second = on_stop_signal(lambda: noticed.append("first")), on_stop_signal(lambda: noticed.append("second"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert noticed == ["second"]
    second.__exit__(None, None, None)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert noticed == ["second"]
    assert server.handled == [signal.SIGTERM] * 2


def test_stop_signal_outside_of_the_main_thread_is_left_alone(server: Server) -> None:
    """Python installs no signal handlers there."""
    found: list[object] = []

    async def run() -> None:
        with on_stop_signal(pytest.fail):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()
    assert found == [server.handle_exit]
