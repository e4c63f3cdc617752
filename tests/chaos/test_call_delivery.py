"""Every event of a call is stored once under its id, and every call ends."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import httpx2
import pytest

from support.chaos import (
    NewToolControl,
    Pair,
    check_session,
    content_of,
    on_worker,
    open_session,
    start_call,
    until_stored,
)
from support.http_client import NO_TLS, Connect, Event, HTTPClient, events
from support.processes import WorkerProcess, worker_processes
from support.proxy import Proxy
from support.tool_control import ToolControl
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

RESPONSE_SECONDS = 5.0
"""Seconds within which a call ends whose result cannot be delivered."""

World = tuple[OwnValkey, list[WorkerProcess]]


@pytest.fixture(scope="module", params=[{}], ids=["valkey"])
def parts(valkey_url: str, request: pytest.FixtureRequest) -> Iterator[World]:
    """A Valkey with a test's options, and two workers on it, controlled through another."""
    with own_valkey(**request.param) as server, worker_processes(2, server.url, valkey_url) as workers:
        yield server, workers


@pytest.fixture
async def world(parts: World, connect: Connect) -> World:
    """The same, once each worker stores events, whatever an earlier test did to Redis."""
    server, workers = parts
    server.drop_snapshot()
    for worker in workers:
        client = await open_session(connect, worker.url)
        async with client.call(1, "echo", text="x") as response:
            *_, last = [event async for event in events(response)]
        await until_stored(server.url, last.id)
    return parts


@pytest.fixture(params=[0, 1], ids=["same worker", "other worker"])
def there(request: pytest.FixtureRequest) -> int:
    """The index of the worker that a client of worker 0 resumes on."""
    index: int = request.param
    return index


async def is_counted(workers: list[WorkerProcess], label: str) -> bool:
    """Whether a worker has counted something under this label and value."""
    pattern = rf"eventscope_\w*_total\{{[^}}]*{label}[^}}]*\}}"
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        texts = [(await http.get(f"{worker.url}/scraped")).text for worker in workers]
    return any(re.search(rf"(?m)^{pattern} (?!0\.0$)", text) for text in texts)


def is_error_for(event: Event, request_id: int | str) -> bool:
    """Whether an event is the error that answers this request, with the type of its id."""
    if not event.data:
        return False
    answered = event.message.get("id")
    return "error" in event.message and answered == request_id and type(answered) is type(request_id)


# -- A2 ---------------------------------------------------------------------------------------------------------------


UNREAD = 16 << 20
"""Bytes of a message that fill the buffers of a connection."""


async def test_resume_unread_while_redis_is_frozen_skips_no_message(
    world: World, connect: Connect, new_tool: NewToolControl, there: int
) -> None:
    """A client that does not read meanwhile gets the messages of the outage, in order."""
    server, workers = world
    client, tool = connect(workers[0].url), new_tool()
    await client.initialize()
    received = await start_call(client, tool)
    async with on_worker(client, workers[there]).get(received[0].id) as response:
        chunks = response.aiter_raw()
        await tool.step("1" + "x" * UNREAD)
        read = b""
        while b'"message":"1' not in read:
            read += await anext(chunks)
        server.freeze()
        await tool.step("2", "3")
        await anyio.sleep(1.5)  # The fault itself.
        server.thaw()
        await tool.step("4")
        await tool.finish()
        with in_time(RESPONSE_SECONDS):
            read += b"".join([chunk async for chunk in chunks])
    data = [line.removeprefix("data:").strip() for line in read.decode().splitlines() if line.startswith("data:")]
    assert [content_of(Event("", text)).rstrip("x") for text in data if text] == ["1", "2", "3", "4", "4 steps"]


# -- A3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [{"proto_max_bulk_len": "1mb"}], indirect=True, ids=["small bulks"])
async def test_resume_of_response_that_redis_refuses_is_an_error(
    world: World, connect: Connect, new_tool: NewToolControl, there: int
) -> None:
    """A response of 2 MiB does not fit into Redis, so a resume of the cut call ends with an error."""
    _, workers = world
    client, tool = connect(workers[0].url), new_tool()
    await client.initialize()
    async with client.call(1, "produce", name=tool.name, size=2 << 20) as response:
        primed = await anext(events(response))
        await tool.started()
    await tool.finish()
    await tool.ended()
    with in_time(RESPONSE_SECONDS):
        # The worker that ran the call may still have the result in memory; Redis has an error in its place.
        ended = await on_worker(client, workers[there]).resume(primed.id)
    assert [event.message["id"] for event in ended if event.data] == [1]

    async def is_error_everywhere() -> bool:
        resumed = [await on_worker(client, worker).resume(primed.id) for worker in workers]
        return all(len(found) == 1 and is_error_for(found[0], 1) for found in resumed)

    with in_time(RESPONSE_SECONDS):
        await until(is_error_everywhere)


# -- A4 ---------------------------------------------------------------------------------------------------------------


async def test_result_without_json_form_is_an_error(pair: Pair, connect: Connect, new_tool: NewToolControl) -> None:
    """A tool returns a lone surrogate: the call ends with an error, live and on resume, and the session continues."""
    client, tool = connect(pair[0].url), new_tool()
    await client.initialize()
    await tool.finish()
    with in_time(RESPONSE_SECONDS):
        async with client.call(1, "produce", name=tool.name) as response:
            live = [event async for event in events(response)]
        assert is_error_for(live[-1], 1)
        for worker in pair:
            assert is_error_for((await on_worker(client, worker).resume(live[0].id))[-1], 1)
        await check_session(client)


# -- A5 ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_proxy(control_url: str, count: int) -> AsyncIterator[tuple[Proxy, list[WorkerProcess]]]:
    """A proxy before a Valkey, and workers that connect to it."""
    with own_valkey() as server:
        async with Proxy(server.socket).running() as proxy:
            processes = worker_processes(count, proxy.url, control_url)
            workers = await anyio.to_thread.run_sync(processes.__enter__)
            try:
                yield proxy, workers
            finally:
                await anyio.to_thread.run_sync(processes.__exit__, None, None, None)


async def test_event_that_a_service_refuses_leaves_ids_to_others(
    valkey_url: str, connect: Connect, new_tool: NewToolControl
) -> None:
    """A service refuses a command of 1.2 MB: its event is rejected and counted, and every other one has an id."""
    async with behind_proxy(valkey_url, 1) as (proxy, workers):
        proxy.largest = 1 << 20
        client, tool = connect(workers[0].url), new_tool()
        await client.initialize()
        await tool.finish()
        with in_time(RESPONSE_SECONDS):
            # The result is in the message twice, as text and as structured content.
            async with client.call(1, "produce", name=tool.name, size=600_000) as response:
                live = [event async for event in events(response)]
        assert "id" in live[-1].message
        without_id = 0
        for number in range(20):
            other = await open_session(connect, workers[0].url)
            async with other.call(number, "echo", text="x") as response:
                without_id += sum([not event.id async for event in events(response)])
        assert without_id == 0
        await until(lambda: is_counted(workers, 'reason="rejected"'))
        with in_time(RESPONSE_SECONDS):
            assert is_error_for((await client.resume(live[0].id))[-1], 1)


# -- A6 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cursor", [5, 9])
async def test_resume_after_redis_restarts_from_snapshot_has_everything_or_a_gap(
    world: World, connect: Connect, new_tool: NewToolControl, there: int, cursor: int
) -> None:
    """Redis restarts with message 6 as its last one after message 9 was sent, and the call continues."""
    server, workers = world
    client, tool = connect(workers[0].url), new_tool()
    await client.initialize()
    async with client.call(1, "steps", name=tool.name) as response:
        stream = events(response)
        received = [await anext(stream)]
        for number in range(1, 10):
            await tool.step(str(number))
            received.append(await anext(stream))
            if number == 6:
                await until_stored(server.url, received[6].id)
                with server.client() as redis:
                    redis.save()
        await until_stored(server.url, received[9].id)
        server.kill()
        await anyio.to_thread.run_sync(server.start)
        await tool.step("10")
        received.append(await anext(stream))
    async with on_worker(client, workers[there]).get(received[cursor].id) as response:
        await tool.step("11")
        await tool.finish()
        with in_time(RESPONSE_SECONDS):
            resumed = [content_of(event) async for event in events(response) if event.data]
    everything = [*map(str, range(cursor + 1, 12)), "11 steps"]
    assert resumed[-2:] == everything[-2:]
    if cursor == 9:
        assert resumed == everything
    elif resumed != everything:
        assert await is_counted(workers, 'outcome="gap"'), resumed


# -- A8 ---------------------------------------------------------------------------------------------------------------

CALLS = 40
OUTAGE_SECONDS = 10.0
STEP_SECONDS = 0.25


class CutCall:
    """One call that goes on through an outage, whose client is cut once, and resumes.

    Args:
        client: Initialized on the worker that runs the call.
        resumed_at: The same client on the worker that it resumes on.
        tool: Controls the tool.
    """

    def __init__(self, client: HTTPClient, resumed_at: HTTPClient, tool: ToolControl) -> None:
        self.received: list[Event] = []
        self._client = client
        self._resumed_at = resumed_at
        self._tool = tool
        self._steps = 0

    async def run(self, cut: Callable[[], Awaitable[None]], over: Callable[[], bool]) -> None:
        """Call, be cut once `cut` returns, resume until the response; steps go on until it is over."""
        async with anyio.create_task_group() as tasks:
            async with self._client.call(1, "steps", name=self._tool.name) as response:
                tasks.start_soon(self._step, over)
                reading = anyio.CancelScope()
                tasks.start_soon(self._read, response, reading)
                await cut()
                reading.cancel()
            while not self.ended and self.cursor:
                await self._resume(self.cursor)
                await anyio.sleep(0.05)

    @property
    def cursor(self) -> str:
        """The last id that the client has received; "" without one."""
        return next((event.id for event in reversed(self.received) if event.id), "")

    @property
    def ended(self) -> bool:
        """Whether the client has the response."""
        return bool(self.received and self.received[-1].data and "id" in self.received[-1].message)

    @property
    def problems(self) -> list[str]:
        """What differs from every message once, in order, under an id."""
        texts = [content_of(event) for event in self.received if event.data]
        expected = [*map(str, range(self._steps)), f"{self._steps} steps"]
        without_id = sum(not event.id for event in self.received)
        twice = len(texts) - len(set(texts))
        found = [f"{without_id} of {self._steps} messages without an id"] if without_id else []
        found += [f"{twice} messages twice"] if twice else []
        found += [f"missing: {missing}"] if (missing := [text for text in expected if text not in texts]) else []
        return found or ([] if texts == expected else [f"out of order: {texts}"])

    async def _step(self, over: Callable[[], bool]) -> None:
        while not over():
            await self._tool.step(str(self._steps))
            self._steps += 1
            await anyio.sleep(STEP_SECONDS)
        await self._tool.finish()

    async def _read(self, response: httpx2.Response, scope: anyio.CancelScope) -> None:
        with scope:
            async for event in events(response):
                self.received.append(event)

    async def _resume(self, cursor: str) -> None:
        async with self._resumed_at.get(cursor) as response:
            if response.status_code == 200:
                async for event in events(response):
                    if event.data:
                        self.received.append(event)


@pytest.mark.parametrize("parts", [{"durable": True}], indirect=True, ids=["durable"])
async def test_calls_cut_while_redis_is_killed_resume_with_every_message_once(
    world: World, connect: Connect, new_tool: NewToolControl
) -> None:
    """40 calls are each cut at a random moment of a ten-second outage: every message has an id, once."""
    server, workers = world
    seed = random.randrange(2**32)  # noqa: S311 - chaos, not secrets
    dice = random.Random(seed)  # noqa: S311
    killed, over = anyio.Event(), anyio.Event()
    calls: list[CutCall] = []

    async def cut(seconds: float) -> None:
        await killed.wait()
        await anyio.sleep(seconds)

    with anyio.move_on_after(2 * CEILING):
        async with anyio.create_task_group() as tasks:
            for number in range(CALLS):
                client = connect(workers[number % 2].url)
                await client.initialize()
                calls.append(CutCall(client, on_worker(client, dice.choice(workers)), new_tool()))
                tasks.start_soon(calls[-1].run, partial(cut, dice.uniform(0, OUTAGE_SECONDS)), over.is_set)
            await until(lambda: all(len(call.received) > 2 for call in calls))
            server.kill()
            killed.set()
            await anyio.sleep(OUTAGE_SECONDS)
            await anyio.to_thread.run_sync(server.start)
            await anyio.sleep(2)
            over.set()
    problems = [f"call {number}: {problem}" for number, call in enumerate(calls) for problem in call.problems]
    assert not problems, "\n".join([f"seed {seed}", *problems])


# -- A9 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [7, "7", "x" * 130, "漢" * 20], ids=["int", "digits", "long", "cjk"])
async def test_error_for_call_of_killed_worker_has_its_id(
    pair: Pair, connect: Connect, new_tool: NewToolControl, valkey_url: str, request_id: int | str
) -> None:
    """The id has its JSON type; otherwise the call would not end at the client."""
    a, b = pair
    client = await open_session(connect, a.url)
    received = await start_call(client, new_tool(), "1", request_id=request_id)
    await until_stored(valkey_url, received[1].id)
    a.kill()
    with in_time(RESPONSE_SECONDS):
        (error,) = await on_worker(client, b).resume(received[1].id)
    assert is_error_for(error, request_id), error.data[:300]


# -- A10 --------------------------------------------------------------------------------------------------------------

MOMENTS = [number / 100 for number in range(16)]
"""Seconds between the first standalone GET of a session and a message of the server."""


async def first_message(client: HTTPClient) -> Event:
    """The first message on the standalone stream, which is opened for it."""
    async with client.get() as response:
        assert response.status_code == 200
        return await anext(event async for event in events(response) if event.data)


async def test_standalone_stream_opened_first_after_a_notification_delivers_it(pair: Pair, connect: Connect) -> None:
    """The first standalone GET of a session reads from the start of the session."""
    client = await open_session(connect, pair[0].url)
    async with client.call(1, "announce") as response:
        assert content_of([event async for event in events(response)][-1]) == "announced"
    with in_time(RESPONSE_SECONDS):
        assert (await first_message(client)).message["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("tool", ["announce", "ask"])
async def test_standalone_stream_opened_first_delivers_messages_of_that_moment(
    valkey_url: str, connect: Connect, tool: str, there: int
) -> None:
    """With a slow Redis, a message at any moment after the first standalone GET reaches the client."""
    undelivered: list[float] = []

    async def call(client: HTTPClient, seconds: float) -> None:
        await anyio.sleep(seconds)
        async with client.call(1, tool) as response:
            assert [event async for event in events(response)][-1].message["result"]

    async def one(client: HTTPClient, listener: HTTPClient, seconds: float) -> None:
        with anyio.move_on_after(CEILING) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, client, seconds)
                message = (await first_message(listener)).message
                if tool == "ask":
                    answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"action": "decline"}}
                    async with client.post(answer) as response:
                        assert response.status_code == 202
        if scope.cancelled_caught:
            undelivered.append(seconds)

    async with behind_proxy(valkey_url, 2) as (proxy, workers):
        clients = [connect(workers[0].url) for _ in MOMENTS]
        for client in clients:
            await client.initialize()
        proxy.delay = 0.05
        async with anyio.create_task_group() as tasks:
            for client, seconds in zip(clients, MOMENTS, strict=True):
                tasks.start_soon(one, client, on_worker(client, workers[there]), seconds)
    assert undelivered == []
