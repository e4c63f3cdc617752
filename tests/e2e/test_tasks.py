"""Tools that run as tasks, over HTTP with two workers: the SDK's client, and raw requests for details that it hides."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.types import CallToolResult
from prometheus_client import CollectorRegistry
from pydantic import AnyHttpUrl
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, RedisTaskStore, TasksClient
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from mcp_eventscope.tasks.wire import IDENTIFIER, TaskResult
from support.http_client import NO_TLS
from support.proxy import Proxy
from support.servers import Valkey
from support.serving import serving, serving_each
from support.stores import patient_client
from support.task_client import RawTasks, accept, start, text_of
from support.task_server import task_app
from support.tool_control import ToolControl
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


@dataclass
class Two:
    """Two workers on one Redis."""

    first: str
    second: str


@pytest.fixture
async def two(valkey_url: str, key_prefix: str) -> AsyncIterator[Two]:
    """Two workers, each with a client and a store of its own."""
    async with AsyncExitStack() as stack:
        apps = []
        for _ in range(2):
            client = await stack.enter_async_context(patient_client(valkey_url))
            events = RedisEventStore(client, key_prefix=key_prefix, ttl=60, store_timeout=10)
            tasks = RedisTaskStore(events.backend, poll_interval=0.05, sync_interval=0.1)
            options = {"registry": CollectorRegistry(), "worker_lease": 1.0}
            apps.append(task_app(events, tasks, valkey_url, options=options, shutdown_timeout=0.1))
        urls = await stack.enter_async_context(serving_each(*apps))
        yield Two(f"{urls[0]}/mcp", f"{urls[1]}/mcp")


@pytest.fixture
async def raw(two: Two) -> AsyncIterator[RawTasks]:
    """Raw requests to the first worker."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        yield RawTasks(http, two.first)


@pytest.fixture
def tool(redis_client: aioredis.Redis) -> ToolControl:
    """The control of one run of `work`."""
    return ToolControl(redis_client, uuid.uuid4().hex)


async def test_call_with_the_tasks_client_returns_the_result(two: Two, tool: ToolControl) -> None:
    """The SDK's client awaits the task as it awaits a result, and sees its progress."""
    seen: list[TaskResult] = []
    results: list[CallToolResult] = []

    async def call(client: Client) -> None:
        results.append(await client.call_tool("work", {"name": tool.name}))

    await tool.step("a step")
    async with Client(two.first, extensions=[TasksClient(seen.append)]) as client, anyio.create_task_group() as group:
        group.start_soon(call, client)
        await until(lambda: any(task.status_message == "a step" for task in seen))
        await tool.finish()
    assert text_of(results[0]) == "1 steps"


async def test_cancelled_call_of_the_tasks_client_cancels_the_task(two: Two, tool: ToolControl) -> None:
    """A client that gives up leaves no running tool."""
    seen: list[TaskResult] = []
    async with Client(two.first, extensions=[TasksClient(seen.append)]) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work", {"name": tool.name})
        await until(lambda: seen)
        await tool.started()
        group.cancel_scope.cancel()
    await tool.ended()


async def test_task_outlives_its_client_and_is_polled_on_the_other_worker(two: Two, tool: ToolControl) -> None:
    """Any worker knows the task and its result."""
    extension = TasksClient()
    async with Client(two.first, extensions=[extension]) as client:
        task_id = await start(client, "work", name=tool.name)
    await tool.finish()
    async with Client(two.second, extensions=[extension]) as client:
        assert text_of(await extension.poll(client.session, task_id)) == "0 steps"


@pytest.mark.parametrize(("name", "text"), [("ask", "Ada"), ("ask_by_result", "Ada state")])
async def test_input_answered_on_the_other_worker_reaches_the_tool(two: Two, name: str, text: str) -> None:
    """`ctx.elicit` and a returned `InputRequiredResult` both ask through the task."""
    extension = TasksClient()
    async with (
        Client(two.first, extensions=[extension], elicitation_callback=accept) as client,
        Client(two.second, extensions=[extension], elicitation_callback=accept) as other,
    ):
        task_id = await start(client, name)
        assert text_of(await extension.poll(other.session, task_id)) == text


async def test_task_on_the_wire_has_the_fields_of_its_status(two: Two, raw: RawTasks, tool: ToolControl) -> None:
    """SEP-2663: each status has its own fields, on both workers, and acknowledgements are empty."""
    created = (await raw.call("work", name=tool.name))["result"]
    task_id = created.pop("taskId")
    assert created.pop("ttlMs") >= 3_600_000
    assert datetime.fromisoformat(created.pop("createdAt")) <= datetime.fromisoformat(created.pop("lastUpdatedAt"))
    del created["_meta"]
    assert created == {"resultType": "task", "status": "working", "pollIntervalMs": 50}
    other = raw.at(two.second)
    await tool.step("half done")
    task = await other.until(task_id, lambda task: task.get("statusMessage") == "half done")
    assert task["resultType"] == "complete"
    assert not {"result", "error", "inputRequests"} & task.keys()
    await tool.finish()
    task = await other.final(task_id)
    assert task["status"] == "completed"
    assert task["result"]["content"] == [{"type": "text", "text": "1 steps"}]
    task_id = await raw.start("ask")
    task = await other.until(task_id, lambda task: task["status"] == "input_required")
    ((key, request),) = task["inputRequests"].items()
    assert (request["method"], request["params"]["message"]) == ("elicitation/create", "Who?")
    response = await other.update(task_id, **{key: {"action": "decline"}, "other": {"action": "accept"}})
    assert {k: v for k, v in response["result"].items() if k != "_meta"} == {"resultType": "complete"}
    assert (await other.final(task_id))["result"]["content"][0]["text"] == "decline"
    task = await other.final(await raw.start("refuse"))
    assert (task["status"], task["error"]) == ("failed", {"code": -32050, "message": "refused"})
    assert task["statusMessage"] == "refused"


async def test_task_cancelled_on_the_other_worker_ends_its_tool(two: Two, raw: RawTasks, tool: ToolControl) -> None:
    """The tool is cancelled, and the status is final. A second cancellation is acknowledged."""
    task_id = await raw.start("work", name=tool.name)
    await tool.started()
    other = raw.at(two.second)
    for _ in range(2):
        assert (await other.cancel(task_id))["result"]["resultType"] == "complete"
        assert (await other.final(task_id))["status"] == "cancelled"
    await tool.ended()


async def test_client_without_the_extension_gets_a_normal_call(two: Two, raw: RawTasks, tool: ToolControl) -> None:
    """Its tool runs in the call; methods of tasks are refused with the missing capability."""
    await tool.finish()
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        plain = RawTasks(http, two.first, capabilities={})
        response = await plain.call("work", name=tool.name)
        assert response["result"]["resultType"] == "complete"
        task_id = await raw.start("ask")
        for refused in (await plain.get(task_id), await plain.cancel(task_id), await plain.update(task_id)):
            assert refused["error"]["code"] == -32021
            assert refused["error"]["data"] == {"requiredCapabilities": {"extensions": {IDENTIFIER: {}}}}
        await raw.cancel(task_id)
    async with Client(two.first, mode="legacy") as client:
        await tool.finish()
        assert text_of(await client.call_tool("work", {"name": tool.name})) == "0 steps"


async def test_tool_that_is_not_declared_is_called_normally(raw: RawTasks) -> None:
    """Only the tools of `tools=` run as tasks."""
    assert (await raw.call("plain"))["result"]["content"][0]["text"] == "plain"


async def test_unknown_task_is_refused_by_all_methods(raw: RawTasks) -> None:
    """-32602, whether the id has the right form, names a live worker, or neither."""
    task_id = await raw.start("ask")
    for unknown in ("x", f"{'0' * 12}-{'A' * 43}", f"{task_id[:13]}{'A' * 43}"):
        await until(partial(is_unknown, raw, unknown))  # A worker that has just started cannot know of an outage.
        for response in (await raw.get(unknown), await raw.cancel(unknown), await raw.update(unknown)):
            assert response["error"]["code"] == -32602
            assert "not found" in response["error"]["message"]
    response = await raw.update(task_id, key={"neither": "a result"})
    assert response["error"]["code"] == -32602
    await raw.cancel(task_id)


async def is_unknown(raw: RawTasks, task_id: str) -> bool:
    """Whether a poll does not ask to be repeated."""
    return (await raw.get(task_id))["error"].get("data") is None


async def test_question_to_a_client_that_cannot_answer_fails_the_task(two: Two) -> None:
    """A client without elicitation would never answer."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        raw = RawTasks(http, two.first, capabilities={"extensions": {IDENTIFIER: {}}})
        task = await raw.final(await raw.start("ask"))
    assert (task["status"], task["error"]["code"]) == ("failed", -32021)


async def test_large_result_is_kept_and_a_larger_one_fails_honestly(two: Two, raw: RawTasks) -> None:
    """8 MiB are a result. Text without a JSON form, and more than the limit, are an error that names the reason."""
    other = raw.at(two.second)
    size = (8 << 20) // 2 - 1000  # The SDK repeats the text in `structuredContent`.
    task = await other.final(await raw.start("sized", size=size))
    assert len(task["result"]["content"][0]["text"]) == size
    task = await other.final(await raw.start("sized", size=8 << 20))
    assert (task["status"], task["error"]["code"]) == ("failed", EVENTS_GONE)
    task = await other.final(await raw.start("sized", size=-1))
    assert task["status"] == "failed"


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_log_message_that_the_client_asked_for_is_the_status_message(two: Two) -> None:
    """Notifications are not sent for tasks (SEP-2663), so the text is found where progress is."""
    seen: list[TaskResult] = []
    extension = TasksClient(seen.append)
    async with Client(two.first, extensions=[extension], elicitation_callback=accept, log_level="info") as client:
        assert text_of(await client.call_tool("logged", {})) == "accept"
    assert any(task.status_message == "a log message" for task in seen)


class Verifier:
    """Accepts two tokens of one client, for two subjects."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The subject is the token."""
        if token not in {"ada", "eve"}:
            return None
        return AccessToken(token=token, client_id="client", scopes=["use"], subject=token)


async def test_task_of_another_principal_is_unknown(valkey_url: str, key_prefix: str) -> None:
    """The answer is that for an id that never was, and nothing is changed."""
    settings = AuthSettings(
        issuer_url=AnyHttpUrl("https://issuer.example"),
        resource_server_url=AnyHttpUrl("http://127.0.0.1/mcp"),
        required_scopes=["use"],
        validate_token_resource=False,
    )
    async with (
        patient_client(valkey_url) as client,
        httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http,
    ):
        events = RedisEventStore(client, key_prefix=key_prefix, ttl=60, store_timeout=10)
        app = task_app(
            events,
            RedisTaskStore(events.backend, poll_interval=0.05, sync_interval=0.1),
            valkey_url,
            options={"registry": CollectorRegistry(), "worker_lease": 1.0},
            server={"auth": settings, "token_verifier": Verifier()},
            max_tasks_per_principal=1,
        )
        async with serving(app) as url:
            ada, eve = (
                RawTasks(http, f"{url}/mcp", headers={"authorization": f"Bearer {name}"}) for name in ("ada", "eve")
            )
            task_id = await ada.start("ask")
            await ada.until(task_id, lambda task: task["status"] == "input_required")
            unknown = f"{task_id[:13]}{'A' * 43}"
            await until(partial(is_unknown, ada, unknown))
            for send in (RawTasks.get, RawTasks.cancel, RawTasks.update):
                assert (await send(eve, task_id))["error"] == (await send(ada, unknown))["error"]
            refused = (await ada.call("ask"))["error"]
            assert "1 of your tasks" in refused["message"]
            await eve.cancel(await eve.start("ask"))
            assert (await ada.get(task_id))["result"]["status"] == "input_required"
            await ada.cancel(task_id)
            assert (await ada.final(task_id))["status"] == "cancelled"


async def test_client_that_leaves_while_redis_creates_the_task_leaves_nothing(
    valkey_server: Valkey, valkey_url: str, key_prefix: str, tool: ToolControl, redis_client: aioredis.Redis
) -> None:
    """Redis has taken the task, and its reply is on the way: the task is deleted, and the tool is not run."""
    async with (
        Proxy(valkey_server.socket).running() as proxy,
        patient_client(proxy.url) as client,
        httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http,
    ):
        events = RedisEventStore(client, key_prefix=key_prefix, ttl=60, store_timeout=10)
        options = {"registry": CollectorRegistry(), "worker_lease": 60.0}
        async with serving(task_app(events, RedisTaskStore(events.backend), valkey_url, options=options)) as url:
            raw = RawTasks(http, f"{url}/mcp")
            await raw.cancel(await raw.start("ask"))  # Everything is loaded now.
            pattern = f"{key_prefix}{{tasks:*:task:*"
            known = {key async for key in redis_client.scan_iter(pattern, count=1000)}
            proxy.delay = 1.0
            async with anyio.create_task_group() as group:
                group.start_soon(partial(raw.call, "work", name=tool.name))
                created: set[bytes] = set()

                async def is_created() -> bool:
                    found = {key async for key in redis_client.scan_iter(pattern, count=1000)}
                    created.update(found - known)
                    return bool(created)

                await until(is_created)
                group.cancel_scope.cancel()
            proxy.delay = 0.0
            await until(partial(is_deleted, redis_client, created))
        assert not await redis_client.exists(f"count:{tool.name}")


async def is_deleted(client: aioredis.Redis, keys: set[bytes]) -> bool:
    """Whether Redis has none of these keys."""
    return not await client.exists(*keys)


async def test_documented_server_serves_the_documented_client(
    valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both blocks of docs/tasks.md run as they stand, but for their addresses."""
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
    server, client = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    served: dict[str, Any] = {}
    exec(server.replace("Redis()", f"Redis.from_url({valkey_url!r})"), served)  # noqa: S102 - it is ours
    async with serving(served["app"]) as url:
        called: dict[str, Any] = {}
        exec(client.replace("http://localhost:8000", url), called)  # noqa: S102
        await called["main"]()
    assert "built" in capsys.readouterr().out
