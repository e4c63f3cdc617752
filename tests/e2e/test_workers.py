"""One session on two workers: either one delivers every event once, in order."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from mcp_eventscope import http_app
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.sessions.transport import ResumableTransport
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE, REQUEST_ORPHANED
from support.controlled_server import ControlledServer
from support.http_client import Connect, Event, HTTPClient, events
from support.processes import LEASE
from support.servers import valkey
from support.serving import serving, serving_each
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


@dataclass
class Worker:
    """One worker: its server, and where it is served."""

    controlled: ControlledServer
    url: str


@pytest.fixture
async def workers(valkey_url: str) -> AsyncIterator[list[Worker]]:
    """Two workers on one Valkey, each with a store of its own; no routing is sticky."""
    servers = ControlledServer(), ControlledServer()
    async with serving_each(
        *(
            http_app(each.mcp, redis_url=valkey_url, registry=CollectorRegistry(), worker_lease=LEASE)
            for each in servers
        )
    ) as urls:
        yield list(map(Worker, servers, urls))


@pytest.fixture
async def pair(workers: list[Worker], connect: Connect) -> tuple[HTTPClient, HTTPClient]:
    """One client with one session, as it speaks to the first worker and to the second."""
    first = connect(workers[0].url)
    await first.initialize()
    return first, replace(first, url=f"{workers[1].url}/mcp")


def progress(received: list[Event]) -> list[str]:
    """The messages of the progress notifications."""
    return [event.message["params"]["message"] for event in received if event.data and "method" in event.message]


async def test_resume_on_another_worker_delivers_each_event_once(
    workers: list[Worker], pair: tuple[HTTPClient, HTTPClient]
) -> None:
    """The tool runs on one worker, and the client gets all of it live through the other."""
    controlled = workers[0].controlled
    on_a, on_b = pair
    async with on_a.call(1, "steps", name="w") as response:
        stream = events(response)
        before = [await anext(stream)]
        controlled.step("w", "a")
        before.append(await anext(stream))
    controlled.step("w", "b")
    after: list[Event] = []
    async with on_b.get(before[-1].id) as response:
        async for event in events(response):
            after.append(event)
            if progress(after) == ["b"]:
                controlled.step("w", "c")
            if progress(after) == ["b", "c"]:
                controlled.finish("w")
    assert progress(before + after) == ["a", "b", "c"]
    assert after[-1].message["result"]["structuredContent"] == {"result": "3 steps"}
    async with on_b.call(2, "echo", text="x") as response:
        assert "result" in [event async for event in events(response)][-1].message
    async with on_a.call(3, "echo", text="x") as response:
        assert "result" in [event async for event in events(response)][-1].message


async def test_session_that_was_never_opened_is_404(workers: list[Worker], connect: Connect) -> None:
    """It is 404 on every worker."""
    client = connect(workers[0].url)
    client.session = "0" * 32
    async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
        assert response.status_code == 404


async def test_delete_on_any_worker_ends_the_session_on_all(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """A session that is ended on one worker is over there at once, on the other one as soon as it reads its inbox."""
    on_a, on_b = pair
    assert await on_b.delete() == 200

    async def ended(client: HTTPClient) -> bool:
        async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
            return response.status_code == 404

    assert await ended(on_b)
    await until(lambda: ended(on_a))
    assert await ended(on_a)
    assert await ended(on_b)


async def test_standalone_stream_on_another_worker_gets_messages(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """A message outside of a call reaches the standalone stream on either worker."""
    on_a, on_b = pair
    async with on_b.get() as response:
        stream = events(response)
        assert (await anext(stream)).data == "", "its cursor, from the start"
        async with on_a.call(1, "announce") as call:
            assert "result" in [event async for event in events(call)][-1].message
        with anyio.fail_after(CEILING):
            assert (await anext(stream)).message["method"] == "notifications/tools/list_changed"


async def call(client: HTTPClient, request_id: int, tool: str, **arguments: object) -> Event:
    """Call a tool, and wait for its response."""
    async with client.call(request_id, tool, **arguments) as response:
        return [event async for event in events(response)][-1]


async def test_answer_sent_to_another_worker_reaches_the_tool(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """A tool on one worker asks the client, and the client answers through the other."""
    on_a, on_b = pair
    for request_id, asking, answering in ((1, on_a, on_b), (2, on_b, on_a)):
        async with asking.call(request_id, "ask") as response:
            stream = events(response)
            await anext(stream)
            question = (await anext(stream)).message
            assert question["method"] == "elicitation/create"
            answer = {
                "jsonrpc": "2.0",
                "id": question["id"],
                "result": {"action": "accept", "content": {"name": "Ada"}},
            }
            async with answering.post(answer) as accepted:
                assert accepted.status_code == 202
            with anyio.fail_after(CEILING):
                assert (await anext(stream)).message["result"]["structuredContent"] == {"result": "Ada"}


async def test_answer_without_a_question_is_accepted(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """It gets the SDK's reply, and does no harm."""
    for client in pair:
        async with client.post({"jsonrpc": "2.0", "id": 77, "result": {}}) as response:
            assert response.status_code == 202
        assert "result" in (await call(client, 1, "echo", text="x")).message


async def test_cancellation_sent_to_another_worker_cancels_the_call(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """A call that runs on one worker is cancelled through the other."""
    on_a, on_b = pair
    async with on_a.call(1, "steps", name="w") as response:
        stream = events(response)
        await anext(stream)
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        async with on_b.post(notice) as accepted:
            assert accepted.status_code == 202
        with anyio.fail_after(CEILING):
            assert (await anext(stream)).message["error"]["code"] == -32800


async def test_tool_that_closes_its_stream_twice_is_resumed_each_time(
    workers: list[Worker], pair: tuple[HTTPClient, HTTPClient]
) -> None:
    """Each time the client resumes through another worker."""
    on_a, on_b = pair
    controlled = workers[0].controlled
    received: list[Event] = []
    async with on_a.call(1, "steps", name="w") as response:
        stream = events(response)
        received.append(await anext(stream))
        controlled.step("w", "a", "close")
        received += [event async for event in stream]
    for client, more in ((on_b, "b"), (on_a, "c")):
        async with client.get(received[-1].id) as response:
            controlled.step("w", more, "close")
            with anyio.fail_after(CEILING):
                received += [event async for event in events(response)]
    controlled.finish("w")
    received += await on_b.resume(received[-1].id)
    assert progress(received) == ["a", "b", "c"]
    assert "result" in received[-1].message


async def test_worker_that_shuts_down_answers_its_running_calls(valkey_url: str, connect: Connect) -> None:
    """The call gets an error immediately, and the session continues on the other worker."""
    first, second = ControlledServer(), ControlledServer()
    async with serving(
        http_app(second.mcp, redis_url=valkey_url, registry=CollectorRegistry(), worker_lease=2 * CEILING)
    ) as other:
        async with serving(
            http_app(first.mcp, redis_url=valkey_url, registry=CollectorRegistry(), worker_lease=2 * CEILING)
        ) as url:
            on_a = connect(url)
            await on_a.initialize()
            async with on_a.call(1, "steps", name="w") as response:
                cursor = (await anext(events(response))).id
        on_b = replace(on_a, url=f"{other}/mcp")
        with anyio.fail_after(CEILING):
            (answer,) = await on_b.resume(cursor)
            assert await on_b.resume(cursor) == [answer]
        assert answer.message["error"]["code"] == REQUEST_ORPHANED
        assert answer.message["id"] == 1
        assert "result" in (await call(on_b, 2, "echo", text="x")).message


async def test_follower_on_the_running_worker_in_an_outage_gets_events_live(connect: Connect) -> None:
    """Redis dies while a stream is followed."""
    valkey = EmbeddedValkey()
    controlled = ControlledServer()
    async with valkey.running():
        app = http_app(controlled.mcp, redis_url=valkey.url, registry=CollectorRegistry())
        async with serving(app) as url:
            client = connect(url)
            await client.initialize()
            async with client.call(1, "steps", name="w") as response:
                cursor = (await anext(events(response))).id
            async with client.get() as standalone, client.get(cursor) as response:
                stream, aside = events(response), events(standalone)
                await anext(aside)
                controlled.step("w", "a")
                assert progress([await anext(stream)]) == ["a"]
                valkey._stop()
                controlled.step("w", "b")
                with anyio.fail_after(CEILING):
                    assert progress([await anext(stream)]) == ["b"]
                    controlled.finish("w")
                    assert "result" in (await anext(stream)).message
                    assert [event async for event in stream] == []
                    assert "result" in (await call(client, 2, "announce")).message
                    assert (await anext(aside)).message["method"] == "notifications/tools/list_changed"


async def test_standalone_stream_resumed_delivers_missed_messages(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """It has a cursor from the start, and gets the missed messages of either worker."""
    on_a, on_b = pair
    async with on_a.get() as response:
        cursor = (await anext(events(response))).id
    assert "result" in (await call(on_b, 1, "announce")).message
    assert "result" in (await call(on_a, 2, "announce")).message
    async with on_b.get(cursor) as response:
        stream = events(response)
        with anyio.fail_after(CEILING):
            received = [await anext(stream), await anext(stream)]
    assert [event.message["method"] for event in received] == ["notifications/tools/list_changed"] * 2
    assert len({event.id for event in received}) == 2


async def test_worker_on_an_emptied_redis_publishes_its_sessions_again(connect: Connect) -> None:
    """Its session can be adopted, and its running call is not given up."""
    valkey = EmbeddedValkey()
    async with valkey.running(), AsyncExitStack() as stack:
        urls, controlled = [], [ControlledServer(), ControlledServer()]
        for each in controlled:
            app = http_app(each.mcp, redis_url=valkey.url, registry=CollectorRegistry(), worker_lease=LEASE)
            urls.append(await stack.enter_async_context(serving(app)))
        on_a = connect(urls[0])
        await on_a.initialize()
        async with on_a.call(1, "steps", name="w") as response:
            stream = events(response)
            await anext(stream)
            async with Redis.from_url(valkey.url) as redis:
                await redis.flushall()
                await until(lambda: redis.exists(f"mcp:{{{on_a.session}}}:session"))
                await until(lambda: redis.exists(f"mcp:{{{on_a.session}}}:requests"))
            controlled[0].step("w", "a")
            cursor = (await anext(stream)).id
        async with replace(on_a, url=f"{urls[1]}/mcp").get(cursor) as response:
            await anyio.sleep(2.5 * LEASE)  # Longer than the lease: the call must not be declared orphaned.
            controlled[0].finish("w")
            (event,) = [event async for event in events(response)]
        assert "result" in event.message


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
async def test_response_in_an_outage_is_resumed_once_afterwards(connect: Connect, *, frozen: bool) -> None:
    """The call ends while both Redis and its client are disconnected."""
    with valkey() as server:
        controlled = ControlledServer()
        app = http_app(controlled.mcp, redis_url=server.url, registry=CollectorRegistry(), worker_lease=LEASE)
        async with serving(app) as url:
            client = connect(url)
            await client.initialize()
            async with client.call(1, "steps", name="w") as response:
                cursor = (await anext(events(response))).id
            process = server.process
            assert process is not None
            if frozen:
                process.send_signal(signal.SIGSTOP)
            else:
                server.stop()
            controlled.finish("w")
            transport = controlled.mcp.session_manager._server_instances[client.session]
            assert isinstance(transport, ResumableTransport)
            await until(lambda: transport.view._store.backlog.events)
            if frozen:
                process.send_signal(signal.SIGCONT)
            else:
                server.start()
            await until(lambda: not transport.view._store.backlog.events)
            answers = [(await client.resume(cursor))[-1].message for _ in range(2)]
            async with Redis.from_url(server.url) as redis:
                (key,) = await redis.keys(f"mcp:{{{client.session}}}:stream:1:*")
                stored = await redis.llen(key)
    assert all("result" in answer for answer in answers)
    assert stored == 2, "the priming event, which Redis has lost where it was killed, and the response, once"


async def test_resume_after_the_ttl_is_answered_with_an_error(valkey_url: str, connect: Connect) -> None:
    """A client that stays disconnected for longer than the TTL gets no silent stream."""
    urls = []
    async with AsyncExitStack() as stack:
        for _ in range(2):
            app = http_app(ControlledServer().mcp, redis_url=valkey_url, ttl=1, registry=CollectorRegistry())
            urls.append(await stack.enter_async_context(serving(app)))
        on_a = connect(urls[0])
        await on_a.initialize()
        async with on_a.call(1, "echo", text="x") as response:
            received = [event async for event in events(response)]
        async with on_a.get() as response:
            aside = (await anext(events(response))).id
        async with Redis.from_url(valkey_url) as redis:
            await until(lambda: _none(redis, f"mcp:{{{on_a.session}}}:stream:*"))
        for client in (on_a, replace(on_a, url=f"{urls[1]}/mcp")):
            (answer,) = await client.resume(received[0].id)
            assert answer.message["error"]["code"] == EVENTS_GONE
            assert answer.message["id"] == 1
        # The standalone stream belongs to no request that could be answered: it continues.
        async with on_a.get(aside) as response:
            stream = events(response)
            assert "result" in (await call(replace(on_a, url=f"{urls[1]}/mcp"), 2, "announce")).message
            with anyio.fail_after(CEILING):
                assert (await anext(stream)).message["method"] == "notifications/tools/list_changed"


async def _none(redis: Redis, pattern: str) -> bool:
    """Whether no key matches."""
    return not [key async for key in redis.scan_iter(pattern)]


async def test_standalone_stream_opened_elsewhere_ends_the_older_one(pair: tuple[HTTPClient, HTTPClient]) -> None:
    """The older connection ends immediately."""
    on_a, on_b = pair
    async with on_a.get() as old, on_b.get() as new:
        older, newer = events(old), events(new)
        await anext(newer)
        with anyio.fail_after(CEILING):
            assert [event.data async for event in older] == [""], "its cursor, and nothing else"
        assert "result" in (await call(on_a, 1, "announce")).message
        with anyio.fail_after(CEILING):
            assert (await anext(newer)).message["method"] == "notifications/tools/list_changed"
