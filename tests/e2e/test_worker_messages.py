"""Messages between workers: answers, cancellations and ends arrive, once, whatever Redis allows."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pydantic_core
import pytest
import redis
from mcp_types import CONNECTION_CLOSED
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, ResumableSessionManager, http_app
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.workers import inbox, outbox
from mcp_eventscope.sessions import forwarder
from mcp_eventscope.sessions.registry import SessionRegistry
from mcp_eventscope.store.coordination import session_digest
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.chaos import content_of
from support.controlled_server import ControlledServer
from support.http_client import Connect, Event, HTTPClient, events
from support.processes import LEASE
from support.servers import HOST, cluster_of_one
from support.serving import serving_each
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio

MEBIBYTE = 1024 * 1024


class Worker:
    """One worker in this process, with a client of Redis of its own."""

    def __init__(self, client: aioredis.Redis | aioredis.RedisCluster) -> None:
        self.controlled = ControlledServer()
        self.store = RedisEventStore(client, ttl=600)
        self.registry = CollectorRegistry()
        self.app = http_app(self.controlled.mcp, self.store, registry=self.registry, worker_lease=LEASE)
        self.url = ""

    @property
    def sessions(self) -> int:
        """How many sessions it serves."""
        manager = self.controlled.mcp.session_manager
        assert isinstance(manager, ResumableSessionManager)
        return len(manager._server_instances)


@asynccontextmanager
async def workers(*clients: aioredis.Redis | aioredis.RedisCluster) -> AsyncIterator[list[Worker]]:
    """Workers on one Redis; each has its own client."""
    made = [Worker(client) for client in clients]
    async with AsyncExitStack() as stack:
        for client in clients:
            stack.push_async_callback(client.aclose)
        for worker in made:
            stack.push_async_callback(worker.store.flush)
        for worker, url in zip(
            made, await stack.enter_async_context(serving_each(*(each.app for each in made))), strict=True
        ):
            worker.url = url
        yield made


def at(client: HTTPClient, worker: Worker) -> HTTPClient:
    """The client's session, at another worker."""
    return replace(client, url=f"{worker.url}/mcp")


@pytest.fixture(params=["a user without channels", "a cluster"])
def restricted(request: pytest.FixtureRequest) -> Iterator[list[aioredis.Redis | aioredis.RedisCluster]]:
    """Clients of a Redis where workers can neither publish nor subscribe."""
    if request.param == "a cluster":
        with cluster_of_one() as port:
            yield [aioredis.RedisCluster(host=HOST, port=port) for _ in range(2)]
        return
    with own_valkey() as server:
        with server.client() as client:
            client.acl_setuser(
                "mute", enabled=True, passwords=["+x"], keys=["*"], categories=["+@all"], reset_channels=True
            )
        yield [aioredis.Redis(host=HOST, port=server.port, username="mute", password="x") for _ in range(2)]


async def question_of(stream: AsyncIterator[Event]) -> object:
    """The request id of the question that a tool asks."""
    await anext(stream)
    question = (await anext(stream)).message
    assert question["method"] == "elicitation/create"
    return question["id"]


def answer_to(question: object, name: str = "Ada") -> dict[str, object]:
    """The client's answer."""
    return {"jsonrpc": "2.0", "id": question, "result": {"action": "accept", "content": {"name": name}}}


async def send(client: HTTPClient, message: dict[str, object]) -> None:
    """Send what has no response."""
    async with client.post(message) as accepted:
        assert accepted.status_code == 202


async def test_messages_without_pubsub_reach_the_worker_that_runs_the_call(
    restricted: list[aioredis.Redis], connect: Connect
) -> None:
    """An answer, a cancellation and the end of the session arrive (B5, B6)."""
    async with workers(*restricted) as (a, b):
        on_a = connect(a.url)
        await on_a.initialize()
        on_b = at(on_a, b)
        async with on_a.call(1, "ask") as response:
            stream = events(response)
            await send(on_b, answer_to(await question_of(stream)))
            with anyio.fail_after(CEILING):
                assert content_of(await anext(stream)) == "Ada"
        async with on_a.call(2, "steps", name="cancelled") as response:
            stream = events(response)
            await anext(stream)
            await send(on_b, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}})
            with anyio.fail_after(CEILING):
                assert content_of(await anext(stream)) == "-32800"
        async with on_a.call(3, "steps", name="ended") as response:
            stream = events(response)
            await anext(stream)
            assert await on_b.delete() == 200
            with anyio.fail_after(CEILING):
                ending = {content_of(event) for event in [row async for row in stream]}
            assert ending <= {str(CONNECTION_CLOSED), str(REQUEST_ORPHANED)}
        await until(lambda: not a.sessions and not b.sessions)


async def test_idle_workers_without_pubsub_permission_open_no_connections() -> None:
    """A refused subscription is not retried several times a second."""
    with own_valkey() as server, server.client() as client:
        client.acl_setuser(
            "mute", enabled=True, passwords=["+x"], keys=["*"], categories=["+@all"], reset_channels=True
        )
        mute = [aioredis.Redis(host=HOST, port=server.port, username="mute", password="x") for _ in range(2)]
        async with workers(*mute):
            await anyio.sleep(0.5)
            before = client.info("stats")["total_connections_received"]
            await anyio.sleep(1.5)
            opened = client.info("stats")["total_connections_received"] - before
            assert opened < 5, "a refused subscription that is retried opens twelve"


@pytest.mark.parametrize("durable", [True, False], ids=["with its data", "empty"])
@pytest.mark.parametrize("sent_first", [True, False], ids=["during the outage", "just after it"])
async def test_answer_around_a_restart_of_redis_arrives(connect: Connect, *, durable: bool, sent_first: bool) -> None:
    """It is accepted, and kept until Redis knows the worker that asked."""
    with own_valkey(durable=durable) as server:
        async with workers(*_clients(server, 2)) as (a, b):
            on_a = connect(a.url)
            await on_a.initialize()
            on_b = at(on_a, b)
            assert content_of(await _called(on_b, 1)) == "x"
            async with on_a.call(2, "ask") as response:
                stream = events(response)
                question = await question_of(stream)
                server.kill()
                if not sent_first:
                    server.start()
                await send(on_b, answer_to(question))
                if sent_first:
                    server.start()
                with anyio.fail_after(CEILING):
                    assert content_of(await anext(stream)) == "Ada"
            assert _dropped(a) == _dropped(b) == {}


async def test_answer_of_a_flooded_session_displaces_no_other(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither unasked answers in the inbox of a busy worker nor large ones that it has not read yet."""
    monkeypatch.setattr(inbox, "_ENTRIES", 5)
    monkeypatch.setattr(outbox, "_INBOX_LENGTH", 10)
    monkeypatch.setattr(forwarder, "_HELD_BYTES", MEBIBYTE)
    with own_valkey() as server:
        async with workers(*_clients(server, 2)) as (a, b):
            victim, flood = connect(a.url), connect(a.url)
            for each in (victim, flood):
                await each.initialize()
                assert content_of(await _called(at(each, b), 1)) == "x"
            for answer in ("Ada", "z" * 50_000):
                async with victim.call(2, "ask") as response:
                    stream = events(response)
                    question = await question_of(stream)
                    async with _paused(a):
                        await send(at(victim, b), answer_to(question, answer))
                        for number in range(30):
                            await send(at(flood, b), answer_to(10_000 + number, answer * (1 + 10 * (number < 5))))
                    with anyio.fail_after(CEILING):
                        assert content_of(await anext(stream)) == answer
            assert _dropped(b).keys() == {"overflow"}


async def test_answer_survives_the_loss_of_single_keys(connect: Connect) -> None:
    """Redis may evict the record of a session or the inbox of a worker, or another program overwrite it."""
    with own_valkey() as server, server.client() as client:
        async with workers(*_clients(server, 2)) as (a, b):
            on_a = connect(a.url)
            await on_a.initialize()
            on_b = at(on_a, b)
            assert content_of(await _called(on_b, 1)) == "x"
            own_inbox = Keys("mcp:").inbox(a.store.coordinator._worker.name)
            announcements = Keys("mcp:").announcements
            record = Keys("mcp:").for_session(on_a.session).session
            faults: dict[str, Callable[[], object]] = {
                "no inbox": lambda: client.delete(own_inbox),
                "no record": lambda: client.delete(record),
                "another inbox": lambda: client.set(own_inbox, "x"),
                "other announcements": lambda: client.set(announcements, "x"),
            }
            for number, fault in enumerate(faults.values(), 2):
                async with on_a.call(number, "ask") as response:
                    stream = events(response)
                    question = await question_of(stream)
                    fault()
                    await send(on_b, answer_to(question))
                    with anyio.fail_after(CEILING):
                        assert content_of(await anext(stream)) == "Ada"
            malformed = _dropped(a).get("malformed", 0) + _dropped(b).get("malformed", 0)
            assert malformed == 2, "either worker replaces the announcements"


async def test_large_answer_is_carried_only_for_the_worker_that_asked(connect: Connect) -> None:
    """Answers to questions that were never asked are dropped where they arrive (B10)."""
    with own_valkey() as server, server.client() as client:
        async with workers(*_clients(server, 2)) as (a, b):
            on_a = connect(a.url)
            await on_a.initialize()
            on_b = at(on_a, b)
            assert content_of(await _called(on_b, 1)) == "x"
            received = _received(client)
            for unasked in (10_001, 10_002, "never asked"):
                await send(on_b, answer_to(unasked, "y" * 2 * MEBIBYTE))
            async with on_a.call(2, "ask") as response:
                stream = events(response)
                question = await question_of(stream)
                # Behind the others: what was sent before has arrived, too.
                await send(on_b, answer_to(question))
                with anyio.fail_after(CEILING):
                    assert content_of(await anext(stream)) == "Ada"
            assert _received(client) - received < MEBIBYTE
            async with on_a.call(3, "ask") as response:
                stream = events(response)
                await send(on_b, answer_to(await question_of(stream), "z" * MEBIBYTE))
                with anyio.fail_after(CEILING):
                    assert content_of(await anext(stream)) == "z" * MEBIBYTE


async def test_foreign_text_in_the_inbox_is_ignored_and_counted(connect: Connect) -> None:
    """Neither malformed entries nor a message from another database has an effect (B11)."""
    with own_valkey() as server, server.client() as client:
        async with workers(*_clients(server, 2)) as (a, b):
            on_a = connect(a.url)
            await on_a.initialize()
            own_inbox = Keys("mcp:").inbox(a.store.coordinator._worker.name)
            await until(lambda: client.exists(own_inbox))
            forged = pydantic_core.to_json(["x", 1, "ended", session_digest(on_a.session), "", 0])
            for text in (
                b"[" * 100_000,
                b"{}",
                b"null",
                b"\xff",
                b'["x",1,"unknown","","",0]',
                b'["x","1","stop","","",0]',
            ):
                client.xadd(own_inbox, {"m": text, "delay": 0})
            with redis.Redis(host=HOST, port=server.port, db=1) as other:
                other.xadd(own_inbox, {"m": forged, "delay": 0})
                other.publish("mcp:workers", forged)
            await until(
                lambda: (
                    a.registry.get_sample_value(
                        "eventscope_worker_messages_dropped_total", {"store": "steered", "reason": "malformed"}
                    )
                    == 6
                )
            )
            async with on_a.call(1, "ask") as response:
                stream = events(response)
                await send(at(on_a, b), answer_to(await question_of(stream)))
                with anyio.fail_after(CEILING):
                    assert content_of(await anext(stream)) == "Ada"
            assert a.sessions == 1


async def test_outage_is_not_noticed_on_whichever_worker_a_client_reaches(connect: Connect) -> None:
    """Workers know the sessions of the others, so they serve them while Redis is down (B7)."""
    with own_valkey() as server:
        async with workers(*_clients(server, 3)) as (a, *others):
            sessions = [connect(a.url) for _ in range(6)]
            for each in sessions:
                await each.initialize()
            stranger = replace(at(sessions[0], others[0]), session="0" * 32)
            await until(lambda: all(len(_learned(each)) == len(sessions) for each in others))
            assert await sessions[-1].delete() == 200
            await until(lambda: all(len(_learned(each)) == len(sessions) - 1 for each in others))
            server.kill()
            for number, each in enumerate(sessions[:-1]):
                for worker in (*others, a):
                    assert content_of(await _called(at(each, worker), number)) == "x"
            for unknown in (stranger, at(sessions[-1], others[0])):
                async with unknown.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
                    assert response.status_code == 503, "not 404, which would end a session that exists"
                    assert response.headers["retry-after"] == "1"
            server.start()  # Or stopping workers try for seconds to flush their events.


async def test_inbox_of_stopped_worker_is_deleted_and_no_longer_written(connect: Connect) -> None:
    """Nothing is left without a TTL, and the record names only workers that serve the session."""
    with own_valkey() as server, server.client() as client:
        (kept,) = _clients(server, 1)
        async with workers(kept) as (b,):
            async with workers(*_clients(server, 1)) as (a,):
                on_a = connect(a.url)
                await on_a.initialize()
                name = a.store.coordinator._worker.name
                record = Keys("mcp:").for_session(on_a.session).session
                assert client.hexists(record, f"worker:{name}")
            assert not client.exists(Keys("mcp:").inbox(name))
            on_b = at(on_a, b)
            assert content_of(await _called(on_b, 1)) == "x"
            await send(on_b, answer_to("never asked"))
            await until(lambda: not client.hexists(record, f"worker:{name}"))
            assert not client.exists(Keys("mcp:").inbox(name))
            assert {key: client.ttl(key) for key in client.keys("*") if client.ttl(key) == -1} == {}


def _dropped(worker: Worker) -> dict[str, float]:
    """How many messages a worker has dropped, by reason."""
    return {
        sample.labels["reason"]: sample.value
        for metric in worker.registry.collect()
        for sample in metric.samples
        if sample.name == "eventscope_worker_messages_dropped_total" and sample.value
    }


@asynccontextmanager
async def _paused(worker: Worker) -> AsyncIterator[None]:
    """Let a worker read no messages within the block."""
    reader: Any = worker.store.coordinator._inbox
    receive, go_on = reader._receive, anyio.Event()

    async def wait(*args: Any) -> bool:
        await go_on.wait()
        arrived: bool = await receive(*args)
        return arrived

    reader._receive = wait
    try:
        yield
    finally:
        reader._receive = receive
        go_on.set()


def _clients(server: OwnValkey, count: int) -> list[aioredis.Redis]:
    return [aioredis.Redis(host=HOST, port=server.port, socket_timeout=1) for _ in range(count)]


def _received(client: redis.Redis) -> int:
    number: int = client.info("stats")["total_net_input_bytes"]
    return number


def _learned(worker: Worker) -> Mapping[str, object]:
    manager = worker.controlled.mcp.session_manager
    assert isinstance(manager, ResumableSessionManager)
    assert isinstance(manager._registry, SessionRegistry)
    return manager._registry._learned


async def _called(client: HTTPClient, request_id: int) -> Event:
    async with client.call(request_id, "echo", text="x") as response:
        return [event async for event in events(response)][-1]
