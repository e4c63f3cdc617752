"""A forked child takes over neither its parent's name nor its state."""

import os

import pytest

from mcp_eventscope import process
from mcp_eventscope.redis.worker_id import WorkerId


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
def test_worker_id_in_a_forked_child_is_another_one() -> None:
    """The child has a name of its own before anything runs in it; the parent keeps its name."""
    worker = WorkerId()
    before = worker.name
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, worker.name.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 64).decode() not in ("", before)
    assert worker.name == before
    os.close(reading)
    os.close(writing)


def test_callback_given_twice_is_called_once_behind_the_objects() -> None:
    """Objects come first, since a callback may use them."""
    called: list[str] = []

    class Tracked:
        def after_fork(self) -> None:
            called.append("object")

    def callback() -> None:
        called.append("callback")

    tracked = Tracked()
    process.track(tracked)
    process.after_fork(callback)
    process.after_fork(callback)
    try:
        process._forked()
    finally:
        process._callbacks.remove(callback)
    assert called == ["object", "callback"]
