"""Worker processes behind a non-sticky switch, shared by all tests and running at each start."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import httpx2
import pytest
from redis import asyncio as aioredis

from mcp_eventscope.redis.client import connect as connect_redis
from support.http_client import LIMITS, NO_TLS, Connect, HTTPClient
from support.processes import Router, WorkerProcess, revive, worker_processes
from support.tool_control import ToolControl
from support.waiting import CEILING


@pytest.fixture(scope="session")
def fleet(valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """The worker processes of the whole run: two, on one Valkey."""
    with worker_processes(2, valkey_url, valkey_url) as workers:
        yield workers


@pytest.fixture
async def pair(fleet: list[WorkerProcess]) -> AsyncIterator[tuple[WorkerProcess, WorkerProcess]]:
    """Both workers, running and healthy, whatever an earlier test did to them."""
    await anyio.to_thread.run_sync(revive, fleet)
    first, second = fleet
    yield first, second
    for worker in fleet:
        if worker.alive:
            worker.thaw()
            await anyio.to_thread.run_sync(worker.jump, 0)


@pytest.fixture
async def router(pair: tuple[WorkerProcess, WorkerProcess]) -> AsyncIterator[Router]:
    """The switch that clients connect to."""
    switch = Router([worker.port for worker in pair])
    async with switch.running():
        yield switch


@pytest.fixture
async def control(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the Redis that controls the tools."""
    async with connect_redis(f"{valkey_url}?socket_timeout={CEILING}") as client:
        yield client


@pytest.fixture
def new_tool(control: aioredis.Redis) -> Callable[[], ToolControl]:
    """Makes the control of one call."""
    return lambda: ToolControl(control, uuid.uuid4().hex)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes plain HTTP clients."""
    async with httpx2.AsyncClient(verify=NO_TLS, limits=LIMITS, timeout=CEILING, trust_env=False) as http:

        def make(base_url: str, **headers: str) -> HTTPClient:
            return HTTPClient(http, f"{base_url}/mcp", headers=headers)

        yield make
