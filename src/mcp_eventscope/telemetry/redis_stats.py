"""The background task that polls Redis statistics and measures each poll. It never raises."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.errors import StoreError
from mcp_eventscope.options import Number
from mcp_eventscope.redis.stats import RedisStats, RedisStatsPoller
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.telemetry.measurements import RedisStatsMeasurement

INTERVAL = Number("seconds", 0.01, 86_400, fix="leave it out to poll no statistics")
"""The range of `redis_stats_interval`."""
PARTING_SECONDS = 0.25
"""The limit for releasing the lock of the poller at shutdown."""


def poller_of(store: ObservableEventStore, every: object) -> RedisStatsPoller:
    """The poller of a store's Redis.

    Args:
        store: The store.
        every: Seconds between polls; validated.

    Raises:
        TypeError: `every` is no number.
        ValueError: `every` is out of range, or the store is no `RedisEventStore`.
    """
    INTERVAL.check("redis_stats_interval", every)
    if not isinstance(store, RedisEventStore):
        msg = "redis_stats_interval needs a RedisEventStore, got a third-party store; omit redis_stats_interval"
        raise ValueError(msg)  # noqa: TRY004 - stores of any type can be decorated, but not polled
    return store.redis_stats_poller()


@asynccontextmanager
async def poll_redis_stats(
    poller: RedisStatsPoller, every: float, record: Callable[[RedisStatsMeasurement], None]
) -> AsyncIterator[None]:
    """Poll immediately, and then periodically, until the block ends.

    Args:
        poller: The poller.
        every: Seconds from the end of a poll to the next.
        record: Called with the measurement of each poll. It does not raise.
    """
    task = asyncio.create_task(_keep_polling(poller, every, record), name="eventscope-redis-stats")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await cancel_task(task)
            with anyio.move_on_after(PARTING_SECONDS), contextlib.suppress(StoreError):
                await poller.leave()


async def _keep_polling(
    poller: RedisStatsPoller, every: float, record: Callable[[RedisStatsMeasurement], None]
) -> None:
    while True:
        poll = _Poll()
        try:
            poll.facts = await poller.poll(every)
        except asyncio.CancelledError as error:
            poll.error = error
            raise
        except Exception as error:  # noqa: BLE001 - the next poll may succeed
            poll.error = error
        finally:
            record(poll.measurement())
        await asyncio.sleep(every)


class _Poll:
    """One poll in progress."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.facts: RedisStats | None = None
        self.error: BaseException | None = None

    def measurement(self) -> RedisStatsMeasurement:
        """The measurement of the finished poll."""
        if isinstance(self.error, asyncio.CancelledError):
            outcome = "cancelled"
        elif self.error is not None:
            outcome = "error"
        else:
            outcome = "other_worker" if self.facts is None else "ok"
        return RedisStatsMeasurement(time.perf_counter() - self._started, outcome, None, self.error, self.facts)
