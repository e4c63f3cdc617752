"""Two tenants on one Redis: nothing that one of them tries reads, ends or disturbs what belongs to the other."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import ResumableSessionManager, http_app
from mcp_eventscope.redis.inspection import Inspector, Walk
from mcp_eventscope.redis.keys import Keys, pattern_of
from support.controlled_server import ControlledServer
from support.http_client import Connect, Event, HTTPClient, events
from support.principals import authenticated
from support.serving import serving
from support.waiting import until

pytestmark = pytest.mark.anyio

SECRET = "alice-payload-4711"
UNKNOWN = "0123456789abcdef" * 2
QUESTION = "elicitation/create"


@dataclass
class Worker:
    """A worker in this process."""

    url: str
    controlled: ControlledServer


@asynccontextmanager
async def workers(url: str, *options: dict[str, Any], auth: bool) -> AsyncIterator[list[Worker]]:
    """A worker with each of these options."""
    async with AsyncExitStack() as stack:
        found = []
        for each in options:
            controlled = ControlledServer(**(authenticated() if auth else {}))
            app = http_app(
                controlled.mcp, redis_url=url, ttl=60, registry=CollectorRegistry(), worker_lease=1.0, **each
            )
            found.append(Worker(await stack.enter_async_context(serving(app)), controlled))
            manager = controlled.mcp.session_manager
            assert isinstance(manager, ResumableSessionManager)
            assert manager._store is not None
            # Started long ago, so that it does not wait for records that other workers may be about to write.
            manager._store.coordinator._began -= 3600  # type: ignore[union-attr]
        yield found


@dataclass
class Victim:
    """A client with a running call, an open question, and a standalone stream, and all that it has received."""

    client: HTTPClient
    controlled: ControlledServer
    received: dict[str, list[Event]]
    cursors: list[str]

    def texts(self, stream: str) -> list[str]:
        """The data of a stream."""
        return [event.data for event in self.received[stream] if event.data]

    async def check(self) -> None:
        """The call goes on and completes, the question is still open, the standalone stream is still served."""
        self.controlled.step("call", f"{SECRET} 2")
        await until(lambda: len(self.texts("call")) == 2)
        self.controlled.finish("call")
        await until(lambda: "2 steps" in self.texts("call")[-1])
        question = next(event.message for event in self.received["ask"] if QUESTION in event.data)
        result = {"action": "accept", "content": {"name": SECRET}}
        async with self.client.post({"jsonrpc": "2.0", "id": question["id"], "result": result}) as response:
            assert response.status_code == 202
        await until(lambda: SECRET in self.texts("ask")[-1])
        async with self.client.call(9, "announce") as response:
            assert [event async for event in events(response)]
        await until(lambda: any("tools/list_changed" in text for text in self.texts("standalone")))


@asynccontextmanager
async def victim(client: HTTPClient, controlled: ControlledServer) -> AsyncIterator[Victim]:
    """A victim that has begun everything."""
    await client.initialize()
    found = Victim(client, controlled, {"call": [], "ask": [], "standalone": []}, [])

    async def read(stream: str, request: Any) -> None:
        async with request as response:
            async for event in events(response):
                found.received[stream].append(event)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, "standalone", client.get())
        tasks.start_soon(read, "call", client.call(1, "steps", name="call"))
        tasks.start_soon(read, "ask", client.call(2, "ask"))
        controlled.step("call", f"{SECRET} 1")
        await until(lambda: found.texts("call") and any(QUESTION in text for text in found.texts("ask")))
        found.cursors = [event.id for stream in found.received.values() for event in stream if event.id]
        yield found
        tasks.cancel_scope.cancel()


async def tried(thief: HTTPClient, question: object, cursors: list[str]) -> list[tuple[str, int, bytes]]:
    """The answers to all that a thief can try with the id of a session."""
    attempts: list[tuple[str, dict[str, str], Any]] = [
        ("GET", {}, None),
        *(("GET", {"last-event-id": cursor}, None) for cursor in cursors),
        ("POST", {}, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {}}}),
        ("POST", {}, {"jsonrpc": "2.0", "id": question, "result": {"action": "decline"}}),
        ("POST", {}, {"jsonrpc": "2.0", "id": question, "error": {"code": 1, "message": "no"}}),
        ("POST", {}, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}),
        ("POST", {}, {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1}}),
        ("POST", {}, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}),
        ("DELETE", {}, None),
    ]
    answers = []
    for method, headers, message in attempts:
        response = await thief.http.request(
            method, thief.url, headers={**thief.request_headers(), **headers}, json=message
        )
        answers.append((method, response.status_code, response.content))
    return answers


async def check_thief(thief: HTTPClient, owner: Victim) -> None:
    """A foreign session is answered like an unknown one, and foreign cursors lead to nothing in an own session."""
    question = next(event.message["id"] for event in owner.received["ask"] if QUESTION in event.data)
    foreign = await tried(replace(thief, session=owner.client.session), question, owner.cursors)
    assert foreign == await tried(replace(thief, session=UNKNOWN), question, owner.cursors)
    assert {status for _, status, _ in foreign} == {404}
    own = replace(thief)
    await own.initialize()
    for cursor in owner.cursors:
        if "_GET_stream" not in cursor:
            assert SECRET not in "".join(event.data for event in await own.resume(cursor))
    async with own.post({"jsonrpc": "2.0", "id": question, "result": {"action": "decline"}}) as response:
        assert response.status_code == 202
    async with own.call(1, "echo", text="mine") as response:
        assert ["mine" in event.data async for event in events(response)][-1]
    assert await own.delete() == 200


@pytest.mark.parametrize("place", ["same worker", "other worker"])
async def test_other_principal_on_the_same_prefix_gets_nothing(
    valkey_url: str, key_prefix: str, connect: Connect, place: str
) -> None:
    """With the id of the session, its cursors and its request ids, on the worker that serves it or on another one."""
    async with (
        workers(valkey_url, *[{"key_prefix": key_prefix}] * 2, auth=True) as (one, two),
        victim(connect(one.url, authorization="Bearer alice"), one.controlled) as owner,
    ):
        url = one.url if place == "same worker" else two.url
        await check_thief(connect(url, authorization="Bearer bob"), owner)
        await owner.check()


PREFIXES = [("a:", "b:"), ("t:", "t:x:"), ("t:x:", "t:"), ("t:", "t*"), ("{t}:", "{t}x:"), ("t[a]:", "ta:")]
"""The prefixes of the victim and the thief: one may begin with the other, or be a pattern that fits it."""


@pytest.mark.parametrize(("mine", "theirs"), PREFIXES)
async def test_other_prefix_on_the_same_redis_gets_nothing(  # noqa: PLR0913, PLR0917 - fixtures
    valkey_url: str, key_prefix: str, connect: Connect, redis_client: aioredis.Redis, mine: str, theirs: str
) -> None:
    """Without authentication, too: a session id is worth nothing under another prefix, and operators see their own."""
    own, foreign = f"{key_prefix}{mine}", f"{key_prefix}{theirs}"
    async with (
        workers(valkey_url, {"key_prefix": own}, {"key_prefix": foreign}, auth=False) as (one, two),
        victim(connect(one.url), one.controlled) as owner,
    ):
        before = await _contents(redis_client, own, foreign)
        assert before
        await check_thief(connect(two.url), owner)
        page = await Inspector(redis_client, Keys(foreign)).sessions(Walk(), limit=100)
        assert owner.client.session not in {each.session_id for each in page.sessions}
        after = await _contents(redis_client, own, foreign)
        assert {key: value for key, value in after.items() if key in before} == before
        await owner.check()


async def _contents(client: aioredis.Redis, own: str, foreign: str) -> dict[bytes, object]:
    """The session keys of the victim, which are not those of the thief."""
    found: dict[bytes, object] = {}
    any_client: Any = client
    async for key in client.scan_iter(match=f"{pattern_of(own)}*", count=1000):
        name = key if isinstance(key, bytes) else key.encode()
        session = name[len(own.encode()) :].startswith(b"{")
        if session and b"{workers}" not in name and not (len(foreign) > len(own) and name.startswith(foreign.encode())):
            if name.endswith(b":index"):  # The victim's worker adds rows again, with a later time, to renew them.
                rows = await any_client.execute_command("LRANGE", name, 0, -1, NEVER_DECODE=True)
                found[name] = {row.partition(b" ")[2] for row in rows}
            else:
                found[name] = await any_client.execute_command("DUMP", name, NEVER_DECODE=True)
    return found
