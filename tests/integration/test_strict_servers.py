"""Servers that refuse keys which scripts do not declare, and services that limit the size of a command."""

import anyio
import httpx2
import pytest
from mcp import Client, MCPError
from redis import asyncio as aioredis

from mcp_eventscope import TasksClient
from support.chaos import on_url
from support.http_client import LIMITS, NO_TLS, HTTPClient, events
from support.key_guard import guard_scripts
from support.proxy import Proxy
from support.scope_pair import Worker, scope_pair, scope_story
from support.servers import Valkey
from support.store_stories import eviction_story, expiry_story
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LARGEST = 512 << 10
TOO_LARGE = 1 << 20
SURVEY = "'SCAN'"
"""In the text of the script of statistics, which finds its keys by SCAN, and declares none."""


@pytest.mark.parametrize("redis_client", [False], indirect=True, ids=["bytes"])
async def test_every_part_touches_declared_keys_only(
    valkey_url: str, redis_client: aioredis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions, subscriptions, request states and tasks. The root store cannot: Redis assigns the ids in its keys."""
    guard_scripts(monkeypatch, but=SURVEY)
    async with scope_pair(valkey_url, key_prefix) as (a, b):
        await scope_story(a, b)
        for each in (a, b):
            assert not each.log.named("event_store.redis_limited")
    for story in (eviction_story, expiry_story):
        await story(redis_client, key_prefix)


async def test_command_that_is_too_large_has_an_outcome_in_each_part(valkey_server: Valkey, key_prefix: str) -> None:
    """An error for the result of a task, a log event for an answer on another worker; all else works on."""
    async with (
        Proxy(valkey_server.socket).running() as proxy,
        scope_pair(f"{proxy.url}?socket_timeout={CEILING}", key_prefix) as (a, b),
    ):
        proxy.largest = LARGEST
        a.release.set()
        with anyio.fail_after(2 * CEILING):
            async with Client(f"{a.url}/mcp", extensions=[TasksClient()]) as client:
                with pytest.raises(MCPError, match="refused"):
                    await client.call_tool("build", {"result": TOO_LARGE})
            await _large_answer(a, b)
            await scope_story(a, b)


async def _large_answer(a: Worker, b: Worker) -> None:
    """Send an answer to the worker that does not run the call: it is lost, and counted."""
    async with httpx2.AsyncClient(verify=NO_TLS, limits=LIMITS, timeout=CEILING) as http:
        client = HTTPClient(http, f"{a.url}/mcp")
        await client.initialize()
        async with client.call(1, "ask") as response:
            stream = events(response)
            while not (event := await anext(stream)).data:
                pass
            result = {"action": "accept", "content": {"sure": True, "more": "x" * TOO_LARGE}}
            answer = {"jsonrpc": "2.0", "id": event.message["id"], "result": result}
            async with on_url(client, b.url).post(answer) as posted:
                assert posted.status_code == 202
            await until(lambda: b.log.named("event_store.messages_dropped"))
            (dropped,) = b.log.named("event_store.messages_dropped")
            assert (dropped["reason"], "size of a command" in dropped["fix"]) == ("refused", True)
            # The question is still open: an answer that fits ends it.
            answer["result"] = {"action": "decline"}
            async with on_url(client, b.url).post(answer) as posted:
                assert posted.status_code == 202
            last = [each async for each in stream][-1]
            assert last.message["result"]["structuredContent"] == {"result": "decline"}
        await client.delete()
