"""Redis fails, and a live session does not notice."""

from collections.abc import AsyncIterator

import anyio
import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import http_app
from mcp_eventscope.embedded import EmbeddedValkey
from support.controlled_server import ControlledServer
from support.http_client import Connect, events
from support.serving import serving
from support.waiting import CEILING

pytestmark = pytest.mark.anyio

KINDS = ("priming", "request", "notification", "response", "error")


@pytest.fixture
async def doomed() -> AsyncIterator[EmbeddedValkey]:
    """A Valkey that a test may stop."""
    valkey = EmbeddedValkey()
    async with valkey.running():
        yield valkey


async def test_call_when_redis_dies_continues_live_with_ids(
    doomed: EmbeddedValkey, registry: CollectorRegistry, connect: Connect
) -> None:
    """The session serves its next call, and the outage and its losses are counted."""
    controlled = ControlledServer()
    async with serving(http_app(controlled.mcp, redis_url=doomed.url, registry=registry)) as url:
        client = connect(url)
        await client.initialize()
        async with client.call(1, "steps", name="work") as response:
            stream = events(response)
            assert (await anext(stream)).id
            doomed._stop()
            controlled.step("work", "a", "b")
            controlled.finish("work")
            with anyio.fail_after(CEILING):
                rest = [event async for event in stream]
        assert [bool(event.id) for event in rest] == [True] * 3
        assert rest[-1].message["result"]["structuredContent"] == {"result": "2 steps"}
        async with client.call(2, "echo", text="still here") as response:
            last = [event async for event in events(response)][-1]
        assert last.message["result"]["structuredContent"] == {"result": "still here"}
    value = registry.get_sample_value
    assert value("eventscope_degradations_total", {"store": "steered", "reason": "connection"}) == 1
    assert value("eventscope_degraded", {"store": "steered"}) == 1
    # Lost with the process, since Redis did not come back: both calls' events, from the first that was not stored.
    lost = value("eventscope_events_lost_total", {"store": "steered", "reason": "shutdown"})
    accepted = value("eventscope_events_accepted_total", {"store": "steered"})
    stored = sum(
        value("eventscope_events_stored_total", {"store": "steered", "message_type": kind}) or 0 for kind in KINDS
    )
    assert lost is not None
    assert lost >= 5
    assert accepted == stored + lost
