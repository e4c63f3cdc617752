"""The background task that samples Redis, and measures what that costs. It never raises."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.errors import StoreError
from mcp_eventscope.redis.sampling import Sample, Sampler
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.telemetry.measurements import SampleMeasurement

PARTING_SECONDS = 0.25
"""How long it may take to give the turn to another worker, at the end."""


def sampler_of(store: ObservableEventStore, every: object) -> Sampler:
    """What samples a store's Redis.

    Args:
        store: The store.
        every: Seconds between samples, which are checked.

    Raises:
        TypeError: `every` is no number.
        ValueError: `every` is not positive, or not finite; or the store is no `RedisEventStore`, or on a cluster.
    """
    if isinstance(every, bool) or not isinstance(every, int | float):
        msg = f"sample_redis must be a number of seconds between samples, or None for no samples; not {every!r}"
        raise TypeError(msg)
    if not (every > 0 and math.isfinite(every)):
        msg = f"sample_redis must be a positive number of seconds between samples, not {every!r}"
        raise ValueError(msg)
    if not isinstance(store, RedisEventStore):
        msg = "only the Redis of a RedisEventStore can be sampled, and this store is another: leave sample_redis out"
        raise ValueError(msg)  # noqa: TRY004 - a store of any type may be decorated; sampling it is what is refused
    return store.sampler()


@asynccontextmanager
async def sampling(sampler: Sampler, every: float, tell: Callable[[SampleMeasurement], None]) -> AsyncIterator[None]:
    """Sample at once, and then again and again, until the block ends.

    Args:
        sampler: What looks.
        every: Seconds between the end of a sample and the next.
        tell: Given what each sample was. It does not raise.
    """
    task = asyncio.create_task(_keep_sampling(sampler, every, tell), name="eventscope-sampler")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await cancel_task(task)
            with anyio.move_on_after(PARTING_SECONDS), contextlib.suppress(StoreError):
                await sampler.leave()


async def _keep_sampling(sampler: Sampler, every: float, tell: Callable[[SampleMeasurement], None]) -> None:
    while True:
        tell_of = _Taken()
        try:
            tell_of.facts = await sampler.sample(every)
        except asyncio.CancelledError as error:
            tell_of.error = error
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one may be better
            tell_of.error = error
        finally:
            tell(tell_of.measurement())
        await asyncio.sleep(every)


class _Taken:
    """One sample, being taken."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.facts: Sample | None = None
        self.error: BaseException | None = None

    def measurement(self) -> SampleMeasurement:
        """How it ended."""
        if isinstance(self.error, asyncio.CancelledError):
            outcome = "cancelled"
        elif self.error is not None:
            outcome = "error"
        else:
            outcome = "elsewhere" if self.facts is None else "ok"
        return SampleMeasurement(time.perf_counter() - self._started, outcome, None, self.error, self.facts)
