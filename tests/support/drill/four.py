"""What is done to four workers that share a target: an outage, slow replies, blocked loops, refusals, a deployment.

Clients reach the workers through one address: which one accepts a connection is not known, and does not matter.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import httpx2

from support.chaos import content_of, start_call
from support.drill.app import BROKEN
from support.drill.deployment import MAX_SESSIONS, WORKERS
from support.drill.shrunk import intervals
from support.drill.site import FOUR, Site
from support.http_client import HTTPClient, events
from support.tool_control import ToolControl
from support.waiting import until

SESSIONS = 8
BACKLOG = 300
"""Messages per session that make a backlog: a session may have 256 that are not acknowledged."""
RESUMED = 24
"""Finished calls that are resumed at a time: ratios and quantiles of fewer than 20 raise no alert."""
FOLLOWED = 4 * WORKERS * MAX_SESSIONS + 20
"""Streams that no client closes: more than four per session, however many sessions there are."""
SLOW, VERY_SLOW, BLOCKED = 0.3, 3.0, 3.5
"""Seconds by which a reply is slow, and for which an event loop is blocked: above the limits of the alerts."""
MOST = 60
"""Repetitions of a fault after which its alert should have fired."""


@dataclass
class Caller:
    """A session with a call that runs until the end, whose stream is cut, and followed from then on."""

    client: HTTPClient
    tool: ToolControl
    cursor: str = ""
    heard: list[str] = field(default_factory=list)
    told: int = 0
    over: bool = False
    _connection: anyio.CancelScope = field(default_factory=anyio.CancelScope)

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
                            self.heard.append(content_of(event))
                            self.over = "result" in event.message

    def is_cut(self) -> None:
        """Lose the stream."""
        self._connection.cancel()

    async def says(self, count: int = 1) -> None:
        """Have the tool report numbers."""
        await self.tool.step(*(str(number) for number in range(self.told, self.told + count)))
        self.told += count

    async def has_all(self) -> None:
        """Return when the client has everything, each once, in order."""
        await until(lambda: len(self.heard) >= self.told)
        assert self.heard == [str(number) for number in range(self.told)]

    async def ends(self) -> None:
        """Have the tool return."""
        await self.tool.finish()
        await until(lambda: self.over)
        assert self.heard == [*map(str, range(self.told)), f"{self.told} steps"]


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
                await caller.says()
            for caller in callers:
                await caller.has_all()
            await site.scraped(site.four)
            calm.set()
            await go_on.wait()
            await self._outage()
            async with anyio.create_task_group() as others:
                for stage in (self._deploys, self._piles_up, self._raises, self._cannot_trace):
                    others.start_soon(stage)
                await self._slow()
                await self._blocked()
                await self._very_slow()
                await self._full()
            for caller in callers:
                await caller.ends()
        await site.scraped(site.four)

    async def _outage(self) -> None:
        """Redis is killed while tools talk, clients resume and new ones arrive: one alert fires, and no other."""
        site = self._site
        self._four.redis.kill()
        degraded = f'eventscope_degraded{{job="{FOUR}"}}'
        for caller in self._callers:
            await caller.says(BACKLOG)
        await site.shows(f"sum({degraded}) == {WORKERS}")
        self._callers[0].is_cut()
        # Until every alert about a consequence would have fired: their windows and `for` are five minutes.
        lasted = round(1000 * site.interval * (intervals("5m") + intervals("5m") + 1))
        began = time.monotonic()
        while (site.prometheus.value(f"min_over_time((max({degraded}))[{lasted}ms:{site.interval}s])") or 0) < 1 or (
            time.monotonic() - began < lasted / 1000
        ):
            assert await self._new().open() == 503
            await anyio.sleep(0.5 * site.interval)
        pending = f'job_store:eventscope_backlog_length:sum{{job="{FOUR}"}}'
        assert (site.prometheus.value(f"max_over_time({pending}[{lasted}ms])") or 0) > 1000
        refused = f'sum(eventscope_requests_refused_total{{job="{FOUR}", reason="unavailable"}})'
        assert (site.prometheus.value(refused) or 0) > 0
        await site.fires(FOUR, "EventscopeStoreDegraded")
        self._has_fired("EventscopeStoreDegraded")
        self._four.redis.start()
        await site.shows(f'sum({degraded} + on (pid) eventscope_backlog_length{{job="{FOUR}"}}) == bool 0')
        for caller in self._callers:
            await caller.has_all()

    def _has_fired(self, *names: str) -> None:
        """Check which alerts have fired so far, of those that no concurrent stage raises."""
        self._site.end()
        concurrent = {"EventscopeFollowersGrowing", "EventscopeOperationsFailing", "EventscopeTelemetryFailing"}
        concurrent |= {"EventscopeVersionsDiffer"}
        fired = {name for job, name in self._site.fired() if job == FOUR}
        assert fired - concurrent == set(names)

    async def _until_fires(self, name: str, fault: Callable[[], Awaitable[None]]) -> None:
        """Repeat a fault until its alert fires."""
        for _ in range(MOST):
            await fault()
            if name in self._site.firing(FOUR):
                return
        msg = f"{name} should fire for {FOUR}"
        raise AssertionError(msg)

    async def _all_say(self) -> None:
        for caller in self._callers:
            await caller.says()
        await anyio.sleep(0.1 * self._site.interval)

    async def _slow(self) -> None:
        """Replies of Redis are late, and none is so late that it counts as an outage."""
        self._four.proxy.delay = SLOW
        await self._until_fires("EventscopeStoreSlow", self._all_say)
        self._four.proxy.delay = 0.0
        self._has_fired("EventscopeStoreDegraded", "EventscopeStoreSlow")

    async def _blocked(self) -> None:
        """A tool blocks the event loop of one worker after another."""
        over = anyio.Event()
        client = self._new()
        client.headers["connection"] = "close"  # The next call may reach another worker.
        await client.initialize()

        async def block() -> None:
            number = 0
            while not over.is_set():
                number += 1
                async with client.call(number, "block", seconds=BLOCKED) as response:
                    assert [event async for event in events(response)]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(block)
            await self._until_fires("EventscopeFollowLagHigh", self._all_say)
            over.set()
        self._has_fired("EventscopeStoreDegraded", "EventscopeStoreSlow", "EventscopeFollowLagHigh")

    async def _very_slow(self) -> None:
        """Replies of Redis take seconds: resumes do, too, and more messages arrive than are stored."""
        site = self._site
        finished = [await self._finished(caller, number) for caller in self._callers for number in range(2, 5)]
        assert len(finished) == RESUMED
        self._four.proxy.delay = VERY_SLOW

        async def resume() -> None:
            async with anyio.create_task_group() as tasks:
                for client, cursor in finished:
                    tasks.start_soon(client.resume, cursor)

        async def talk() -> None:
            for caller in self._callers:
                await caller.says(BACKLOG)
            await anyio.sleep(4 * site.interval)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_fires, "EventscopeReplaySlow", resume)
            tasks.start_soon(self._until_fires, "EventscopeBacklogGrowing", talk)
        self._four.proxy.delay = 0.0

    async def _finished(self, caller: Caller, number: int) -> tuple[HTTPClient, str]:
        """Make a call that ends; returns its client, and the id before its result."""
        async with caller.client.call(number, "echo", text="x") as response:
            return caller.client, (await anext(events(response))).id

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

    async def _piles_up(self) -> None:
        """A proxy keeps the connections of clients open that have left."""
        client = self._new()
        await client.initialize()

        async def hold() -> None:
            async with client.get() as response:
                assert response.status_code == 200
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            for _ in range(FOLLOWED):
                tasks.start_soon(hold)
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
        await self._until_fires("EventscopeTelemetryFailing", self._all_say)
        self._four.tracing_fails.unlink()
