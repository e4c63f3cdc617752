"""Notice a stop signal when it arrives, before the ASGI server waits for its connections.

ASGI has no event for it: the lifespan ends when the open responses have ended, which streams do not do by themselves.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))
"""The signals on which ASGI servers stop gracefully."""


class _ChainedHandler:
    """A signal handler that calls back, then does what the previous handler does."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any], notify: Callable[[], None]) -> None:
        self._previous = previous
        self.notify: Callable[[], None] | None = notify
        # sse-starlette finds uvicorn's server through the handler, which is a bound method, and ends streams by it.
        with contextlib.suppress(AttributeError):
            self.__self__ = previous.__self__  # type: ignore[attr-defined]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.notify is not None:
            self.notify()
        self._previous(number, frame)


@contextmanager
def on_stop_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call back in the running event loop for each stop signal within the block.

    The handlers of the server stay in effect: uvicorn, in its workers and under gunicorn, and servers that use
    `loop.add_signal_handler` install theirs before the application starts. A signal without a handler written in Python
    keeps its default action. Outside of the main thread nothing is installed, because Python has no signals there.

    Args:
        callback: Called without arguments. Its exceptions go to the event loop's handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def notify() -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(callback)

    installed: dict[int, tuple[_ChainedHandler, Any]] = {}
    try:
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if callable(previous):
                installed[number] = handler, _ = _ChainedHandler(previous, notify), previous
                signal.signal(number, handler)
        yield
    finally:
        for number, (handler, previous) in installed.items():
            handler.notify = None
            if signal.getsignal(number) is handler:  # Else a later handler may call this one.
                signal.signal(number, previous)
