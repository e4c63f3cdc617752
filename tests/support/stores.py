"""Opening stores by a URL, importable by the processes that the conformance suite starts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.streamable_http import EventStore
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.testing import SessionRoot
from support.waiting import CEILING, until

TTL = 600
LEASE = 60.0
"""Seconds that a worker counts as alive: longer than a test takes."""
PATIENCE = 10.0
"""Seconds that a store waits for Redis: long, since the machine may be busy."""


def patient_client(url: str) -> aioredis.Redis:
    """A client that inspects Redis and waits for it, however busy the machine is."""
    return connect(f"{url}?socket_timeout={CEILING}&socket_connect_timeout={CEILING}")


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
    """The same, instrumented."""
    async with open_bare(url) as store:
        yield InstrumentedEventStore(store, registry=CollectorRegistry())


async def nothing_to_publish() -> None:
    """Publish nothing: there are no sessions."""


@asynccontextmanager
async def living_store(client: aioredis.Redis, key_prefix: str, *, instrumented: bool) -> AsyncIterator[SessionRoot]:
    """A root store whose worker holds a lease, so that no other worker answers its requests."""
    store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=PATIENCE)
    async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing_to_publish):
        # Redis may have been too slow for the first renewal: the next one follows after a third of the lease.
        await until(lambda: store.coordinator._leased)
        yield InstrumentedEventStore(store, registry=CollectorRegistry()) if instrumented else store
        await store.flush()


def store_of(root: SessionRoot) -> RedisEventStore:
    """The store itself, unwrapped where it is instrumented."""
    store = root._store if isinstance(root, InstrumentedEventStore) else root
    assert isinstance(store, RedisEventStore)
    return store


async def until_settled(store: RedisEventStore, *, within: float = CEILING) -> None:
    """Return when Redis is reachable, and every event is acknowledged or lost."""
    await until(lambda: store.backlog.failure is None and not store.backlog.events, within=within)
