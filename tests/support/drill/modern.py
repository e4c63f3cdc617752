"""What clients of revision 2026-07-28 do in the drill, and what is done to them."""

import itertools
from dataclasses import dataclass
from typing import Any

import anyio
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ResourceUpdated
from mcp.server.request_state import AESGCMRequestStateCodec

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.drill.customer import Customer, NewCustomer
from support.drill.site import FLEET, SHORT, Site
from support.processes import WorkerProcess
from support.task_client import RawTasks
from support.tool_control import ToolControl
from support.waiting import CEILING

FORGOTTEN = 6
"""Tasks whose results no client collects: enough for an alert."""
MOST_REFUSED = 60
SURE: dict[str, Any] = {"action": "accept", "content": {"sure": True}}
_OTHER_SECRET = "of workers with another configuration"


def _tasks(customer: Customer, worker: WorkerProcess) -> RawTasks:
    return RawTasks(customer.client.http, f"{worker.url}/mcp")


@dataclass
class Running:
    """A task of the tool `steps`, and the control of its tool."""

    tasks: RawTasks
    task_id: str
    steering: ToolControl


async def starts(customer: Customer, worker: WorkerProcess) -> Running:
    """Call a tool that runs as a task."""
    tasks, steering = _tasks(customer, worker), customer.steering()
    task_id = await tasks.start("steps", name=steering.name)
    await steering.started()
    return Running(tasks, task_id, steering)


async def calm(site: Site, new: NewCustomer) -> None:
    """Tasks complete, ask and are cancelled; a question is answered on another worker; a stream is signalled."""
    async with anyio.create_task_group() as group:
        for one in (_completes, _is_cancelled, _asks, _ships):
            group.start_soon(one, site, new(FLEET))
    await site.scraped(site.a, site.b)


async def _completes(site: Site, customer: Customer) -> None:
    """With progress, which a poll on the other worker shows."""
    running = await starts(customer, site.a)
    there = _tasks(customer, site.b)
    await running.steering.step("half")
    await there.until(running.task_id, lambda task: task.get("statusMessage") == "half")
    await running.steering.finish()
    assert (await there.final(running.task_id))["status"] == "completed"
    site.ledgers[FLEET].tasks["completed"] += 1


async def _is_cancelled(site: Site, customer: Customer) -> None:
    """On the other worker."""
    running = await starts(customer, site.a)
    await _tasks(customer, site.b).cancel(running.task_id)
    assert (await running.tasks.final(running.task_id))["status"] == "cancelled"
    site.ledgers[FLEET].tasks["cancelled"] += 1


async def _asks(site: Site, customer: Customer) -> None:
    """A task asks for input, and receives it through the other worker."""
    here, there = _tasks(customer, site.a), _tasks(customer, site.b)
    task_id = await here.start("ask")
    task = await there.until(task_id, lambda task: task["status"] == "input_required")
    await there.update(task_id, **{key: {"action": "accept", "content": {}} for key in task["inputRequests"]})
    assert (await there.final(task_id))["status"] == "completed"
    site.ledgers[FLEET].tasks["completed"] += 1


async def _ships(site: Site, customer: Customer) -> None:
    """A question is asked on one worker and answered on the other, which publishes a change; the answer is repeated."""
    asked, answered = _tasks(customer, site.a), _tasks(customer, site.b)
    ledger = site.ledgers[FLEET]
    async with (
        Client(streamable_http_client(f"{site.a.url}/mcp", http_client=customer.client.http)) as listener,
        listener.listen(resource_subscriptions=["order://7"]) as stream,
    ):
        question = (await asked.call("ship", order="7"))["result"]
        first, again = [await _answers(to, "7", question) for to in (answered, asked)]
        assert first == again
        assert first["result"]["structuredContent"] == {"result": "shipped"}
        with anyio.fail_after(CEILING):
            assert await anext(aiter(stream)) == ResourceUpdated("order://7")
    ledger.answers["completed"] += 1
    ledger.repeated += 1
    ledger.signals["remote"] += 1


async def _answers(tasks: RawTasks, order: str, question: dict[str, Any]) -> dict[str, Any]:
    """Send the call again with an answer; returns the response."""
    params = {
        "name": "ship",
        "arguments": {"order": order},
        "inputResponses": dict.fromkeys(question["inputRequests"], SURE),
        "requestState": question["requestState"],
    }
    return await tasks.request("tools/call", params, "ship")


async def is_orphaned(site: Site, customer: Customer, running: Running) -> None:
    """A poll on the other worker declares the task of the killed one failed."""
    task = await _tasks(customer, site.b).final(running.task_id)
    assert (task["status"], task["error"]["code"]) == ("failed", REQUEST_ORPHANED)
    site.ledgers[FLEET].tasks_orphaned += 1


async def changes_are_lost(site: Site) -> None:
    """Redis loses the log of changes: both workers notice it, and signal everything."""
    with site.fleet_redis.client() as redis:
        redis.delete(Keys("mcp:").changes)
    site.ledgers[FLEET].gaps["lost"] += 2
    await site.shows(f'sum(eventscope_subscriptions_gaps_total{{job="{FLEET}", reason="lost"}}) == 2')
    await site.fires(FLEET, "EventscopeChangesNotDelivered")


async def answers_are_refused(site: Site, new: NewCustomer) -> None:
    """Answers to questions of workers with another secret are refused."""
    tasks, ledger = _tasks(new(FLEET), site.a), site.ledgers[FLEET]
    state = AESGCMRequestStateCodec([_OTHER_SECRET]).seal(b"{}")
    question = {"inputRequests": ["answer"], "requestState": state}
    for number in itertools.count(1):
        assert "error" in await _answers(tasks, "8", question)
        ledger.answers_refused["unknown_key"] += 1
        await anyio.sleep(0.5 * site.interval)
        if "EventscopeAnswersRefused" in site.firing(FLEET):
            break
        assert number < MOST_REFUSED, "the alert does not fire"


async def are_forgotten(site: Site, customer: Customer) -> None:
    """Tasks complete, and no client asks for their results before they expire."""
    tasks = _tasks(customer, site.short)
    for _ in range(FORGOTTEN):
        await tasks.start("echo", text="x")
    site.ledgers[SHORT].tasks["completed"] += FORGOTTEN
    site.ledgers[SHORT].tasks_uncollected += FORGOTTEN
