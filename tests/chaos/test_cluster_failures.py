"""Two workers on a Redis Cluster of three masters and three replicas, of which masters are killed under load."""

from collections.abc import Iterator
from functools import partial

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.subscriptions import ResourceUpdated, Subscription

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import client_for
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE
from mcp_eventscope.store.events import EventsLost, StoreDegraded
from mcp_eventscope.store.results import StoreOutcome
from support.callers import Caller, expected
from support.chaos import NewToolControl, check_session, content_of, on_worker, open_session, resumed_call
from support.clusters import Cluster, Node, sessions_by_master, valkey_cluster
from support.http_client import NO_TLS, Connect, HTTPClient, events
from support.messages import answer, note
from support.processes import WorkerProcess, revive, worker_processes
from support.session_producers import SessionProducer, appending, observed
from support.stores import LEASE, TTL, nothing_to_publish, until_settled
from support.task_client import RawTasks
from support.waiting import CEILING, eventually, pace, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

APP = "support.scope_app:app"
CALLS = 9
NUMBERS = 40


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """The cluster of all tests."""
    with valkey_cluster() as cluster:
        yield cluster


@pytest.fixture
async def cluster(nodes: Cluster) -> Cluster:
    """The same, with three masters and three replicas, whatever an earlier test did to them."""
    await anyio.to_thread.run_sync(nodes.revive)
    return nodes


@pytest.fixture(scope="module")
def workers(nodes: Cluster, valkey_url: str) -> Iterator[list[WorkerProcess]]:
    """Two workers with the URL of the cluster, controlled through another Redis.

    Their lease is longer than redis-py holds up its renewals while it looks up the successor of a master.
    """
    with worker_processes(2, nodes.url, valkey_url, app=APP, worker_lease=DEFAULT_WORKER_LEASE) as workers:
        yield workers


@pytest.fixture
async def pair(cluster: Cluster, workers: list[WorkerProcess]) -> tuple[WorkerProcess, WorkerProcess]:
    """The workers, running and healthy."""
    del cluster
    await anyio.to_thread.run_sync(revive, workers)
    first, second = workers
    return first, second


def fail_over(cluster: Cluster, master: Node) -> None:
    """Kill a master, and return when its replica serves in its place."""
    heir = cluster.replica_of(master)
    cluster.set(cluster_node_timeout=1000 * pace())
    try:
        master.server.kill()
        eventually(lambda: heir.is_master)
        cluster.until_whole()
    finally:
        cluster.set(cluster_node_timeout=cluster.node_timeout)


def cut_off_all(cluster: Cluster) -> None:
    """Break all replications."""
    for master in cluster.masters:
        cluster.cut_off(cluster.replica_of(master), master)


async def test_workers_on_a_cluster_serve_the_calls_of_each_other(
    pair: tuple[WorkerProcess, WorkerProcess], connect: Connect, new_tool: NewToolControl
) -> None:
    """Streams are resumed, calls cancelled, sessions ended, tasks polled and changes signalled on the other worker."""
    a, b = pair
    async with resumed_call(connect, new_tool, a, b) as (on_a, tool, stream):
        await tool.step("1", "2")
        assert [content_of(await anext(stream)) for _ in range(2)] == ["1", "2"]
        await tool.finish()
        assert content_of(await anext(stream)) == "2 steps"
    on_b = on_worker(on_a, b)
    async with on_a.call(2, "steps", name=new_tool().name) as called:
        answered = events(called)
        await anext(answered)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
        async with on_b.post(cancelled) as accepted:
            assert accepted.status_code == 202
        assert content_of(await anext(answered)) == "-32800"
    assert await on_b.delete() == 200
    await until(lambda: _is_unknown(on_a))
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:
        on = RawTasks(http, f"{a.url}/mcp")
        tool = new_tool()
        task = await on.start("steps", name=tool.name)
        await tool.step("1")
        await tool.finish()
        done = await on.at(f"{b.url}/mcp").final(task)
        assert (done["status"], done["result"]["structuredContent"]) == ("completed", {"result": "1 steps"})
    async with (
        Client(f"{b.url}/mcp") as listener,
        Client(f"{a.url}/mcp") as changer,
        listener.listen(resource_subscriptions=["cluster://x"]) as subscription,
    ):
        await changer.call_tool("change", {"uri": "cluster://x"})
        with anyio.fail_after(CEILING):
            assert await anext(aiter(subscription)) == ResourceUpdated("cluster://x")


async def _is_unknown(client: HTTPClient) -> bool:
    async with client.post({"jsonrpc": "2.0", "id": 9, "method": "ping"}) as pinged:
        return pinged.status_code == 404


async def test_task_and_stream_survive_the_loss_of_their_masters(
    cluster: Cluster, pair: tuple[WorkerProcess, WorkerProcess], new_tool: NewToolControl
) -> None:
    """The replicas lack task and log: the worker writes the task again, and the stream is repaired."""
    a, b = pair
    signals: set[str] = set()

    async def listen(subscription: Subscription) -> None:
        async for event in subscription:
            if isinstance(event, ResourceUpdated):
                signals.add(event.uri)

    async with (
        httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=CEILING) as http,
        Client(f"{b.url}/mcp") as listener,
        Client(f"{a.url}/mcp") as changer,
        listener.listen(resource_subscriptions=["cluster://x"]) as subscription,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listen, subscription)
        on_a, tool = RawTasks(http, f"{a.url}/mcp"), new_tool()
        on_b = on_a.at(f"{b.url}/mcp")
        await anyio.to_thread.run_sync(cut_off_all, cluster)
        task = await on_a.start("steps", name=tool.name)
        worker, _, name = task.partition("-")
        keys = Keys("mcp:").task(worker, name), Keys("mcp:").changes
        victims = {await anyio.to_thread.run_sync(cluster.master_of, key) for key in keys}
        for victim in victims:
            await anyio.to_thread.run_sync(fail_over, cluster, victim)
            signals.clear()
            await changer.call_tool("change", {"uri": "cluster://x"})
            await until(lambda: "cluster://x" in signals)
            await tool.step("on")
        await tool.finish()
        done = await on_b.final(task)
        assert done["status"] == "completed"
        assert done["result"]["structuredContent"] == {"result": f"{len(victims)} steps"}
        tasks.cancel_scope.cancel()


async def test_calls_while_a_master_is_killed_end_once_and_in_order(
    cluster: Cluster, pair: tuple[WorkerProcess, WorkerProcess], connect: Connect
) -> None:
    """The workers live, and commit again whatever the replica had not received: each client gets every number once."""
    callers = [Caller(await open_session(connect, pair[number % 2].url), pair) for number in range(CALLS)]
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(lambda caller=caller: caller.call(1, NUMBERS, pause=0.05))  # type: ignore[misc]
        await until(lambda: all(caller.calls and len(caller.calls[0].contents) > 5 for caller in callers))
        session = Keys("mcp:").for_session(callers[0].client.session).session
        victim = await anyio.to_thread.run_sync(cluster.master_of, session)
        await anyio.to_thread.run_sync(fail_over, cluster, victim)
    for caller in callers:
        assert [call.contents for call in caller.calls] == [expected(NUMBERS)]
        for worker in pair:
            await check_session(on_worker(caller.client, worker))
    await check_session(await open_session(connect, pair[0].url))


async def test_writes_that_a_promoted_replica_lacks_are_committed_again(cluster: Cluster, key_prefix: str) -> None:
    """The replica was cut off before the master is killed: acknowledged events are restored, of finished calls too."""
    async with client_for(cluster.url) as client, client_for(cluster.url) as other:
        store = RedisEventStore(client, key_prefix=key_prefix, ttl=TTL)
        reader = RedisEventStore(other, key_prefix=key_prefix, ttl=TTL)
        facts = observed(store)
        keys = Keys(key_prefix)
        names = await anyio.to_thread.run_sync(
            sessions_by_master, cluster, lambda name: keys.for_session(name).session, 2
        )
        # Not the master of the lease, which would show that writes were lost.
        leases = await anyio.to_thread.run_sync(cluster.master_of, keys.worker(store.worker))
        victim = next(master for master in cluster.masters if master is not leases)
        finished, running = ([SessionProducer(store, each[n]) for each in names.values()] for n in range(2))
        async with store.coordinator.hold_lease(LEASE, lambda _: None, nothing_to_publish):
            async with appending(store, [*running]):
                await anyio.to_thread.run_sync(cluster.cut_off, cluster.replica_of(victim), victim)
                for producer in finished:
                    await producer.append(None)
                    await producer.append(note(1))
                    await producer.append(answer())
                    assert set(await producer.outcomes()) == {StoreOutcome.STORED}
                await anyio.to_thread.run_sync(fail_over, cluster, victim)
            for producer in [*finished, *running]:
                await until(partial(_has_all, producer, reader))
        await until_settled(store)
        assert not facts.of(EventsLost)
        assert facts.of(StoreDegraded)
        await store.flush()


async def _has_all(producer: SessionProducer, reader: RedisEventStore) -> bool:
    replayed, received = await producer.replayed(reader)
    return (replayed.miss, replayed.gap) == (None, False) and received.ids == producer.ids[1:]
