"""The conformance suite for a store that several processes share."""

import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from multiprocessing import get_all_start_methods
from multiprocessing.synchronize import Barrier
from typing import TypeAlias

import anyio
import pytest
from mcp.server.streamable_http import EventStore

from mcp_eventscope.process import PROCESS
from mcp_eventscope.testing.collected import on_the_wire, replay
from mcp_eventscope.testing.conformance import EventStoreConformance, new_stream, note, store_all

OpenStore: TypeAlias = Callable[[str], AbstractAsyncContextManager[EventStore]]
"""A function that opens the store at a URL, and closes it when the block ends."""

WRITERS = 3
EVENTS = 100
START_TIMEOUT = 45.0
"""Seconds until all processes have finished their imports."""


class SharedStoreConformance(EventStoreConformance):
    """The suite for a store that several processes open concurrently; see `mcp_eventscope.testing`.

    Inherit it, and override the fixture `url` and the function `open_store`. The fixture `store` uses both.
    """

    @staticmethod
    def open_store(url: str) -> AbstractAsyncContextManager[EventStore]:
        """Open the store at a URL. Override it with a function that other processes can import."""
        msg = f"open_store must be overridden to open {url}; see the docstring of mcp_eventscope.testing"
        raise NotImplementedError(msg)

    @pytest.fixture
    def url(self) -> str:
        """The URL of the store. Override it."""
        msg = f"{type(self).__name__} must override the fixture `url`; see the docstring of mcp_eventscope.testing"
        raise NotImplementedError(msg)

    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[EventStore]:
        """The store under test, opened in this process."""
        async with type(self).open_store(url) as store:
            yield store

    async def test_another_opening_goes_on(self, store: EventStore, url: str) -> None:
        """A second opening replays the events of the first, and continues with new, later ids."""
        stream = new_stream()
        stored = await store_all(store, stream, 3)
        async with type(self).open_store(url) as other:
            assert (await replay(other, stored[0][0])).events == stored[1:]
            stored += await store_all(other, stream, 3)
            stored += await store_all(store, stream, 3)
            for opened in (store, other):
                assert (await replay(opened, stored[0][0])).events == stored[1:]
        assert len({event_id for event_id, _ in stored}) == 9

    async def test_concurrent_writers_of_several_processes(self, store: EventStore, url: str) -> None:
        """Concurrent processes lose no events, share no ids, and keep their own order."""
        stream = new_stream()
        first = await store.store_event(stream, None)
        written = await anyio.to_thread.run_sync(_write_in_processes, type(self).open_store, url, stream)
        ids = [event_id for of_one in written for event_id in of_one]
        assert len(set(ids)) == WRITERS * EVENTS
        replayed = await replay(store, first)
        assert sorted(replayed.events) == sorted(
            (event_id, on_the_wire(note(number, writer=writer)))
            for writer, of_one in enumerate(written)
            for number, event_id in enumerate(of_one)
        )
        places = {event_id: place for place, event_id in enumerate(replayed.ids)}
        for of_one in written:
            assert [places[event_id] for event_id in of_one] == sorted(places[event_id] for event_id in of_one)
        if self.ids_increase:
            numbers = [int(event_id or "") for event_id in replayed.ids]
            assert numbers == sorted(numbers)
            assert all(int(event_id) > int(first) for event_id in ids)


class _Start:
    """The common start of the writing processes, in one of them."""

    def __init__(self) -> None:
        self.barrier: Barrier | None = None


def _write_in_processes(open_store: OpenStore, url: str, stream: str) -> list[list[str]]:
    """Start the writers, and return the ids of each, in order. Blocks."""
    # Cheaper where its server has the imports already. Plain forks would share connections and locks.
    context = multiprocessing.get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    with ProcessPoolExecutor(WRITERS, context, _set_barrier, (context.Barrier(WRITERS),)) as writers:
        running = [writers.submit(_write, open_store, url, stream, writer) for writer in range(WRITERS)]
        return [written.result() for written in running]


def _set_barrier(barrier: Barrier) -> None:
    PROCESS.single(_Start).barrier = barrier  # It can be passed only when a process starts.


def _write(open_store: OpenStore, url: str, stream: str, writer: int) -> list[str]:
    """Write the events of one process."""

    async def write() -> list[str]:
        async with open_store(url) as store:
            await anyio.to_thread.run_sync(_meet)
            return [await store.store_event(stream, note(number, writer=writer)) for number in range(EVENTS)]

    return anyio.run(write)


def _meet() -> None:
    """Wait for the other writers, so that all write concurrently."""
    barrier = PROCESS.single(_Start).barrier
    if barrier is None:
        raise threading.BrokenBarrierError
    barrier.wait(START_TIMEOUT)
