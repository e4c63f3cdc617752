"""Ten thousand sessions on a worker two milliseconds from Redis: hiccups and data loss."""

import asyncio
import gc
import json
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from prometheus_client import CollectorRegistry

from benchmarks.processes import ROOT
from mcp_eventscope import RedisEventStore, ResumableSessionManager, http_app
from mcp_eventscope.redis.client import connect as connect_redis
from mcp_eventscope.sessions.registry import SessionRegistry
from mcp_eventscope.store.coordination import NewRecord
from support.chaos import content_of, on_url
from support.controlled_server import ControlledServer
from support.http_client import Connect, Event, HTTPClient, events
from support.servers import HOST
from support.serving import serving
from support.valkeys import OwnValkey, own_valkey
from support.waiting import pace, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SESSIONS = 10_000
CALLS = 8
ROUND_TRIP = 0.002
HICCUPS, HICCUP_SECONDS = 10, 1.0
RECOVERY_SECONDS = 0.5
"""Between two hiccups, on a quiet machine: enough for the lease, and not for all records."""
LEASE = 4.0
"""Seconds on a quiet machine."""
TTL = 3600
HANDSHAKE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "idle", "version": "0"}}
WRITTEN = re.compile(rb'"HSET" "[^"{]*\{(\w+)\}:(requests|session)"')


@dataclass
class Way:
    """The way to a distant Redis: a process that delays every byte, and can be frozen."""

    url: str
    process: asyncio.subprocess.Process

    def freeze(self) -> None:
        """Let nothing through, and lose nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let everything through."""
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def distant(server: OwnValkey) -> AsyncIterator[Way]:
    """The way to a Redis at a distance of `ROUND_TRIP`, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.e2e.delay_proxy", HOST, str(server.port), str(ROUND_TRIP * 1000)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield Way(f"redis://{HOST}:{int(await process.stdout.readline())}/0", process)
    finally:
        process.kill()
        await process.wait()


@contextmanager
def reading(read: Callable[[], None]) -> Iterator[None]:
    """Read in a thread of its own, which a busy event loop does not delay, until the block ends."""
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def lease_read(server: OwnValkey, key: str) -> Iterator[list[int]]:
    """The milliseconds that a lease has left, read around the proxy every few milliseconds; -2: it has expired."""
    left: list[int] = []
    over = threading.Event()

    def read() -> None:
        with server.client() as client:
            while not over.wait(0.005):
                left.append(client.pttl(key))

    with reading(read):
        try:
            yield left
        finally:
            over.set()


@contextmanager
def commands_read(server: OwnValkey) -> Iterator[bytearray]:
    """The commands that Redis executes from now on, as `MONITOR` prints them."""
    text = bytearray()
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(server.socket))
        monitor.sendall(b"MONITOR\r\n")
        assert monitor.recv(5) == b"+OK\r\n"

        def read() -> None:
            while data := monitor.recv(1 << 16):
                text.extend(data)

        with reading(read):
            try:
                yield text
            finally:
                monitor.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def longest_turn() -> AsyncIterator[Callable[[], float]]:
    """The longest that the event loop has worked without a turn for a heartbeat, in seconds of its CPU time.

    The time that a busy machine gives to others does not count. Nor does a full garbage collection, whose length
    depends on everything that is in memory: there is none, unless the block itself makes so many objects.
    """
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.002)
            longest = max(longest, time.thread_time() - began)

    gc.collect()
    gc.freeze()
    heartbeat = asyncio.create_task(beat())
    try:
        yield lambda: longest
    finally:
        heartbeat.cancel()
        gc.unfreeze()


@dataclass
class Call:
    """A call that runs on the first worker, and the messages that its client has received."""

    name: str
    client: HTTPClient
    received: list[str] = field(default_factory=list)
    """The last is the result, or the error's code."""
    ended: bool = False

    async def stay(self) -> None:
        """Make the call, and read its stream to its end."""
        async with self.client.call(1, "steps", name=self.name) as response:
            async for event in events(response):
                self._take(event)

    async def move(self, url: str) -> None:
        """Make the call, be cut, and follow it through another worker, which knows of the first by its lease only."""
        async with self.client.call(1, "steps", name=self.name) as response:
            cursor = (await anext(events(response))).id
        elsewhere = on_url(self.client, url)
        while not self.ended:
            async with elsewhere.get(cursor) as response:
                async for event in events(response):
                    cursor = event.id or cursor
                    self._take(event)

    def _take(self, event: Event) -> None:
        if event.data:
            self.received.append(content_of(event))
            self.ended = "method" not in event.message


@dataclass
class World:
    """A distant Redis, a worker with thousands of idle sessions, and calls that run there."""

    server: OwnValkey
    way: Way
    store: RedisEventStore
    controlled: ControlledServer
    idle: set[str]
    calls: list[Call]
    registered: float
    """Seconds of CPU time that it takes to record the idle sessions."""
    pace: int
    """By how much the schedule is stretched."""

    @property
    def lease(self) -> str:
        """The key of the worker's lease."""
        return self.store._keys.worker(self.store._worker.name)

    def report(self, message: str, calls: list[Call]) -> None:
        """Let calls report a message."""
        for call in calls:
            self.controlled.step(call.name, message)

    async def until_received(self, message: str, calls: list[Call]) -> None:
        """Return when the clients of calls have a message."""
        await until(lambda: all(call.received[-1:] == [message] or call.ended for call in calls))
        assert [call.received[-1] for call in calls] == [message] * len(calls), "a call was answered, and runs"

    async def finish(self) -> None:
        """Let every call return, and return when its client has the result."""
        for call in self.calls:
            self.controlled.finish(call.name)
        await until(lambda: all(call.ended for call in self.calls))

    def recorded(self) -> int:
        """The idle sessions that Redis knows."""
        with self.server.client() as client:
            keys = client.scan_iter(match=f"{self.store.key_prefix}*:session", count=10_000)
            return len({key.partition(b"{")[2].partition(b"}")[0].decode() for key in keys} & self.idle)


@asynccontextmanager
async def world(connect: Connect) -> AsyncIterator[World]:
    """The sessions are recorded, and the calls run: every other client follows its call through a second worker."""
    async with AsyncExitStack() as stack:
        slower = await anyio.to_thread.run_sync(pace)
        lease = LEASE * slower
        server = stack.enter_context(own_valkey())
        way = await stack.enter_async_context(distant(server))
        store = RedisEventStore(await stack.enter_async_context(connect_redis(way.url)), ttl=TTL)
        controlled = ControlledServer()
        app = http_app(controlled.mcp, store, registry=CollectorRegistry(), worker_lease=lease, max_sessions=None)
        manager = controlled.mcp.session_manager
        assert isinstance(manager, ResumableSessionManager)
        idle = {uuid.uuid4().hex for _ in range(SESSIONS)}
        registered = await register(manager, idle)
        other = http_app(
            ControlledServer().mcp, redis_url=server.url, ttl=TTL, registry=CollectorRegistry(), worker_lease=lease
        )
        near, far = [await stack.enter_async_context(serving(each)) for each in (app, other)]
        stack.callback(lambda: [manager._server_instances.pop(session, None) for session in idle])
        calls = [Call(f"call {number}", connect(near)) for number in range(CALLS)]
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for number, call in enumerate(calls):
            await call.client.initialize()
            tasks.create_task(call.move(far) if number % 2 else call.stay())
        found = World(server, way, store, controlled, idle, calls, registered, slower)
        found.report("begun", calls)
        await found.until_received("begun", calls)
        yield found


async def register(manager: ResumableSessionManager, idle: set[str]) -> float:
    """Let a worker have sessions whose clients are connected, and ask nothing. Returns what `World.registered` is."""
    store, records = manager._store, manager._registry
    assert isinstance(records, SessionRegistry)
    assert store is not None
    records.records.update({each: NewRecord(each, "", json.dumps(HANDSHAKE), "steered") for each in idle})
    began, cpu = time.monotonic(), time.thread_time()
    await records.republish(tuple(idle))
    registered = time.thread_time() - cpu
    assert time.monotonic() - began < SESSIONS * ROUND_TRIP, "a round trip for each session: they are not pipelined"
    for session in idle:
        transport = manager._transport_of(store, session)
        transport.idle_scope = anyio.CancelScope(deadline=anyio.current_time() + TTL)
        manager._server_instances[session] = transport
    return registered


async def test_worker_of_many_sessions_keeps_its_lease_through_hiccups(connect: Connect) -> None:
    """Redis or its network is frozen repeatedly: no lease, call or session is lost."""
    async with world(connect) as found:
        near = found.calls[::2]
        async with longest_turn() as longest:
            with lease_read(found.server, found.lease) as left:
                for number in range(HICCUPS):
                    frozen = found.server if number % 2 else found.way
                    frozen.freeze()
                    thawed = anyio.current_time() + HICCUP_SECONDS
                    found.report(f"in hiccup {number}", found.calls)
                    await found.until_received(f"in hiccup {number}", near)
                    await anyio.sleep_until(thawed)
                    frozen.thaw()
                    await found.until_received(f"in hiccup {number}", found.calls)
                    await anyio.sleep(RECOVERY_SECONDS * found.pace)
            blocked = longest()
        assert min(left) > 0, "the lease expired, although Redis could be reached"
        assert blocked < found.registered / 4
        await found.finish()
        reported = ["begun", *(f"in hiccup {number}" for number in range(HICCUPS))]
        assert [call.received for call in found.calls] == [[*reported, f"{len(reported)} steps"]] * CALLS
        assert found.recorded() == SESSIONS


async def test_worker_of_many_sessions_restores_running_requests_first(connect: Connect) -> None:
    """Redis restarts empty: running requests are claimed first, and the lease is kept meanwhile."""
    async with world(connect) as found:
        speaking, silent = found.calls[:4], found.calls[4:]
        near = speaking[::2]
        found.way.freeze()
        found.server.kill()
        await anyio.to_thread.run_sync(found.server.start)
        with commands_read(found.server) as commands:
            found.report("in the outage", speaking)
            await found.until_received("in the outage", near)
            async with longest_turn() as longest:
                found.way.thaw()
                with found.server.client() as client:
                    await until(lambda: client.exists(found.lease))
                    with lease_read(found.server, found.lease) as left:
                        # Of each call the record, the list and the claim, and of each worker the lease.
                        await until(lambda: client.dbsize() >= SESSIONS + 3 * CALLS + 2)
                blocked = longest()
            await until(lambda: found.recorded() == SESSIONS)
            await found.until_received("in the outage", speaking)
        assert min(left) > 0, "the lease expired while sessions were recorded"
        assert blocked < found.registered / 4
        await found.finish()
        assert [call.received for call in speaking] == [["begun", "in the outage", "2 steps"]] * len(speaking)
        assert [call.received for call in silent] == [["begun", "1 steps"]] * len(silent)
        written = [(session.decode(), key) for session, key in WRITTEN.findall(commands)]
        running = {call.client.session for call in found.calls}
        first_idle = next(place for place, (session, _) in enumerate(written) if session in found.idle)
        assert {session for session, key in written[:first_idle] if key == b"requests"} == running, "not claimed first"
        assert {session for session, key in written[:first_idle] if key == b"session"} == running, "not recorded first"
