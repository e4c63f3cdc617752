"""Opening stores by a URL, importable by the processes that the conformance suite starts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.streamable_http import EventStore
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.redis.connection import connect

TTL = 600
PATIENCE = 10.0
"""Seconds that a store waits for Redis: how long is not what the suite is about, and the machine may be busy."""


@asynccontextmanager
async def open_bare(url: str) -> AsyncIterator[EventStore]:
    """A root store. The fragment of the URL is the prefix of its keys."""
    where, _, prefix = url.partition("#")
    async with connect(where) as client:
        store = RedisEventStore(client, key_prefix=prefix, ttl=TTL, store_timeout=PATIENCE)
        yield store
        await store.flush()


@asynccontextmanager
async def open_instrumented(url: str) -> AsyncIterator[EventStore]:
    """The same, decorated."""
    async with open_bare(url) as store:
        yield InstrumentedEventStore(store, registry=CollectorRegistry())
