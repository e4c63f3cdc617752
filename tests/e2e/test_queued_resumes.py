"""Clients that resume too often delay and refuse themselves only: over real HTTP, against a real Valkey."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import ResumableSessionManager, http_app
from mcp_eventscope.sessions import resume_limit
from support.controlled_server import ControlledServer
from support.http_client import Connect, Event, HTTPClient, events
from support.logs import Recorder
from support.principals import authenticated
from support.serving import serving
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

LARGE = "x" * 256 * 1024
MANY = 64
"""Events of this size that do not fit in the buffers between a server and a client that does not read."""


@dataclass
class Worker:
    """A worker with room for one replay per principal, and two waiting resumes per session."""

    url: str
    controlled: ControlledServer
    registry: CollectorRegistry
    log: Recorder

    @property
    def limiter(self) -> resume_limit.ResumeLimiter:
        """The limiter of its session manager."""
        manager = self.controlled.mcp.session_manager
        assert isinstance(manager, ResumableSessionManager)
        return manager._resumes

    def waiting(self) -> int:
        """The waiting resumes of the only principal that resumes; -1: there is none, or another one."""
        return self.limiter._waiting.total() if len(self.limiter) == 1 else -1

    def waits(self, part: str) -> float:
        """The number of waits that were measured, or their sum in seconds."""
        return self.registry.get_sample_value(f"eventscope_resume_wait_seconds_{part}", {"store": "steered"}) or 0

    @property
    def refused(self) -> float:
        """The resumes that were refused."""
        labels = {"store": "steered", "reason": "resumes"}
        return self.registry.get_sample_value("eventscope_requests_refused_total", labels) or 0

    async def cursor(self, client: HTTPClient, request_id: int, *steps: str) -> str:
        """The cursor before the first event of a finished call."""
        name = f"{client.session} {request_id}"
        async with client.call(request_id, "steps", name=name) as response:
            stream = events(response)
            first = await anext(stream)
            self.controlled.step(name, *steps)
            self.controlled.finish(name)
            async for _ in stream:
                pass
        return first.id


@pytest.fixture(params=["principals", "sessions"])
async def worker(
    request: pytest.FixtureRequest, valkey_url: str, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Worker]:
    """A worker with two principals, or without authentication."""
    monkeypatch.setattr(resume_limit, "MAX_REPLAYS", 1)
    monkeypatch.setattr(resume_limit, "MAX_WAITING", 2)
    controlled = ControlledServer(**(authenticated() if request.param == "principals" else {}))
    registry, log = CollectorRegistry(), Recorder()
    app = http_app(
        controlled.mcp,
        redis_url=f"{valkey_url}?socket_timeout={CEILING}",
        store_timeout=CEILING,  # A resume that waits for Redis is not counted as waiting for its turn.
        key_prefix=key_prefix,
        max_session_bytes=64 * 1024 * 1024,
        registry=registry,
        logger=log,
    )
    async with serving(app) as url:
        yield Worker(url, controlled, registry, log)


@pytest.fixture
async def alice(worker: Worker, connect: Connect) -> HTTPClient:
    """A client that resumes too often."""
    client = connect(worker.url, authorization="Bearer alice")
    await client.initialize()
    return client


@pytest.fixture
async def bob(worker: Worker, connect: Connect) -> HTTPClient:
    """A client of another principal, with a session of its own."""
    client = connect(worker.url, authorization="Bearer bob")
    await client.initialize()
    return client


def results(received: list[Event]) -> int:
    """The number of results."""
    return sum("result" in event.message for event in received if event.data)


async def test_resumes_wait_then_are_refused_and_others_are_unaffected(
    worker: Worker, alice: HTTPClient, bob: HTTPClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting resumes get their events when their turn comes, unless their clients have disconnected."""
    monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 3600)
    large = await worker.cursor(alice, 1, *[LARGE] * MANY)
    small = [await worker.cursor(alice, number, "a") for number in range(2, 6)]
    other = await worker.cursor(bob, 1, "a")
    async with AsyncExitStack() as stack:

        async def resume(cursor: str) -> httpx2.Response:
            return await stack.enter_async_context(alice.get(cursor))

        holder = await resume(large)
        await until(lambda: worker.waiting() == 0)
        first = await resume(small[0])
        async with alice.get(small[1]) as cut:
            assert (first.status_code, cut.status_code) == (200, 200)
            await until(lambda: worker.waiting() == 2)
            for _ in range(2):
                async with alice.get(small[2]) as refused:
                    assert refused.status_code == 503
                    assert refused.headers["retry-after"] == "1"
                    assert "Too many resumes in progress" in (await refused.aread()).decode()
            await until(lambda: worker.refused == 2)
            assert results(await bob.resume(other)) == 1
        await until(lambda: worker.waiting() == 1)
        last = await resume(small[3])
        assert last.status_code == 200
        await until(lambda: worker.waiting() == 2)
        received = [event async for event in events(holder)]
        assert (len(received), results(received)) == (MANY + 1, 1)
        assert [results([event async for event in events(each)]) for each in (first, last)] == [1, 1]
    await until(lambda: not len(worker.limiter))
    # Of the holder, the other principal, the one that was cut, and the two that had to wait.
    assert worker.waits("count") == 5
    assert worker.waits("sum") > 0
    (entry,) = worker.log.named("event_store.session_refused")
    assert (entry["reason"], entry["level"]) == ("resumes", "warning")
    assert alice.session not in str(worker.log.entries)


async def test_sessions_that_share_a_credential_resume_together(
    worker: Worker, alice: HTTPClient, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the restart of a gateway: more resumes wait than one session may have, and none is refused."""
    monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 3600)
    large = await worker.cursor(alice, 1, *[LARGE] * MANY)
    sessions = []
    for _ in range(4):
        client = connect(worker.url, authorization="Bearer alice")
        await client.initialize()
        sessions.append((client, await worker.cursor(client, 1, "a")))
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(alice.get(large))
        opened = [await stack.enter_async_context(client.get(cursor)) for client, cursor in sessions]
        assert [each.status_code for each in opened] == [200] * len(sessions)
        assert results([event async for event in events(holder)]) == 1
        assert [results([event async for event in events(each)]) for each in opened] == [1] * len(sessions)
    await until(lambda: not len(worker.limiter))
    assert not worker.refused


async def test_newest_resume_of_a_stream_takes_the_place_of_a_waiting_one(
    worker: Worker, alice: HTTPClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that resumes one stream in a loop without reading waits in one place."""
    monkeypatch.setattr(resume_limit, "SLICE_SECONDS", 3600)
    large = await worker.cursor(alice, 1, *[LARGE] * MANY)
    small = await worker.cursor(alice, 2, "a")
    async with alice.get(large) as holder, AsyncExitStack() as stack:
        await until(lambda: worker.waiting() == 0)
        for _ in range(10):
            newest = await stack.enter_async_context(alice.get(small))
            assert newest.status_code == 200
            await until(lambda: worker.waiting() == 1)
        received = [event async for event in events(holder)]
        assert results(received) == 1
        assert results([event async for event in events(newest)]) == 1
    await until(lambda: not len(worker.limiter))


async def test_client_that_does_not_read_delays_no_other_resume(worker: Worker, alice: HTTPClient) -> None:
    """Its replay lends its slot, and continues where it was when the client reads."""
    large = await worker.cursor(alice, 1, *[LARGE] * MANY)
    small = [await worker.cursor(alice, number, "a") for number in range(2, 5)]
    async with alice.get(large) as holder:
        await until(lambda: worker.waiting() == 0)
        found = await asyncio.gather(*(alice.resume(cursor) for cursor in small[:2]))
        found.append(await alice.resume(small[2]))
        assert [results(each) for each in found] == [1, 1, 1]
        received = [event async for event in events(holder)]
        ids = [event.id for event in received]
        assert (len(ids), len(set(ids)), results(received)) == (MANY + 1, MANY + 1, 1)
    await until(lambda: not len(worker.limiter))
