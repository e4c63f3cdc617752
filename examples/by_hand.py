"""The drop-in session manager in an application that builds its own routes, without `http_app()`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import Route

from mcp_eventscope import RedisEventStore, ResumableSessionManager

server: Server[dict[str, object]] = Server("by-hand")
redis = Redis(host="localhost")
manager = ResumableSessionManager(app=server, event_store=RedisEventStore(redis, ttl=3600))


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Run the session manager while the application runs."""
    async with manager.run():
        yield
    await redis.aclose()


app = Starlette(routes=[Route("/mcp", StreamableHTTPASGIApp(manager))], lifespan=lifespan)
