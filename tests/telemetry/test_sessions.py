"""Metrics and log events of sessions and requests: started, active, refused, ended."""

import asyncio
from dataclasses import replace

import anyio
import pytest
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.streamable_http import StreamableHTTPServerTransport
from pydantic import AnyHttpUrl

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect as connect_redis
from mcp_eventscope.sessions.telemetry import SessionTelemetry
from mcp_eventscope.store.messages import EventStore
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.sessions import OPERATION_DURATION
from mcp_eventscope.telemetry.facts import Origin
from mcp_eventscope.telemetry.logs import Log
from support.controlled_server import ControlledServer
from support.http_client import VERSION, HTTPClient, events
from support.memory_store import MemoryEventStore
from support.waiting import until
from telemetry.conftest import Rig, Scope

pytestmark = pytest.mark.anyio

ADOPTING = "notifications/roots/list_changed"
"""Sent to have a worker adopt a session. It is repeated while Redis is late, as on a busy machine."""
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
AUTH = AuthSettings(
    issuer_url=AnyHttpUrl("https://issuer.example"),
    resource_server_url=AnyHttpUrl("http://127.0.0.1/mcp"),
    required_scopes=["use"],
    validate_token_resource=False,
)


async def status(client: HTTPClient, message: dict[str, object] | None = None) -> int:
    """The status of a POST."""
    async with client.post(message or PING) as response:
        return response.status_code


@pytest.mark.parametrize("store", [None, MemoryEventStore()], ids=["redis", "foreign"])
async def test_session_counts_from_its_start_to_its_deletion(rig: Rig, store: EventStore | None) -> None:
    """A session counts while it is served, with any store; the client ends it."""
    client = await rig.serve(store=store)
    assert (rig.live(), rig.begun("opened")) == (0, 0)
    await client.initialize()
    assert (rig.live(), rig.begun("opened")) == (1, 1)
    assert await client.delete() == 200
    await until(lambda: rig.live() == 0)
    assert rig.ended() == {"deleted": 1}

    answers: list[int] = []

    async def answered() -> bool:
        answers.append(await status(client))
        return answers[-1] != 503  # On a busy machine Redis may be late.

    await until(answered)
    assert answers[-1] == 404
    refused = rig.refused()
    refused.pop("unavailable", None)
    assert refused == {"unknown": 1}
    assert rig.scope.log.named("event_store.session_refused") == [], "ids that have ended are every day's"


async def test_session_on_two_workers_counts_twice_and_ends_on_both(rig: Rig) -> None:
    """A session that two workers serve counts twice; deleting it on one ends it on both."""
    client = await rig.serve("a")
    on_b = await rig.serve("b")
    await client.initialize()
    on_b.session = client.session
    await on_b.notify(ADOPTING)
    assert (rig.live("a"), rig.live("b")) == (1, 1)
    assert (rig.begun("opened", "b"), rig.begun("adopted", "b")) == (0, 1)
    assert await on_b.delete() == 200
    await until(lambda: rig.live("a") == rig.live("b") == 0)
    assert (rig.ended("a"), rig.ended("b")) == ({"other_worker": 1}, {"deleted": 1})


async def test_session_without_requests_ends_as_idle(rig: Rig) -> None:
    """After the idle timeout."""
    client = await rig.serve(session_idle_timeout=0.1)
    params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    # And nothing after it: on a busy machine that might come too late.
    assert await status(client, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}) == 200
    await until(lambda: rig.ended() == {"idle": 1})
    assert rig.live() == 0


async def test_session_of_a_stopping_worker_can_be_adopted(rig: Rig) -> None:
    """A stopping worker serves no sessions, and other workers can still adopt them."""
    client = await rig.serve()
    await client.initialize()
    await rig.stack.aclose()
    assert (rig.live(), rig.ended()) == (0, {"shutdown": 1})


def test_session_that_crashes_ends_as_failed(scope: Scope) -> None:
    """It counts once, although its end is reported twice."""
    telemetry = SessionTelemetry(scope.instrument(MemoryEventStore()), Log(scope.log))
    transport = StreamableHTTPServerTransport("s")
    telemetry.began("s", Origin.OPENED, None)
    for _ in range(2):
        telemetry.ended("s", transport, stopping=False)
    assert scope.sample("sessions_ended_total", reason="failed") == 1
    assert scope.sample("sessions_active") == 0
    failed = {"mcp_protocol_version": VERSION, "error_type": "failed"}
    assert scope.conventional("mcp_server_session_duration_seconds_count", **failed) == 1


def test_operation_outside_of_the_closed_sets_is_other(scope: Scope) -> None:
    """Clients choose methods, and servers error codes: neither may create a series each."""
    telemetry = SessionTelemetry(scope.instrument(MemoryEventStore()), Log(scope.log))
    for number in range(3):
        telemetry.operation_ended(f"x/{number}", 1, f"{number}")
    labels = {"mcp_method_name": "_OTHER", "error_type": "_OTHER"}
    assert scope.conventional("mcp_server_operation_duration_seconds_count", **labels) == 3


async def test_session_beyond_the_limit_is_refused(rig: Rig) -> None:
    """At the limit sessions are neither opened nor adopted, and the log names the setting."""
    first = await rig.serve("a", max_sessions=1)
    other = await rig.serve("b")
    await first.initialize()
    await other.initialize()
    assert await status(replace(first, session="")) == 503
    assert await status(replace(first, session=other.session)) == 503
    assert rig.refused("a") == {"limit": 2}
    assert rig.live("a") == 1
    (entry,) = rig.scope.log.named("event_store.session_refused")
    assert (entry["reason"], entry["level"]) == ("limit", "warning")
    assert "max_sessions" in entry["fix"]
    assert other.session not in str(rig.scope.log.entries)


@pytest.mark.parametrize("session", ["0" * 32, "not one of ours", "-"])
async def test_request_with_an_unknown_session_is_refused(rig: Rig, session: str) -> None:
    """An unknown or malformed session id is refused."""
    client = await rig.serve()
    assert await status(replace(client, session=session)) == 404
    assert rig.refused() == {"unknown": 1}


async def test_invalid_request_to_open_a_session_is_refused(rig: Rig) -> None:
    """An invalid request to open a session is refused."""
    client = await rig.serve()
    assert await status(client) == 400
    assert rig.refused() == {"invalid": 1}
    assert (rig.live(), rig.ended()) == (0, {})


class Verifier:
    """Every token is a principal."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the principal."""
        return AccessToken(token=token, client_id=token, scopes=["use"], subject=token)


async def test_request_of_another_owner_is_refused_and_logged(rig: Rig) -> None:
    """On every worker."""
    alice = await rig.serve("a", steered=ControlledServer(auth=AUTH, token_verifier=Verifier()))
    on_b = await rig.serve("b", steered=ControlledServer(auth=AUTH, token_verifier=Verifier()))
    alice.headers = {"authorization": "Bearer alice"}
    await alice.initialize()
    bob = {"authorization": "Bearer bob"}
    assert await status(replace(alice, headers=bob)) == 404
    assert await status(replace(on_b, session=alice.session, headers=bob)) == 404
    assert rig.refused("a") == rig.refused("b") == {"not_owner": 1}
    assert rig.live("b") == 0
    entry, _ = rig.scope.log.named("event_store.session_refused")
    assert (entry["store"], entry["reason"], len(entry["session_hash"])) == ("a", "not_owner", 12)


async def test_unknown_session_while_redis_is_unavailable_is_refused(rig: Rig) -> None:
    """A session that this worker does not know is refused while Redis is unavailable."""
    nowhere = await rig.stack.enter_async_context(connect_redis("redis://127.0.0.1:1"))
    client = await rig.serve(store=RedisEventStore(nowhere, ttl=3600))
    assert await status(replace(client, session="0" * 32)) == 503
    assert rig.refused() == {"unavailable": 1}
    (entry,) = rig.scope.log.named("event_store.session_refused")
    assert entry["reason"] == "unavailable"


@pytest.mark.parametrize(
    ("named", "counted"),
    [
        *((version, version) for version in (catalog.sessions.PROTOCOL_VERSION.values or ())[1:-1]),
        (None, "none"),
        ("none", "other"),
        ("2099-01-01", "other"),
    ],
)
async def test_requests_count_by_protocol_version(rig: Rig, named: str | None, counted: str) -> None:
    """Unknown versions count as `other`."""
    client = await rig.serve()
    headers = {} if named is None else {"mcp-protocol-version": named}
    await client.http.post(client.url, json=PING, headers=headers | {"accept": "application/json, text/event-stream"})
    assert {
        revision: rig.scope.sample("requests_received_total", mcp_protocol_version=revision)
        for revision in catalog.sessions.PROTOCOL_VERSION.values or ()
    } == {revision: int(revision == counted) for revision in catalog.sessions.PROTOCOL_VERSION.values or ()}


async def test_requests_that_open_a_session_count_by_protocol_version(rig: Rig) -> None:
    """Opening a session and its requests count for its protocol version."""
    client = await rig.serve()
    await client.initialize()
    assert await status(client) == 200
    assert rig.scope.sample("requests_received_total", mcp_protocol_version=VERSION) == 3


async def test_gauge_after_many_concurrent_sessions_is_exact(rig: Rig) -> None:
    """No increment is lost."""
    client = await rig.serve()

    async def come_and_go() -> None:
        own = replace(client)
        await own.initialize()
        await own.delete()

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(come_and_go)
    await until(lambda: rig.live() == 0)
    assert (rig.begun("opened"), rig.ended()) == (20, {"deleted": 20})


async def test_malformed_event_id_counts_as_a_miss(rig: Rig) -> None:
    """A malformed event id is refused, and counts as a miss."""
    client = await rig.serve()
    await client.initialize()
    async with client.get("no id of ours") as response:
        await response.aread()
        assert response.status_code == 400
    assert rig.scope.sample("replay_misses_total", reason="malformed") == 1
    assert rig.scope.sample("replay_duration_seconds_count", outcome="missed") == 1


def operations(rig: Rig, name: str = "default") -> dict[tuple[str, str], float]:
    """The operations of a worker, by method and error type."""
    (family,) = [metric for metric in rig.scope.registry.collect() if metric.name == OPERATION_DURATION.name]
    return {
        (sample.labels["mcp_method_name"], sample.labels["error_type"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_count") and sample.labels["store"] == name and sample.value
    }


OPENED: dict[tuple[str, str], float] = {("initialize", ""): 1}


async def request(client: HTTPClient, method: str, **params: object) -> None:
    """Send a request, and read its response."""
    async with client.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}) as response:
        await response.aread()


@pytest.mark.parametrize("json_response", [False, True], ids=["stream", "json"])
async def test_operations_with_responses_count_by_method_and_error(rig: Rig, *, json_response: bool) -> None:
    """Results, errors of tools, JSON-RPC errors, and methods that only this client knows."""
    client = await rig.serve(json_response=json_response)
    if json_response:
        params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        async with client.post(message) as response:
            client.session = response.headers["mcp-session-id"]
            await response.aread()
        await client.notify("notifications/initialized")
    else:
        await client.initialize()
    await request(client, "ping")
    await request(client, "tools/call", name="echo", arguments={"text": "a"})
    await request(client, "tools/call", name="echo", arguments={})
    await request(client, "tools/list", cursor=7)
    await request(client, "x" * 1000)
    assert operations(rig) == OPENED | {
        ("ping", ""): 1,
        ("tools/call", ""): 1,
        ("tools/call", "tool_error"): 1,
        ("tools/list", "-32602"): 1,
        ("_OTHER", "-32601"): 1,
    }


async def test_operation_cancelled_by_its_client_counts_as_cancelled(rig: Rig) -> None:
    """With the code of the error that the SDK sends as its response."""
    steered = ControlledServer()
    client = await rig.serve(steered=steered)
    await client.initialize()
    cancel: dict[str, object] = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_call, client)
        await until(lambda: "one" in steered._steps)
        assert await status(client, cancel) == 202
    assert operations(rig) == OPENED | {("tools/call", catalog.sessions.CANCELLED): 1}


@pytest.mark.parametrize("end", ["deleted", "deleted elsewhere", "shutdown"])
async def test_operation_of_a_session_that_ends_counts_as_orphaned(rig: Rig, end: str) -> None:
    """On the worker that ran it."""
    steered = ControlledServer()
    client = await rig.serve(steered=steered)
    other = await rig.serve("other")
    await client.initialize()
    other.session = client.session
    await other.notify(ADOPTING)
    call = asyncio.create_task(_call(client))  # A task group could not outlive the servers.
    await until(lambda: "one" in steered._steps)
    if end == "shutdown":
        await rig.stack.aclose()
    else:
        assert await (client if end == "deleted" else other).delete() == 200
    await call
    await until(lambda: len(operations(rig)) == 2)
    assert operations(rig) == OPENED | {("tools/call", "-32010"): 1}
    assert operations(rig, "other") == {}


async def test_operation_resumed_elsewhere_counts_where_it_ran(rig: Rig) -> None:
    """Once, however many clients receive its response."""
    client = await rig.serve()
    other = await rig.serve("other")
    await client.initialize()
    other.session = client.session
    cursors: list[str] = []
    async with client.call(1, "echo", text="a") as response:
        cursors += [event.id async for event in events(response)]
    assert len(await other.resume(cursors[0])) == 1
    assert operations(rig) == OPENED | {("tools/call", ""): 1}
    assert operations(rig, "other") == {}


@pytest.mark.parametrize(
    ("requested", "negotiated"), [("2025-03-26", "2025-03-26"), ("2099-01-01", VERSION)], ids=["known", "unknown"]
)
async def test_session_duration_has_the_negotiated_version(rig: Rig, requested: str, negotiated: str) -> None:
    """On each worker that served it, for as long as it did."""
    client = await rig.serve()
    other = await rig.serve("other")
    params = {"protocolVersion": requested, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    async with client.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}) as response:
        client.session = other.session = response.headers["mcp-session-id"]
        await response.aread()
    await other.notify(ADOPTING)
    await client.delete()
    await until(lambda: rig.live() == rig.live("other") == 0)
    for name in ("default", "other"):
        labels = {"store": name, "mcp_protocol_version": negotiated, "error_type": ""}
        assert rig.scope.conventional("mcp_server_session_duration_seconds_count", **labels) == 1
        assert 0 < (rig.scope.conventional("mcp_server_session_duration_seconds_sum", **labels) or 0) < 60


async def _call(client: HTTPClient) -> None:
    """Call a tool that does not return."""
    async with client.call(1, "steps", name="one") as response:
        await response.aread()
