"""Answers to request states on several workers over HTTP, which are killed, with the SDK's client."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, CreateMessageResult, ElicitResult, InputRequiredResult, TextContent
from redis import asyncio as aioredis

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.http_client import NO_TLS
from support.processes import WorkerProcess, revive
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio
PREFIX = "orders:"


APP = "support.request_state_app:app"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """The Redis of the workers, which a test may kill; its data survives."""
    with own_valkey(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(server: OwnValkey, valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers, the first of which serves principals."""
    workers: list[WorkerProcess] = [
        WorkerProcess(server.url, valkey_url, app=APP, key_prefix=PREFIX, auth=True) for _ in range(2)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


@asynccontextmanager
async def client_of(worker: WorkerProcess, principal: str = "alice") -> AsyncIterator[Client]:
    """The SDK's client, which accepts every question."""

    async def elicited(context: object, params: object) -> ElicitResult:  # noqa: ARG001 - by name
        return ElicitResult(action="accept", content={"sure": True})

    async def sampled(context: object, params: object) -> CreateMessageResult:  # noqa: ARG001 - by name
        return CreateMessageResult(role="assistant", content=TextContent(text="because"), model="m")

    headers = {"Authorization": f"Bearer {principal}"}
    async with (
        httpx2.AsyncClient(verify=NO_TLS, trust_env=False, headers=headers, timeout=CEILING) as http,
        Client(
            streamable_http_client(f"{worker.url}/mcp", http_client=http),
            elicitation_callback=elicited,
            sampling_callback=sampled,
        ) as client,
    ):
        yield client


async def ask(client: Client, tool: str, account: str) -> InputRequiredResult:
    """Call a tool, which asks a question."""
    result = await client.session.call_tool(tool, {"account": account, "amount": 5}, allow_input_required=True)
    assert isinstance(result, InputRequiredResult)
    return result


async def answer(client: Client, question: InputRequiredResult, tool: str, account: str) -> str:
    """Answer a question. Returns the text of the result."""
    assert question.input_requests
    responses = {key: ElicitResult(action="accept", content={"sure": True}) for key in question.input_requests}
    result = await client.session.call_tool(
        tool,
        {"account": account, "amount": 5},
        input_responses=responses,  # type: ignore[arg-type]
        request_state=question.request_state,
        allow_input_required=True,
    )
    assert isinstance(result, CallToolResult)
    content = result.content[0]
    assert isinstance(content, TextContent)
    return content.text


@pytest.fixture
async def workers(fleet: list[WorkerProcess], server: OwnValkey) -> list[WorkerProcess]:
    """Both workers, running."""
    del server
    await anyio.to_thread.run_sync(revive, fleet)
    return fleet


@pytest.fixture
def account() -> str:
    """The account of a test."""
    return uuid.uuid4().hex


@pytest.fixture
async def control(valkey_url: str) -> AsyncIterator[aioredis.Redis]:
    """A client of the Redis that the tools use."""
    async with aioredis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


async def test_elicitation_asked_on_one_worker_is_answered_on_the_other(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis
) -> None:
    """The same answer three times, on both workers, takes effect once, and gets one result."""
    async with client_of(workers[0]) as one, client_of(workers[1]) as other:
        question = await ask(one, "transfer", account)
        results = {await answer(client, question, "transfer", account) for client in (other, one, other)}
        assert len(results) == 1
        assert await control.get(f"account:{account}") == "5"


async def test_driven_client_completes_elicitation_and_sampling(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis
) -> None:
    """The SDK's client answers by itself."""
    async with client_of(workers[0]) as client:
        for tool in ("transfer", "justify"):
            result = await client.call_tool(tool, {"account": account, "amount": 5})
            assert not result.is_error, result
        assert await control.get(f"account:{account}") == "10"


async def test_state_of_another_principal_is_refused_over_http(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis
) -> None:
    """Neither a question nor a recorded result is of use to another subject of the same client."""
    async with client_of(workers[0]) as alice, client_of(workers[1], "bob") as bob:
        question = await ask(alice, "transfer", account)
        for _ in range(2):
            with pytest.raises(MCPError, match="Invalid or expired requestState"):
                await answer(bob, question, "transfer", account)
            await answer(alice, question, "transfer", account)
        assert await control.get(f"account:{account}") == "5"


async def test_rotation_under_load_refuses_nothing(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis, server: OwnValkey
) -> None:
    """Keys rotate again and again while questions are asked and answered on different workers."""
    asked = 0
    done = anyio.Event()

    async def rotate() -> None:
        async with aioredis.Redis.from_url(server.url, decode_responses=True) as redis:
            key = Keys(PREFIX).state_keys
            while not done.is_set():
                current = await redis.hget(key, "current")
                await redis.hset(key, str(current), "1 9999999999999999")  # As old as can be, and used a moment ago.
                await anyio.sleep(0.1)

    async def use(one: Client, other: Client) -> None:
        nonlocal asked
        for _ in range(20):
            question = await ask(one, "transfer", account)
            asked += 1
            await answer(other, question, "transfer", account)

    async with client_of(workers[0]) as one, client_of(workers[1]) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(rotate)
        async with anyio.create_task_group() as users:
            users.start_soon(use, one, other)
            users.start_soon(use, other, one)
        done.set()
    assert await control.get(f"account:{account}") == str(5 * asked)


async def test_answer_of_a_killed_worker_gets_an_honest_error(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis
) -> None:
    """It took effect on the worker that was killed; the repetition neither hangs nor runs it again."""
    async with client_of(workers[1]) as other:
        question = await ask(other, "held", account)

        async def first_use() -> None:
            with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever the transport raises
                async with client_of(workers[0]) as one:
                    await answer(one, question, "held", account)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first_use)
            await until(lambda: control.exists(f"runs:{account}"))
            await anyio.to_thread.run_sync(workers[0].kill)
            tasks.cancel_scope.cancel()
        for _ in range(2):
            with pytest.raises(MCPError) as raised:
                await answer(other, question, "held", account)
            assert raised.value.code == REQUEST_ORPHANED
        assert await control.get(f"account:{account}") == "5"


async def test_answer_of_a_lost_connection_is_not_run_again(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis
) -> None:
    """The SDK cancels a call whose connection is lost. The repetition gets an error: it may have taken effect."""
    async with client_of(workers[1]) as other:
        question = await ask(other, "held", account)
        with anyio.CancelScope() as scope:
            async with client_of(workers[0]) as one, anyio.create_task_group() as tasks:
                tasks.start_soon(answer, one, question, "held", account)
                await until(lambda: control.exists(f"runs:{account}"))
                scope.cancel()
        with pytest.raises(MCPError) as raised:
            await answer(other, question, "held", account)
        assert (raised.value.code, raised.value.data) == (REQUEST_ORPHANED, {"reason": "cancelled"})
        assert await control.get(f"account:{account}") == "5"


async def test_killed_redis_is_not_noticed(
    workers: list[WorkerProcess], account: str, control: aioredis.Redis, server: OwnValkey
) -> None:
    """Questions are asked during the outage, and their answers are held until it ends."""
    async with client_of(workers[0]) as one, client_of(workers[1]) as other:
        before = await ask(one, "transfer", account)
        server.kill()
        during = await ask(one, "transfer", account)
        results: list[str] = []

        async def use(client: Client, question: InputRequiredResult) -> None:
            results.append(await answer(client, question, "transfer", account))

        async with anyio.create_task_group() as tasks:
            for client in (one, other):
                for question in (before, during):
                    tasks.start_soon(use, client, question)
            await anyio.sleep(0.5)  # The outage.
            assert results == []
            await anyio.to_thread.run_sync(server.start)
        assert len(set(results)) == 2
        assert await control.get(f"account:{account}") == "10"


async def test_metrics_of_a_worker_count_its_answers(workers: list[WorkerProcess], account: str) -> None:
    """The endpoint shows the states and answers of the worker."""
    async with client_of(workers[0]) as client:
        question = await ask(client, "transfer", account)
        for _ in range(2):
            await answer(client, question, "transfer", account)
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        text = (await http.get(f"{workers[0].url}/scraped")).text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("eventscope_request_state"))
    assert float(samples['eventscope_request_state_sealed_total{source="redis",store="default"}']) >= 1
    assert float(samples['eventscope_request_state_answers_repeated_total{store="default"}']) >= 1
