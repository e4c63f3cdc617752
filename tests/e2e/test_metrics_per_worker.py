"""Metrics of each worker show which one runs a call and which follows."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest
from redis import asyncio as aioredis

from mcp_eventscope.demo.figures import Figures
from support.http_client import NO_TLS, Connect, events
from support.processes import WorkerProcess, worker_processes
from support.tool_control import ToolControl
from support.waiting import until

pytestmark = pytest.mark.anyio

SESSIONS = "eventscope_sessions_active"
BEGUN = "eventscope_sessions_started_total"
STORED = "eventscope_events_stored_total"
FOLLOWERS = "eventscope_streams_followed"
FOLLOWED = "eventscope_events_followed_total"


@pytest.fixture(scope="module")
def workers(valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers, on a database of their own."""
    with worker_processes(2, f"{valkey_url}?db=9", f"{valkey_url}?db=10") as running:
        yield running


async def scrape(worker: WorkerProcess) -> Figures:
    """The metrics of one worker: Prometheus distinguishes workers by `instance`."""
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        return Figures.of((await http.get(f"{worker.url}/metrics")).raise_for_status().text)


async def test_metrics_show_which_worker_runs_and_which_follows(
    workers: list[WorkerProcess], connect: Connect, valkey_url: str
) -> None:
    """A tool runs on one worker; its client resumes on the other, which follows it."""
    working, following = workers
    before = await scrape(working), await scrape(following)
    on_a = connect(working.url)
    await on_a.initialize()
    on_b = replace(on_a, url=f"{following.url}/mcp")
    async with aioredis.Redis.from_url(f"{valkey_url}?db=10") as control:
        tool = ToolControl(control, uuid.uuid4().hex)
        async with on_a.call(1, "steps", name=tool.name) as response:
            cursor = (await anext(events(response))).id
            await tool.started()
        async with on_b.get(cursor) as response:
            stream = events(response)

            async def followed_there() -> bool:
                return (await scrape(following)).total(FOLLOWERS) == 1

            await until(followed_there)
            assert (await scrape(working)).total(FOLLOWERS) == 0
            await tool.step("x")
            assert (await anext(stream)).message["params"]["message"] == "x"
            await tool.finish()
            assert "result" in [event async for event in stream][-1].message
    worked, followed = (await scrape(working)).since(before[0]), (await scrape(following)).since(before[1])
    # Of the session's opening, the call: priming, progress, response; nothing of it on the worker that follows.
    assert worked.total(STORED) >= 3
    assert followed.total(STORED) == 0
    assert (worked.total(FOLLOWED), followed.total(FOLLOWED)) == (0, 2)
    assert (worked.by(BEGUN, "origin"), followed.by(BEGUN, "origin")) == ({"opened": 1}, {"adopted": 1})
    assert (worked.total(SESSIONS), followed.total(SESSIONS)) == (1, 1)
    assert followed.total("eventscope_replay_duration_seconds_count", outcome="caught_up") == 1
    assert followed.total("eventscope_resume_ttl_ratio_bucket", le="0.01") == 1


async def test_metrics_after_a_kill_show_adoption_and_no_refusal(
    workers: list[WorkerProcess], connect: Connect
) -> None:
    """The other worker adopts the session."""
    killed, left = workers
    client = connect(killed.url)
    await client.initialize()
    before = await scrape(left)
    killed.kill()
    on_b = replace(client, url=f"{left.url}/mcp")
    async with on_b.call(1, "echo", text="x") as response:
        assert "result" in [event async for event in events(response)][-1].message
    after = (await scrape(left)).since(before)
    assert after.by(BEGUN, "origin") == {"adopted": 1}
    assert after.by("eventscope_requests_refused_total", "reason") == {}
