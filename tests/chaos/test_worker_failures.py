"""Workers that are killed, restarted or frozen in the middle of a call."""

import re
import signal

import anyio
import pytest
from mcp.client import Client

from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE, REQUEST_ORPHANED
from support.chaos import (
    NewToolControl,
    Pair,
    check_session,
    content_of,
    on_worker,
    open_session,
    resumed_call,
    start_call,
    until_stored,
)
from support.http_client import Connect, Event, events
from support.processes import LEASE, RETRY_MILLISECONDS, Router, WorkerProcess, revive, worker_processes
from support.tool_control import WatchedCall
from support.waiting import CEILING, promptly, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ORPHANED = str(REQUEST_ORPHANED)
GONE = str(EVENTS_GONE)
PATIENCE = LEASE + 1
"""Seconds within which the client of a dead worker gets an answer."""


async def check_killed_worker(pair: Pair, router: Router, new_tool: NewToolControl) -> None:
    """Kill the worker of a call; its client gets an answer, and its session continues."""
    a, b = pair
    router.to(a)
    async with Client(f"{router.url}/mcp", mode="legacy") as client, anyio.create_task_group() as tasks:
        call = WatchedCall(client, new_tool())
        call.start(tasks)
        await call.reported("a", "b")
        router.to(b)
        with promptly(PATIENCE):
            a.kill()
            assert await call.over() == REQUEST_ORPHANED
        assert call.progress == ["a", "b"]
        assert (await client.call_tool("echo", {"text": "x"})).structured_content == {"result": "x"}
        again = WatchedCall(client, new_tool())
        again.start(tasks)
        await again.reported("a")
        await again.tool.finish()
        assert await again.over() == "1 steps"


async def test_call_of_a_killed_worker_fails_within_the_lease(
    pair: Pair, router: Router, new_tool: NewToolControl
) -> None:
    """The client gets an error within the lease and a second, and its next call works."""
    await check_killed_worker(pair, router, new_tool)


async def test_call_of_a_killed_worker_fails_in_time_despite_a_wrong_clock(
    pair: Pair, router: Router, new_tool: NewToolControl
) -> None:
    """Leases follow Redis's clock, so that a worker an hour late does not matter."""
    await anyio.to_thread.run_sync(pair[1].jump, -3600)
    await check_killed_worker(pair, router, new_tool)


async def test_worker_with_a_wrong_clock_is_not_declared_dead(
    pair: Pair, connect: Connect, new_tool: NewToolControl
) -> None:
    """Its clock jumps back and forth while it runs a call."""
    a, b = pair
    async with resumed_call(connect, new_tool, a, b) as (_, tool, stream):
        for number, seconds in enumerate((-3600, 3600)):
            await anyio.to_thread.run_sync(a.jump, seconds)
            await anyio.sleep(PATIENCE)  # Nothing is to happen.
            await tool.step(str(number))
            assert content_of(await anext(stream)) == str(number)
        await tool.finish()
        assert content_of(await anext(stream)) == "2 steps"


async def test_call_of_a_killed_worker_has_one_answer_on_every_worker(
    pair: Pair, connect: Connect, new_tool: NewToolControl, valkey_url: str
) -> None:
    """The other worker and the restarted one give the same answer."""
    a, b = pair
    client = await open_session(connect, a.url)
    tool = new_tool()
    received = await start_call(client, tool, "a")
    await until_stored(valkey_url, received[-1].id)
    a.kill()
    await anyio.to_thread.run_sync(revive, pair)
    answers: list[list[Event]] = []

    async def ask(worker: WorkerProcess) -> None:
        answers.append(await on_worker(client, worker).resume(received[0].id))

    for worker in (a, b, a, b):
        await ask(worker)
        await check_session(on_worker(client, worker))
    assert [content_of(event) for event in answers[0]] == ["a", ORPHANED]
    assert all(answer == answers[0] for answer in answers)


async def test_worker_killed_as_it_answers_gives_one_outcome(
    pair: Pair, connect: Connect, new_tool: NewToolControl
) -> None:
    """An error never follows a response."""
    outcomes = set()
    for moment in range(4):
        a, b = pair
        await anyio.to_thread.run_sync(revive, pair)
        client = await open_session(connect, a.url)
        tool = new_tool()
        received = await start_call(client, tool)
        await tool.finish()
        if moment % 2:
            await tool.ended()
            await anyio.sleep(moment / 1000)
        a.kill()
        answer = await on_worker(client, b).resume(received[0].id)
        assert len(answer) == 1
        for _ in range(2):
            assert await on_worker(client, b).resume(received[0].id) == answer
        outcomes.add(content_of(answer[0]))
    assert outcomes <= {ORPHANED, GONE, "0 steps"}  # GONE: killed before anything was stored.


async def test_followers_of_a_killed_worker_get_one_answer(
    pair: Pair, connect: Connect, new_tool: NewToolControl, valkey_url: str
) -> None:
    """Followers on two workers, one after the other, get the same answer."""
    with worker_processes(1, valkey_url, valkey_url) as (third,):
        client = await open_session(connect, third.url)
        received = await start_call(client, new_tool())
        answers: list[list[Event]] = []
        async with on_worker(client, pair[0]).get(received[-1].id) as response:
            third.kill()
            answers.append([event async for event in events(response)])
        answers.append(await on_worker(client, pair[1]).resume(received[-1].id))
    assert answers[0] == answers[1]
    assert [content_of(event) for event in answers[0]] == [ORPHANED]


async def roll(pair: Pair, router: Router) -> None:
    """Restart both workers, one after the other, as a deployment does."""
    for worker, other in (pair, pair[::-1]):
        router.to(other)
        worker.terminate()
        await anyio.to_thread.run_sync(worker.wait)
        await anyio.to_thread.run_sync(revive, pair)
        router.to(*pair)


async def test_rolling_restart_with_an_idle_client_is_not_noticed(pair: Pair, router: Router) -> None:
    """Its next calls work, on both new workers."""
    async with Client(f"{router.url}/mcp", mode="legacy") as client:
        await client.call_tool("echo", {"text": "x"})
        await roll(pair, router)
        for worker in pair:
            router.move(worker)
            assert (await client.call_tool("echo", {"text": "y"})).structured_content == {"result": "y"}


async def test_standalone_stream_through_a_rolling_restart_continues(pair: Pair, router: Router) -> None:
    """The client reconnects by itself and gets later messages."""
    notifications: list[object] = []

    async def note(message: object) -> None:
        notifications.append(message)

    async with Client(f"{router.url}/mcp", mode="legacy", message_handler=note) as client:
        await client.call_tool("announce", {})
        await until(lambda: len(notifications) == 1)
        await roll(pair, router)
        await client.call_tool("announce", {})
        await until(lambda: len(notifications) == 2)
    assert len(notifications) == 2, "each was received once"


async def test_worker_stopped_with_open_streams_ends_them_properly(
    pair: Pair, connect: Connect, new_tool: NewToolControl
) -> None:
    """Clients count broken streams as failures."""
    a, _ = pair
    client = await open_session(connect, a.url)
    async with client.call(1, "steps", name=new_tool().name) as response, client.get() as standalone:
        live = events(response)
        primed = await anext(live)
        async with client.get(primed.id) as resumed:
            a.terminate()
            for stream in (live, events(resumed), events(standalone)):
                assert not [event async for event in stream if event.data and content_of(event) != ORPHANED]
    await anyio.to_thread.run_sync(a.wait)


async def test_call_of_a_restarted_worker_fails_immediately(
    pair: Pair, router: Router, new_tool: NewToolControl
) -> None:
    """A worker without time to end a call answers it, so no client waits for its lease."""
    a, b = pair
    router.to(a)
    async with Client(f"{router.url}/mcp", mode="legacy") as client, anyio.create_task_group() as tasks:
        call = WatchedCall(client, new_tool())
        call.start(tasks)
        await call.reported("a")
        router.to(b)
        a.terminate()
        await anyio.to_thread.run_sync(a.wait)
        with promptly(LEASE):
            assert await call.over() == REQUEST_ORPHANED
        assert (await client.call_tool("echo", {"text": "x"})).structured_content == {"result": "x"}


async def test_call_of_a_draining_worker_finishes(
    valkey_url: str, pair: Pair, router: Router, connect: Connect, new_tool: NewToolControl
) -> None:
    """A worker with enough time ends the call, and the client gets its result."""
    with worker_processes(1, valkey_url, valkey_url, graceful=int(CEILING), shutdown_timeout=CEILING) as (patient,):
        client, tool = connect(router.url), new_tool()
        router.to(patient)
        await client.initialize()
        async with client.call(1, "steps", name=tool.name) as response:
            await tool.started()
            router.to(*pair)
            patient.terminate()
            body = (await response.aread()).decode()
            (cursor,) = re.findall(r"id: (\S+)", body)
            hint = re.search(r"\r\n\r\nretry: (\d+)\r\n\r\n$", body)
            assert hint is not None, body
            assert RETRY_MILLISECONDS <= int(hint[1]) <= RETRY_MILLISECONDS + 1000
            await anyio.sleep(2 * LEASE)
            await tool.step("a")
            await tool.finish()
            assert [content_of(event) for event in await client.resume(cursor)] == ["a", "1 steps"]


async def test_streams_of_a_draining_worker_end_in_good_order(valkey_url: str, connect: Connect) -> None:
    """The server waits for its open streams: the worker ends them, or it would not stop.

    Revision 2026-07-28 answers a subscription; otherwise its client would get `SubscriptionLost`.
    """
    with worker_processes(1, valkey_url, valkey_url, graceful=int(CEILING)) as (worker,):
        raw = connect(worker.url)
        await raw.initialize()
        async with (
            raw.get() as standalone,
            Client(f"{worker.url}/mcp") as client,
            client.listen(tools_list_changed=True) as subscription,
        ):
            worker.terminate()
            assert [event async for event in subscription] == []
            assert re.search(rb"\r\n\r\nretry: \d+\r\n\r\n$", await standalone.aread())
            assert await anyio.to_thread.run_sync(worker.wait) == -signal.SIGTERM


async def test_worker_frozen_past_its_lease_is_fenced(
    pair: Pair, connect: Connect, new_tool: NewToolControl, valkey_url: str
) -> None:
    """Its later events are not stored, and do not reach the client that has the error.

    Its own connection stays open, and may not show another end of the call than the store has.
    """
    a, b = pair
    client = await open_session(connect, a.url)
    tool = new_tool()
    live: list[Event] = []
    async with client.call(1, "steps", name=tool.name) as response:
        stream = events(response)
        live += [await anext(stream)]
        await tool.step("a")
        live += [await anext(stream)]
        await until_stored(valkey_url, live[-1].id)
        a.freeze()
        answer = await on_worker(client, b).resume(live[0].id)
        assert [content_of(event) for event in answer] == ["a", ORPHANED]
        await tool.step("late")
        await tool.finish()
        a.thaw()
        await tool.ended()
        with anyio.fail_after(CEILING):
            live += [event async for event in stream]
    for worker in (b, a):
        assert await on_worker(client, worker).resume(live[0].id) == answer
        await check_session(on_worker(client, worker))
    assert [content_of(event) for event in live[1:]] in (["a"], ["a", ORPHANED])
