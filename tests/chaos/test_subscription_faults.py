"""Random faults: after each change each stream is signalled, whatever happens to Redis and to its connections."""

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import anyio
import pytest
import redis
from mcp.server.subscriptions import ResourceUpdated

from mcp_eventscope.redis.keys import Keys
from support.buses import Stream, Worker, bus_worker
from support.proxy import Proxy
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

URIS = tuple("abcdefgh")
PREFIX = "faults:"


class Rig:
    """Three workers, each behind a proxy of its own, with a stream that listens to everything.

    Args:
        server: Their Redis.
        seed: Of the faults.
    """

    def __init__(self, server: OwnValkey, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)  # noqa: S311 - faults are no secret
        self.proxies: list[Proxy] = []
        self.workers: list[Worker] = []
        self.streams: list[Stream] = []
        self.owed: dict[str, list[int]] = {}
        """By URI: how much each stream had received when it changed last."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Start the workers."""
        for _ in range(3):
            proxy = await stack.enter_async_context(Proxy(self.server.socket).running())
            options = {"kept_batches": 20, "max_pending": 6, "store_timeout": 0.25}
            worker = await stack.enter_async_context(bus_worker(proxy.url, PREFIX, **options))
            self.proxies.append(proxy)
            self.workers.append(worker)
            self.streams.append(await stack.enter_async_context(worker.listening(*URIS)))

    async def step(self) -> None:
        """Publish some changes, and do one random thing."""
        for _ in range(self.random.randrange(6)):
            uri = self.random.choice(URIS)
            self.owed[uri] = [len(stream.received) for stream in self.streams]
            await self.random.choice(self.workers).bus.publish(ResourceUpdated(uri))
        proxy = self.random.choice(self.proxies)
        faults: list[Callable[[], object]] = [proxy.reset, proxy.hold, proxy.mute, proxy.black_hole, proxy.clear]
        restarts: list[Callable[[], Awaitable[None]]] = [
            *(partial(self.restart, snapshot=kept) for kept in (False, True)),
            *(partial(self.administer, operation) for operation in (self.save, self.delete, self.trim, self.remove)),
        ]
        if self.random.random() < 0.6:
            self.random.choice(faults)()
        else:
            await self.random.choice(restarts)()
        await anyio.sleep(self.random.random() * 0.05)

    async def restart(self, *, snapshot: bool) -> None:
        """Kill Redis, and start it with the last snapshot or empty."""
        self.server.kill()
        if not snapshot:
            self.server.drop_snapshot()
        await anyio.to_thread.run_sync(self.server.start)

    async def administer(self, operation: Callable[[redis.Redis], object]) -> None:
        """Do something with the log."""

        def run() -> None:
            with self.server.client() as client:
                operation(client)

        await anyio.to_thread.run_sync(run)

    @staticmethod
    def save(client: redis.Redis) -> None:
        """Write a snapshot, from which a later restart begins."""
        client.save()

    @staticmethod
    def delete(client: redis.Redis) -> None:
        """Lose the log."""
        client.delete(Keys(PREFIX).changes)

    @staticmethod
    def trim(client: redis.Redis) -> None:
        """Keep the last batch only."""
        client.xtrim(Keys(PREFIX).changes, maxlen=1, approximate=False)

    @staticmethod
    def remove(client: redis.Redis) -> None:
        """Lose some batches."""
        entries: list[tuple[bytes, object]] = client.xrevrange(Keys(PREFIX).changes, count=3)  # type: ignore[assignment]
        for entry, _ in entries[1:]:
            client.xdel(Keys(PREFIX).changes, entry)

    def missing(self) -> set[tuple[int, str]]:
        """The streams, by number, that have not been signalled a resource since it changed last."""
        return {
            (number, uri)
            for uri, before in self.owed.items()
            for number, stream in enumerate(self.streams)
            if uri not in stream.received[before[number] :]
        }


@pytest.mark.parametrize("seed", range(4))
async def test_changes_during_random_faults_are_signalled_on_every_worker(seed: int) -> None:
    """Some of the faults lose the only copy of a batch in Redis; its publisher lives."""
    with own_valkey() as server:
        rig = Rig(server, seed)
        try:
            async with AsyncExitStack() as stack:
                await rig.open(stack)
                for _ in range(40):
                    await rig.step()
                for proxy in rig.proxies:
                    proxy.clear()
                await until(lambda: not rig.missing(), within=30)
        except BaseException as error:
            error.add_note(f"seed {seed}, missing {rig.missing()}, gaps {[dict(each.gaps) for each in rig.workers]}")
            raise
