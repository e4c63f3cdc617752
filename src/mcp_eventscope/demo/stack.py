"""The processes of the demo: one Redis, and the workers that share it."""

import asyncio
import os
import secrets
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mcp_eventscope.demo.waiting import DemoError
from mcp_eventscope.demo.worker import Worker
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.client import address_of, client_for, map_redis_errors
from mcp_eventscope.redis.inspection import Inspector, Walk
from mcp_eventscope.redis.keys import Keys, pattern_of
from mcp_eventscope.settings import URL_VARIABLE, check

PREFIX = "mcp-demo-"
"""The beginning of the key prefix of a run, which differs from that of every server."""
_REMOVAL_SECONDS = 5.0
"""Maximum seconds for the removal of the keys, which expire anyway."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The running processes."""

    workers: list[Worker]
    redis: str
    """The Redis and the prefix of its keys, in words and without credentials."""


@asynccontextmanager
async def running(ports: Sequence[int], *, show_log: bool = False) -> AsyncIterator[Stack]:
    """Start everything, and stop it when the block ends.

    Redis is an embedded Valkey, unless EVENTSCOPE_REDIS_URL is set: then the keys have a prefix of this run alone, and
    are removed at its end.

    Args:
        ports: One worker is started for each, named A, B, and so on; 0 chooses a free port.
        show_log: As in `Worker`.

    Raises:
        DemoError: A worker did not start, or the URL is invalid.
        EmbeddedUnavailableError: There is no Valkey for this platform, or it did not start.
    """
    prefix = f"{PREFIX}{secrets.token_hex(4)}:"
    async with AsyncExitStack() as stack:
        redis_url = os.environ.get(URL_VARIABLE)
        if redis_url:
            redis = f"{_address(redis_url)}, keys {prefix}*, removed at the end"
            stack.push_async_callback(remove_keys, redis_url, prefix)
        else:
            valkey = EmbeddedValkey()
            await stack.enter_async_context(valkey.running())
            redis_url, redis = valkey.url, "an embedded Valkey"
        workers = [
            Worker(redis_url, prefix, name=name, port=port, show_log=show_log)
            for name, port in zip(string.ascii_uppercase, ports, strict=False)
        ]
        for worker in workers:
            await stack.enter_async_context(worker.running())
        yield Stack(workers, redis)


def _address(redis_url: str) -> str:
    """The address of a Redis, without credentials.

    Raises:
        DemoError: The URL is invalid.
    """
    try:
        check("redis_url", redis_url, URL_VARIABLE)
    except ValueError as error:
        raise DemoError(str(error)) from None
    return address_of(client_for(redis_url))


async def remove_keys(redis_url: str, prefix: str) -> None:
    """Remove the keys under a prefix. A failure is ignored, because they expire.

    Args:
        redis_url: The Redis.
        prefix: The prefix.
    """
    async with aclosing(client_for(redis_url)) as redis:
        client: Any = redis
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_REMOVAL_SECONDS):
                async for keys in Inspector(redis, Keys(prefix)).scan(f"{pattern_of(prefix)}*", Walk()):
                    with map_redis_errors("remove keys from", redis):
                        for key in keys:  # One by one: those of a cluster are in several slots.
                            await client.unlink(key)
