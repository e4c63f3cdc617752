"""The other examples: the manager by hand, the client, third-party stores, and the log events."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from redis import asyncio as aioredis

from mcp_eventscope import http_app
from mcp_eventscope.demo.figures import Figures
from support.http_client import Connect, events
from support.serving import serving

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_by_hand_example_runs(valkey_url: str, connect: Connect) -> None:
    """An application with the drop-in manager serves and resumes."""
    by_hand = importlib.import_module("examples.by_hand")
    by_hand.redis.connection_pool = aioredis.from_url(valkey_url).connection_pool
    async with serving(by_hand.app) as url:
        client = connect(url)
        await client.initialize()
        async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
            received = [event async for event in events(response)]
        assert await client.resume(received[0].id) == received[1:]


async def test_fastmcp_server_example_resumes(
    valkey_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FastMCP server gains resumability by one changed line."""
    monkeypatch.setenv("EVENTSCOPE_REDIS_URL", valkey_url)
    server = importlib.import_module("examples.fastmcp_server")
    async with serving(server.app) as url:
        client = connect(url)
        await client.initialize()
        async with client.call(1, "count", to=3) as response:
            cursor = (await anext(events(response))).id
        rest = await client.resume(cursor)
    assert [event.message["params"]["progress"] for event in rest[:-1]] == [1, 2, 3]
    assert rest[-1].message["result"]["content"][0]["text"] == "counted to 3"


async def test_fastapi_two_servers(valkey_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of both servers with the same request id resume, apart, and one scrape shows both."""
    monkeypatch.setenv("EVENTSCOPE_REDIS_URL", valkey_url)
    two = importlib.import_module("examples.fastapi_two_servers")
    async with serving(two.app) as url:
        on_tools, on_notes = connect(f"{url}/tools"), connect(f"{url}/notes")
        cursors = []
        for client, tool, arguments in ((on_tools, "count", {"to": 3}), (on_notes, "note", {"text": "x"})):
            await client.initialize()
            async with client.call(1, tool, **arguments) as response:
                cursors.append((await anext(events(response))).id)
        counted, noted = await on_tools.resume(cursors[0]), await on_notes.resume(cursors[1])
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        async with replace(on_notes, session=on_tools.session).post(ping) as foreign:
            assert foreign.status_code == 404, "a session of the other server"
        scrape = (await on_tools.http.get(f"{url}/tools/metrics")).text
        assert (await on_tools.http.get(f"{url}/version")).json() == {"version": "1"}
    assert [event.message["params"]["progress"] for event in counted[:-1]] == [1, 2, 3]
    assert counted[-1].message["result"]["content"][0]["text"] == "counted to 3"
    assert noted[-1].message["result"]["content"][0]["text"] == "noted: x"
    shown = Figures.of(scrape)
    for name in ("tools", "notes"):
        resumed = shown.total("eventscope_replay_duration_seconds_count", store=name, outcome="resumed")
        caught_up = shown.total("eventscope_replay_duration_seconds_count", store=name, outcome="caught_up")
        assert resumed + caught_up == 1


async def test_client_example_runs(valkey_url: str) -> None:
    """The client of the quickstart calls the tool and prints its progress."""
    quickstart = importlib.import_module("examples.quickstart")
    async with serving(http_app(quickstart.mcp, redis_url=valkey_url)) as url:
        done = await anyio.run_process([sys.executable, str(EXAMPLES / "client.py"), f"{url}/mcp"], check=False)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"{number}.0" for number in range(1, 11)]
    assert "counted to 10" in lines[-1]


async def test_third_party_example_runs() -> None:
    """Each third-party store replays its call, and all have the same metrics."""
    command = [sys.executable, str(EXAMPLES / "third_party.py"), "memory", "sqlite", "fastmcp"]
    done = await anyio.run_process(command, check=False)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    for name in ("memory", "sqlite", "fastmcp"):
        assert sum(line.startswith(f"{name}: replayed") for line in lines) == 4
        for outcome in ("resumed", "missed"):
            shown = {"store": name, "outcome": outcome}
            assert f"eventscope_replay_duration_seconds_count {shown} 1" in lines


async def test_logs_example_runs() -> None:
    """Each event is printed twice, with the same fields; a repeated one is logged once, with its trace."""
    done = await anyio.run_process([sys.executable, str(EXAMPLES / "logs.py")], check=False)
    assert done.returncode == 0, done.stderr.decode()
    shown = [block.splitlines() for block in done.stdout.decode().strip().split("\n\n")]
    logged = []
    for pretty, as_json in shown:
        event = json.loads(as_json)
        logged.append(event["event"])
        assert event["event"] in pretty
        assert f"[{event['level']}" in pretty
        assert all(name in pretty for name in event.keys() - {"event", "level", "timestamp"})
        assert ("trace_id" in event) == (event["event"] == "event_store.replay_incomplete")
    assert logged == [
        "event_store.ttl_missing",
        "event_store.replay_incomplete",
        "event_store.degraded",
        "event_store.events_lost",
    ]
