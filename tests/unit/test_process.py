"""A forked child takes over neither its parent's name nor its state."""

import os
import threading
from collections.abc import Callable

import pytest

from mcp_eventscope.process import PROCESS, Process
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.telemetry.exposition.multiprocess import _Membership

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")


def in_child(answer: Callable[[], str]) -> str:
    """The answer of a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, answer().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answered:
        return answered.read()


@forks
def test_worker_id_in_a_forked_child_is_another_one() -> None:
    """The child has a name of its own before anything runs in it; the parent keeps its name."""
    worker = WorkerId()
    before = worker.name
    assert in_child(lambda: worker.name) not in ("", before)
    assert worker.name == before


@forks
def test_lock_of_scrapes_held_during_a_fork_is_free_in_the_child() -> None:
    """The thread that holds it in the parent does not exist in the child, and would never release it."""
    membership = PROCESS.single(_Membership)
    with membership.scrape_lock:
        assert in_child(lambda: str(membership.scrape_lock.locked())) == "False"
        assert membership.scrape_lock.locked()


class Tracked:
    """An object that a test tracks."""

    def __init__(self, called: list[str]) -> None:
        self.called = called

    def after_fork(self) -> None:
        """Note the call."""
        self.called.append("tracked")


class Single:
    """An object that exists once."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def after_fork(self) -> None:
        """Note the call."""
        self.called.append("single")


class Plain:
    """An object that exists once, and that a forked child keeps."""


def test_single_object_is_created_once_for_each_process() -> None:
    """A later use, from any thread, finds the first object."""
    process = Process()
    first = process.single(Single)
    found: list[Single] = []
    thread = threading.Thread(target=lambda: found.append(process.single(Single)))
    thread.start()
    thread.join()
    assert found == [first]
    assert process.single(Plain) is process.single(Plain)
    assert Process().single(Single) is not first


def test_single_objects_are_called_after_a_fork_behind_tracked_ones() -> None:
    """Single objects may use tracked ones, which have forgotten the parent by then."""
    process = Process()
    single = process.single(Single)
    process.single(Plain)
    tracked = Tracked(single.called)
    process.track(tracked)
    process.after_fork()
    assert single.called == ["tracked", "single"]


def test_tracked_object_that_is_deleted_is_forgotten() -> None:
    """Tracking keeps no store alive."""
    process = Process()
    called: list[str] = []
    kept, deleted = Tracked(called), Tracked(called)
    process.track(kept)
    process.track(deleted)
    del deleted
    assert process.tracked(Tracked) == [kept]
    process.after_fork()
    assert called == ["tracked"]
