"""The paths that docs/architecture.md draws, against a real event and a real resume."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from mcp_eventscope import RedisEventStore, http_app
from support.controlled_server import ControlledServer
from support.drawn_paths import PACKAGE, Reference, path
from support.http_client import Connect, Event, HTTPClient, events
from support.serving import serving
from support.stores import PATIENCE, TTL, patient_client
from support.waiting import until

pytestmark = pytest.mark.anyio


@dataclass
class Worker:
    """A served application, with a store of its own."""

    controlled: ControlledServer
    store: RedisEventStore
    url: str


@pytest.fixture
async def workers(valkey_url: str, key_prefix: str) -> AsyncIterator[list[Worker]]:
    """Two workers on one Valkey, in this process and thread."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            controlled = ControlledServer()
            client: Redis = await stack.enter_async_context(patient_client(valkey_url))
            store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
            app = http_app(controlled.mcp, store, registry=CollectorRegistry())
            made.append(Worker(controlled, store, await stack.enter_async_context(serving(app))))
        yield made


@pytest.fixture
async def client(workers: list[Worker], connect: Connect) -> HTTPClient:
    """A client with a session on the first worker."""
    client = connect(workers[0].url)
    await client.initialize()
    return client


@contextmanager
def traced() -> Iterator[list[Reference]]:
    """Record each function of the package that is called for the first time, in the order of these calls."""
    first_calls: dict[Reference, None] = {}
    root = f"{PACKAGE}/"

    def on_event(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            first_calls.setdefault(Reference(code.co_filename.removeprefix(root), code.co_qualname))

    called: list[Reference] = []
    sys.setprofile(on_event)
    try:
        yield called
    finally:
        sys.setprofile(None)
        called += first_calls


def assert_in_order(steps: list[Reference], called: list[Reference]) -> None:
    """Fail unless each step was called, and for the first time after the step before it. Scripts run in Redis."""
    steps = [step for step in steps if step.module.endswith(".py")]
    assert [step for step in steps if step not in called] == []
    assert sorted(steps, key=called.index) == steps


async def test_path_of_a_stored_event_is_the_real_one(workers: list[Worker], client: HTTPClient) -> None:
    """One progress notification, from the tool to the metrics of its batch."""
    first, *others = path("The path of a stored event")
    assert len(others) < 12
    worker = workers[0]
    async with AsyncExitStack() as stack:
        with traced() as admission:
            response = await stack.enter_async_context(client.call(1, "steps", name="w"))
            stream = events(response)
            await anext(stream)
        await until(lambda: worker.store.backlog.events == 0)
        with traced() as storing:
            worker.controlled.step("w", "a")
            await anext(stream)
            await until(lambda: worker.store.backlog.events == 0)
        worker.controlled.finish("w")
    assert first in admission
    assert first not in storing
    assert_in_order(others, storing)


async def test_path_of_a_resume_is_the_real_one(workers: list[Worker], client: HTTPClient) -> None:
    """A client that was cut resumes on another worker while the tool runs on the first one."""
    steps = path("The path of a resume")
    assert len(steps) <= 12
    running, other = workers
    async with client.call(1, "steps", name="w") as response:
        stream = events(response)
        cursor = (await anext(stream)).id
        running.controlled.step("w", "missed")
        await anext(stream)
    await until(lambda: running.store.backlog.events == 0)
    received: list[Event] = []
    with traced() as called:
        async with replace(client, url=f"{other.url}/mcp").get(cursor) as response:
            async for event in events(response):
                received.append(event)
                if len(received) == 1:
                    running.controlled.step("w", "new")
                elif len(received) == 2:
                    running.controlled.finish("w")
    assert len(received) == 3
    assert "result" in received[-1].message
    assert_in_order(steps, called)
