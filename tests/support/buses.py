"""Buses on Redis, each as one worker, with streams of the SDK's handler and the facts that they report."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import ListenHandler
from mcp.types import SubscriptionFilter, SubscriptionsListenRequestParams
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, RedisSubscriptionBus
from mcp_eventscope.redis.client import connect
from mcp_eventscope.subscriptions.facts import (
    GapFound,
    GapReason,
    Published,
    PublishFailed,
    PublishFailure,
    Signalled,
    SignalPath,
    SubscriptionFact,
)
from support.waiting import until

TTL = 600
REPAIR_SECONDS = 0.01


@dataclass
class Stream:
    """An open stream: what its client receives. The acknowledgement comes first."""

    received: list[str] = field(default_factory=list)
    """Methods, or the URIs of resources."""

    def count(self, name: str) -> int:
        """How often a signal has come."""
        return self.received.count(name)


TOOLS = "notifications/tools/list_changed"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"


@dataclass
class Worker:
    """A bus, the handler on it, and the facts that it has reported."""

    bus: RedisSubscriptionBus
    store: RedisEventStore
    handler: ListenHandler
    facts: list[SubscriptionFact] = field(default_factory=list)

    @property
    def gaps(self) -> Counter[GapReason]:
        """The gaps by reason."""
        return Counter(fact.reason for fact in self.facts if isinstance(fact, GapFound))

    @property
    def failures(self) -> Counter[PublishFailure]:
        """The failures by reason."""
        return Counter(fact.reason for fact in self.facts if isinstance(fact, PublishFailed))

    @property
    def acknowledged(self) -> int:
        """The number of changes that Redis has acknowledged."""
        return sum(fact.events for fact in self.facts if isinstance(fact, Published))

    def signals(self, path: SignalPath) -> list[Signalled]:
        """The signals of one path."""
        return [fact for fact in self.facts if isinstance(fact, Signalled) and fact.path is path]

    @asynccontextmanager
    async def listening(self, *uris: str) -> AsyncIterator[Stream]:
        """A stream that listens to tools and to these resources, until the block ends."""
        stream = Stream()

        async def send(notification: Any, **_: object) -> None:
            await anyio.lowlevel.checkpoint()
            params = notification.params.model_dump(by_alias=True)
            stream.received.append(params.get("uri") or notification.method)

        # The handler uses no more of its context.
        context = SimpleNamespace(request_id=1, session=SimpleNamespace(send_notification=send))
        params = SubscriptionsListenRequestParams(
            notifications=SubscriptionFilter(tools_list_changed=True, resource_subscriptions=list(uris) or None)
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.handler, cast("ServerRequestContext[Any, Any]", context), params)
            await until(lambda: stream.received)
            assert stream.received == [ACKNOWLEDGED]
            stream.received.clear()
            yield stream
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def opened_worker(
    where: str | aioredis.Redis, key_prefix: str, *, store_timeout: float = 10.0, **options: Any
) -> AsyncIterator[Worker]:
    """A worker whose bus does not run yet.

    Args:
        where: The URL of its Redis, or a client.
        key_prefix: The prefix.
        store_timeout: As in the store.
        options: Of the bus.
    """
    async with connect(where) if isinstance(where, str) else contextlib.nullcontext(where) as client:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL, store_timeout=store_timeout)
        bus = RedisSubscriptionBus(store.backend, **{"repair_seconds": REPAIR_SECONDS, **options})
        worker = Worker(bus, store, ListenHandler(bus))
        bus.observe(worker.facts.append)
        yield worker
        await store.flush(1.0)


@asynccontextmanager
async def bus_worker(where: str | aioredis.Redis, key_prefix: str, **options: Any) -> AsyncIterator[Worker]:
    """A worker whose bus runs. Arguments as in `opened_worker`."""
    async with opened_worker(where, key_prefix, **options) as worker, worker.bus.running():
        yield worker
