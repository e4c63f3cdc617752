"""Redis fails, and a live session does not notice."""

from collections.abc import AsyncIterator

import anyio
import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import http_app
from mcp_eventscope.embedded import EmbeddedValkey
from support.raw import Connect, events
from support.serving import serving
from support.tools import Steered
from support.waiting import CEILING

pytestmark = pytest.mark.anyio


@pytest.fixture
async def doomed() -> AsyncIterator[EmbeddedValkey]:
    """A Valkey that a test may stop."""
    valkey = EmbeddedValkey()
    async with valkey.running():
        yield valkey


async def test_redis_dies_in_the_middle_of_a_call(
    doomed: EmbeddedValkey, registry: CollectorRegistry, connect: Connect
) -> None:
    """The call goes on live, without ids; the session serves its next call; the failures are counted."""
    steered = Steered()
    async with serving(http_app(steered.mcp, redis_url=doomed.url, registry=registry)) as url:
        client = connect(url)
        await client.initialize()
        async with client.call(1, "steps", name="work") as response:
            stream = events(response)
            assert (await anext(stream)).id
            doomed._server.terminate()
            steered.step("work", "a", "b")
            steered.finish("work")
            with anyio.fail_after(CEILING):
                rest = [event async for event in stream]
        assert [event.id for event in rest] == ["", "", ""]
        assert rest[-1].message["result"]["structuredContent"] == {"result": "2 steps"}
        async with client.call(2, "echo", text="still here") as response:
            last = [event async for event in events(response)][-1]
        assert last.message["result"]["structuredContent"] == {"result": "still here"}
    value = registry.get_sample_value
    deferred = value("eventscope_store_duration_seconds_count", {"store": "default", "outcome": "deferred"})
    assert deferred is not None
    assert deferred >= 4
    assert value("eventscope_degradations_total", {"store": "default", "reason": "connection"}) == 1
    assert value("eventscope_degraded", {"store": "default"}) == 1
    # All of them are lost, with the process: Redis did not come back.
    assert value("eventscope_lost_events_total", {"store": "default", "reason": "shutdown"}) == deferred
