"""Opening stores by a URL, importable by the processes that the conformance suite starts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.streamable_http import EventStore
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.redis.connection import connect

TTL = 600
SESSION = "conformance"


@asynccontextmanager
async def open_bare(url: str) -> AsyncIterator[EventStore]:
    """A session's part of a store. The fragment of the URL is the prefix of its keys."""
    where, _, prefix = url.partition("#")
    async with connect(where) as client:
        yield RedisEventStore(client, key_prefix=prefix, ttl=TTL).for_session(SESSION)


@asynccontextmanager
async def open_instrumented(url: str) -> AsyncIterator[EventStore]:
    """The same, decorated."""
    async with open_bare(url) as store:
        yield InstrumentedEventStore(store, registry=CollectorRegistry())
