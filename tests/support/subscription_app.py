"""The server of worker processes with a subscription bus on Redis, in each way in which it can be served."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from mcp_eventscope import (
    EndSubscriptionsOnStop,
    InstrumentedSubscriptionBus,
    RedisEventStore,
    RedisSubscriptionBus,
    http_app,
    metrics_app,
)
from mcp_eventscope.redis.client import connect
from mcp_eventscope.settings import URL_VARIABLE
from support.worker_app import OPTIONS_VARIABLE

KINDS = ("http_app", "middleware", "mounted")


def app() -> Starlette:
    """The application, for `uvicorn --factory`. The option `kind` is one of `KINDS`."""
    options = json.loads(os.environ[OPTIONS_VARIABLE])
    client = connect(os.environ[URL_VARIABLE])
    store = RedisEventStore(client, ttl=600)
    bus = InstrumentedSubscriptionBus(RedisSubscriptionBus(store.backend, repair_seconds=0.1))
    mcp: MCPServer[object] = MCPServer("subscriptions", subscriptions=bus, log_level="WARNING")

    @mcp.tool()
    async def change(uris: list[str], ctx: Context) -> str:
        """Publish that these resources have changed, and the tools."""
        for uri in uris:
            await ctx.notify_resource_updated(uri)
        await ctx.notify_tools_changed()
        return "changed"

    async def healthy(_: Request) -> Response:
        return PlainTextResponse(str(os.getpid()))

    routes = [Route("/scraped", metrics_app())]
    if options["kind"] == "http_app":
        served = http_app(mcp, store)
    else:
        served = mcp.streamable_http_app()
        routes.append(Route("/healthz", healthy))
        if options["kind"] == "middleware":
            served.add_middleware(EndSubscriptionsOnStop, server=mcp)
        else:
            inner = served
            served = Starlette(routes=[Mount("/", EndSubscriptionsOnStop(inner, mcp))])
            served.router.lifespan_context = inner.router.lifespan_context
    served.router.routes[:0] = routes
    lifespan = served.router.lifespan_context

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        async with client, bus.running(), lifespan(app):
            yield

    served.router.lifespan_context = running
    return served
