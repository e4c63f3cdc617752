"""One scope: legacy and 2026-07-28 clients of one server, on two workers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from mcp import MCPError
from mcp.client import Client, ClientRequestContext
from mcp.client.subscriptions import ResourceUpdated
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import ElicitRequestParams, ElicitResult
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import EventScope, TasksClient, http_app
from mcp_eventscope.redis.client import connect
from support.chaos import on_url
from support.http_client import Connect, events
from support.processes import LEASE
from support.scope_pair import LeftError, Worker, scope_pair
from support.serving import serving
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
async def pair(valkey_url: str, key_prefix: str) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers, each with a scope of the same prefix and name."""
    async with scope_pair(valkey_url, key_prefix) as both:
        yield both


@asynccontextmanager
async def provided(_: MCPServer[Any]) -> AsyncIterator[dict[str, bool]]:
    """The lifespan of a server."""
    state = {"open": True}
    yield state
    state["open"] = False


async def test_session_of_a_legacy_client_continues_on_another_worker(
    pair: tuple[Worker, Worker], connect: Connect
) -> None:
    """The tool that is a task for others is a call that resumes."""
    a, b = pair
    client = connect(a.url)
    await client.initialize()
    async with client.call(1, "build") as response:
        cursor = (await anext(events(response))).id
    async with on_url(client, b.url).get(cursor) as response:
        a.release.set()
        with anyio.fail_after(CEILING):
            rest = [event async for event in events(response)]
    assert rest[-1].message["result"]["structuredContent"] == {"result": "built"}
    assert a.sample("tasks_created_total") == 0


async def test_task_created_on_one_worker_ends_on_another(pair: tuple[Worker, Worker]) -> None:
    """The client that created it has left."""
    a, b = pair
    created: list[str] = []

    def leave(task: Any) -> None:
        created.append(task.task_id)
        raise LeftError

    with pytest.raises((LeftError, ExceptionGroup)):
        async with Client(f"{a.url}/mcp", extensions=[TasksClient(on_task=leave)]) as client:
            await client.call_tool("build", {})
    seen: list[str | None] = []

    def look(task: Any) -> None:
        seen.append(task.status_message)
        if task.status_message == "half":
            a.release.set()

    tasks = TasksClient(on_task=look)
    async with Client(f"{b.url}/mcp", extensions=[tasks]) as client:
        result = await tasks.poll(client.session, created[0])
    assert result.structured_content == {"result": "built"}
    assert "half" in seen
    await until(lambda: a.sample("tasks_ended_total", outcome="completed") == 1)
    assert not a.log.named("event_store.resumption_disabled"), "its clients have tasks"


async def test_abandoned_poll_leaves_the_task_running(pair: tuple[Worker, Worker]) -> None:
    """Only a call that is cancelled cancels its task."""
    a, b = pair
    known = anyio.Event()
    ids: list[str] = []

    def keep(task: Any) -> None:
        ids.append(task.task_id)
        known.set()

    results: list[Any] = []

    async def call() -> None:
        async with Client(f"{a.url}/mcp", extensions=[TasksClient(on_task=keep)]) as client:
            results.append(await client.call_tool("build", {}))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await known.wait()
        polled = anyio.Event()
        tasks = TasksClient(on_task=lambda _: polled.set())
        async with Client(f"{b.url}/mcp", extensions=[tasks]) as client, anyio.create_task_group() as polling:
            polling.start_soon(tasks.poll, client.session, ids[0])
            await polled.wait()
            polling.cancel_scope.cancel()
        a.release.set()
    assert results[0].structured_content == {"result": "built"}


async def test_text_without_a_form_in_utf8_affects_only_its_own_task(pair: tuple[Worker, Worker]) -> None:
    """Clients and file names may bring surrogates. The tasks of a worker are renewed in one call."""
    a, b = pair
    ended: dict[str, object] = {}

    async def call(tool: str) -> None:
        async with Client(f"{a.url}/mcp", extensions=[TasksClient()]) as client:
            try:
                ended[tool] = (await client.call_tool(tool, {})).structured_content
            except MCPError as error:
                ended[tool] = error.code, error.message

    with anyio.fail_after(CEILING):
        async with anyio.create_task_group() as calls:
            calls.start_soon(call, "build")
            calls.start_soon(call, "spoil")
            await until(lambda: a.sample("tasks_created_total") == 2)
            await anyio.sleep(2 * LEASE)
            a.release.set()
    assert ended == {"build": {"result": "built"}, "spoil": (-32050, "x?")}
    assert b.sample("tasks_orphaned_total") == a.sample("tasks_orphaned_total") == 0


async def test_question_that_a_client_cannot_answer_ends_its_task(pair: tuple[Worker, Worker]) -> None:
    """A task that waited for ever would take up a place."""
    a, _ = pair

    async def fail(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        del context, params
        msg = "no user"
        raise RuntimeError(msg)

    async with Client(f"{a.url}/mcp", extensions=[TasksClient()], elicitation_callback=fail) as client:
        with pytest.raises((RuntimeError, MCPError)):
            await client.call_tool("ask", {})
    await until(lambda: a.sample("tasks_ended_total", outcome="cancelled") == 1)


async def test_task_ends_before_the_lifespan_of_its_server(valkey_url: str, key_prefix: str) -> None:
    """It gets its time when the server stops, and may use what the lifespan provides until then."""
    release, seen = anyio.Event(), list[bool]()
    scope = EventScope("orders", redis_url=valkey_url, key_prefix=key_prefix, registry=CollectorRegistry())
    mcp: MCPServer[Any] = MCPServer("orders", **scope.server_options(tasks={"late"}), lifespan=provided)

    @mcp.tool()
    async def late(ctx: Context) -> str:
        """End after the server was asked to stop."""
        await release.wait()
        seen.append(ctx.request_context.lifespan_context["open"])
        return "late"

    def leave(_: Any) -> None:
        raise LeftError

    async with serving(http_app(mcp, scope=scope)) as url:
        with pytest.raises((LeftError, ExceptionGroup)):
            async with Client(f"{url}/mcp", extensions=[TasksClient(on_task=leave)]) as client:
                await client.call_tool("late", {})
        asyncio.get_running_loop().call_later(0.5, release.set)
    assert seen == [True]


def test_scope_in_another_event_loop_holds_its_lease(valkey_url: str, key_prefix: str) -> None:
    """Tests and scripts run several loops, one after the other."""
    scope = EventScope("orders", redis_url=valkey_url, key_prefix=key_prefix, registry=CollectorRegistry())
    scope.server_options(tasks={"t"})

    async def run() -> None:
        async with scope.running():
            workers = scope.backend.workers
            written = workers._written
            workers._sooner.set()
            await until(lambda: workers._written > written)
            assert not any(task.done() for task in workers._tasks)

    for _ in range(2):
        asyncio.run(run())


def test_parts_that_are_entered_during_their_end_run_in_each_event_loop(valkey_url: str, key_prefix: str) -> None:
    """The next block waits until the last one has ended. A lock of one loop would refuse to wait in another."""
    client = connect(valkey_url)
    scope = EventScope("orders", redis=client, key_prefix=key_prefix, registry=CollectorRegistry())
    parts: list[Callable[[], AbstractAsyncContextManager[None]]]
    parts = [scope.subscriptions.running, scope.request_state.running]

    async def run() -> None:
        async with scope.connected():
            for part in parts:
                ended: list[object] = []
                blocks = [part(), part()]
                await blocks[0].__aenter__()
                ending = asyncio.create_task(blocks[0].__aexit__(None, None, None))
                ending.add_done_callback(ended.append)
                await asyncio.sleep(0)  # It holds the lock now.
                await blocks[1].__aenter__()
                assert ended == [ending]
                await blocks[1].__aexit__(None, None, None)
        await client.aclose()

    for _ in range(2):
        asyncio.run(run())


async def test_scope_that_is_entered_again_keeps_its_client_until_the_last_block_ends() -> None:
    """As in a hot restart in one process: the embedded Valkey, and the connections to it, are those of both blocks."""
    scope = EventScope("orders", registry=CollectorRegistry())
    scope.server_options(tasks={"t"})
    client = cast("aioredis.Redis", scope.backend.redis)
    async with scope.running():
        async with scope.running():
            pass
        assert not any(task.done() for task in scope.backend.workers._tasks)
        assert await client.client_list(), "the server runs"
        assert client.connection_pool._available_connections
    assert not any(each.is_connected for each in client.connection_pool._available_connections)


async def test_server_without_a_tool_that_runs_as_a_task_does_not_start(valkey_url: str, key_prefix: str) -> None:
    """A mistyped name would make the tool a normal call. Tools may be registered after `http_app`."""
    scope = EventScope("orders", redis_url=valkey_url, key_prefix=key_prefix, registry=CollectorRegistry())
    mcp: MCPServer[Any] = MCPServer("orders", **scope.server_options(tasks={"build", "buidl"}))
    app = http_app(mcp, scope=scope)

    @mcp.tool()
    async def build() -> str:
        return "built"

    with pytest.raises(ExceptionGroup) as raised:  # Of the SDK's task group.
        async with app.router.lifespan_context(app):
            pass
    reason = r"must be tools of the server, got 'buidl'; .* \(it has 1: build\)"
    assert raised.group_contains(ValueError, match=reason)


async def test_answer_on_another_worker_acts_once_and_its_change_reaches_all(pair: tuple[Worker, Worker]) -> None:
    """Asked on one worker, answered on the other; a stream on the first one is signalled."""
    a, b = pair

    async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        del context, params
        return ElicitResult(action="accept", content={"sure": True})

    async with (
        Client(f"{a.url}/mcp") as listener,
        listener.listen(resource_subscriptions=["order://7"]) as stream,
        Client(f"{b.url}/mcp", elicitation_callback=answer) as client,
    ):
        result = await client.call_tool("ship", {"order": "7"})
        assert result.structured_content == {"result": "shipped"}
        with anyio.fail_after(CEILING):
            async for event in stream:
                assert event == ResourceUpdated("order://7")
                break
    assert (a.shipped, b.shipped) == ([], ["7"])
    assert a.sample("subscriptions_signals_delivered_total", path="remote") == 1
    assert b.sample("request_state_answers_total", outcome="completed") == 1


async def test_stopped_scope_leaves_no_key_without_expiry_and_no_lease(
    pair: tuple[Worker, Worker], redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """All parts share one lease, which the scope releases."""
    a, _ = pair
    async with Client(f"{a.url}/mcp") as client:
        await client.list_tools()
    keys = [key async for key in redis_client.scan_iter(match=f"{key_prefix}*", count=1000)]
    assert len([key for key in keys if f"{key_prefix}{{workers}}:worker:" in _text(key)]) == 2
    for key in keys:
        assert await redis_client.pttl(key) > 0, key


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key
