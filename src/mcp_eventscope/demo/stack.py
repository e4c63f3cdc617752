"""The processes of the demo: one Redis, and the workers that share it."""

import os
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from mcp_eventscope.demo.worker import Worker
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.settings import URL_VARIABLE


@asynccontextmanager
async def running(ports: Sequence[int], *, show_log: bool = False) -> AsyncIterator[list[Worker]]:
    """Start everything, and stop it when the block ends.

    Redis is an embedded Valkey, unless EVENTSCOPE_REDIS_URL is set.

    Args:
        ports: One worker is started for each, named A, B, and so on; 0 chooses a free port.
        show_log: As in `Worker`.

    Raises:
        DemoError: A worker did not start.
        EmbeddedUnavailableError: There is no Valkey for this platform, or it did not start.
    """
    async with AsyncExitStack() as stack:
        redis_url = os.environ.get(URL_VARIABLE)
        if not redis_url:
            valkey = EmbeddedValkey()
            await stack.enter_async_context(valkey.running())
            redis_url = valkey.url
        workers = [
            Worker(redis_url, name=name, port=port, show_log=show_log)
            for name, port in zip(string.ascii_uppercase, ports, strict=False)
        ]
        for worker in workers:
            await stack.enter_async_context(worker.running())
        yield workers
