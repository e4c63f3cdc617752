"""The bus on a real Valkey that loses connections, data, or its newest data."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial

import anyio
import fakeredis
import pytest
from mcp.server.subscriptions import ResourceUpdated, ToolsListChanged
from redis import asyncio as aioredis

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.subscriptions.change_log import KEPT_SECONDS, Reading
from mcp_eventscope.subscriptions.facts import GapReason, PublishFailure, SignalPath
from support.buses import TOOLS, Worker, bus_worker, opened_worker
from support.leaks import LeakChecker
from support.proxy import Proxy
from support.servers import Valkey
from support.stores import patient_client
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
async def redis_client(valkey_server: Valkey) -> AsyncIterator[aioredis.Redis]:
    """A client that inspects the log of changes."""
    async with patient_client(valkey_server.url) as client:
        yield client


@pytest.fixture
async def proxy(valkey_server: Valkey) -> AsyncIterator[Proxy]:
    """A proxy before the Valkey of the run."""
    async with Proxy(valkey_server.socket).running() as proxy:
        yield proxy


@pytest.fixture
async def here(valkey_url: str, key_prefix: str, leaks: LeakChecker) -> AsyncIterator[Worker]:
    """A worker."""
    assert await leaks.keys() == []
    async with bus_worker(valkey_url, key_prefix) as worker:
        yield worker


@pytest.fixture
async def behind(leaks: LeakChecker, proxy: Proxy, key_prefix: str) -> AsyncIterator[Worker]:
    """Another worker, behind the proxy."""
    assert await leaks.keys() is not None
    async with bus_worker(proxy.url, key_prefix) as worker:
        yield worker


@pytest.fixture
def durable() -> Iterator[OwnValkey]:
    """A Valkey that keeps its data over a kill."""
    with own_valkey(durable=True) as server:
        yield server


@pytest.fixture
def volatile() -> Iterator[OwnValkey]:
    """A Valkey that restarts empty, or with a snapshot."""
    with own_valkey() as server:
        yield server


async def published(worker: Worker, *uris: str) -> None:
    """Publish changes of resources, and wait until Redis has acknowledged each."""
    for uri in uris:
        already = worker.acknowledged
        await worker.bus.publish(ResourceUpdated(uri))
        await until(partial(_acknowledged, worker, already + 1))


def _acknowledged(worker: Worker, changes: int) -> bool:
    return worker.acknowledged >= changes


async def test_bus_signals_the_streams_of_another_worker_only_once(here: Worker, behind: Worker) -> None:
    """The publisher's own streams are signalled locally, and skip the echo."""
    async with here.listening("a") as near, behind.listening("a") as far:
        await published(here, "a")
        await here.bus.publish(ToolsListChanged())
        await until(lambda: far.received == ["a", TOOLS])
        await until(lambda: here.bus._log.position == behind.bus._log.position)
        assert near.received == ["a", TOOLS]
    assert (here.gaps, behind.gaps) == ({}, {})
    assert [fact.streams for fact in here.signals(SignalPath.LOCAL)] == [1, 1]
    lags = [fact.lag for fact in behind.signals(SignalPath.REMOTE)]
    assert len(lags) == 2
    assert all(lag is not None and 0 <= lag < 60 for lag in lags)


async def test_log_expires_and_is_renewed_by_readers(
    here: Worker, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """Every key has a TTL, and a log without publishers does not expire under its readers."""
    key = Keys(key_prefix).changes
    assert 0 < await redis_client.ttl(key) <= KEPT_SECONDS
    await redis_client.expire(key, 30)
    await until(lambda: _above(redis_client, key, 30))
    assert here.gaps == {}


async def _above(client: aioredis.Redis, key: str, seconds: int) -> bool:
    return int(await client.ttl(key)) > seconds


async def test_lost_reply_of_a_publication_is_repeated(here: Worker, behind: Worker, proxy: Proxy) -> None:
    """A batch whose fate is unknown is sent again: twice is allowed, never is not."""
    async with here.listening("a") as stream:
        fault = proxy.drop_reply("EVALSHA", times=1, skip=0)
        await published(behind, "a")
        await until(lambda: stream.count("a") >= 1)
        assert fault.happened
    assert here.gaps == {}


async def test_change_during_an_attempt_is_sent_after_it(here: Worker, behind: Worker, proxy: Proxy) -> None:
    """A change that is published again while it is being sent is another change."""
    async with here.listening("a") as stream:
        proxy.hold()
        await behind.bus.publish(ResourceUpdated("a"))
        await until(lambda: not behind.bus._pending)  # It is on its way.
        await behind.bus.publish(ResourceUpdated("a"))
        assert len(behind.bus._pending) == 1
        proxy.clear()
        await until(lambda: stream.count("a") >= 2)


async def test_cut_connections_lose_no_signal(here: Worker, behind: Worker, proxy: Proxy) -> None:
    """Changes that were published while a worker had no connection are read later; nothing is repaired."""
    async with here.listening(*"abcdef") as near, behind.listening(*"abcdef") as far:
        for number, uri in enumerate("abcdef"):
            proxy.reset()
            await (here, behind)[number % 2].bus.publish(ResourceUpdated(uri))
        await until(lambda: set(near.received) == set(far.received) == set("abcdef"))
    assert (here.gaps, behind.gaps) == ({}, {})


async def test_idle_bus_opens_no_circuit(valkey_url: str, key_prefix: str) -> None:
    """A read that waits for changes is no failure, however short the timeouts of client and store are."""
    client = aioredis.Redis.from_url(valkey_url, socket_timeout=0.5)
    async with client, bus_worker(client, key_prefix, store_timeout=0.1) as worker:
        reads = 0
        read = worker.bus._log.read

        async def counted() -> object:
            nonlocal reads
            reads += 1
            return await read()

        failed: list[Exception] = []
        wait = worker.bus._log.wait

        async def watched() -> None:
            try:
                await wait()
            except Exception as error:
                failed.append(error)
                raise

        worker.bus._log.read = counted  # type: ignore[method-assign, assignment]
        worker.bus._log.wait = watched  # type: ignore[method-assign]
        await until(lambda: reads > 4)
        assert failed == []
        assert worker.store.backend.breaker.reason is None
        assert worker.facts == []


async def test_redis_that_restarts_empty_is_repaired(volatile: OwnValkey, key_prefix: str) -> None:
    """Each stream is signalled once that everything changed; later changes are signalled as before."""
    async with bus_worker(volatile.url, key_prefix) as here, bus_worker(volatile.url, key_prefix) as there:
        async with here.listening("a", "b") as first, here.listening() as second, there.listening("c") as third:
            volatile.kill()
            await anyio.to_thread.run_sync(volatile.start)
            await until(lambda: len(first.received) == 3 and second.received and len(third.received) == 2)
            assert sorted(first.received) == ["a", "b", TOOLS]
            assert second.received == [TOOLS]
            assert sorted(third.received) == ["c", TOOLS]
            await there.bus.publish(ResourceUpdated("b"))
            await until(lambda: first.count("b") == 2)
        assert here.gaps == there.gaps == {GapReason.LOST: 1}


async def test_flushed_redis_is_repaired(here: Worker, redis_client: aioredis.Redis, key_prefix: str) -> None:
    """No connection breaks: the next read notices."""
    async with here.listening("a") as stream:
        await redis_client.delete(Keys(key_prefix).changes)
        await until(lambda: stream.count("a"))
    assert here.gaps == {GapReason.LOST: 1}


async def test_redis_that_restarts_with_its_data_needs_no_repair(durable: OwnValkey, key_prefix: str) -> None:
    """Changes from before, during and after the outage arrive; nothing else does."""
    async with bus_worker(durable.url, key_prefix) as here, bus_worker(durable.url, key_prefix) as there:
        async with here.listening("a", "b", "c", "d") as stream:
            await published(there, "a")
            durable.kill()
            await there.bus.publish(ResourceUpdated("b"))
            await until(lambda: there.failures[PublishFailure.UNREACHABLE])
            await anyio.to_thread.run_sync(durable.start)
            await there.bus.publish(ResourceUpdated("c"))
            await until(lambda: {"a", "b", "c"} <= set(stream.received))
        assert set(stream.received) == {"a", "b", "c"}
        assert (here.gaps, there.gaps) == ({}, {})


async def test_redis_that_restarts_with_older_data_is_repaired(volatile: OwnValkey, key_prefix: str) -> None:
    """Three workers: whichever notices first, all are repaired, although the numbers continue where they were."""
    async with (
        bus_worker(volatile.url, key_prefix) as first,
        bus_worker(volatile.url, key_prefix) as second,
        bus_worker(volatile.url, key_prefix) as third,
    ):
        workers = (first, second, third)
        await anyio.to_thread.run_sync(volatile.save)
        await published(first, *"abcde")
        await until(lambda: len({worker.bus._log.position for worker in workers}) == 1)
        async with first.listening("x") as one, second.listening("y") as two, third.listening("z") as three:
            volatile.kill()
            await anyio.to_thread.run_sync(volatile.start)
            await until(lambda: one.count("x") and two.count("y") and three.count("z"))
        assert all(worker.gaps.total() == 1 for worker in workers)
        assert {reason for worker in workers for reason in worker.gaps} <= {GapReason.ROLLED_BACK, GapReason.LOST}
        assert sum(worker.gaps[GapReason.ROLLED_BACK] for worker in workers) == 1


@pytest.mark.parametrize("numbered_again", ["by none", "by another worker", "by the same worker"])
async def test_failover_that_loses_an_unread_batch_is_repaired(  # noqa: PLR0913, PLR0917 - fixtures
    here: Worker,
    behind: Worker,
    proxy: Proxy,
    redis_client: aioredis.Redis,
    key_prefix: str,
    numbered_again: str,
) -> None:
    """Only the publisher knows of the batch: it begins another epoch, which the others notice."""
    key = Keys(key_prefix).changes
    read, readable = here.bus._log.read, anyio.Event()

    async def read_later() -> Reading:
        await readable.wait()
        return await read()

    async with behind.listening("a") as stream:
        await until(lambda: behind.bus._log.position == here.bus._log.position)
        before = await redis_client.dump(key)
        assert before is not None
        proxy.hold()
        here.bus._log.read = read_later  # type: ignore[method-assign]
        await published(here, "x")  # Ends the read that waits already.
        await published(here, "a")
        await redis_client.restore(key, 600_000, before, replace=True)
        async with bus_worker(redis_client, key_prefix) as third:
            if numbered_again != "by none":
                await published(third if numbered_again == "by another worker" else here, "b", "c", "d")
            readable.set()
            proxy.clear()
            await until(lambda: stream.count("a"))
            await until(third.gaps.total)
    assert here.gaps == {GapReason.ROLLED_BACK: 1}
    assert behind.gaps.total() == 1


async def test_worker_that_is_cut_off_for_too_long_is_repaired(
    valkey_url: str, proxy: Proxy, key_prefix: str, redis_client: aioredis.Redis
) -> None:
    """XREAD does not report a trimmed range; the position does."""
    async with (
        bus_worker(valkey_url, key_prefix, kept_batches=150) as here,
        bus_worker(proxy.url, key_prefix) as behind,
        behind.listening("a") as stream,
    ):
        await until(lambda: behind.bus._log.position == here.bus._log.position)
        proxy.hold()
        trimmed = behind.bus._log.position
        assert trimmed is not None
        while await redis_client.xrange(Keys(key_prefix).changes, f"{trimmed.number}-0", f"{trimmed.number}-0"):
            await published(here, *(f"other/{number}" for number in range(50)))
        proxy.clear()
        await until(lambda: stream.count("a"))
        assert behind.gaps == {GapReason.TRIMMED: 1}
        assert here.gaps == {}


async def test_hole_in_the_log_is_repaired(
    here: Worker, behind: Worker, proxy: Proxy, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """A missing batch is seen by the numbers of its neighbours."""
    key = Keys(key_prefix).changes
    async with behind.listening("a") as stream:
        await until(lambda: behind.bus._log.position == here.bus._log.position)
        proxy.hold()
        await published(here, "a", "b", "c")
        entries: list[tuple[bytes, object]] = await redis_client.xrevrange(key, count=2)  # type: ignore[assignment]
        await redis_client.xdel(key, entries[1][0])
        proxy.clear()
        await until(lambda: stream.count("a"))
    assert behind.gaps == {GapReason.DAMAGED: 1}


@pytest.mark.parametrize("fields", [{"x": "1"}, {"e": "1", "n": "2", "b": "3"}], ids=["other", "alike"])
async def test_entry_of_another_program_is_repaired_once(
    here: Worker, behind: Worker, redis_client: aioredis.Redis, key_prefix: str, fields: dict[str, str]
) -> None:
    """Whatever was written between ours: each worker repairs its streams, and continues."""
    async with here.listening("a") as stream, behind.listening("a") as other:
        await redis_client.xadd(Keys(key_prefix).changes, fields)  # type: ignore[arg-type]
        await until(lambda: stream.count("a") and other.count("a"))
        await published(behind, "a")
        await until(lambda: stream.count("a") == 2)
    assert here.gaps.total() == behind.gaps.total() == 1


async def test_key_of_another_type_keeps_changes_pending(
    here: Worker, behind: Worker, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """Redis refuses; the change is sent once it accepts it."""
    key = Keys(key_prefix).changes
    async with here.listening("a") as stream:
        await redis_client.set(key, "text", ex=600)
        await behind.bus.publish(ResourceUpdated("a"))
        await until(lambda: behind.failures[PublishFailure.REFUSED])
        await redis_client.delete(key)
        await until(lambda: stream.count("a"))
    assert here.gaps == {GapReason.LOST: 1}


async def test_stream_that_opens_while_redis_is_unreachable_is_repaired(
    proxy: Proxy, here: Worker, key_prefix: str
) -> None:
    """It is served; the changes before the first read are unknown, so it is signalled when Redis is back."""
    proxy.refuse()
    async with opened_worker(proxy.url, key_prefix, store_timeout=0.05) as late, late.bus.running():
        async with late.listening("a") as stream:
            await published(here, "a")
            await late.bus.publish(ToolsListChanged())
            await until(lambda: stream.received == [TOOLS])
            await proxy.listen()
            await until(lambda: stream.count("a"))
        assert late.gaps == {GapReason.LATE: 1}


async def test_stream_that_opens_during_an_outage_misses_nothing(here: Worker, behind: Worker, proxy: Proxy) -> None:
    """The position is known already: the changes behind it are read, and nothing is repaired."""
    proxy.hold()
    async with behind.listening("a") as stream:
        await published(here, "a")
        proxy.clear()
        await until(lambda: stream.count("a"))
    assert behind.gaps == {}


async def test_too_many_pending_changes_become_one_of_everything(proxy: Proxy, here: Worker, key_prefix: str) -> None:
    """Memory is bounded; the streams of other workers are signalled everything."""
    async with bus_worker(proxy.url, key_prefix, max_pending=3) as behind, here.listening("a", "z") as stream:
        proxy.hold()
        for number in range(10):
            await behind.bus.publish(ResourceUpdated(f"other/{number}"))
        assert behind.failures[PublishFailure.OVERFLOW] >= 1
        proxy.clear()
        await until(lambda: stream.count("a") and stream.count("z"))
        assert here.gaps == {GapReason.OVERFLOW: 1}
        assert behind.gaps == {}


async def test_changes_are_sent_before_the_bus_stops(valkey_url: str, here: Worker, key_prefix: str) -> None:
    """A tool's last change before a deployment reaches the other workers."""
    async with here.listening("a") as stream:
        async with opened_worker(valkey_url, key_prefix) as leaving, leaving.bus.running():
            for number in range(500):  # More than a batch.
                await leaving.bus.publish(ResourceUpdated(f"other/{number}"))
            await leaving.bus.publish(ResourceUpdated("a"))
        await until(lambda: stream.count("a"))
    assert leaving.failures == {}


async def test_changes_that_cannot_be_sent_before_the_bus_stops_are_counted(proxy: Proxy, key_prefix: str) -> None:
    """They are lost: a documented limit."""
    async with opened_worker(proxy.url, key_prefix) as leaving:
        async with leaving.bus.running():
            proxy.refuse()
            proxy.reset()
            await leaving.bus.publish(ResourceUpdated("a"))
        assert leaving.failures[PublishFailure.SHUTDOWN] == 1
        await proxy.listen()


async def test_bus_that_runs_again_repairs_the_streams_that_stayed(
    valkey_url: str, here: Worker, key_prefix: str
) -> None:
    """Two servers may share a bus: it runs until the last one ends, and can run again afterwards."""
    async with opened_worker(valkey_url, key_prefix) as worker, worker.listening("a", "b") as stream:
        async with worker.bus.running():
            async with worker.bus.running():
                pass
            await until(lambda: stream.count("a"))  # It was open before.
            stream.received.clear()
            await published(here, "b")
            await until(lambda: stream.count("b"))
        await published(here, "a")
        async with worker.bus.running():
            await until(lambda: stream.count("a"))
        assert worker.gaps == {GapReason.LATE: 2}


async def test_bus_whose_stop_was_cancelled_runs_again(key_prefix: str) -> None:
    """Its tasks are stopped and forgotten, or the next block would not start them."""
    async with opened_worker(fakeredis.FakeAsyncRedis(), key_prefix) as worker:
        block = worker.bus.running()
        await block.__aenter__()
        ending = asyncio.create_task(block.__aexit__(None, None, None))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        async with worker.bus.running():
            assert worker.bus._tasks
            assert not any(task.cancelling() for task in worker.bus._tasks)
