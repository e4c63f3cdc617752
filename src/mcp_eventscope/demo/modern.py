"""The SDK's client with its default revision, 2026-07-28: tasks and a subscription."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from mcp_eventscope.demo import verdict
from mcp_eventscope.demo.record import Kind, Record
from mcp_eventscope.demo.server import LAUNCHES
from mcp_eventscope.demo.timeline import Timeline
from mcp_eventscope.demo.waiting import within
from mcp_eventscope.demo.worker import Worker
from mcp_eventscope.tasks.client import TasksClient
from mcp_eventscope.tasks.facts import TaskStatus

STEPS = 6
INTERVAL = 0.25
_SCENE_SECONDS = 20.0


class _LeftError(Exception):
    """The client leaves as soon as it knows its task."""


async def outlive(runner: Worker, other: Worker, timeline: Timeline) -> list[str]:
    """Start a task on one worker, leave, and collect its result on the other one. Returns the faults.

    Args:
        runner: The worker that runs the task.
        other: The other worker, which also has a stream that listens to the resource that the task changes.
        timeline: Shows what happens.

    Raises:
        DemoError: A condition did not hold in time.
    """
    record = Record(timeline.show)
    async with (
        within(_SCENE_SECONDS, "the task's result and its signal"),
        _client(other) as listener,
        listener.listen(resource_subscriptions=[LAUNCHES]) as signals,
    ):
        await collect(other, record, await start(runner, record))
        async for event in signals:
            record.add(Kind.SIGNAL, getattr(event, "uri", type(event).__name__), worker=other.name)
            break
    return verdict.of_task(record.moments, runner.name, other.name, STEPS)


async def start(worker: Worker, record: Record) -> str:
    """Start a countdown as a task, and leave. Returns the task's id.

    Args:
        worker: The worker that runs it.
        record: Records the task, and the departure of its client.
    """
    created: list[str] = []

    def leave(task: Any) -> None:
        created.append(task.task_id)
        record.add(Kind.TASK, "countdown", worker=worker.name)
        raise _LeftError

    try:
        async with _client(worker, TasksClient(on_task=leave)) as client:
            await client.call_tool("countdown", {"steps": STEPS, "interval": INTERVAL})
    except* _LeftError:
        record.add(Kind.LEFT)
    return created[0]


async def collect(worker: Worker, record: Record, task_id: str) -> None:
    """Poll a task until it ends.

    Args:
        worker: The worker that answers the polls.
        record: Records each new status message, and the result or the failure.
        task_id: The task.
    """
    shown: list[str] = []

    def look(task: Any) -> None:
        if task.status == TaskStatus.WORKING and task.status_message and task.status_message not in shown:
            shown.append(task.status_message)
            record.add(Kind.STATUS, task.status_message, worker=worker.name)

    tasks = TasksClient(on_task=look)
    async with _client(worker, tasks) as client:
        try:
            result = await tasks.poll(client.session, task_id)
        except MCPError as error:
            record.add(Kind.FAILURE, error.message, error.code, worker.name)
            return
    steps = int((result.structured_content or {}).get("steps", 0))
    record.add(Kind.RESULT, f"{steps} steps counted", steps, worker.name)


@asynccontextmanager
async def _client(worker: Worker, *extensions: TasksClient) -> AsyncIterator[Client]:
    """A client of one worker, without the environment's proxy."""
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as http,
        Client(streamable_http_client(f"{worker.url}/mcp", http_client=http), extensions=list(extensions)) as client,
    ):
        yield client
