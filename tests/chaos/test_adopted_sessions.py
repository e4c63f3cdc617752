"""Limits, owners and ends of sessions that another worker has opened."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import anyio
import httpx2
import pytest
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from benchmarks.e2e.delay_proxy import distant
from mcp_eventscope import ResumableSessionManager, http_app
from mcp_eventscope.sessions.transport import ResumableTransport
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED
from support.chaos import check_session, content_of, on_url, open_session
from support.controlled_server import ControlledServer
from support.http_client import VERSION, Connect, HTTPClient, events
from support.logs import Recorder
from support.principals import authenticated
from support.processes import LEASE
from support.servers import HOST
from support.serving import serving
from support.valkeys import own_valkey
from support.waiting import CEILING, promptly, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ENDINGS = {str(REQUEST_ORPHANED), str(CONNECTION_CLOSED)}
"""The codes that answer a request whose session ends."""
PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


@dataclass
class Worker:
    """One worker in this process, so that a test can inspect it."""

    url: str
    controlled: ControlledServer

    @property
    def sessions(self) -> int:
        """How many sessions it has."""
        manager = self.controlled.mcp.session_manager
        assert isinstance(manager, ResumableSessionManager)
        return len(manager._server_instances)


@asynccontextmanager
async def two(
    url: str, *, auth: bool = False, names: tuple[str | None, str | None] = (None, None), **options: object
) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers on one Redis; with `names`, of servers with these names."""
    settings = authenticated() if auth else {}
    async with AsyncExitStack() as stack:
        found = []
        for name in names:
            controlled = ControlledServer(**settings)
            settled = {"registry": CollectorRegistry(), "worker_lease": LEASE, "name": name, **options}
            app = http_app(controlled.mcp, redis_url=url, **settled)  # type: ignore[arg-type]
            found.append(Worker(await stack.enter_async_context(serving(app)), controlled))
        yield found[0], found[1]


async def answer_of(client: HTTPClient, method: str = "POST") -> tuple[int, bytes]:
    """The status and body of a response."""
    response = await client.http.request(
        method, client.url, headers=client.request_headers(), json=PING if method == "POST" else None
    )
    return response.status_code, response.content


@pytest.fixture
async def mute_url(redis_client: aioredis.Redis, valkey_url: str) -> AsyncIterator[str]:
    """The URL of a Redis user that may not publish or subscribe."""
    await redis_client.acl_setuser(
        "mute", enabled=True, passwords=["+x"], keys=["*"], categories=["+@all"], reset_channels=True
    )
    yield valkey_url.replace("unix://", "unix://mute:x@")
    await redis_client.acl_deluser("mute")


async def test_full_worker_refuses_to_adopt_a_session(valkey_url: str, connect: Connect) -> None:
    """It refuses an adopted session like a new one, and that session continues elsewhere."""
    async with two(valkey_url, max_sessions=1) as (a, b):
        first, second, third = connect(a.url), connect(b.url), connect(b.url)
        await first.initialize()
        await second.initialize()
        adopted = on_url(first, b.url)
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}}
        async with third.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}) as response:
            new = response.status_code, await response.aread()
        assert new[0] == 503
        assert await answer_of(adopted) == new
        assert b.sessions == 1
        await check_session(first)
        await second.delete()
        await check_session(adopted)
        assert b.sessions == 1


async def test_full_worker_ends_a_session_of_another_worker(valkey_url: str, connect: Connect) -> None:
    """An end needs no room, and frees some on the other worker."""
    async with two(valkey_url, max_sessions=1) as (a, b):
        first, second = connect(a.url), connect(b.url)
        await first.initialize()
        await second.initialize()
        assert await on_url(first, b.url).delete() == 200
        await until(lambda: not a.sessions)
        assert (await answer_of(first))[0] == 404
        await check_session(second)


async def test_session_adopted_again_survives_the_end_of_its_first_transport(valkey_url: str, connect: Connect) -> None:
    """A transport is discarded twice: at its end, and with its task, which may end late."""
    async with two(valkey_url) as (a, b):
        client = await open_session(connect, a.url)
        manager = a.controlled.mcp.session_manager
        assert isinstance(manager, ResumableSessionManager)
        first = manager._server_instances[client.session or ""]
        await manager._discard_session(client.session or "", first)
        await check_session(client)
        second = manager._server_instances[client.session or ""]
        assert second is not first
        await manager._discard_session(client.session or "", first)
        assert manager._server_instances[client.session or ""] is second
        assert client.session in manager._registry.records, "it is renewed"
        await check_session(client)
        assert await on_url(client, b.url).delete() == 200
        await until(lambda: not a.sessions)
        assert (await answer_of(client))[0] == 404


async def test_session_whose_calls_wait_for_an_absent_client_is_idle(valkey_url: str, connect: Connect) -> None:
    """Otherwise clients that vanish before they answer would fill the worker."""
    async with two(valkey_url, session_idle_timeout=1) as (a, _):
        clients = [await open_session(connect, a.url) for _ in range(2)]
        for client in clients:
            async with client.call(1, "ask") as response:
                stream = events(response)
                while not (event := await anext(stream)).data or event.message.get("method") != "elicitation/create":
                    pass
        await until(lambda: not a.sessions)


async def test_standalone_stream_that_never_begins_is_forgotten(
    valkey_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client may leave while its cursor is created."""

    def leave(_: str) -> NoReturn:
        raise anyio.BrokenResourceError

    async with two(valkey_url) as (a, _):
        client = await open_session(connect, a.url)
        transport = a.controlled.mcp.session_manager._server_instances[client.session or ""]
        assert isinstance(transport, ResumableTransport)
        monkeypatch.setattr(transport.view, "connecting", leave)
        async with client.get() as response:
            assert response.status_code == 500
        assert not transport.view._opened


async def test_refused_resume_leaves_the_live_stream_open(valkey_url: str, connect: Connect) -> None:
    """A request without the header for streams is refused before it replaces an older connection."""
    async with two(valkey_url) as (a, _):
        client = await open_session(connect, a.url)
        async with client.call(1, "steps", name="w") as response:
            stream = events(response)
            primed = await anext(stream)
            headers = {**client.request_headers(), "accept": "application/json", "last-event-id": primed.id}
            refused = await client.http.get(client.url, headers=headers)
            assert refused.status_code == 406
            a.controlled.finish("w")
            assert content_of([event async for event in stream][-1]) == "0 steps"


async def test_idle_session_ends_only_where_it_is_idle(valkey_url: str, connect: Connect) -> None:
    """A worker drops a session it does not serve, and can adopt it again; the serving worker keeps it."""
    async with two(valkey_url, session_idle_timeout=LEASE) as (a, b):
        client = await open_session(connect, a.url)
        async with client.call(1, "steps", name="w") as response:
            stream = events(response)
            await anext(stream)
            for _ in range(2):
                await check_session(on_url(client, b.url))
                assert b.sessions == 1
                await until(lambda: not b.sessions)
                assert a.sessions == 1
            # One worker serves it for longer than the idle timeout of the other.
            await anyio.sleep(2 * LEASE)
            await check_session(on_url(client, b.url))
            a.controlled.finish("w")
            assert content_of([event async for event in stream][-1]) == "0 steps"
        await until(lambda: not a.sessions and not b.sessions)


async def test_session_with_a_running_call_is_not_idle(valkey_url: str, connect: Connect) -> None:
    """The call of a client that is disconnected, or connected through another worker, ends, and its result waits."""
    async with two(valkey_url, session_idle_timeout=1) as (a, b):
        clients = [await open_session(connect, a.url) for _ in range(2)]
        primed = []
        for number, client in enumerate(clients):
            async with client.call(1, "steps", name=str(number)) as response:
                primed.append(await anext(events(response)))
        away, elsewhere = clients
        async with on_url(elsewhere, b.url).get(primed[1].id) as response:
            stream = events(response)
            await anyio.sleep(2.5)
            assert (a.sessions, b.sessions) == (2, 1)
            a.controlled.finish("0")
            a.controlled.finish("1")
            assert content_of([event async for event in stream][-1]) == "0 steps"
        await anyio.sleep(0.5)
        assert content_of((await on_url(away, b.url).resume(primed[0].id))[-1]) == "0 steps"
        await until(lambda: not a.sessions and not b.sessions)


async def test_session_with_a_cancelled_call_is_idle(valkey_url: str, connect: Connect) -> None:
    """The transport ends a call that the server does not answer, and the session is idle from then on."""
    async with two(valkey_url, session_idle_timeout=1) as (a, b):
        for canceller in (a, b):
            client = await open_session(connect, a.url)
            async with client.call(1, "steps", name="w") as response:
                await anext(events(response))
                cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
                async with on_url(client, canceller.url).post(cancel) as accepted:
                    assert accepted.status_code == 202
        await until(lambda: not a.sessions and not b.sessions)


async def test_lost_record_of_a_session_with_a_running_call_is_written_again(
    valkey_url: str, connect: Connect, redis_client: aioredis.Redis
) -> None:
    """Another worker serves the session, and within a lease every other one can."""
    async with two(valkey_url) as (a, b):
        client = await open_session(connect, a.url)
        async with client.call(1, "steps", name="w") as response:
            primed = await anext(events(response))
        key = f"mcp:{{{client.session}}}:"
        await until(lambda: redis_client.exists(f"{key}requests"))
        await redis_client.delete(f"{key}session")
        with promptly(LEASE):
            async with on_url(client, b.url).get(primed.id) as resumed:
                assert resumed.status_code == 200
                await until(lambda: redis_client.exists(f"{key}session"))
        a.controlled.finish("w")
        await check_session(on_url(client, b.url))


async def test_session_idle_everywhere_ends_everywhere(
    valkey_url: str, connect: Connect, redis_client: aioredis.Redis
) -> None:
    """A session without requests ends after the idle timeout, on all workers."""
    async with two(valkey_url, session_idle_timeout=1) as (a, b):
        client = await open_session(connect, a.url)
        await check_session(on_url(client, b.url))
        await until(lambda: not a.sessions and not b.sessions)
        key = f"mcp:{{{client.session}}}:session"

        async def unknown() -> bool:
            return not await redis_client.exists(key)

        await until(unknown)
        for worker in (a, b):
            assert (await answer_of(on_url(client, worker.url)))[0] == 404


async def test_large_request_to_a_session_to_adopt_is_413(valkey_url: str, connect: Connect) -> None:
    """It does the session no harm, on a worker that has never seen it."""
    async with two(valkey_url, max_request_body_size=2000) as (a, b):
        client = await open_session(connect, a.url)
        for worker in (b, a):
            async with on_url(client, worker.url).post(PING | {"params": {"x": "y" * 3000}}) as response:
                assert response.status_code == 413
            await check_session(on_url(client, worker.url))


def initialize_of(size: int) -> dict[str, object]:
    """An `initialize` request of so many bytes."""
    info = {"name": "é", "version": ""}
    params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": info}
    message: dict[str, object] = {"jsonrpc": "2.0", "id": "first", "method": "initialize", "params": params}
    info["version"] = "x" * (size - len(httpx2.Request("POST", "http://h", json=message).content))
    return message


async def test_initialize_that_is_too_large_to_record_is_413(
    valkey_url: str, connect: Connect, redis_client: aioredis.Redis
) -> None:
    """One of 64 KiB opens a session that another worker serves; a larger one opens none, and names the limit."""
    async with two(valkey_url) as (a, b):
        client = connect(a.url)
        for size in (65_537, 4_000_000):
            async with client.post(initialize_of(size)) as response:
                assert response.status_code == 413
                refusal = json.loads(await response.aread())
            assert (refusal["id"], refusal["error"]["code"]) == ("first", INVALID_REQUEST)
            assert refusal["error"]["message"].startswith(
                f"initialize request must have at most 65536 bytes, got {size}; send less"
            )
        assert a.sessions == 0
        async with client.post(PING | {"params": {"x": "y" * 70_000}}) as response:
            assert response.status_code == 400, "only initialize requests are recorded"
        async with client.post(initialize_of(65_536)) as response:
            assert response.status_code == 200
            client.session = response.headers["mcp-session-id"]
            assert [event async for event in events(response)][-1].message["id"] == "first"
        await check_session(on_url(client, b.url))
        key = f"mcp:{{{client.session}}}:session"
        assert await redis_client.hstrlen(key, "handshake") < 65_536


async def test_session_of_another_principal_is_not_found(valkey_url: str, connect: Connect) -> None:
    """The answer has the same words as for no session, before and after the session is adopted."""
    async with two(valkey_url, auth=True) as (a, b):
        alice, bob = (connect(a.url, authorization=f"Bearer {name}") for name in ("alice", "bob"))
        await alice.initialize()
        async with alice.call(1, "echo", text="x") as response:
            received = [event async for event in events(response)]
        bob.session = "0" * 32
        unknown = {
            (worker.url, method): await answer_of(on_url(bob, worker.url), method)
            for worker in (a, b)
            for method in ("POST", "GET", "DELETE")
        }
        assert {status for status, _ in unknown.values()} == {404}
        bob.session = alice.session
        for _ in range(2):
            for (url, method), answer in unknown.items():
                assert await answer_of(on_url(bob, url), method) == answer
            for worker in (b, a):
                async with on_url(bob, worker.url).get(received[0].id) as stolen:
                    assert stolen.status_code == 404
            # From here on both workers have the session.
            assert await on_url(alice, b.url).resume(received[0].id) == received[1:]
        await check_session(on_url(alice, b.url))
        await check_session(alice)
        anonymous = connect(b.url)
        anonymous.session = alice.session
        assert (await answer_of(anonymous))[0] == 401


async def timely_answer(client: HTTPClient, method: str) -> tuple[int, bytes]:
    """The answer of a worker that is not kept waiting by a busy machine."""
    answers: list[tuple[int, bytes]] = []

    async def timely() -> bool:
        answers.append(await answer_of(client, method))
        return answers[-1][0] != 503

    await until(timely)
    return answers[-1]


async def check_apart(client: HTTPClient, other: HTTPClient, redis: aioredis.Redis) -> None:
    """A session is unknown to another server, whose answers disclose nothing, and stays as it is."""
    async with client.call(1, "echo", text="x") as response:
        received = [event async for event in events(response)]
    (key,) = [key async for key in redis.scan_iter(match=f"*{client.session}*:session", count=1000)]
    record = await redis.hgetall(key)
    for method in ("POST", "GET", "DELETE"):
        answers = [await timely_answer(each, method) for each in (other, replace(other, session="0" * 32))]
        assert answers[0] == answers[1]
    async with other.get(received[0].id) as stolen:
        assert stolen.status_code == 404
    assert await redis.hgetall(key) == record
    await check_session(client)


async def test_session_of_another_server_on_one_redis_is_not_found(
    valkey_url: str, connect: Connect, redis_client: aioredis.Redis, key_prefix: str
) -> None:
    """The server that opened it keeps it. The second server logs once that it shares the prefix."""
    log, registry = Recorder(), CollectorRegistry()
    async with two(valkey_url, names=("calc", "mail"), key_prefix=key_prefix, logger=log, registry=registry) as (a, b):
        for own, other in ((a, b), (b, a)):
            client = await open_session(connect, own.url)
            await check_apart(client, on_url(client, other.url), redis_client)
            assert (own.sessions, other.sessions) in {(1, 0), (1, 1)}
        await anyio.sleep(LEASE)
        (warning,) = log.named("event_store.prefix_shared")
        assert (warning["server"], warning["other_server"]) == ("mail", "calc")
        for name in ("calc", "mail"):
            assert registry.get_sample_value("eventscope_sessions_active", {"store": name}) == 1
            labels = {"store": name, "reason": "other_server"}
            assert registry.get_sample_value("eventscope_requests_refused_total", labels) == 4, "3 methods and a resume"


async def test_session_of_another_audience_on_one_redis_is_not_found(
    valkey_url: str, connect: Connect, redis_client: aioredis.Redis
) -> None:
    """The audience of their tokens distinguishes servers of one name."""
    async with two(valkey_url, auth=True) as (a, b):
        client = connect(a.url, authorization="Bearer alice@calc")
        await client.initialize()
        for token in ("alice@mail", "alice"):
            for worker in (b, a):
                other = connect(worker.url, authorization=f"Bearer {token}")
                other.session = client.session
                await check_apart(client, other, redis_client)
        await check_session(on_url(client, b.url))


async def test_sessions_under_different_prefixes_do_not_meet(valkey_url: str, connect: Connect) -> None:
    """Also two servers of one name are apart, without a warning."""
    log = Recorder()
    async with (
        two(valkey_url, names=("calc", "calc"), key_prefix="calc:", logger=log) as (one, same),
        two(valkey_url, names=("calc", "mail"), key_prefix="mail:") as (other, _),
    ):
        client = await open_session(connect, one.url)
        await check_session(on_url(client, same.url))
        assert (await answer_of(on_url(client, other.url)))[0] == 404
        await check_session(client)
    assert not log.named("event_store.prefix_shared")


async def test_new_session_is_served_on_another_worker_immediately(valkey_url: str, connect: Connect) -> None:
    """Another worker serves it as soon as the response's headers name it."""
    async with two(valkey_url) as (a, b):
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}}
        for _ in range(10):
            client = connect(a.url)
            async with client.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}) as response:
                client.session = response.headers["mcp-session-id"]
                assert (await answer_of(on_url(client, b.url)))[0] == 200


async def test_initialize_with_the_session_of_another_principal_is_refused(valkey_url: str, connect: Connect) -> None:
    """The owner keeps the session."""
    async with two(valkey_url, auth=True) as (a, b):
        alice, bob = (connect(a.url, authorization=f"Bearer {name}") for name in ("alice", "bob"))
        await alice.initialize()
        bob.session = alice.session
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}}
        for worker in (b, a):
            async with on_url(bob, worker.url).post(
                {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
            ) as response:
                assert response.status_code == 404
        for worker in (b, a):
            await check_session(on_url(alice, worker.url))


async def test_open_stream_of_an_adopted_session_blocks_no_adoption(valkey_url: str, connect: Connect) -> None:
    """While a long GET adopts one session, others can be adopted and opened."""
    async with two(valkey_url) as (a, b), AsyncExitStack() as stack:
        for _ in range(3):
            client = await open_session(connect, a.url)
            await stack.enter_async_context(on_url(client, b.url).get())
        another = connect(b.url)
        with anyio.fail_after(CEILING):
            await another.initialize()
        await check_session(another)


@pytest.mark.parametrize("mute", [False, True])
async def test_delete_on_one_worker_ends_the_session_on_all(
    valkey_url: str, mute_url: str, connect: Connect, *, mute: bool
) -> None:
    """It ends there, whether the notice arrives or not."""
    async with two(mute_url if mute else valkey_url) as (a, b):
        client = await open_session(connect, a.url)
        other = on_url(client, b.url)
        await check_session(other)
        assert await other.delete() == 200
        for speaker in (other, client):

            async def is_unknown() -> bool:
                return (await answer_of(speaker, "POST"))[0] == 404  # noqa: B023 - awaited here

            await until(is_unknown)  # Where the notice does not arrive, the next request's renewal finds it.
            for method in ("POST", "GET", "DELETE"):
                assert (await answer_of(speaker, method))[0] == 404
        assert (a.sessions, b.sessions) == (0, 0)


@pytest.mark.parametrize("lost", [False, True])
async def test_delete_on_one_worker_ends_open_streams_on_the_other(
    valkey_url: str, connect: Connect, redis_client: aioredis.Redis, *, lost: bool
) -> None:
    """They end even if the subscriptions break during the DELETE."""
    async with two(valkey_url) as (a, b):
        client = await open_session(connect, a.url)
        other = on_url(client, b.url)
        await check_session(other)
        pattern = f"mcp:{{{client.session}}}:*"
        async with client.call(1, "steps", name="w") as response, client.get() as standalone:
            live = events(response)
            primed = await anext(live)
            async with client.get(primed.id) as resumed:
                if lost:
                    await redis_client.client_kill_filter(_type="pubsub")
                assert len([key async for key in redis_client.scan_iter(pattern)]) >= 6
                assert await other.delete() == 200
                assert len([key async for key in redis_client.scan_iter(pattern)]) == 1
                with anyio.fail_after(CEILING):
                    for stream in (live, events(resumed), events(standalone)):
                        assert {content_of(event) for event in [row async for row in stream] if event.data} <= ENDINGS
        await until(lambda: not a.sessions and not b.sessions)
    # Both workers have stopped: nothing that they stored or accounted for last has brought a key back.
    assert [key async for key in redis_client.scan_iter(pattern)] == [f"mcp:{{{client.session}}}:session".encode()]


async def test_follower_without_pubsub_permission_gets_events_within_a_second(mute_url: str, connect: Connect) -> None:
    """A Redis user that may not publish or subscribe gets every event."""
    async with two(mute_url) as (a, b):
        client = await open_session(connect, a.url)
        async with client.call(1, "steps", name="w") as response:
            received = [await anext(events(response))]
        async with on_url(client, b.url).get(received[0].id) as response:
            stream = events(response)
            for number in range(3):
                a.controlled.step("w", str(number))
                with promptly(1):
                    assert content_of(await anext(stream)) == str(number)
            a.controlled.finish("w")
            assert content_of(await anext(stream)) == "3 steps"


async def test_session_opened_on_a_slow_redis_is_served_elsewhere(connect: Connect) -> None:
    """A client gets its session once other workers can find it, even where Redis is slow, and is known to be."""
    with own_valkey() as server:
        near = f"redis://{HOST}:{server.port}"
        async with distant(near, 0.3) as far, two(far) as (slow, _), two(near) as (other, _):
            for _ in range(2):
                client = connect(slow.url)
                params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}}
                message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
                async with client.post(message) as response:
                    client.session = response.headers["mcp-session-id"]
                    assert (await answer_of(on_url(client, other.url)))[0] == 200
                client.session = "0" * 32
                assert (await answer_of(client))[0] == 503, "the worker knows from here on that Redis is slow"
