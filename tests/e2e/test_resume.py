"""A stream that is cut is resumed: over real HTTP, against a real Valkey."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import http_app
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE
from support.controlled_server import ControlledServer
from support.http_client import Connect, Event, HTTPClient, events
from support.serving import serving
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def controlled() -> ControlledServer:
    """The server."""
    return ControlledServer()


@pytest.fixture
async def base_url(controlled: ControlledServer, valkey_url: str, registry: CollectorRegistry) -> AsyncIterator[str]:
    """The server, served."""
    async with serving(http_app(controlled.mcp, redis_url=valkey_url, registry=registry)) as url:
        yield url


@pytest.fixture
async def client(base_url: str, connect: Connect) -> HTTPClient:
    """A client with a session."""
    client = connect(base_url)
    await client.initialize()
    return client


def codes(received: list[Event]) -> list[int]:
    """The codes of the errors, which is all that has been received."""
    return [event.message["error"]["code"] for event in received]


def progress(received: list[Event]) -> list[str]:
    """The messages of the progress notifications."""
    return [event.message["params"]["message"] for event in received if event.data and "method" in event.message]


@asynccontextmanager
async def cut_after(client: HTTPClient, controlled: ControlledServer, *steps: str) -> AsyncIterator[list[Event]]:
    """Call the tool, let it report steps, and cut the stream when all of them have arrived."""
    received: list[Event] = []
    async with client.call(1, "steps", name="work") as response:
        stream = events(response)
        received.append(await anext(stream))
        controlled.step("work", *steps)
        received += [await anext(stream) for _ in steps]
    yield received


async def test_resume_while_the_tool_runs_delivers_each_event_once(
    client: HTTPClient, controlled: ControlledServer
) -> None:
    """Events from before the cut, during it and after the resume arrive in order."""
    async with cut_after(client, controlled, "a", "b") as before:
        controlled.step("work", "c", "d")
        after: list[Event] = []
        async with client.get(before[-1].id) as response:
            async for event in events(response):
                after.append(event)
                if progress(after) == ["c", "d"]:
                    controlled.step("work", "e")
                if progress(after) == ["c", "d", "e"]:
                    controlled.finish("work")
    assert progress(before) == ["a", "b"]
    assert after[-1].message["result"]["structuredContent"] == {"result": "5 steps"}
    ids = [event.id for event in before + after]
    assert all(ids)
    assert len(set(ids)) == len(ids)


async def test_resume_of_a_finished_call_delivers_the_rest_and_ends(
    client: HTTPClient, controlled: ControlledServer
) -> None:
    """The same cursor gives the same events again."""
    async with cut_after(client, controlled, "a") as before:
        controlled.step("work", "b")
        controlled.finish("work")
    for _ in range(2):
        after = await client.resume(before[-1].id)
        assert progress(after) == ["b"]
        assert "result" in after[-1].message


async def test_resume_from_the_priming_event_delivers_everything(
    client: HTTPClient, controlled: ControlledServer
) -> None:
    """A stream that was cut before its first message resumes from its priming event."""
    async with cut_after(client, controlled) as before:
        controlled.step("work", "a")
        controlled.finish("work")
    assert [event.data for event in before] == [""]
    assert progress(await client.resume(before[0].id)) == ["a"]


async def test_resume_from_the_response_ends_immediately(client: HTTPClient) -> None:
    """A client that has the response is owed nothing."""
    async with client.call(1, "echo", text="x") as response:
        received = [event async for event in events(response)]
    with anyio.fail_after(CEILING):
        assert await client.resume(received[-1].id) == []


async def test_resume_replays_data_byte_for_byte(client: HTTPClient) -> None:
    """The data of a replayed event equals the data that was sent live."""
    async with client.call(1, "echo", text='\u2028 "é" 🎈 \x00') as response:
        live = [event async for event in events(response)]
    assert await client.resume(live[0].id) == live[1:]


async def test_message_without_a_json_form_is_skipped_on_a_resumed_stream(
    client: HTTPClient, controlled: ControlledServer
) -> None:
    """A tool reports a file name that is not UTF-8: the stream, its call and the session continue."""
    async with cut_after(client, controlled, "a") as before, client.get(before[-1].id) as response:
        stream = events(response)
        controlled.step("work", "b")
        assert progress([await anext(stream)]) == ["b"]
        controlled.step("work", "caf\udce9", "c")
        controlled.finish("work")
        with anyio.fail_after(CEILING):
            rest = [event async for event in stream]
    assert progress(rest) == ["c"]
    assert rest[-1].message["result"]["structuredContent"] == {"result": "4 steps"}
    async with client.call(2, "echo", text="x") as response:
        assert "result" in [event async for event in events(response)][-1].message


async def test_resume_beside_a_half_open_connection_is_served(client: HTTPClient, controlled: ControlledServer) -> None:
    """The client resumes while its old connection still stands."""
    async with client.call(1, "steps", name="work") as response:
        old = events(response)
        first = await anext(old)
        controlled.step("work", "a")
        await anext(old)
        async with client.get(first.id) as resumed:
            new = events(resumed)
            assert progress([await anext(new)]) == ["a"]
            controlled.step("work", "b")
            assert progress([await anext(new)]) == ["b"]
            controlled.finish("work")
            assert "result" in (await anext(new)).message


async def test_resume_with_a_cursor_of_another_session_is_refused(
    client: HTTPClient, controlled: ControlledServer, base_url: str, connect: Connect
) -> None:
    """Two sessions use the same request ids, and neither gets the other's events."""
    other = connect(base_url)
    await other.initialize()
    async with cut_after(client, controlled, "secret") as mine:
        controlled.finish("work")
    async with other.call(1, "echo", text="theirs") as response:
        theirs = [event async for event in events(response)]
    assert {event.id.partition(".")[2] for event in mine + theirs} == {"1"}
    for event in mine:
        assert codes(await other.resume(event.id)) == [EVENTS_GONE]
    for event in theirs:
        assert codes(await client.resume(event.id)) == [EVENTS_GONE]


MALFORMED: list[str | bytes] = [
    "0",
    "-1",
    "not a number",
    ".",
    ".1",
    "1.",
    "1" * 10_000,
    "1." + "1" * 10_000,
    "%",
    "1.{}",
    "1.\t1",
    b"\xff\xfe.1",
    b"\xb2.1",
]
UNKNOWN = [
    "1.%zz",
    "%00.1",
    "%25.%25",
    "-1.1",
    "0.1",
    "007.1",
    "1.1",
    "x.1",
    "999999999999999999.1",
    "99999999999999999999999999.1",
]


async def test_resume_from_a_cursor_never_given_out_is_an_error(
    client: HTTPClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It gets a refusal or an error, never an event, and causes no logged error."""
    async with client.call(1, "echo", text="x") as response:
        received = [event async for event in events(response)]
    first = received[0].id
    for cursor in MALFORMED:
        async with client.get(cursor) as response:
            assert (cursor, response.status_code) == (cursor, 400)
    for cursor in [*UNKNOWN, first + "0", "0" + first, first + ".1", first.partition(".")[0] + ".2"]:
        with anyio.fail_after(CEILING):
            assert (cursor, codes(await client.resume(cursor))) == (cursor, [EVENTS_GONE])
    assert "result" in (await client.resume(first))[-1].message
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_get_with_an_empty_cursor_opens_the_standalone_stream(client: HTTPClient) -> None:
    """It behaves like a GET without the header, and the newest connection has the stream."""
    async with client.get("") as response:
        assert response.status_code == 200
        async with client.get() as second:
            assert second.status_code == 200
            with anyio.fail_after(CEILING):
                assert [event.data async for event in events(response)] == [""], "its cursor, and nothing else"


async def test_delete_ends_resumed_streams(client: HTTPClient, controlled: ControlledServer) -> None:
    """An ended session ends the streams that are being resumed."""
    async with cut_after(client, controlled, "a") as before, client.get(before[0].id) as response:
        stream = events(response)
        await anext(stream)
        assert await client.delete() == 200
        with anyio.fail_after(CEILING):
            assert [event async for event in stream] == []


async def test_metrics_of_a_resume_count_it(
    client: HTTPClient, controlled: ControlledServer, registry: CollectorRegistry
) -> None:
    """The metrics show its outcome, its deliveries, and how long the client was disconnected."""

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"eventscope_{name}", {"store": "steered", **labels})

    async with cut_after(client, controlled, "a") as before:
        controlled.step("work", "b", "c")
        await until(lambda: sample("events_stored_total", message_type="notification") == 3)
        async with client.get(before[-1].id) as response:
            stream = events(response)
            for _ in "bc":
                await anext(stream)
            await until(lambda: sample("streams_followed") == 1)
            controlled.finish("work")
            await anext(stream)
    await until(lambda: sample("streams_followed") == 0)
    assert sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert sample("replay_events_sum") == 2
    assert sample("resume_age_seconds_count") == 1
    assert sample("events_followed_total") == 1
    assert sample("follow_duration_seconds_count", outcome="completed") == 1
    assert sample("errors_total", operation="replay", error_type="unavailable") == 0


async def test_server_shutdown_with_a_follower_ends(
    controlled: ControlledServer, valkey_url: str, registry: CollectorRegistry, connect: Connect
) -> None:
    """A server ends although a stream is being followed."""
    async with serving(http_app(controlled.mcp, redis_url=valkey_url, registry=registry)) as url:
        client = connect(url)
        await client.initialize()
        async with cut_after(client, controlled) as before:
            response = client.get(before[0].id)
            await response.__aenter__()
    await response.__aexit__(None, None, None)
    assert registry.get_sample_value("eventscope_streams_followed", {"store": "steered"}) == 0
