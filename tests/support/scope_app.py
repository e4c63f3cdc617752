"""The server of worker processes with all parts of a scope: sessions, subscriptions, and the tool `steps` as a task."""

import json
import os

from mcp.server.mcpserver import Context
from starlette.applications import Starlette

from mcp_eventscope import EventScope
from mcp_eventscope.settings import URL_VARIABLE
from support.worker_app import NAME, OPTIONS_VARIABLE, application, server


def app() -> Starlette:
    """The application, for `uvicorn --factory`."""
    options = json.loads(os.environ[OPTIONS_VARIABLE])
    scope = EventScope(NAME, redis_url=os.environ[URL_VARIABLE], worker_lease=options.pop("worker_lease"))
    mcp = server(**scope.server_options(tasks={"steps"}))

    @mcp.tool()
    async def change(uri: str, ctx: Context) -> str:
        """Publish that a resource has changed."""
        await ctx.notify_resource_updated(uri)
        return "changed"

    return application(mcp, scope=scope, **options)
