"""The server of the drill's workers, with the parts of revision 2026-07-28."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from opentelemetry import context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from pydantic import BaseModel
from starlette.applications import Starlette

from mcp_eventscope import EventScope, InstrumentedTaskStore, RedisTaskStore, TasksExtension
from support.worker_app import NAME, OPTIONS_VARIABLE, application, server

TASKS = {"steps", "echo", "ask"}
"""The tools that run as tasks, for clients that know tasks."""
BROKEN = "drill://broken"
"""A resource that cannot be read."""
_OF_SCOPE = ("ttl", "store_timeout", "worker_lease")


class Approval(BaseModel):
    """The answer of a user."""

    sure: bool


async def approve() -> Elicit[Approval]:
    """Ask the user."""
    return Elicit("Ship it?", Approval)


def app() -> Starlette:
    """The application, for `uvicorn --factory`.

    With the option `task_ttl`, in seconds, it has tasks only, which expire so soon. With `tracing_fails_if`, the path
    of a file, its tracing raises while the file exists.
    """
    options = json.loads(os.environ[OPTIONS_VARIABLE])
    task_ttl = options.pop("task_ttl", None)
    of_scope = {name: options.pop(name) for name in _OF_SCOPE if name in options}
    if flag := options.pop("tracing_fails_if", None):
        of_scope["tracer_provider"] = provider = TracerProvider()
        provider.add_span_processor(_FailingProcessor(Path(flag)))
    scope = EventScope(NAME, **of_scope)
    parts = scope.server_options(tasks=TASKS) if task_ttl is None else _short_tasks(scope, task_ttl)
    mcp = server(**parts)

    @mcp.tool()
    async def ship(order: str, answer: Annotated[Approval, Resolve(approve)], ctx: Context) -> str:
        """Ship an order after a question, and publish the change."""
        await ctx.notify_resource_updated(f"order://{order}")
        return "shipped" if answer.sure else "kept"

    @mcp.tool()
    async def hang() -> str:
        """Never return."""
        await asyncio.Event().wait()
        return ""

    @mcp.resource(BROKEN)
    async def broken() -> str:
        """Fail."""
        msg = "broken"
        raise ResourceError(msg)

    return application(mcp, scope=scope, **options)


class _FailingProcessor(SpanProcessor):
    """Raises at the start of each span while a file exists."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        """Raise, or do nothing."""
        if self._flag.exists():
            msg = "the exporter of an application"
            raise RuntimeError(msg)


def _short_tasks(scope: EventScope, ttl: int) -> dict[str, Any]:
    """The options of a server whose tasks expire after so many seconds."""
    extension = TasksExtension(InstrumentedTaskStore(RedisTaskStore(scope.backend, ttl=ttl), name=NAME), tools=TASKS)

    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncIterator[None]:
        async with extension.running():
            yield

    return {"extensions": [extension], "lifespan": lifespan}
