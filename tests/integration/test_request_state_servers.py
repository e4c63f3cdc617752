"""Request states installed in the servers of the SDK and of FastMCP, with their clients in this process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client as FastMCPClient
from fastmcp import Context as FastMCPContext
from fastmcp import FastMCP
from mcp.client import Client
from mcp.client.session import ClientSession
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    GetPromptResult,
    InputRequiredResult,
    ListToolsResult,
    PromptMessage,
    TextContent,
)
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import (
    InstrumentedEventStore,
    InstrumentedRequestState,
    RedisEventStore,
    RedisRequestState,
    http_app,
)
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.sdk_versions import version_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]

QUESTION: Any = {
    "c": ElicitRequest(
        params=ElicitRequestFormParams(message="Sure?", requested_schema={"type": "object", "properties": {}})
    )
}
ANSWER: Any = {"c": ElicitResult(action="accept", content={})}
PAGE = (Path(__file__).parents[2] / "docs" / "request_state.md").read_text("utf-8")


@pytest.fixture
def state(redis_client: aioredis.Redis, key_prefix: str) -> InstrumentedRequestState:
    """The request state of the server."""
    backend = RedisEventStore(redis_client, key_prefix=key_prefix).backend
    return InstrumentedRequestState(RedisRequestState(backend), registry=CollectorRegistry())


async def answer_three_times(session: ClientSession) -> list[str]:
    """Call the tool `transfer`, and send one answer three times. Returns the texts of the results."""
    question = await session.call_tool("transfer", {}, allow_input_required=True)
    assert isinstance(question, InputRequiredResult)
    assert str(question.request_state).startswith("v1.")
    texts = []
    for _ in range(3):
        result = await session.call_tool(
            "transfer", {}, input_responses=ANSWER, request_state=question.request_state, allow_input_required=True
        )
        assert isinstance(result, CallToolResult)
        assert isinstance(result.content[0], TextContent)
        texts.append(result.content[0].text)
    return texts


@pytest.mark.skipif(version_of("mcp").startswith("2.2."), reason="mcp 2.2 passes no answers to prompts")
async def test_mcpserver_answers_a_prompt_once(state: InstrumentedRequestState) -> None:
    """Prompts and resources ask as tools do."""
    mcp: MCPServer[Any] = MCPServer("orders")
    effects: list[str | None] = []

    @mcp.prompt()
    async def greet(ctx: Context[Any]) -> Any:
        """Ask before greeting."""
        if not ctx.input_responses:
            return InputRequiredResult(input_requests=QUESTION, request_state="plain")
        effects.append(ctx.request_state)
        return "hello"

    state.install(mcp)
    async with Client(mcp) as client:
        question = await client.session.get_prompt("greet", allow_input_required=True)
        assert isinstance(question, InputRequiredResult)
        for _ in range(2):
            result = await client.session.get_prompt(
                "greet", input_responses=ANSWER, request_state=question.request_state, allow_input_required=True
            )
            assert isinstance(result, GetPromptResult)
            assert isinstance(result.messages[0], PromptMessage)
    assert effects == ["plain"]


async def test_low_level_server_answers_once(state: InstrumentedRequestState) -> None:
    """Its questions may have no state, and its handlers then receive none."""
    effects: list[str | None] = []

    async def call(_: Any, params: CallToolRequestParams) -> CallToolResult | InputRequiredResult:
        if not params.input_responses:
            return InputRequiredResult(input_requests=QUESTION)
        effects.append(params.request_state)
        return CallToolResult(content=[TextContent(text=f"effect {len(effects)}")])

    async def tools(*_: object) -> ListToolsResult:
        return ListToolsResult(tools=[])

    server: Server[Any] = Server("orders", on_call_tool=call, on_list_tools=tools)
    state.install(server)
    async with Client(server) as client:
        assert await answer_three_times(client.session) == ["effect 1"] * 3
    assert effects == [None]


async def test_fastmcp_answers_once(state: InstrumentedRequestState) -> None:
    """With FastMCP's client and its own lifespan."""
    mcp: FastMCP[Any] = FastMCP("orders")
    effects: list[str | None] = []

    @mcp.tool  # type: ignore[untyped-decorator]
    async def transfer(ctx: FastMCPContext) -> Any:
        """Ask before the effect."""
        if not ctx.input_responses:
            return InputRequiredResult(input_requests=QUESTION, request_state="plain")
        effects.append(ctx.request_state)
        return f"effect {len(effects)}"

    state.install(mcp)
    async with FastMCPClient(mcp) as client:
        assert await answer_three_times(client.session) == ["effect 1"] * 3
    assert effects == ["plain"]


@pytest.mark.parametrize("kind", [MCPServer, FastMCP])
async def test_http_app_runs_the_request_state(
    redis_client: aioredis.Redis, key_prefix: str, kind: Callable[[str], Any]
) -> None:
    """Both share one store and one lease, and start and stop with the application."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    state = RedisRequestState(store.backend)
    mcp = kind("orders")
    state.install(mcp)
    app = http_app(mcp, InstrumentedEventStore(store, registry=CollectorRegistry()))
    async with app.router.lifespan_context(app):
        assert state._running is not None
        assert await redis_client.exists(Keys(key_prefix).worker(store.backend.worker.name))
    assert state._running is None
    assert not await redis_client.exists(Keys(key_prefix).worker(store.backend.worker.name))


async def test_example_of_the_documentation_runs(valkey_url: str, key_prefix: str) -> None:
    """The lines that an author writes suffice."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    example = example.replace("redis://localhost:6379/0", valkey_url).replace("orders:", key_prefix)
    names: dict[str, Any] = {}
    exec(compile(example, "example", "exec"), names)  # noqa: S102 - it is ours
    effects: list[object] = []

    @names["mcp"].tool()  # type: ignore[untyped-decorator]
    async def transfer(ctx: Context[Any]) -> Any:
        """Ask before the effect."""
        if not ctx.input_responses:
            return InputRequiredResult(input_requests=QUESTION, request_state="plain")
        effects.append(ctx.request_state)
        return f"effect {len(effects)}"

    async with Client(names["mcp"]) as client:
        assert await answer_three_times(client.session) == ["effect 1"] * 3
    await names["redis"].aclose()
