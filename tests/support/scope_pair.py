"""Two workers in this process, each with a scope of one server, and a story that uses every part of it on both."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import httpx2
from mcp import MCPError
from mcp.client import Client, ClientRequestContext
from mcp.client.subscriptions import ResourceUpdated
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.types import ElicitRequestParams, ElicitResult
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from mcp_eventscope import EventScope, TasksClient, http_app
from support.chaos import on_url
from support.http_client import LIMITS, NO_TLS, HTTPClient, events
from support.logs import Recorder
from support.processes import LEASE
from support.serving import serving
from support.waiting import CEILING, until

NAME = "orders"
LARGE = 20_000
"""Characters of a text that is stored apart from its event."""


class LeftError(Exception):
    """The client leaves."""


class Approval(BaseModel):
    """The answer of a user."""

    sure: bool


async def approve() -> Elicit[Approval]:
    """Ask the user."""
    return Elicit("Ship it?", Approval)


@dataclass
class Worker:
    """One worker in this process."""

    url: str
    scope: EventScope
    registry: CollectorRegistry
    release: anyio.Event
    shipped: list[str]
    log: Recorder

    def sample(self, name: str, **labels: str) -> float:
        """A metric."""
        return self.registry.get_sample_value(f"eventscope_{name}", {"store": NAME, **labels}) or 0.0


@asynccontextmanager
async def scope_pair(redis: Any, key_prefix: str, **options: Any) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers, each with a scope of the same prefix and name.

    Args:
        redis: A URL, or a function that makes a client for each worker.
        key_prefix: The prefix.
        options: For `http_app`.
    """
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            registry, log, release, shipped = CollectorRegistry(), Recorder(), anyio.Event(), list[str]()
            where: dict[str, Any] = {"redis_url": redis} if isinstance(redis, str) else {"redis": redis()}
            if client := where.get("redis"):
                stack.push_async_callback(client.aclose)
            scope = EventScope(
                NAME, **where, key_prefix=key_prefix, worker_lease=LEASE, registry=registry, logger=log
            )  # fmt: skip
            mcp: MCPServer[Any] = MCPServer(NAME, **scope.server_options(tasks={"build", "spoil", "ask"}))
            _add_tools(mcp, release, shipped)
            url = await stack.enter_async_context(serving(http_app(mcp, scope=scope, **options)))
            made.append(Worker(url, scope, registry, release, shipped, log))
        yield made[0], made[1]


def _add_tools(mcp: MCPServer[Any], release: anyio.Event, shipped: list[str]) -> None:
    """Add the tools of one worker."""

    @mcp.tool()
    async def build(ctx: Context, size: int = 0, result: int = 0) -> str:
        """Report progress, and end when the test lets it."""
        await ctx.report_progress(1, 2, "half" + "x" * size)
        await release.wait()
        return "built" + "x" * result

    @mcp.tool()
    async def spoil(ctx: Context) -> str:
        """Report a text without a form in UTF-8, and fail with it when the test lets it."""
        text = "x\ud800"
        await ctx.report_progress(1, 2, text)
        await release.wait()
        raise MCPError(-32050, text, data={"text": text})

    @mcp.tool()
    async def ask(ctx: Context) -> str:
        """Ask the user."""
        answer = await ctx.elicit("Sure?", Approval)
        return answer.action

    @mcp.tool()
    async def ship(order: str, answer: Annotated[Approval, Resolve(approve)], ctx: Context, result: int = 0) -> str:
        """Ship an order after a question, and publish the change."""
        if answer.sure:
            shipped.append(order)
            await ctx.notify_resource_updated(f"order://{order}")
        return ("shipped" if answer.sure else "kept") + "x" * result


async def scope_story(a: Worker, b: Worker) -> None:
    """Use every part of the scope, begun on one worker and continued on the other.

    A resumed call with a large message, an answer to a question on another worker, the end of a session, a signal, a
    question that is answered once, and tasks that are read, answered and cancelled on another worker.
    """
    with anyio.fail_after(2 * CEILING):
        async with httpx2.AsyncClient(verify=NO_TLS, limits=LIMITS, timeout=CEILING) as http:
            await _session(HTTPClient(http, f"{a.url}/mcp"), a, b)
        await _signal_and_answer(a, b)
        await _tasks(a, b)
        for each in (a, b):
            assert each.sample("degraded", worker=each.scope.backend.worker.name) == 0
    lost = [record for each in (a, b) for record in each.log.named("event_store.events_lost")]
    assert not lost


async def _session(client: HTTPClient, a: Worker, b: Worker) -> None:
    """A call that continues on another worker, where its question is answered, too."""
    await client.initialize()
    other = on_url(client, b.url)
    async with client.call(1, "build", size=LARGE) as response:
        cursor = (await anext(events(response))).id
    async with other.get(cursor) as response:
        stream = events(response)
        while not (event := await anext(stream)).data:
            pass
        assert event.message["params"]["message"] == "half" + "x" * LARGE
        a.release.set()
        assert [each async for each in stream][-1].message["result"]["structuredContent"] == {"result": "built"}
    async with client.call(2, "ask") as response:
        stream = events(response)
        while not (event := await anext(stream)).data:
            pass
        answer = {"jsonrpc": "2.0", "id": event.message["id"], "result": {"action": "decline"}}
        async with other.post(answer) as posted:
            assert posted.status_code == 202, await posted.aread()
        assert [each async for each in stream][-1].message["result"]["structuredContent"] == {"result": "decline"}
    assert await other.delete() == 200

    async def forgotten() -> bool:
        async with client.post({"jsonrpc": "2.0", "id": 9, "method": "ping"}) as response:
            return response.status_code == 404

    await until(forgotten)


async def _accept(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Answer a question."""
    del context, params
    return ElicitResult(action="accept", content={"sure": True})


async def _signal_and_answer(a: Worker, b: Worker) -> None:
    """A question that is answered on one worker, and a stream on the other that its change signals."""
    shipped = len(b.shipped)
    async with (
        Client(f"{a.url}/mcp") as listener,
        listener.listen(resource_subscriptions=["order://7"]) as stream,
        Client(f"{b.url}/mcp", elicitation_callback=_accept) as client,
    ):
        result = await client.call_tool("ship", {"order": "7"})
        assert result.structured_content == {"result": "shipped"}
        async for event in stream:
            assert event == ResourceUpdated("order://7")
            break
    assert b.shipped[shipped:] == ["7"]


async def _tasks(a: Worker, b: Worker) -> None:
    """A task that is collected, one whose question is answered, and one that is cancelled, all from another worker."""
    assert await _result_elsewhere("build", a, b) == "built"
    assert await _result_elsewhere("ask", a, b) == "accept"


async def _result_elsewhere(tool: str, a: Worker, b: Worker) -> object:
    created: list[str] = []

    def leave(task: Any) -> None:
        created.append(task.task_id)
        raise LeftError

    try:
        leaving = [TasksClient(on_task=leave)]
        async with Client(f"{a.url}/mcp", extensions=leaving, elicitation_callback=_accept) as client:
            await client.call_tool(tool, {})
    except (LeftError, ExceptionGroup):
        assert created, "the tool did not run as a task"
    tasks = TasksClient()
    async with Client(f"{b.url}/mcp", extensions=[tasks], elicitation_callback=_accept) as client:
        result = await tasks.poll(client.session, created[0])
    return (result.structured_content or {})["result"]
