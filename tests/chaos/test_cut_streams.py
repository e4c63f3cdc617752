"""Streams are cut, and clients resume on another worker."""

import contextlib

import anyio
import httpx2
import pytest
from mcp.client import Client
from redis import asyncio as aioredis

from support.chaos import (
    NewToolControl,
    Pair,
    check_session,
    content_of,
    on_worker,
    open_session,
    resumed_call,
    start_call,
)
from support.http_client import Connect, events
from support.processes import Router
from support.tool_control import WatchedCall
from support.waiting import in_time, promptly, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LOOK = 1.0
"""Seconds that a lost wake-up may cost."""


async def check_cut_and_resume(pair: Pair, router: Router, new_tool: NewToolControl, *, wrong: float = 0) -> None:
    """Cut a call of the SDK's client on the first worker, and finish it on the second."""
    a, b = pair
    router.to(a)
    async with Client(f"{router.url}/mcp", mode="legacy") as client, anyio.create_task_group() as tasks:
        call = WatchedCall(client, new_tool())
        call.start(tasks)
        await call.reported("a", "b")
        await anyio.to_thread.run_sync(a.jump, wrong)
        router.move(b)
        await call.tool.step("away")
        await call.has("a", "b", "away")
        # Had each waited until its follower polls, this would take ten seconds.
        with promptly(5):
            for number in range(20):
                await call.reported(str(number))
        await call.tool.finish()
        assert await call.over() == "23 steps"
        assert (await client.call_tool("echo", {"text": "x"})).structured_content == {"result": "x"}


async def test_cut_call_resumed_on_another_worker_delivers_each_event_once(
    pair: Pair, router: Router, new_tool: NewToolControl
) -> None:
    """Events arrive in order and promptly, then the result; the session continues there."""
    await check_cut_and_resume(pair, router, new_tool)


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
async def test_cut_call_of_a_worker_with_a_wrong_clock_resumes(
    pair: Pair, router: Router, new_tool: NewToolControl, wrong: float
) -> None:
    """The clock of the first worker jumps an hour in a call, which does not matter."""
    await check_cut_and_resume(pair, router, new_tool, wrong=wrong)


async def test_calls_cut_again_and_again_lose_nothing(
    router: Router, connect: Connect, new_tool: NewToolControl
) -> None:
    """Sessions on both workers are cut repeatedly while events are sent: no loss, no duplicate.

    The client is not the SDK's, which gives up after its second resumed stream breaks, and requests events again.
    """
    unfinished = set(range(6))
    begun_calls: list[int] = []
    deliveries: list[int] = []
    clients = [connect(router.url) for _ in unfinished]
    for client in clients:
        await client.initialize()

    async def one(number: int) -> None:
        client, tool = clients[number], new_tool()
        received = await start_call(client, tool, "1")
        begun_calls.append(number)
        await tool.step("2")
        while not received[-1].data or "method" in received[-1].message:
            with contextlib.suppress(httpx2.TransportError):
                async with client.get(received[-1].id) as response:
                    assert response.status_code == 200
                    async for event in events(response):
                        received.append(event)
                        deliveries.append(number)
                        await (tool.step(str(len(received))) if len(received) < 200 else tool.finish())
        assert [content_of(event) for event in received[1:]] == [*map(str, range(1, 200)), "199 steps"]
        unfinished.discard(number)

    async with anyio.create_task_group() as tasks:
        for number in sorted(unfinished):
            tasks.start_soon(one, number)
        await until(lambda: len(begun_calls) == len(clients))
        while unfinished:
            await anyio.sleep(0.01)
            # On a busy machine a client needs longer to reconnect, and must get some events.
            events_before = len(deliveries)
            await until(lambda: len(deliveries) > events_before or not unfinished)  # noqa: B023 - awaited here
            router.reset_streams()


async def test_resume_of_a_finished_call_delivers_the_rest_and_closes(
    pair: Pair, connect: Connect, new_tool: NewToolControl
) -> None:
    """It gives the same events on either worker, however often it is repeated."""
    a, b = pair
    client = await open_session(connect, a.url)
    tool = new_tool()
    received = await start_call(client, tool, "a")
    await tool.step("b")
    await tool.finish()
    await tool.ended()
    resumed = await on_worker(client, b).resume(received[-1].id)
    assert [content_of(event) for event in resumed] == ["b", "2 steps"]
    for worker in (b, a, b):
        assert await on_worker(client, worker).resume(received[-1].id) == resumed
        assert await on_worker(client, worker).resume(resumed[-1].id) == []
    everything = received[1:] + resumed
    assert await on_worker(client, b).resume(received[0].id) == everything


async def test_resume_ends_older_connections_of_its_stream(
    pair: Pair, connect: Connect, new_tool: NewToolControl
) -> None:
    """The newest connection gets the events, on whichever worker."""
    a, b = pair
    client = await open_session(connect, a.url)
    tool = new_tool()
    async with client.call(1, "steps", name=tool.name) as first:
        original = events(first)
        received = [await anext(original)]
        await tool.step("a")
        received.append(await anext(original))
        cursor = received[-1].id
        async with on_worker(client, b).get(cursor) as second:
            on_b = events(second)
            with in_time(5):
                assert [event async for event in original] == []
            await tool.step("b")
            assert content_of(await anext(on_b)) == "b"
            async with client.get(cursor) as third:
                on_a = events(third)
                assert content_of(await anext(on_a)) == "b"
                with in_time(5):
                    assert [event async for event in on_b] == []
                await tool.finish()
                assert [content_of(event) async for event in on_a] == ["2 steps"]
    await check_session(on_worker(client, b))


async def test_follower_when_subscriptions_break_gets_events_within_a_second(
    pair: Pair, connect: Connect, new_tool: NewToolControl, control: aioredis.Redis
) -> None:
    """An event sent just as the subscriptions break arrives within a second."""
    a, b = pair
    async with resumed_call(connect, new_tool, a, b) as (_, tool, stream):
        for number in range(5):
            await control.client_kill_filter(_type="pubsub")
            with promptly(LOOK):
                await tool.step(str(number))
                assert content_of(await anext(stream)) == str(number)
        await tool.finish()
        assert content_of(await anext(stream)) == "5 steps"
