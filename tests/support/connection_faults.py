"""Faults between a store and Redis, as a proxy injects them, with the reason that the store must report."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import anyio
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.store.events import FailureReason
from support.proxy import Proxy
from support.waiting import until

STORE_TIMEOUT = 0.25
"""Seconds: the `store_timeout` of the store under test."""


class FaultyWorld(Protocol):
    """A store behind a proxy."""

    proxy: Proxy
    store: RedisEventStore

    @property
    def token(self) -> str:
        """Every command of the store contains it."""
        ...

    def reasons(self) -> set[FailureReason]:
        """The reported reasons."""
        ...


MakeClient: TypeAlias = Callable[[str], aioredis.Redis]
Break: TypeAlias = Callable[[FaultyWorld], Awaitable[None]]


def retrying_client(url: str) -> aioredis.Redis:
    """A client with redis-py's defaults, which retries by itself."""
    return aioredis.Redis.from_url(url)


async def _reset(world: FaultyWorld) -> None:
    world.proxy.reset()


async def _refused(world: FaultyWorld) -> None:
    world.proxy.refuse()
    world.proxy.reset()
    await until(lambda: world.store.backlog.failure)
    await world.proxy.listen()


def _for(seconds: float, mode: str) -> Break:
    async def do(world: FaultyWorld) -> None:
        getattr(world.proxy, mode)()
        await anyio.sleep(seconds)
        await until(lambda: FailureReason.TIMEOUT in world.reasons())  # A busy loop is late to look.
        world.proxy.clear()

    return do


async def _slow(world: FaultyWorld) -> None:
    world.proxy.delay = STORE_TIMEOUT * 2
    await anyio.sleep(STORE_TIMEOUT * 4)
    await until(lambda: FailureReason.TIMEOUT in world.reasons())
    world.proxy.clear()


def _reply_dropped(times: int, skip: int = 0) -> Break:
    async def do(world: FaultyWorld) -> None:
        fault = world.proxy.drop_reply(world.token, times=times, skip=skip)
        await until(lambda: fault.happened == times)

    return do


def _cut(after: int, skip: int = 0) -> Break:
    async def do(world: FaultyWorld) -> None:
        fault = world.proxy.cut_request(world.token, after=after, skip=skip)
        await until(lambda: fault.happened)

    return do


def _answered(error: str, times: int = 3) -> Break:
    async def do(world: FaultyWorld) -> None:
        fault = world.proxy.answer(world.token, error, times=times)
        await until(lambda: fault.happened == times)

    return do


FAULTS: dict[str, tuple[Break, set[FailureReason]]] = {
    "reset": (_reset, set()),  # It may have happened between two batches.
    "refused": (_refused, {FailureReason.CONNECTION}),
    "held": (_for(STORE_TIMEOUT * 3, "hold"), {FailureReason.TIMEOUT}),
    "muted": (_for(STORE_TIMEOUT * 3, "mute"), {FailureReason.TIMEOUT}),
    "swallowed": (_for(STORE_TIMEOUT * 3, "black_hole"), {FailureReason.TIMEOUT}),
    "slow": (_slow, {FailureReason.TIMEOUT}),
    "reply dropped": (_reply_dropped(1), {FailureReason.CONNECTION}),
    "second reply dropped": (_reply_dropped(1, skip=1), {FailureReason.CONNECTION}),
    "three replies dropped": (_reply_dropped(3), {FailureReason.CONNECTION}),
    "cut before the request": (_cut(0), {FailureReason.CONNECTION}),
    "cut in the middle": (_cut(100), {FailureReason.CONNECTION}),
    "cut in the second": (_cut(100, skip=1), {FailureReason.CONNECTION}),
    "busy": (_answered("BUSY Redis is busy running a script"), {FailureReason.BUSY}),
    "loading": (_answered("LOADING Redis is loading the dataset in memory"), {FailureReason.LOADING}),
    "full": (_answered("OOM command not allowed when used memory > 'maxmemory'."), {FailureReason.OOM}),
    "read only": (_answered("READONLY You can't write against a read only replica."), {FailureReason.READONLY}),
    "no script": (_answered("NOSCRIPT No matching script.", times=1), {FailureReason.NOSCRIPT}),
    "no password": (_answered("NOAUTH Authentication required."), {FailureReason.AUTH}),
    "no right": (_answered("NOPERM this user has no permissions to run the 'evalsha' command"), {FailureReason.AUTH}),
    "no replicas": (_answered("NOREPLICAS Not enough good replicas to write."), {FailureReason.OTHER}),
    "disk full": (_answered("MISCONF Errors writing to the AOF file: No space left on device"), {FailureReason.OTHER}),
    "no primary": (
        _answered("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        set(),
    ),
    "cluster down": (_answered("CLUSTERDOWN The cluster is down"), set()),
}
RETRIED = ("refused", "held", "reply dropped", "cut in the middle", "loading")
"""The faults to which a client that retries by itself reacts in another way."""
