"""What is done to four workers that share a target: an outage, slow replies, freezes, refusals, a deployment.

Clients reach the workers through one address: which one accepts a connection is not known, and does not matter.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.abc import TaskStatus

from support.chaos import content_of, start_call
from support.drill.app import BROKEN
from support.drill.deployment import WORKERS
from support.drill.shrunk import intervals
from support.drill.site import FOUR, Site
from support.http_client import HTTPClient, events
from support.tool_control import ToolControl
from support.waiting import until

LOG = logging.getLogger("drill")
SESSIONS = 6
BACKLOG = 200
"""Messages per session that make a backlog in an outage."""
RESUMED = 24
"""Finished calls that are resumed at a time: ratios and quantiles of fewer than 20 raise no alert."""
FOLLOWED = 4 * WORKERS * (SESSIONS + 3) + 20
"""Streams of calls that never end: more than four per session, if each worker serves all sessions of the drill."""
DEPLOYS = "EventscopeVersionsDiffer"
"""The alert about the deployment, which is under way from the first fault on."""
CROWD = 800
"""Messages of a call that make a backlog while Redis is overtaxed: for some seconds."""
SLOW, OVERTAXED, FROZEN, STALLED = 0.3, 1.0, 3.5, 3.0
"""Seconds by which replies of Redis are late, for which a worker is frozen, and for which a client reads nothing.

They are above the limits of the alerts, and below the patience of the store.
"""


@dataclass
class Caller:
    """A session with a call that runs until the end, whose stream is cut, and followed from then on."""

    client: HTTPClient
    tool: ToolControl
    cursor: str = ""
    received: list[str] = field(default_factory=list)
    reported: int = 0
    calls: int = 1
    over: bool = False
    _connection: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _order: anyio.Lock = field(default_factory=anyio.Lock)

    async def begins(self) -> None:
        """Open the session, call, and lose the stream."""
        await self.client.initialize()
        self.cursor = (await start_call(self.client, self.tool))[-1].id

    async def listens(self) -> None:
        """Resume, and whenever the stream ends, resume again, until the call is over."""
        while not self.over:
            with anyio.CancelScope() as self._connection:
                async with self.client.get(self.cursor) as response:
                    assert response.status_code == 200, await response.aread()
                    async for event in events(response):
                        self.cursor = event.id
                        if event.data:
                            self.received.append(content_of(event))
                            self.over = "result" in event.message

    def is_cut(self) -> None:
        """Lose the stream."""
        self._connection.cancel()

    async def sends(self, count: int = 1) -> None:
        """Have the tool report numbers, after those of another stage."""
        async with self._order:
            first, self.reported = self.reported, self.reported + count
            await self.tool.step(*(str(number) for number in range(first, first + count)))

    async def has_all(self) -> None:
        """Return when the client has everything, each once, in order."""
        await until(lambda: len(self.received) >= self.reported)
        assert self.received == [str(number) for number in range(self.reported)]

    async def ends(self) -> None:
        """Have the tool return."""
        await self.tool.finish()
        await until(lambda: self.over)
        assert self.received == [*map(str, range(self.reported)), f"{self.reported} steps"]


async def _resume_slowly(client: HTTPClient, cursor: str) -> None:
    """Resume, and read nothing for a while, with small buffers on the way; then everything."""
    address = urlsplit(client.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # The sender's buffer grows with it.
    connection.settimeout(0)
    await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    headers = client.request_headers() | {"host": address.netloc, "last-event-id": cursor, "connection": "close"}
    lines = [f"GET {address.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    try:
        await anyio.sleep(STALLED)
        assert b" 200 " in await reader.readline()
        while await reader.read(64 << 10):
            pass
    finally:
        writer.close()


class Drill:
    """The stages, in order: `calm`, then `faults`.

    Args:
        site: Where.
        http: A client without limits of connections.
        control: Makes the control of a tool.
    """

    def __init__(self, site: Site, http: httpx2.AsyncClient, control: Callable[[], ToolControl]) -> None:
        self._site = site
        self._four = site.four
        self._http = http
        self._callers = [Caller(self._new(), control()) for _ in range(SESSIONS)]

    def _new(self) -> HTTPClient:
        """A client without a session."""
        return HTTPClient(self._http, f"{self._four.url}/mcp")

    async def run(self, calm: anyio.Event, go_on: anyio.Event) -> None:
        """Run all stages.

        Args:
            calm: Set when all callers have everything, and Prometheus has seen it.
            go_on: Awaited before the first fault.
        """
        site, callers = self._site, self._callers
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                await caller.begins()
                tasks.start_soon(caller.listens)
                await caller.sends()
            for caller in callers:
                await caller.has_all()
            await site.scraped(site.four)
            calm.set()
            await go_on.wait()
            async with anyio.create_task_group() as others:
                others.start_soon(self._run_stage, self._deploys)
                await self._run_stage(self._outage)
                async with anyio.create_task_group() as clients:
                    await clients.start(self._pile_up)
                    await clients.start(self._read_slowly)
                    for stage in (self._raises, self._cannot_trace):
                        others.start_soon(self._run_stage, stage)
                    for stage in (self._slow, self._frozen, self._overtaxed):
                        await self._run_stage(stage)
                # From then on a resume may be refused, and there are more sessions per followed stream.
                await self._run_stage(self._full)
            for caller in callers:
                await caller.ends()
        await site.scraped(site.four)

    async def _run_stage(self, stage: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        await stage()
        LOG.info(
            "%5.1f s: four%s took %.1f s", time.time() - self._site.began, stage.__name__, time.monotonic() - began
        )

    async def _outage(self) -> None:
        """Redis is killed while tools talk, clients resume, and ask for sessions that a worker does not know.

        One alert fires, and no other, in the outage and for some time after it. None is tolerated: an outage silences
        those about latencies, too.
        """
        site, stranger = self._site, self._new()
        stranger.session = "0" * 32
        stranger.headers["connection"] = "close"  # The next request may reach another worker.

        async def ask() -> None:
            async with stranger.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
                assert response.status_code == 503, await response.aread()

        async def all_notice() -> bool:
            await ask()
            return site.prometheus.value(f"sum({degraded}) == count({degraded})") is not None

        self._four.redis.kill()
        degraded = f'eventscope_degraded{{job="{FOUR}"}}'
        for caller in self._callers:
            await caller.sends(BACKLOG)
        await until(all_notice, every=0.1)
        await site.scraped(site.four)
        noticed = time.time() + 2 * site.interval  # The rules are evaluated after the scrape.
        self._callers[0].is_cut()
        # Until every alert about a consequence would have fired: their windows and `for` are five minutes.
        lasted = round(1000 * site.interval * (intervals("5m") + intervals("5m") + 1))
        began = time.monotonic()
        while (site.prometheus.value(f"min_over_time((max({degraded}))[{lasted}ms:{site.interval}s])") or 0) < 1 or (
            time.monotonic() - began < lasted / 1000
        ):
            await ask()
            await anyio.sleep(0.5 * site.interval)
        pending = f'job_store:eventscope_backlog_length:sum{{job="{FOUR}"}}'
        assert (site.prometheus.value(f"max_over_time({pending}[{lasted}ms])") or 0) > 1000
        refused = f'sum(eventscope_requests_refused_total{{job="{FOUR}", reason="unavailable"}})'
        assert (site.prometheus.value(refused) or 0) > 0
        await site.fires(FOUR, "EventscopeStoreDegraded")
        self._four.redis.start()
        await site.shows(f'sum({degraded} + on (pid) eventscope_backlog_length{{job="{FOUR}"}}) == bool 0')
        for caller in self._callers:
            await caller.has_all()
        await anyio.sleep(site.interval * intervals("5m"))
        fired = site.fired(time.time() - noticed)
        assert {name for job, name in fired if job == FOUR} - {DEPLOYS} == {"EventscopeStoreDegraded"}

    def _fired(self) -> set[str]:
        """The alerts that have fired so far."""
        self._site.end()
        return {name for job, name in self._site.fired() if job == FOUR}

    def _has_fired(self, *names: str) -> None:
        """Check which alerts have fired so far, of those that no concurrent stage raises."""
        concurrent = {"EventscopeFollowersGrowing", "EventscopeOperationsFailing", "EventscopeTelemetryFailing"}
        concurrent |= {DEPLOYS, "EventscopeReplaySlow"}
        concurrent |= self._site.tolerated
        assert self._fired() - concurrent == set(names) - concurrent

    async def _until_fires(self, name: str, fault: Callable[[], Awaitable[None]]) -> None:
        """Repeat a fault until its alert fires."""

        async def fires() -> bool:
            await fault()
            return name in self._fired()

        try:
            await until(fires, within=self._site.patience)
        except AssertionError:
            msg = f"{name} should fire for {FOUR}, and did not within {self._site.patience} seconds"
            raise AssertionError(msg) from None

    async def _all_send(self) -> None:
        for caller in self._callers:
            await caller.sends()
        await anyio.sleep(0.1 * self._site.interval)

    async def _slow(self) -> None:
        """Replies of Redis are late, and none is so late that it counts as an outage."""
        self._four.proxy.delay = SLOW
        await self._until_fires("EventscopeStoreSlow", self._all_send)
        self._four.proxy.delay = 0.0
        self._has_fired("EventscopeStoreDegraded", "EventscopeStoreSlow")

    async def _frozen(self) -> None:
        """Workers are frozen for seconds, one after another, as by a tool that blocks the event loop."""
        pids = itertools.cycle(self._four.freezable())

        async def freeze() -> None:
            pid = next(pids)
            os.kill(pid, signal.SIGSTOP)
            try:
                with anyio.move_on_after(FROZEN):
                    while True:
                        await self._all_send()
            finally:
                os.kill(pid, signal.SIGCONT)

        await self._until_fires("EventscopeFollowLagHigh", freeze)
        self._has_fired("EventscopeStoreDegraded", "EventscopeStoreSlow", "EventscopeFollowLagHigh")

    async def _overtaxed(self) -> None:
        """Replies of Redis take a second: more messages arrive than are stored."""
        self._four.proxy.delay = OVERTAXED

        async def talk() -> None:
            for caller in self._callers:
                await self._begun(caller, times=CROWD, padding=0)
            await anyio.sleep(4 * self._site.interval)

        await self._until_fires("EventscopeBacklogGrowing", talk)
        self._four.proxy.delay = 0.0
        pending = f'sum(eventscope_backlog_length{{job="{FOUR}"}})'
        await self._site.shows(f"{pending} == bool 0")

    async def _begun(self, caller: Caller, **arguments: float) -> str:
        """Call a tool that reports by itself, and lose the stream; returns the cursor."""
        caller.calls += 1
        call = caller.client.call(caller.calls, "count", name="x", pause=0, **arguments)
        async with call as response:
            return (await anext(events(response))).id

    async def _read_slowly(self, *, task_status: TaskStatus[None]) -> None:
        """Clients resume and read nothing for seconds, as behind a slow network: started when the calls have ended."""
        resumed = []
        for number in range(RESUMED):
            caller = self._callers[number % SESSIONS]
            # More than the buffers on the way take; those of the kernel grow with what it has learnt of this host.
            cursor = await self._begun(caller, times=24, padding=64 << 10)
            await caller.client.resume(cursor)  # To the end: what is resumed then is replayed.
            resumed.append((caller.client, cursor))
        task_status.started()

        async def resume() -> None:
            async with anyio.create_task_group() as tasks:
                for client, cursor in resumed:
                    tasks.start_soon(_resume_slowly, client, cursor)

        await self._until_fires("EventscopeReplaySlow", resume)

    async def _full(self) -> None:
        """More sessions are opened than a worker may have."""

        async def open_session() -> None:
            statuses = [await self._new().open() for _ in range(4)]
            if 503 in statuses:
                await anyio.sleep(0.2 * self._site.interval)

        await self._until_fires("EventscopeRequestsRefused", open_session)

    async def _deploys(self) -> None:
        """A worker with a newer version starts, and the deployment goes no further."""
        await anyio.to_thread.run_sync(self._four.deploy)

    async def _pile_up(self, *, task_status: TaskStatus[None]) -> None:
        """Calls never end, and their clients have resumed: started when all streams are followed."""
        client = self._new()
        await client.initialize()

        opening = anyio.Semaphore(8)  # More would exhaust the connections of the workers to Redis, which is an outage.

        async def hang(number: int) -> None:
            async with AsyncExitStack() as stack:
                async with opening:
                    async with client.call(number, "hang") as response:
                        cursor = (await anext(events(response))).id
                    response = await stack.enter_async_context(client.get(cursor))
                    assert response.status_code == 200
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            for number in range(FOLLOWED):
                tasks.start_soon(hang, number)
            await self._site.shows(f'sum(eventscope_streams_followed{{job="{FOUR}"}}) >= {FOLLOWED}')
            task_status.started()
            await self._site.fires(FOUR, "EventscopeFollowersGrowing")
            tasks.cancel_scope.cancel()

    async def _raises(self) -> None:
        """A handler of the server raises at each request."""
        client = self._new()
        await client.initialize()
        request = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": BROKEN}}

        async def read() -> None:
            request["id"] = int(str(request["id"])) + 1
            async with client.post(request) as response:
                assert "error" in [event async for event in events(response)][-1].message
            await anyio.sleep(0.1 * self._site.interval)

        await self._until_fires("EventscopeOperationsFailing", read)

    async def _cannot_trace(self) -> None:
        """The exporter of the application raises."""
        self._four.tracing_fails.touch()
        await self._until_fires("EventscopeTelemetryFailing", self._all_send)
        self._four.tracing_fails.unlink()
