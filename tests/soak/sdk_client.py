"""The SDK's own client, with one session at a time, behind a load balancer that the soak records."""

import asyncio
from contextlib import suppress
from math import inf
from typing import Any

import httpx2
from mcp import ClientSession, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ResourceUpdatedNotification

from soak.client import CATCH_UP_SECONDS, DEFAULT_RETRY, LAST_CALL, PATIENCE
from soak.history import STANDALONE, Operation, Outcome, What
from soak.network import Surroundings
from soak.schedule import CallPlan, ClientPlan
from soak.wire import Wire
from support.waiting import until

_LISTEN_SECONDS = 2 * DEFAULT_RETRY
"""Seconds within which the SDK's client reconnects its standalone stream, unless it has given up."""


class SdkClient:
    """A client that calls with `mcp.ClientSession` over `streamable_http_client`.

    Args:
        number: Its number.
        around: The workers, and the history.
        plan: The schedule of the client.
    """

    def __init__(self, number: int, around: Surroundings, plan: ClientPlan) -> None:
        self.number = number
        self._around = around
        self._urls = around.urls
        self._plan = plan
        self._recorder = around.recorder
        self._sessions = 0
        self._calls = 0
        self._published: set[int] = set()
        self._received: set[int] = set()

    async def run(self, seconds: float) -> None:
        """Call until so many seconds of the run have passed, then once on every worker, and end the session."""
        await asyncio.sleep(self._plan.start())
        over = False
        while not over:
            over = await self._live(seconds)
            await asyncio.sleep(DEFAULT_RETRY / 10)

    async def _live(self, seconds: float) -> bool:
        """Open a session and call in it; True when the client has made its last calls."""
        self._sessions += 1
        self._published.clear()
        self._received.clear()
        name = f"{self.number}.{self._sessions}"
        wire = Wire(self.number, name, self._around, self._plan)

        async def take(message: Any) -> None:
            if isinstance(message, ResourceUpdatedNotification):
                number = int(str(message.params.uri).rpartition("/")[2])
                self._received.add(number)
                wire.note(What.PASSED_ON, wire.stream(STANDALONE), number=number)

        async with (
            httpx2.AsyncClient(transport=wire, timeout=None, trust_env=False) as http,
            streamable_http_client(f"{self._urls[0]}/mcp", http_client=http) as (read, write),
            ClientSession(read, write, message_handler=take) as session,
        ):
            over = await self._open(session, wire) and await self._use(session, wire, seconds)
            wire.leave()
            return over

    async def _open(self, session: ClientSession, wire: Wire) -> bool:
        """Shake hands, and list the tools, which the SDK's client would do at the first result."""
        if await self._exchange(wire, "initialize", session.initialize()) is not Outcome.RESULT:
            return False
        if not await self._initialized(wire):
            return False
        return await self._exchange(wire, "list", session.list_tools()) is Outcome.RESULT

    async def _initialized(self, wire: Wire) -> bool:
        """Whether the server accepted the notification, which the SDK's client sends in the background."""
        try:
            async with self._around.network.patience(PATIENCE):
                await wire.notified.wait()
        except TimeoutError:
            wire.note(What.DONE, wire.stream("initialized"), kind=Outcome.GAVE_UP, operation=Operation.NOTIFY)
            return False
        return wire.initialized

    async def _use(self, session: ClientSession, wire: Wire, seconds: float) -> bool:
        """Call until the session is lost or the plan changes it; True when the client has made its last calls."""
        first = self._calls
        while self._recorder.now < seconds and not wire.lost:
            plan = self._plan.call(self._calls, listens=True)
            if plan.new_session and self._calls > first:
                break
            await asyncio.sleep(plan.rest)
            await self._call(session, wire, plan)
        over = self._recorder.now >= seconds
        if over:
            for worker in range(len(self._urls)):
                wire.target = worker
                await self._call(session, wire, LAST_CALL)
        await self._stop_listening(wire)
        return over

    async def _call(self, session: ClientSession, wire: Wire, plan: CallPlan) -> None:
        self._calls += 1
        number = self._calls
        name = f"call-{number}"
        arguments: dict[str, Any] = {"name": f"{self.number}-{number}"}
        if plan.publishes:
            arguments |= {"number": number}
        else:
            arguments |= {"times": plan.times, "pause": plan.pause, "padding": plan.padding}

        async def take(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - by name
            wire.note(What.PASSED_ON, wire.stream(name), number=int((message or "").split()[1]))

        called = session.call_tool("publish" if plan.publishes else "count", arguments, progress_callback=take)
        outcome = await self._exchange(wire, name, called)
        if plan.publishes and outcome is Outcome.RESULT:
            self._published.add(number)

    async def _exchange(self, wire: Wire, name: str, awaitable: Any) -> Outcome:
        """Wait for the answer to a request, and record the outcome."""
        error: MCPError | None = None
        outcome = Outcome.RESULT
        try:
            async with self._around.network.patience(PATIENCE):
                await awaitable
        except TimeoutError:
            outcome = Outcome.GAVE_UP
        except MCPError as caught:
            error = caught
        stream = wire.stream(name)
        if error is not None:
            outcome = stream.outcome or (Outcome.NO_CURSOR if stream.began and not stream.cursor else Outcome.ABANDONED)
        note = "" if error is None else f"{error.code}: {error.message}"[:200]
        wire.note(What.DONE, stream, kind=outcome, note=note, **stream.where)
        return outcome

    async def _stop_listening(self, wire: Wire) -> None:
        """Wait until all that was published has arrived, or is late, unless the SDK's client has given up."""
        stream = wire.stream(STANDALONE)

        loop, network = asyncio.get_running_loop(), self._around.network
        began = loop.time()

        def received() -> bool:
            """Whether everything was received, or is late: the stream is open, and Redis is well, for long enough."""
            since = max(began, stream.opened_at, network.redis_well_since)
            return self._published <= self._received or (stream.open and loop.time() - since > CATCH_UP_SECONDS)

        def over() -> bool:
            return received() or wire.lost or stream.given_up(_LISTEN_SECONDS)

        wire.uncut = True
        with suppress(TimeoutError):
            async with network.patience(PATIENCE):
                await until(over, within=inf, every=0.05)
        if stream.connection >= 0:
            listened = stream.open and received() and not wire.lost
            wire.note(What.DONE, stream, kind=Outcome.STOPPED if listened else Outcome.REFUSED, **stream.where)
