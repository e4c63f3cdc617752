"""Some of everything that can happen to a task, on an instrumented store."""

from dataclasses import replace

from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.protocol import NewTask, RunState, TaskStore

QUESTION = {"input-1": {"method": "elicitation/create", "params": {}}}


async def task_story(store: TaskStore) -> None:
    """A task that asks, one that is cancelled, one that fails, one that is discarded, and one that no client reads."""

    async def create() -> RunState:
        return RunState(await store.create(NewTask("ada")))

    asks = replace(await create(), input_requests=QUESTION)
    await store.set_input_requests(asks)
    await store.resolve_input_requests(asks.task.task_id, {"input-1": {"action": "decline"}}, owner="ada")
    await store.sync([asks])
    await store.set_completed(asks, {"content": []})
    store.release(asks)
    await store.get(asks.task.task_id, owner="ada")
    cancelled = await create()
    await store.request_cancel(cancelled.task.task_id, owner="ada")
    await store.sync([cancelled])
    await store.set_cancelled(cancelled)
    store.release(cancelled)
    failed = await create()
    await store.set_failed(failed, ErrorData(code=-32603, message="failed"))
    store.release(failed)
    await store.count_uncollected([failed.task.task_id])
    discarded = await create()
    await store.discard(discarded)
    store.release(discarded)
    unsettled = await create()
    store.release(unsettled)
    await store.get("unknown", owner="ada")
