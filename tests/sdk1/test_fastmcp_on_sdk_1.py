"""A FastMCP server of mcp 1.x with a decorated store on a real Valkey: clients that are cut and resume."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from mcp import ClientSession, types
from mcp.client import streamable_http
from mcp.server.fastmcp import Context, FastMCP
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.instrumentation import instrument
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.results import FollowEnd
from sdk1.client import cut_after, resume, session, step_of
from support.serving import serving
from support.waiting import in_time, until

pytestmark = pytest.mark.anyio


@dataclass
class Served:
    """A server, its store, and the gate at which its tool waits."""

    url: str
    store: InstrumentedEventStore
    registry: CollectorRegistry
    gate: anyio.Event = field(default_factory=anyio.Event)

    def stored(self, message_type: str) -> float:
        """The number of stored events of a type."""
        labels = {"store": "default", "message_type": message_type}
        return self.registry.get_sample_value("eventscope_events_stored_total", labels) or 0

    def replays(self, outcome: str) -> float:
        """The number of replays with an outcome."""
        labels = {"store": "default", "outcome": outcome}
        return self.registry.get_sample_value("eventscope_replay_duration_seconds_count", labels) or 0


@pytest.fixture
async def served(registry: CollectorRegistry) -> AsyncIterator[Served]:
    """A running server whose tool reports two steps, waits, reports two more, and returns."""
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        root = RedisEventStore(client, ttl=600, store_timeout=30)
        store = instrument(root, registry=registry)
        server = FastMCP("sdk1", event_store=store, retry_interval=1000)
        here = Served("", store, registry)

        async def steps(ctx: Context) -> str:
            """Report steps in two halves."""
            for number in (1, 2):
                await ctx.info(str(number))
            await here.gate.wait()
            await ctx.session.send_resource_list_changed()  # Without `related_request_id`: on the standalone stream.
            for number in (3, 4):
                await ctx.info(str(number))
            return "done"

        async def polled(ctx: Context) -> str:
            """Close the client's stream after its first step, and finish before the client has resumed it."""
            await ctx.info("1")
            await here.gate.wait()
            await ctx.close_sse_stream()
            await ctx.info("2")
            return "done"

        server.add_tool(steps)
        server.add_tool(polled)
        async with serving(server.streamable_http_app()) as base:
            here.url = f"{base}/mcp"
            yield here
        await root.flush()


def check(received: list[tuple[str, Any]], last_event_id: str) -> None:
    """Check that each missed event arrived once and in order, then the response."""
    assert [step_of(message) for _, message in received] == ["3", "4", None]
    assert received[-1][1]["id"] == 7
    assert received[-1][1]["result"]["content"][0]["text"] == "done"
    ids = [int(last_event_id), *(int(event_id) for event_id, _ in received)]
    assert ids == sorted(set(ids))


async def test_client_that_resumes_after_the_response_receives_all(served: Served) -> None:
    """The missed events come from Valkey. The metrics name their types, and the response ends the stream."""
    with in_time(30):
        async with session(served.url) as http:
            last = await cut_after(http, served.url, "2")
            served.gate.set()
            await until(lambda: served.stored("response") == 2)  # That of `initialize` is the first.
            check(await resume(http, served.url, last), last)
    assert served.stored("notification") == 5
    # Of `initialize`, of the call and, once the replay has ended, of the resume.
    assert served.stored("priming") in {2, 3}
    assert served.replays("resumed") == 1

    async def ignore(_: object) -> None:
        """Drop an event."""

    facts = await served.store.follow("7", last, ignore, limit=60)
    assert (facts.end, facts.delivered) == (FollowEnd.COMPLETED, 3)


async def test_client_that_resumes_during_the_call_receives_all(served: Served) -> None:
    """The tool still runs when the client resumes. With its priming event, the SDK switches to live events."""
    with in_time(30):
        async with session(served.url) as http:
            last = await cut_after(http, served.url, "2")
            check(await resume(http, served.url, last, served.gate.set), last)
    assert served.replays("caught_up") == 1


async def test_sdk_client_whose_stream_the_server_closes_resumes(served: Served) -> None:
    """The SDK's own client reconnects with the id of the priming event, and its call returns."""
    sdk: Any = streamable_http
    connecting = getattr(sdk, "streamable_http_client", None) or sdk.streamablehttp_client  # Renamed by 1.24.
    steps: list[object] = []

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        steps.append(params.data)
        served.gate.set()

    with in_time(60):
        async with (
            connecting(served.url) as (read, write, _),
            ClientSession(read, write, logging_callback=on_log) as client,
        ):
            await client.initialize()
            result = await client.call_tool("polled", {})
    assert result.content[0].text == "done"  # type: ignore[union-attr]
    assert steps == ["1", "2"]
    assert served.replays("resumed") == 1
