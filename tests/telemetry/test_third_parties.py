"""Third-party stores, decorated and served: the SDK's in memory, mcp-persist on SQLite, FastMCP."""

from collections.abc import AsyncIterator

import pytest

from examples.third_party import STORES
from mcp_eventscope import InstrumentedEventStore
from mcp_eventscope.store.messages import EventStore, JSONRPCMessage
from mcp_eventscope.store.results import Miss
from mcp_eventscope.testing import Collected, on_the_wire
from support.http_client import events
from support.messages import answer, failure, note
from telemetry.conftest import Rig, Scope

pytestmark = pytest.mark.anyio


@pytest.fixture(params=sorted(STORES))
async def theirs(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    """A third-party store, set up as documented."""
    async with STORES[request.param]() as store:
        yield store


async def test_third_party_store_appears_in_all_signals(scope: Scope, theirs: EventStore) -> None:
    """Latencies, message types, sizes, outcomes and reasons, in all signals."""
    session = scope.instrument(theirs).for_session("s")
    first = await session.append("1", None)
    sent: list[JSONRPCMessage] = [note(1), note(2), answer()]
    sizes = [(await session.append("1", message)).payload_bytes for message in sent]
    await session.append("2", failure(2))
    collected = Collected()
    facts = await session.replay(first.event_id, collected, stream_id="1")
    assert [data.count("method") for data in collected.data] == [1, 1, 0]
    assert (facts.delivered, facts.completed) == (3, True)
    assert (await session.replay("nonsense", collected, stream_id="1")).miss is Miss.UNKNOWN
    for kind, number in {"priming": 1, "notification": 2, "response": 1, "error": 1}.items():
        assert scope.sample("events_stored_total", message_type=kind) == number
    assert scope.sample("store_duration_seconds_count", outcome="ok") == 5
    assert scope.sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert scope.sample("replay_duration_seconds_count", outcome="missed") == 1
    assert (scope.sample("replay_events_sum"), scope.sample("replay_time_to_first_event_seconds_count")) == (3, 1)
    assert sum(sizes) == sum(len(on_the_wire(message)) for message in sent)
    assert [span.name for span in scope.spans()] == ["event_store.store"] * 5 + ["event_store.replay"] * 2
    assert [entry["event"] for entry in scope.log.entries] == ["event_store.replay_incomplete"]


async def test_through_the_sdks_interface(scope: Scope, theirs: EventStore) -> None:
    """The decorator behaves like the decorated store."""
    decorated: EventStore = scope.instrument(theirs)
    bare, seen = Collected(), Collected()
    first = await decorated.store_event("1", None)
    await decorated.store_event("1", note(1))
    assert await decorated.replay_events_after(first, seen) == await theirs.replay_events_after(first, bare) == "1"
    assert seen.events == bare.events
    assert await decorated.replay_events_after("nonsense", seen) is None


async def test_sessions_are_kept_apart(scope: Scope, theirs: EventStore) -> None:
    """Sessions are isolated although such a store knows streams only."""
    store = scope.instrument(theirs)
    mine, other = store.for_session("a"), store.for_session("b")
    cursor = (await other.append("1", None)).event_id
    await other.append("1", note(1))
    collected = Collected()
    assert (await mine.replay(cursor, collected, stream_id="1")).miss is Miss.UNKNOWN
    assert collected.data == []


async def test_third_party_store_that_raises_passes_its_error_on(
    scope: Scope, theirs: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors are passed on and counted; their messages are not logged."""

    async def broken(*_: object) -> str:
        msg = "a secret"
        raise OSError(msg)

    monkeypatch.setattr(theirs, "store_event", broken)
    store: InstrumentedEventStore = scope.instrument(theirs)
    with pytest.raises(OSError, match="a secret"):
        await store.for_session("s").append("1", note(1))
    assert scope.sample("errors_total", operation="store", error_type="other") == 1
    (entry,) = scope.log.named("event_store.store_failed")
    assert entry["error"] == "OSError"
    assert "secret" not in str(scope.log.entries)


async def test_third_party_store_resumes_a_call_over_http(rig: Rig, theirs: EventStore) -> None:
    """A call resumes from its first event, over HTTP, and is counted."""
    client = await rig.serve(store=theirs)
    await client.initialize()
    async with client.call(1, "echo", text="x") as response:
        received = [event async for event in events(response)]
    assert await client.resume(received[0].id) == received[1:]
    assert rig.scope.sample("replay_duration_seconds_count", outcome="resumed") == 1
    assert rig.live() == 1
